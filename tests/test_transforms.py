"""The contract of every transform: inverse, log-determinants by brute force, points-only paths."""

import math

import pandas as pd
import pytest
import torch
from fields import Conv

from anode import ConvStackField, InputError, MLPField, Solver
from cnf import Compose, Continuous, Logit, Multiscale, Squeeze, Standardize, Tails, Whiten
from cnf.bases import standard_normal_log_prob
from cnf.transforms import shrunk_correlation


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
        "tails": (Tails(0.5), torch.randn(6, 3), None),
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


def gaussian_nll(whiten, x):
    """The NLL of the Gaussian that whitening makes of the standard normal base."""
    z, log_det, _ = whiten(x)
    return -(standard_normal_log_prob(z) + log_det).mean().item()


@pytest.mark.parametrize(("factors", "most"), [(0, 715), (10, 529)])
def test_whitening_of_a_wide_table_stays_near_the_truth(factors, most):
    """200 rows of 500 columns, whose plain covariance is singular: its likelihood of other rows is zero."""
    loadings, noise = torch.randn(factors, 500), 0.5 if factors else 1.0

    def draw(n):
        return torch.randn(n, factors) @ loadings + noise * torch.randn(n, 500)

    covariance = loadings.T @ loadings + noise**2 * torch.eye(500)
    truth = torch.distributions.MultivariateNormal(torch.zeros(500), covariance).entropy().item()
    nll = gaussian_nll(Whiten((500,)).fit(draw(200)), draw(1000))
    assert truth < nll < most


def test_shrinking_is_best_for_samples_left_out(float64):
    """The closed form against one Gaussian for each sample that is left out."""
    x = torch.randn(25, 8)
    x = (x - x.mean(0)) / x.std(0, correction=0)

    def nll(share):
        total = 0.0
        for i in range(len(x)):
            others = torch.cat([x[:i], x[i + 1 :]])
            matrix = (1 - share) * others.T.cov(correction=0) + share * torch.eye(8)
            total -= torch.distributions.MultivariateNormal(others.mean(0), matrix).log_prob(x[i]).item()
        return total / len(x)

    found, plain = shrunk_correlation(x), x.T @ x / 25
    share = 1 - (found[0, 1] / plain[0, 1]).item()
    torch.testing.assert_close(found, (1 - share) * plain + share * torch.eye(8))
    around = [10 ** (math.log10(share) + step) for step in (-0.25, -0.125, 0.125, 0.25)]
    assert all(nll(share) <= nll(min(other, 1.0)) + 1e-9 for other in around)
    assert nll(share) < nll(0.0) - 0.1


def test_covariances_of_many_samples_are_not_shrunk(float64):
    for n in (150, 800):
        x = torch.randn(n, 3) @ torch.randn(3, 3)
        fitted = Whiten((3,)).fit(x)
        torch.testing.assert_close(fitted.root @ fitted.root, x.T.cov(correction=0))


@pytest.mark.parametrize("name", ["protein", "parkinsons"])
@pytest.mark.parametrize("rows", [200, None])
def test_shrinking_does_not_hurt_real_tables(float64, real_data, name, rows):
    table = pd.read_csv(real_data / "tabular" / f"{name}.csv.gz", nrows=rows).select_dtypes("number")
    x = torch.from_numpy(table.to_numpy(float))[torch.randperm(len(table))]
    x = x[:, x.std(0) > 0]
    train, test = x[len(x) // 5 :], x[: len(x) // 5]
    scale = Standardize((x.shape[1],)).fit(train)
    train, test = scale.encode(train), scale.encode(test)
    values, vectors = torch.linalg.eigh(train.T.cov(correction=0))
    plain = vectors * values.clamp_min(1e-8 * values[-1]) @ vectors.T
    plain = torch.distributions.MultivariateNormal(train.mean(0), plain)
    shrunk = gaussian_nll(Whiten((x.shape[1],)).fit(train), test)
    assert shrunk < -plain.log_prob(test).mean().item() + 1e-2


def test_repeated_columns_have_a_finite_density(float64):
    x = torch.randn(500, 2).repeat(1, 12)
    fitted = Whiten((24,)).fit(x)
    assert math.isfinite(gaussian_nll(fitted, x))
    torch.testing.assert_close(fitted.decode(fitted.encode(x)), x)


def test_bad_input_is_named():
    with pytest.raises(InputError, match=r"alpha=0\.5"):
        Logit(0.5)
    with pytest.raises(InputError, match="start=0 must be above 0"):
        Tails(0)
    for x in (-0.3, 1.2, 40.0):
        with pytest.raises(InputError, match=r"\[0, 1\]"):
            Logit(0.05)(torch.full((1, 2), x))
    for wrong, names in (
        (lambda: Continuous(MLPField(2), divergence="magic"), "magic"),
        (lambda: Continuous(MLPField(2), divergence="hutchinson", probes=1.5), r"probes=1\.5"),
        (lambda: Continuous(MLPField(2), extra=-1), "extra=-1"),
        (lambda: Multiscale([MLPField(2)]), "scales must hold"),
        (lambda: Multiscale.of_blocks((1, 8, 8), stack, 0), "blocks=0"),
        (lambda: Whiten(2).fit(torch.randn(5, 3)), r"shape \(5, 3\)"),
        (lambda: Standardize((0,)), "shape=0"),
    ):
        with pytest.raises(InputError, match=names):
            wrong()
