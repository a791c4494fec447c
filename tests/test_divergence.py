"""Divergences against the Jacobian by automatic differentiation."""

import pytest
import torch
from fields import Conv, Linear, mlp_fields

from anode import InputError, MLPField
from cnf import exact, hutchinson, probe_noise
from cnf.divergence import exact_by_pullbacks

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
    for rates in (exact(field, T, x, c), exact_by_pullbacks(field, T, x, c)):
        torch.testing.assert_close(rates.velocity, field(T, x, c))
        torch.testing.assert_close(rates.divergence, trace(field, T, x, c), rtol=0, atol=1e-12)


def test_exact_works_on_images(float64):
    field = Conv(2)
    x = torch.randn(3, 2, 4, 5)
    torch.testing.assert_close(exact(field, T, x).divergence, trace(field, T, x), rtol=0, atol=1e-12)


def test_closed_form_in_many_dimensions(float64):
    field = MLPField(43, (64, 64), "softplus")
    x = torch.randn(512, 43)
    closed, generic = exact(field, T, x).divergence, exact_by_pullbacks(field, T, x).divergence
    torch.testing.assert_close(closed, generic, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", [exact, exact_by_pullbacks])
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
    rates = hutchinson(field, T, x, probe_noise(x, 1, noise))
    estimates, truth = rates.divergence, trace(field, T, x[:1])[0]
    assert (estimates.mean() - truth).abs() < 4 * estimates.std() / 4000**0.5
    torch.testing.assert_close(rates.velocity, field(T, x))


def test_probes_are_averaged(float64):
    field = MLPField(3, (8, 8))
    x = torch.randn(5, 3)
    eps = probe_noise(x, 6)
    one_by_one = [hutchinson(field, T, x, eps[i : i + 1]).divergence for i in range(6)]
    torch.testing.assert_close(hutchinson(field, T, x, eps).divergence, torch.stack(one_by_one).mean(0))


def test_rademacher_is_exact_for_a_diagonal_jacobian(float64):
    field = Linear(torch.diag(torch.randn(4)))
    x = torch.randn(5, 4)
    estimate = hutchinson(field, T, x, probe_noise(x, 1)).divergence
    torch.testing.assert_close(estimate, exact(field, T, x).divergence)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
def test_noise_has_zero_mean_and_unit_covariance(noise):
    eps = probe_noise(torch.zeros(20_000, 3), 2, noise).flatten(0, 1)
    n = len(eps)
    assert (eps.mean(0).abs() < 5 / n**0.5).all()
    assert ((eps.T @ eps / n - torch.eye(3)).abs() < 5 * 2**0.5 / n**0.5).all()


def test_bad_input_is_named():
    with pytest.raises(InputError, match="cauchy"):
        probe_noise(torch.zeros(2, 2), 1, "cauchy")
    with pytest.raises(InputError, match="probes=0"):
        probe_noise(torch.zeros(2, 2), 0)
