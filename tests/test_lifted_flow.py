"""Densities of lifted data: exact where theory says so, bounds that tighten, and what is refused."""

import math

import pytest
import torch
from tasks import minimise
from torch import nn

from anode import Augment, InputError, Solver, count_evals
from cnf import (
    Base,
    Dequantize,
    Flow,
    LiftedFlow,
    MaximumLikelihood,
    Normal,
    Standardize,
    Transform,
    VariationalAugment,
    density_model,
)
from cnf.transforms import Transport


class Uniform(Base):
    """The base U[0, 1]^2, for discrete data whose mass is then known."""

    def log_prob(self, z):
        return torch.where(((z >= 0) & (z < 1)).all(1), 0.0, -math.inf)

    def sample(self, n, temperature=1.0):
        return torch.rand(n, 2)


class Correlated(Transform):
    """To independent normal numbers from a pair of unit variances and a correlation."""

    def __init__(self, correlation):
        super().__init__()
        self.factor = torch.linalg.cholesky(torch.tensor([[1.0, correlation], [correlation, 1.0]]))

    def forward(self, x, c=None):
        z = torch.linalg.solve_triangular(self.factor, x.T, upper=False).T
        return Transport(z, -self.factor.diagonal().log().sum().expand(len(x)))


def augmented_line(**options):
    """A density of one dimension and one augmented one, far from its start."""
    model = density_model((1,), hidden=(6, 6), extra=1, solver=Solver(rtol=1e-6, atol=1e-6), **options)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.1 if "head" in name else 0.4)
    return model


def test_the_bound_of_a_uniform_density_is_the_exact_mass():
    model = LiftedFlow(Dequantize(4), Flow(Standardize((2,)), Uniform((2,))))
    x = torch.randint(4, (50, 2))
    torch.testing.assert_close(model.elbo(x).value, torch.full((50,), -2 * math.log(4)))
    torch.testing.assert_close(model.log_prob(x, samples=3), torch.full((50,), -2 * math.log(4)))
    assert (model.kind, model.event_shape) == ("bound", (2,))


def test_masses_of_discrete_data_sum_to_at_most_one():
    """The bound of a small model over all 3^2 values; the rest lies beyond the levels."""
    data = torch.randint(3, (200, 2))
    model = density_model((2,), data, hidden=(8,), levels=3, alpha=0.01)
    values = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    with torch.no_grad():
        total = model.log_prob(values, samples=150).exp().sum().item()
    assert 0.9 < total < 1.02


def test_the_true_posterior_makes_the_bound_exact(float64):
    """For a pair of correlated normal numbers, q(a given x) = N(r x, 1 - r^2)."""
    correlation = 0.8
    lift = VariationalAugment(1, "learned", (1,))
    lift.head = nn.Linear(1, 2)
    lift.head.weight.data = torch.tensor([[correlation], [0.0]])
    lift.head.bias.data = torch.tensor([0.0, math.log(1 - correlation**2) / 2])
    model = LiftedFlow(lift, Flow(Correlated(correlation), Normal((2,))))
    x = torch.randn(100, 1)
    for bound in (model.elbo(x).value, model.log_prob(x, samples=5)):
        torch.testing.assert_close(bound, Normal((1,)).log_prob(x))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"posterior": "learned"}, {"augmentation": "momentum"}], ids=str)
def test_importance_weighting_is_the_marginal_by_quadrature(float64, options):
    model = augmented_line(**options)
    x, axis = torch.linspace(-1.5, 1.5, 7)[:, None], torch.arange(-8, 8, 0.04)
    pairs = torch.cat([x.repeat_interleave(len(axis), 0), axis.repeat(len(x))[:, None]], 1)
    marginal = model.flow.log_prob(pairs).view(len(x), -1).logsumexp(1) + math.log(0.04)
    bounds = torch.stack([model.log_prob(x, samples=2000) for _ in range(16)])
    error = bounds.std(0) / math.sqrt(16)
    assert error.max() < 0.02
    assert ((bounds.mean(0) - marginal).abs() < torch.clamp(5 * error, min=5e-3)).all()


@torch.no_grad()
def test_the_bound_rises_with_the_draws(float64):
    model = augmented_line(posterior="learned")
    x = torch.tensor([[0.5]]).expand(3000, 1)
    means = [model.log_prob(x, samples=k).mean().item() for k in (1, 4, 32)]
    assert means[0] < means[1] < means[2]


def test_points_solved_together_are_bounded(float64, monkeypatch):
    model = augmented_line()
    x = torch.randn(10, 1)
    with count_evals() as nfe:
        model.log_prob(x, samples=64)
    assert nfe.solves == 1
    for bound, most in (("MAX_POINTS", 100), ("MAX_NUMBERS", 105)):
        with monkeypatch.context() as patched, count_evals() as nfe:
            patched.setattr(f"cnf.batches.{bound}", most)
            model.log_prob(x, samples=64)
        assert nfe.solves == 7  # ten draws at once, and four
        assert nfe.per_solve == nfe.forward / 7


def test_training_raises_the_bound_and_samples_are_levels():
    data = 4 * torch.randint(2, (64, 1, 1, 1)).expand(64, 1, 2, 2)  # all pixels alike: far from the initial Gaussian
    model = density_model((1, 2, 2), data, hidden=(16,), levels=5)
    objective = MaximumLikelihood(model)
    losses = minimise(lambda: objective(data), model, 25, 2e-2)
    assert sum(losses[-5:]) < sum(losses[:5]) - 1
    x = model.sample(50)
    assert x.shape == (50, 1, 2, 2)
    assert set(x.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_integers_fit_a_model_of_any_precision():
    x = torch.randint(4, (5, 3))
    assert density_model((3,), levels=4).double().elbo(x).value.dtype == torch.float64


def test_distributions_know_the_support(monkeypatch):
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)  # torch.compile switches it off
    discrete = density_model((3,), levels=4)()
    assert discrete.log_prob(torch.zeros(5, 3)).shape == (5,)
    with pytest.raises(ValueError, match="support"):
        discrete.log_prob(torch.full((5, 3), 0.5))
    assert density_model((2,), extra=1)().support.check(torch.randn(5, 2)).all()


def test_paths_are_projected():
    assert density_model((2,), extra=3).sample_paths(7, [0.0, 0.5, 1.0]).shape == (3, 7, 2)


def test_bad_lifted_densities_are_named():
    with pytest.raises(InputError, match="Zero padding"):
        LiftedFlow(Augment(1), density_model((3,)))
    with pytest.raises(InputError, match="flow of type Linear is not a density"):
        LiftedFlow(Dequantize(4), nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"leaves nothing of the \(2,\)"):
        LiftedFlow(VariationalAugment(3), density_model(2))
    with pytest.raises(InputError, match=r"samples=2\.5"):
        density_model((2,), levels=3).log_prob(torch.zeros(1, 2), samples=2.5)
    with pytest.raises(InputError, match="samples=0"):
        density_model((2,), levels=3).log_prob(torch.zeros(1, 2), samples=0)
    estimated = density_model((3,), levels=4, divergence="hutchinson")
    assert torch.isfinite(estimated.log_prob(torch.randint(4, (5, 3)), samples=1)).all()
    for refused in (
        lambda: estimated.log_prob(torch.randint(4, (5, 3))),  # E log mean exp of noisy log-densities is too large
        lambda: MaximumLikelihood(estimated, samples=2),
    ):
        with pytest.raises(InputError, match="do not give a bound: use divergence='exact'"):
            refused()


@pytest.mark.parametrize(
    ("x", "names"),
    [
        (torch.randn(4, 3), r"x of shape \(4, 3\) does not fit the flow: pass \(B, 2\)"),
        (torch.full((4, 2), math.nan), "x is not finite in 4 of 4 samples"),
    ],
)
def test_samples_that_do_not_fit_are_named(x, names):
    with pytest.raises(InputError, match=names):
        density_model((2,), extra=1).log_prob(x)
    with pytest.raises(InputError, match="0 to 3" if x.isnan().any() else names):
        density_model((2,), levels=4).log_prob(x)


def test_components_of_a_mixture_below_the_lift_are_pruned(float64):
    model = density_model((1, 2, 2), hidden=(8, 8), levels=5, extra=3, augmentation="categorical")
    x = torch.randint(5, (120, 1, 2, 2))
    values = []
    for prune in (None, 1e-3):
        torch.manual_seed(0)
        values.append(model.log_prob(x, samples=2, prune=prune))
    gap = values[0] - values[1]
    assert (gap > -1e-4).all()
    assert gap.max() < 0.01
    with pytest.raises(InputError, match=r"prune=0\.1 is for a MixtureFlow, Flow does not have components"):
        density_model((1, 2, 2), levels=5).log_prob(x, prune=0.1)
