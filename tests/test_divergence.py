"""Divergences against the Jacobian by automatic differentiation."""

import pytest
import torch
from fields import Conv, Linear, jacobians, mlp_fields
from torch import nn

from anode import Field, InputError, MLPField
from cnf import exact_divergence, exact_jacobian, hutchinson_divergence
from cnf.divergence import exact_by_pullbacks, probe_noise

T = torch.tensor(0.3)
torch.manual_seed(0)  # the fields below, whatever was imported before


def trace(field, t, x, c=None):
    """The trace of the Jacobian of every sample, by brute force."""

    def one(x, c):
        return torch.autograd.functional.jacobian(lambda x: field(t, x[None], c)[0], x)

    rows = []
    for i, sample in enumerate(x):
        jacobian = one(sample, None if c is None else c[i : i + 1])
        rows.append(jacobian.reshape(sample.numel(), sample.numel()).trace())
    return torch.stack(rows)


@pytest.mark.parametrize("field", list(mlp_fields())[::5], ids=lambda f: f"{len(f.layers) - 1}-{f.time}")
def test_exact_is_the_trace(float64, field):
    field = field.double()
    x, c = torch.randn(4, 3), torch.randn(4, field.context) if field.context else None
    for rates in (exact_divergence(field, T, x, c), exact_by_pullbacks(field, T, x, c)):
        torch.testing.assert_close(rates.velocity, field(T, x, c))
        torch.testing.assert_close(rates.divergence, trace(field, T, x, c), rtol=0, atol=1e-12)


def test_any_module_is_a_field_on_images(float64):
    for field, shape in (
        (Conv(2), (2, 4, 5)),
        (Field.wrap(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, padding=1))), (1, 2, 3)),
    ):
        x = torch.randn(3, *shape)
        torch.testing.assert_close(exact_divergence(field, T, x).divergence, trace(field, T, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        (Linear(torch.randn(3, 3).double()), (3,)),
        (Conv(2).double(), (2, 2, 3)),
        (MLPField(6, (8, 8, 8)).double(), (1, 2, 3)),
        (Field.wrap(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()), (3,)),
    ],
    ids=lambda part: "" if isinstance(part, tuple) else type(part).__name__,
)
def test_jacobians_are_those_of_automatic_differentiation(float64, field, shape):
    x = torch.randn(4, *shape)
    velocity, jacobian = exact_jacobian(field, T, x)
    torch.testing.assert_close(velocity, field(T, x))
    torch.testing.assert_close(jacobian, jacobians(field, T, x).flatten(2), rtol=0, atol=1e-12)
    rates = exact_by_pullbacks(field, T, x, frobenius=True)
    torch.testing.assert_close(jacobian.diagonal(dim1=1, dim2=2).sum(1), rates.divergence)
    torch.testing.assert_close(jacobian.square().sum((1, 2)), rates.frobenius)


def test_jacobians_of_times_of_each_sample(float64):
    field, x, t = MLPField(2, (5, 4), time="squash"), torch.randn(3, 2), torch.rand(3)
    alone = [exact_jacobian(field, t[i], x[i : i + 1])[1] for i in range(3)]
    torch.testing.assert_close(exact_jacobian(field, t, x)[1], torch.cat(alone))


@pytest.mark.parametrize("rule", [exact_divergence, exact_by_pullbacks])
def test_gradients_of_the_divergence_are_right(float64, rule):
    field = MLPField(2, (5, 4))
    assert torch.autograd.gradcheck(
        lambda x: tuple(rule(field, T, x, frobenius=True)), torch.randn(3, 2, requires_grad=True)
    )


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize("field", [Linear(torch.randn(3, 3).double()), MLPField(3, (8, 8)).double(), Conv(1).double()])
def test_hutchinson_is_unbiased(float64, field, noise):
    shape = (1, 2, 2) if isinstance(field, Conv) else (3,)
    x = torch.randn(1, *shape).expand(4000, *shape)
    rates = hutchinson_divergence(field, T, x, probe_noise(x, 1, noise))
    estimates, truth = rates.divergence, trace(field, T, x[:1])[0]
    assert (estimates.mean() - truth).abs() < 4 * estimates.std() / 4000**0.5
    torch.testing.assert_close(rates.velocity, field(T, x))


def test_a_velocity_of_another_shape_is_named():
    field, x = Field.wrap(nn.Linear(2, 1)), torch.randn(4, 2)
    for rule in (exact_divergence, exact_jacobian, lambda *args: hutchinson_divergence(*args, torch.ones(1, 4, 2))):
        with pytest.raises(InputError, match=r"returns \(4, 1\) for x of shape \(4, 2\)"):
            rule(field, T, x)


def test_probes_are_averaged_and_signs_are_exact_on_a_diagonal(float64):
    field, diagonal = MLPField(3, (8, 8)), Linear(torch.diag(torch.randn(3)))
    x = torch.randn(5, 3)
    eps = probe_noise(x, 6)
    single = [hutchinson_divergence(field, T, x, eps[i : i + 1]).divergence for i in range(6)]
    torch.testing.assert_close(hutchinson_divergence(field, T, x, eps).divergence, torch.stack(single).mean(0))
    estimate = hutchinson_divergence(diagonal, T, x, eps[:1]).divergence
    torch.testing.assert_close(estimate, exact_divergence(diagonal, T, x).divergence)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_noise_has_zero_mean_and_unit_covariance(noise):
    eps = probe_noise(torch.zeros(20_000, 3), 2, noise).flatten(0, 1)
    n = len(eps)
    assert (eps.mean(0).abs() < 5 / n**0.5).all()
    assert ((eps.T @ eps / n - torch.eye(3)).abs() < 5 * 2**0.5 / n**0.5).all()
