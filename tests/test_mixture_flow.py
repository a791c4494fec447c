"""Mixtures of flows with one field: the explicit sum, the bound by one component, and flow matching."""

import math

import pytest
import torch
from fields import wild
from tasks import minimise
from torch import nn

from anode import InputError, MLPField, Solver, count_evals
from cnf import (
    Compose,
    Continuous,
    FlowMatching,
    MaximumLikelihood,
    Mixture,
    MixtureFlow,
    Normal,
    SolveOptions,
    density_model,
)


@pytest.fixture
def model(float64):
    model = density_model((2,), hidden=(6, 6), extra=3, augmentation="categorical", context=1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def two_pieces(n=300, spread=0.3, at=4.0):
    return torch.cat([torch.randn(n, 2) * spread + place for place in (-at, at)])


def test_the_density_is_the_explicit_sum(model):
    x, c = torch.randn(7, 2), torch.randn(7, 1)
    total = torch.zeros(7)
    for k in range(3):
        mean, scale = model.mixture.means[k], model.mixture.log_scales[k].exp()
        z, log_det, _ = model.transform((x - mean) / scale, torch.cat([torch.eye(3)[k].expand(7, 3), c], 1))
        log_normal = Normal((2,)).log_prob(z) + log_det - scale.log().sum()
        total = total + model.mixture.weights[k] * log_normal.exp()
    torch.testing.assert_close(model.log_prob(x, c), total.log(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.elbo(x, c).value, model.log_prob(x, c))
    assert model.log_prob(x[:0], c[:0]).shape == (0,)


def test_components_solved_separately_are_the_same(model, monkeypatch):
    x, c = torch.randn(7, 2), torch.randn(7, 1)
    together = model.log_prob(x, c)
    monkeypatch.setattr("cnf.batches.MAX_POINTS", 8)
    with count_evals() as nfe:
        separately = model.log_prob(x, c)
    assert nfe.solves == 3
    torch.testing.assert_close(separately, together, rtol=1e-4, atol=1e-4)


def test_energies_are_means_over_the_components(model):
    x, c = torch.randn(5, 2), torch.randn(5, 1)
    shares, options = model.log_joint(x, c).softmax(0), SolveOptions(("kinetic",))
    energies = []
    for k in range(3):
        context = torch.cat([torch.eye(3)[k].expand(5, 3), c], 1)
        local = (x - model.mixture.means[k]) / model.mixture.log_scales[k].exp()
        energies.append(model.transform(local, context, options).energies["kinetic"])
    found = model.elbo(x, c, options).energies["kinetic"]
    torch.testing.assert_close(found, (shares * torch.stack(energies)).sum(0), rtol=1e-4, atol=1e-5)


def test_points_return(model):
    x, c = torch.randn(5, 2), torch.randn(5, 1)
    torch.testing.assert_close(model.round_trip(x, c), x, rtol=1e-3, atol=1e-3)


def test_it_starts_as_the_mixture_of_the_data(float64):
    x = two_pieces()
    model = density_model((2,), x, extra=2, augmentation="categorical")
    normal = torch.distributions.Normal(torch.tensor([-4.0, 4.0])[:, None], 0.3)
    known = normal.log_prob(x[:, None, :]).sum(2).logsumexp(1) - math.log(2)
    assert abs(model.log_prob(x).mean() - known.mean()) < 0.05


@pytest.mark.parametrize("posterior", ["normal", "fitted"])
def test_flow_matching_starts_from_the_component_of_the_data(float64, posterior):
    x = two_pieces()
    model = density_model((2,), x, extra=2, augmentation="categorical", posterior=posterior)
    field, local, _, c, _ = model.matching_pair(x)
    assert model.couples_base
    torch.testing.assert_close(local.mean(0), torch.zeros(2), rtol=0, atol=0.05)  # each piece in its own coordinates
    torch.testing.assert_close(local.std(0), torch.ones(2), rtol=0, atol=0.05)
    assert torch.equal(c.argmax(1), model.log_joint(x).argmax(0))
    FlowMatching(model)(x).backward()
    assert field.layers[-1].weight.grad.any()
    assert all(parameter.grad is None for parameter in model.mixture.parameters())  # it would shrink to the base


def test_the_bound_by_one_component_has_the_known_mean(float64):
    x = two_pieces(spread=1.0, at=1.0)
    model = density_model((2,), x, hidden=(6, 6), extra=2, augmentation="categorical", posterior="fitted")
    wild(model.transform.field)
    nn.init.normal_(model.mixture.means, std=0.4)
    points = torch.tensor([[0.0, 0.0], [0.5, -0.2], [-0.3, 0.1]])
    shares = model.posterior.log_joint(model.static.encode(points)[:, None], slice(None)).softmax(1).T
    mean = (shares * (model.log_joint(points) - shares.log())).sum(0)
    bounds = model.elbo(points.repeat(3000, 1)).value.view(3000, 3)
    assert ((bounds.mean(0) - mean).abs() < 4 * bounds.std(0) / math.sqrt(3000)).all()
    assert (mean < model.log_prob(points)).all()
    torch.testing.assert_close(
        MaximumLikelihood(model, samples=2000)(points), -model.log_prob(points).mean(), atol=0.03, rtol=0
    )
    assert not any(weight.requires_grad for weight in model.posterior.parameters())


@pytest.fixture
def trained(float64):
    """A mixture near its data, with a field that moves every component, and points with contexts."""
    torch.manual_seed(0)
    x, c = two_pieces(spread=0.8, at=1.5), torch.randn(600, 1)
    model = density_model((2,), x, hidden=(8, 8), extra=6, augmentation="categorical", posterior="fitted", context=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    objective = MaximumLikelihood(model.with_solver(Solver("rk4", step_size=0.5)))
    for _ in range(60):
        optimizer.zero_grad()
        objective(x, c).backward()
        optimizer.step()
    return model.with_solver(Solver("rk4", step_size=0.25)), x, c  # whose result for a row does not depend on others


@pytest.mark.parametrize("prune", [1e-1, 1e-2, 1e-3])
def test_a_pruned_sum_is_a_bound_by_the_components_that_matter(trained, prune):
    model, x, c = trained
    log_joint, solved = model.log_joint(x, c), model.solved_components(x, c, prune)
    looped = [log_joint[solved[:, i], i].logsumexp(0) for i in range(len(x))]
    pruned, full = model.log_prob(x, c, prune=prune), model.log_prob(x, c)
    torch.testing.assert_close(pruned, torch.stack(looped))
    assert (pruned <= full + 1e-12).all()
    assert 0 < (full - pruned).mean() < prune
    assert (full - pruned).max() < -7 * math.log1p(-prune)
    assert solved.sum() < 0.6 * solved.numel()
    shares = log_joint.softmax(0)
    assert solved[shares > 1.3 * prune].all()  # the gate's responsibilities are near the solved ones
    assert not solved[(shares < prune / 1.3) & (shares < shares.amax(0))].any()
    with torch.no_grad():
        torch.testing.assert_close(model.elbo(x, c, prune=prune).value, pruned)


def test_filling_errs_less_for_smaller_thresholds(trained):
    model, x, c = trained
    full = model.log_prob(x, c)
    errors = [(model.log_prob(x, c, prune=p, fill=True) - full).abs().mean() for p in (0.3, 0.03, 0.003)]
    assert errors[0] > 2 * errors[1]
    assert 1e-6 > errors[1] > errors[2]  # what is left are components that are no candidates
    assert errors[1] < 0.2 * (model.log_prob(x, c, prune=0.03) - full).abs().mean()


def test_gradients_and_points_of_a_pruned_sum(trained):
    model, x, c = trained
    weights = [*model.transform.parameters(), model.mixture.means]
    pruned, full = (torch.autograd.grad(model.log_prob(x, c, prune=each).mean(), weights) for each in (1e-4, None))
    for one, other in zip(pruned, full, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
    with count_evals() as nfe:
        model.log_prob(x, c, prune=1e-2)
    assert (nfe.forward, nfe.solves) == (4 + 16, 2)
    solved = model.solved_components(x, c).sum().item()
    assert 4 * solved <= nfe.points - 16 * solved <= 4 * 6 * len(x)
    with count_evals() as nfe:
        model.log_prob(x[:99], c[:99], prune=1e-2)
    assert (nfe.solves, nfe.points) == (1, 16 * 6 * 99)  # few samples have no gate


def test_pruning_does_not_change_which_rows_are_finite(trained):
    model, x, c = trained
    x = x.clone()
    x[:6] = torch.tensor([1e3, 1e8, 1e100, 1e154, 1e200, 1e300]).unsqueeze(1)
    full, pruned = model.log_prob(x, c), model.log_prob(x, c, prune=1e-2)
    assert full.isfinite().sum() < len(x)
    assert torch.equal(full.isfinite(), pruned.isfinite())


@pytest.fixture
def stepped(float64):
    """A lightly trained mixture of residual steps, its data, and their contexts."""
    torch.manual_seed(0)
    x, c = two_pieces(spread=0.8, at=1.5), torch.randn(600, 1)
    options = {"extra": 6, "augmentation": "categorical", "posterior": "fitted", "context": 1, "residual_steps": 3}
    model = density_model((2,), x, hidden=(8, 8), **options)
    objective = MaximumLikelihood(model)
    minimise(lambda: objective(x, c), model, 60, 1e-2)
    return model, x, c


@pytest.mark.parametrize("prune", [1e-1, 1e-2])
def test_a_pruned_sum_of_residual_steps_is_a_near_bound(stepped, prune):
    model, x, c = stepped
    log_joint, solved = model.log_joint(x, c), model.solved_components(x, c, prune)
    pruned, full = model.log_prob(x, c, prune=prune), model.log_prob(x, c)
    torch.testing.assert_close(pruned, log_joint.masked_fill(~solved, -math.inf).logsumexp(0))
    assert (pruned <= full + 1e-12).all()
    assert (full - pruned).mean() < prune / 3
    assert (full - pruned).max() < -3 * math.log1p(-prune)
    assert solved.sum() < 0.8 * solved.numel()


def test_the_gate_of_residual_steps_takes_n_evaluations(stepped):
    model, x, c = stepped
    with count_evals() as nfe:
        model.log_prob(x, c, prune=1e-2)
    assert (nfe.solves, nfe.forward) == (2, 3 + 3)


def test_thresholds_that_make_no_sense_are_refused(model):
    x, c = torch.randn(7, 2), torch.randn(7, 1)
    for prune in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(InputError, match="must lie between 0 and 1"):
            model.log_prob(x, c, prune=prune)
    with pytest.raises(InputError, match="nothing to fill"):
        model.log_prob(x, c, fill=True)


def test_estimates_are_refused():
    with pytest.raises(InputError, match="biased"):
        density_model((2,), extra=2, augmentation="categorical", divergence="hutchinson")
    with pytest.raises(InputError, match="biased"):
        MixtureFlow(Compose([]), Mixture((2,), 2), Continuous(MLPField(2, context=2), divergence="hutchinson"))
    with pytest.raises(InputError, match=r"MixtureFlow\(Compose, Normal, Continuous\) needs a Transform"):
        MixtureFlow(Compose([]), Normal((2,)), Continuous(MLPField(2, context=2)))
