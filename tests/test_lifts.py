"""Lifts: densities of the draws, projections back, and what they refuse."""

import math

import pytest
import torch
from fields import wild

from anode import InputError
from cnf import Dequantize, Normal, Standardize, VariationalAugment
from cnf.lifts import ComposeLifts, TransformLift


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantised_data_project_back(dtype, levels):
    x = torch.randint(levels, (500, 1, 4, 4)).to(dtype)
    lift = Dequantize(levels)
    y, log_q, kl = lift(x)
    assert ((y >= 0) & (y < 1)).all()
    assert torch.equal(lift.project(y), x.to(y.dtype))
    torch.testing.assert_close(log_q, torch.full((500,), 16 * math.log(levels), dtype=y.dtype))
    assert kl is None


def test_learned_dequantisation_is_a_density_of_the_noise(float64):
    """E_q [1 / q(u given x)] over the noise u is the length of its range, 1."""
    lift = wild(Dequantize(3, "learned", (1,)))
    x = torch.randint(3, (1, 1)).expand(100_000, 1)
    y, log_q, kl = lift(x)
    assert torch.equal(lift.project(y), x.double())
    torch.testing.assert_close(log_q, kl + math.log(3))
    inverse = torch.exp(-kl)
    assert abs(inverse.mean() - 1) < 4 * inverse.std() / math.sqrt(100_000)


@pytest.mark.parametrize("values", [[[0.5, 1.0]], [[4, 0]], [[-1, 0]], [[math.nan, 0]]])
def test_values_between_and_beyond_the_levels_are_refused(values):
    with pytest.raises(InputError, match="0 to 3"):
        Dequantize(4).check_values(torch.tensor(values))


@pytest.mark.parametrize("shape", [(3,), (1, 4, 5)])
@pytest.mark.parametrize("posterior", ["normal", "learned"])
def test_augmented_variables_follow_q(float64, posterior, shape):
    lift = wild(VariationalAugment(2, posterior, shape, hidden=4))
    y, log_q, kl = lift(x := torch.randn(6, *shape))
    a = y[:, shape[0] :]
    assert a.shape == (6, 2, *shape[1:])
    assert torch.equal(lift.project(y), x)
    if posterior == "normal":
        torch.testing.assert_close(log_q, Normal(a.shape[1:]).log_prob(a))
        assert kl is None
    else:
        mean, log_scale = lift.head(x).chunk(2, 1)
        expected = torch.distributions.Normal(mean, log_scale.exp()).log_prob(a).flatten(1).sum(1)
        torch.testing.assert_close(log_q, expected)
        torch.testing.assert_close(kl, expected - Normal(a.shape[1:]).log_prob(a))


def test_the_mean_of_kl_is_the_divergence_from_the_base(float64):
    lift = VariationalAugment(2, "learned", (3,))
    assert not lift(torch.randn(4, 3)).kl.any()  # it starts at N(0, I)
    wild(lift)
    x = torch.randn(1, 3).expand(40_000, 3)
    mean, log_scale = lift.head(x[:1]).chunk(2, 1)
    q, base = torch.distributions.Normal(mean, log_scale.exp()), torch.distributions.Normal(0.0, 1.0)
    kl = lift(x).kl
    assert abs(kl.mean() - torch.distributions.kl_divergence(q, base).sum()) < 4 * kl.std() / 200


def test_composed_lifts_add_up(float64):
    standardize = Standardize((2,)).fit(torch.rand(50, 2))
    augment = wild(VariationalAugment(1, "learned", (2,)))
    lift = ComposeLifts([Dequantize(4), TransformLift(standardize), augment])
    x = torch.randint(4, (30, 2)).double()
    torch.manual_seed(1)
    y, log_q, kl = lift(x)
    torch.manual_seed(1)
    expected = augment(standardize.encode(Dequantize(4)(x).point))
    torch.testing.assert_close(y, expected.point)
    torch.testing.assert_close(log_q, expected.log_q + 2 * math.log(4) + standardize.scale.log().sum())
    torch.testing.assert_close(kl, expected.kl)
    assert torch.equal(lift.project(y), x)
    with pytest.raises(InputError, match="0 to 3"):
        lift.check_values(x + 1)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Dequantize(1), "levels=1"),
        (lambda: Dequantize(4, "gaussian"), "noise='gaussian' is unknown; choose one of uniform, learned"),
        (lambda: Dequantize(4, "learned"), "pass the shape"),
        (lambda: VariationalAugment(0), "extra=0"),
        (lambda: VariationalAugment(1, "true"), "posterior='true' is unknown; choose one of normal, learned"),
        (lambda: VariationalAugment(1, "learned"), "pass the shape"),
        (lambda: VariationalAugment(1)(torch.randn(3)), "cannot be augmented"),
    ],
)
def test_bad_lifts_are_named(make, names):
    with pytest.raises(InputError, match=names):
        make()
