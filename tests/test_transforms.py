"""The contract of every transform: inverse, log-determinants by brute force, points-only paths."""

import math

import pytest
import torch
from fields import Conv

from anode import ConvStackField, InputError, MLPField, Solver
from cnf import Compose, Continuous, Logit, Multiscale, Squeeze, Standardize, Whiten


def stack(channels):
    return Continuous(ConvStackField(channels, (3,), "tanh"), SOLVER)


def scaled(*shape):
    """Every place by another number, so that none can be taken for another."""
    return Standardize(shape).fit(torch.randn(9, *shape))


SOLVER = Solver(rtol=1e-10, atol=1e-10)


def standardize(shape):
    return Standardize(shape).fit(torch.randn(50, *shape) * 3 + 1)


def whiten(shape):
    dim = math.prod(shape)
    return Whiten(shape).double().fit((torch.randn(50, dim) @ torch.randn(dim, dim)).view(-1, *shape))


def cases():
    """(name, transform, a batch of data, context)."""
    unit, real = torch.rand(4, 1, 2, 2).double(), torch.randn(4, 3).double()
    c = torch.randn(4, 2).double()
    odd = Continuous(MLPField(3, (8, 8, 8)), SOLVER)
    conditional = Continuous(MLPField(3, (8, 8), context=2), SOLVER)
    image = Continuous(Conv(1), SOLVER)
    return {
        "standardize": (standardize((3,)), real, None),
        "standardize images": (standardize((1, 2, 2)), unit, None),
        "whiten": (whiten((3,)), real, None),
        "whiten images": (whiten((1, 2, 2)), unit, None),
        "logit": (Logit(0.05), unit, None),
        "logit, no margin": (Logit(0.0), unit, None),
        "continuous": (Continuous(MLPField(3, (8, 8)), SOLVER), real, None),
        "continuous, generic divergence": (odd, real, None),
        "continuous, conditional": (conditional, real, c),
        "continuous, images": (image, unit, None),
        "continuous, augmented": (Continuous(MLPField(3, (8, 8)), SOLVER, extra=1), real, None),
        "continuous, adjoint": (
            Continuous(MLPField(3), Solver(rtol=1e-10, atol=1e-10, gradient="adjoint")),
            real,
            None,
        ),
        "squeeze": (Squeeze(), torch.rand(4, 2, 4, 2).double(), None),
        "multiscale": (Multiscale([Compose([stack(1), Squeeze()]), stack(2)]), torch.rand(2, 1, 2, 2).double(), None),
        "multiscale, one scale": (Multiscale.of_blocks((1, 2, 2), stack, 1), torch.rand(2, 1, 2, 2).double(), None),
        "multiscale, three scales": (
            Multiscale([Compose([Squeeze(), scaled(8, 2, 2)]), Squeeze(), scaled(8, 1, 1)]),
            torch.rand(4, 2, 4, 4).double(),
            None,
        ),
        "compose": (Compose([standardize((3,)), conditional, conditional]), real, c),
        "compose, images": (Compose([Logit(), standardize((1, 2, 2)), image]), unit, None),
        "compose, empty": (Compose([]), real, None),
    }


@pytest.fixture(params=cases().keys())
def case(request):
    transform, x, c = cases()[request.param]
    return transform.double(), x, c


def log_det_by_brute_force(transform, x, c):
    dets = []
    for i in range(len(x)):
        one = None if c is None else c[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda y, one=one: transform(y[None], one).point[0], x[i])
        dets.append(torch.linalg.slogdet(jacobian.reshape(x[i].numel(), -1)).logabsdet)
    return torch.stack(dets)


def test_the_four_maps_agree(case):
    transform, x, c = case
    z, log_det, _ = transform(x, c)
    back, log_det_back, _ = transform.inverse(z, c)
    torch.testing.assert_close(back, x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(transform.encode(x, c), z, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(transform.decode(z, c), back, rtol=1e-7, atol=1e-7)


def test_log_det_is_that_of_the_jacobian(case):
    transform, x, c = case
    torch.testing.assert_close(transform(x, c).log_det, log_det_by_brute_force(transform, x, c), rtol=1e-6, atol=1e-6)


def test_shapes_and_gradients(case):
    transform, x, c = case
    x = x.clone().requires_grad_()
    point, log_det, _ = transform(x, c)
    assert point.flatten(1).shape == x.flatten(1).shape
    assert log_det.shape == (len(x),)
    (gradient,) = torch.autograd.grad(point.sum() + log_det.sum(), x)
    assert torch.isfinite(gradient).all()


def test_standardize_fits_mean_and_standard_deviation():
    x = torch.randn(1000, 3) * torch.tensor([100.0, 0.01, 0.0]) + torch.tensor([-5.0, 7.0, 3.0])  # the last is constant
    z = Standardize((3,)).fit(x).encode(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), rtol=1e-4, atol=1e-4)


def test_whitening_leaves_no_covariance_and_is_symmetric():
    x = (torch.randn(1000, 3) @ torch.randn(3, 3)).add(5.0).double()
    fitted = Whiten((3,)).double().fit(x)
    z = fitted.encode(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double())
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(3).double())
    jacobian = torch.autograd.functional.jacobian(lambda x: fitted.encode(x[None])[0], x[0])
    torch.testing.assert_close(jacobian, jacobian.T)


@pytest.mark.parametrize("degenerate", ["a constant", "a sum of others", "one sample"])
def test_whitening_stays_invertible(float64, degenerate):
    x = torch.randn(100, 3)
    x[:, 2] = 7.0 if degenerate == "a constant" else x[:, 0] - x[:, 1]
    fitted = Whiten((3,)).fit(x[:1] if degenerate == "one sample" else x)
    z, log_det, _ = fitted(x)
    assert torch.isfinite(log_det).all()
    torch.testing.assert_close(fitted.decode(z), x, rtol=1e-9, atol=1e-9)


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"alpha=0\.5"):
        Logit(0.5)
    for x in (-0.3, 1.2, 40.0):
        with pytest.raises(InputError, match=r"\[0, 1\]"):
            Logit(0.05)(torch.full((1, 2), x))
    with pytest.raises(InputError, match="magic"):
        Continuous(MLPField(2), divergence="magic")
