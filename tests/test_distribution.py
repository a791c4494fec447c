"""A flow as a torch distribution, used as a stranger to this package would use it."""

import math

import pytest
import torch
from fields import Linear
from torch import distributions as D

from anode import Field, InputError, MLPField, Solver
from cnf import Compose, Continuous, Flow, Logit, Mixture, Normal, Standardize

TIGHT = Solver(rtol=1e-9, atol=1e-9)


@pytest.fixture(autouse=True)
def validated(monkeypatch):
    """Validate arguments, as by default; ``torch.compile`` in another test switches it off for good."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)


def conditional_flow(solver=TIGHT):
    """p(x given c) of two dimensions and three context features, far from the identity."""
    field = MLPField(2, (16, 16), context=3)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Flow(Continuous(field, solver), Normal((2,)))


def gaussian_flow():
    """A flow of a linear field, and the Gaussian that it is."""
    field = Linear(torch.randn(2, 2) / 2, torch.randn(2))
    shift = field.solution(torch.zeros(1, 2), 1.0)[0]
    matrix = (field.solution(torch.eye(2), 1.0) - shift).T
    gaussian = D.MultivariateNormal(shift.detach(), (matrix @ matrix.T).detach())
    return Flow(Continuous(field, TIGHT), Normal((2,))), gaussian


@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,), (2, 0)])
def test_contexts_are_batches(float64, batch):
    flow, c = conditional_flow(), torch.randn(*batch, 3)
    p = flow(c)
    assert (p.batch_shape, p.event_shape, p.has_rsample) == (batch, (2,), True)
    x = p.sample((5,))
    assert x.shape == (5, *batch, 2)
    flat = flow.log_prob(x.reshape(-1, 2), c.expand(5, *batch, 3).reshape(-1, 3))
    torch.testing.assert_close(p.log_prob(x), flat.reshape(5, *batch), rtol=1e-6, atol=1e-6)
    assert p.log_prob(x[0, ..., :1, :] if batch else x[0]).shape == batch  # values broadcast
    assert not x.requires_grad


@pytest.mark.parametrize("size", [5, 5.0, [5], (5,), torch.Size([5])])
def test_sample_shapes_are_numbers_or_sequences(size):
    p = conditional_flow()(torch.randn(4, 3))
    assert p.sample(size).shape == p.rsample(size).shape == p.rsample_and_log_prob(size)[0].shape == (5, 4, 2)
    for wrong in (-1, 2.5, (2, "3")):
        with pytest.raises(InputError, match=r"sample_shape=.* must be a whole number of at least 0"):
            p.sample(wrong)


def test_batches_expand(float64):
    p, c = conditional_flow()(torch.randn(3, 3)), None
    wide = p.expand((4, 3))
    x = wide.rsample((2,))
    assert (wide.batch_shape, x.shape) == ((4, 3), (2, 4, 3, 2))
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x), rtol=1e-6, atol=1e-6)
    unconditional = gaussian_flow()[0](c).expand((4,))
    assert unconditional.rsample().shape == (4, 2)
    assert unconditional.log_prob(torch.zeros(2)).shape == (4,)


def test_independent_sums_over_the_batch(float64):
    p = conditional_flow()(torch.randn(4, 3))
    joint = D.Independent(p, 1)
    x = joint.rsample((6,))
    assert (joint.event_shape, x.shape) == ((4, 2), (6, 4, 2))
    torch.testing.assert_close(joint.log_prob(x), p.log_prob(x).sum(-1))


def test_a_transformed_flow_is_the_transformed_gaussian(float64):
    flow, gaussian = gaussian_flow()
    affine = D.AffineTransform(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]), event_dim=1)
    ours, theirs = (D.TransformedDistribution(base, [affine]) for base in (flow(), gaussian))
    x = ours.rsample((50,))
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=0, atol=1e-7)


def test_monte_carlo_divergence_meets_the_closed_form(float64):
    flow, gaussian = gaussian_flow()
    other = D.MultivariateNormal(torch.zeros(2), 2 * torch.eye(2))
    x, log_q = flow().rsample_and_log_prob((4000,))
    draws = log_q - other.log_prob(x)
    error = draws.std() / len(draws) ** 0.5
    assert (draws.mean() - D.kl_divergence(gaussian, other)).abs() < 4 * error
    with pytest.raises(NotImplementedError):
        D.kl_divergence(flow(), other)


@pytest.mark.parametrize("with_log_prob", [False, True])
def test_gradients_of_samples_equal_finite_differences(float64, with_log_prob):
    flow, c = conditional_flow(), torch.randn(2, 3, requires_grad=True)

    def value():
        torch.manual_seed(2)
        x, log_p = flow(c).rsample_and_log_prob((3,)) if with_log_prob else (flow(c).rsample((3,)), torch.zeros(()))
        return (x.square().sum(-1) + log_p).sum()

    tensors = [c, *flow.parameters()]
    gradients = torch.autograd.grad(value(), tensors)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        direction, ends = torch.randn_like(tensor), []
        for step in (1e-5, -2e-5):
            tensor.data.add_(step * direction)
            ends.append(value().item())
        tensor.data.add_(1e-5 * direction)
        assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-6)


def test_values_are_validated_as_torch_does():
    p = gaussian_flow()[0]()
    for wrong in (torch.tensor([[math.nan, 0.0]]), torch.zeros(4, 3)):
        with pytest.raises(ValueError, match=r"support|event_shape"):
            p.log_prob(wrong)
    unchecked = type(p)(p.density, validate_args=False)
    assert unchecked.expand((3,))._validate_args is False
    with pytest.raises(InputError, match="not finite"):
        unchecked.log_prob(torch.tensor([[math.nan, 0.0]]))
    with pytest.raises(InputError, match=r"pass a tensor \(\*batch, C\)"):
        p.density(torch.tensor(1.0))


def test_the_support_is_that_of_the_data():
    assert gaussian_flow()[0]().support.event_dim == 1
    unit = Flow(Compose([Logit(), Standardize((2,))]), Normal((2,)))()
    assert unit.support.check(unit.sample((9,))).all()
    with pytest.raises(ValueError, match="support"):
        unit.log_prob(torch.tensor([[0.5, 1.5]]))


def test_a_mixture_says_why_it_has_no_rsample():
    p = Flow(Standardize((2,)), Mixture((2,), 3))()
    assert not p.has_rsample
    assert p.sample((4,)).shape == (4, 2)
    with pytest.raises(InputError, match="choice of a component"):
        p.rsample()


def test_pyro_takes_flows_as_likelihood_and_guide():
    """x = z + noise, z ~ N(0, 1): likelihood and guide are flows; the guide becomes N(x/2, 1/2)."""
    pyro = pytest.importorskip("pyro", reason="pyro-ppl is not installed")
    from pyro.contrib.zuko import ZukoToPyro

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    solver = Solver("rk4", step_size=0.5)
    likelihood = Flow(Continuous(Field.wrap(lambda t, x, c: c + 0 * x), solver), Normal((1,)))  # dx/dt = c
    guide = Flow(Continuous(Linear(torch.zeros(1, 1), torch.zeros(1)), solver), Normal((1,)))

    def model():
        z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", ZukoToPyro(likelihood(z)), obs=torch.tensor([2.0]))

    def posterior():
        pyro.module("guide", guide)
        pyro.sample("z", ZukoToPyro(guide()))

    elbo = pyro.infer.Trace_ELBO(num_particles=128, vectorize_particles=True, max_plate_nesting=0)
    svi = pyro.infer.SVI(model, posterior, pyro.optim.Adam({"lr": 0.05}), elbo)
    for _ in range(60):
        svi.step()
    z = guide.sample(4000)
    assert z.mean().item() == pytest.approx(1.0, abs=0.1)
    assert z.std().item() == pytest.approx(math.sqrt(0.5), abs=0.1)
