"""Bases against torch's own distributions, quadrature and their own samplers."""

import math

import pytest
import torch
from tasks import minimise

from anode import InputError
from cnf import Mixture, Normal
from cnf.bases import sample_categorical, standard_normal_log_prob


def far_mixture(shape=(2,), components=5, correlated=False):
    """A mixture whose components differ in place, width and weight, and in their correlations."""
    base = Mixture(shape, components, correlated)
    for name, parameter in base.named_parameters():
        torch.nn.init.normal_(
            parameter, std={"means": 2.0, "log_scales": 0.4, "logits": 1.0, "off_diagonal": 0.5}[name]
        )
    return base


def by_torch(base):
    """Return a mixture over vectors by torch.distributions."""
    normal = torch.distributions.MultivariateNormal(base.means, covariances(base))
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=base.logits), normal)


def covariances(base):
    """Return the covariances of the components (K, D, D), from the definition of their parameters."""
    roots = []
    for k, scales in enumerate(base.log_scales.exp()):
        upper, above = (
            torch.eye(len(scales), dtype=scales.dtype),
            iter(() if base.off_diagonal is None else base.off_diagonal[k]),
        )
        for i in range(len(scales)):
            for j in range(i + 1, len(scales)):
                upper[i, j] = next(above, 0.0)
        roots.append(torch.linalg.inv(upper / scales[:, None]))
    return torch.stack([root @ root.T for root in roots])


@torch.no_grad()
@pytest.mark.parametrize("correlated", [False, True])
def test_a_mixture_integrates_to_one(float64, correlated):
    base = far_mixture(correlated=correlated)
    axis = torch.arange(-25, 25, 0.1)
    points = torch.cartesian_prod(axis, axis)
    assert base.log_prob(points).exp().sum().item() * 0.1**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize(("dim", "components"), [(1, 1), (2, 5), (10, 3)])
def test_a_mixture_is_that_of_torch(float64, dim, components, correlated):
    base = far_mixture((dim,), components, correlated)
    z = 3 * torch.randn(50, dim)
    torch.testing.assert_close(base.log_prob(z), by_torch(base).log_prob(z))
    assert base.weights.shape == (components,)
    torch.testing.assert_close(base.weights, by_torch(base).mixture_distribution.probs)


@pytest.mark.parametrize("correlated", [False, True])
def test_coordinates_of_components_are_of_their_density(float64, correlated):
    base = far_mixture((1, 2, 2), correlated=correlated)
    z, k = 3 * torch.randn(50, 1, 2, 2), torch.arange(50) % 5
    eps, log_det = base.to_component(z, k)
    density = base.log_joint(z, k) - base.logits.log_softmax(0)[k]
    torch.testing.assert_close(Normal((1, 2, 2)).log_prob(eps) + log_det, density)
    torch.testing.assert_close(base.from_component(eps, k), z)


@pytest.mark.parametrize("correlated", [False, True])
def test_samples_of_several_axes_are_the_flattened_ones(float64, correlated):
    image, flat = far_mixture((1, 2, 3), 4, correlated), Mixture((6,), 4, correlated)
    flat.load_state_dict({name: value.reshape(4, -1).squeeze() for name, value in image.state_dict().items()})
    z = torch.randn(7, 1, 2, 3)
    torch.testing.assert_close(image.log_prob(z), flat.log_prob(z.flatten(1)))
    assert image.sample(5).shape == (5, 1, 2, 3)


@torch.no_grad()
@pytest.mark.parametrize("components", [1, 8])
def test_it_starts_near_the_standard_normal(float64, components):
    base = Mixture((2,), components)
    z = torch.randn(2000, 2)
    kl = (Normal((2,)).log_prob(z) - base.log_prob(z)).mean()
    assert kl.abs() < 0.01
    assert len(base.means.unique(dim=0)) == components


@torch.no_grad()
@pytest.mark.parametrize("correlated", [False, True])
def test_the_sampler_agrees_with_the_density(float64, correlated):
    """Means of a component's posterior weight, of z and of z z' by samples against those of the density."""
    base, n = far_mixture(correlated=correlated), 40_000
    z = base.sample(n)
    second = torch.einsum("ni,nj->nij", z, z)
    weights = base.weights[:, None]
    mean = (weights * base.means).sum(0)
    moment = (weights[..., None] * (torch.einsum("ki,kj->kij", base.means, base.means) + covariances(base))).sum(0)
    share = (by_torch(base).component_distribution.log_prob(z[:, None]) + base.weights.log()).softmax(1)
    for got, wanted in ((z, mean), (second, moment), (share, base.weights)):
        assert ((got.mean(0) - wanted).abs() < 4.5 * got.std(0) / n**0.5).all()


def test_samples_have_no_graph_and_follow_the_seed():
    base = far_mixture()
    torch.manual_seed(1)
    z = base.sample(20)
    torch.manual_seed(1)
    assert torch.equal(base.sample(20), z)
    assert not torch.equal(base.sample(20), z)
    assert not z.requires_grad
    assert base.sample(0).shape == (0, 2)
    assert base.log_prob(base.sample(0)).shape == (0,)


@pytest.mark.parametrize("correlated", [False, True])
def test_gradients_equal_finite_differences(float64, correlated):
    base = far_mixture((3,), 3, correlated)
    assert torch.autograd.gradcheck(
        lambda z, *_: base.log_prob(z), (torch.randn(4, 3, requires_grad=True), *base.parameters())
    )


def test_the_standard_normal_is_that_of_torch(float64):
    z = torch.randn(7, 2, 3)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2))
    torch.testing.assert_close(standard_normal_log_prob(z), expected)
    z = Normal((2,)).sample(20_000)
    assert (z.mean(0).abs() < 5 / 20_000**0.5).all()
    assert ((z.T @ z / 20_000 - torch.eye(2)).abs() < 0.05).all()


def test_components_part_to_fit_separate_pieces(float64):
    """Two narrow pieces of unequal weight are found from the start at one place."""
    x = torch.cat([0.3 * torch.randn(1500, 2) + 3, 0.3 * torch.randn(500, 2) - 3])
    base = Mixture((2,), 2)
    minimise(lambda: -base.log_prob(x).mean(), base, 400, 0.1)
    order = base.means[:, 0].argsort()
    torch.testing.assert_close(base.means[order].mean(1), torch.tensor([-3.0, 3.0]), rtol=0, atol=0.1)
    torch.testing.assert_close(base.weights[order], torch.tensor([0.25, 0.75]), rtol=0, atol=0.02)
    torch.testing.assert_close(base.log_scales.exp(), torch.full((2, 2), 0.3), rtol=0, atol=0.05)


def test_a_mixture_cools_within_its_modes_and_keeps_their_weights(float64):
    base = Mixture((1,), 2)
    with torch.no_grad():
        base.means.copy_(torch.tensor([[-10.0], [10.0]]))
        base.log_scales.copy_(torch.tensor([[0.5], [2.0]]).log())
        base.logits.copy_(torch.tensor([0.25, 0.75]).log())
    z = base.sample(40_000, temperature=0.5)[:, 0]
    for sign, weight, scale in ((-1, 0.25, 0.5), (1, 0.75, 2.0)):
        near = z[sign * z > 0]
        assert abs(len(near) / 40_000 - weight) < 4 * math.sqrt(0.25 * 0.75 / 40_000)
        assert abs(near.mean() - sign * 10) < 4 * scale * 0.5 / math.sqrt(len(near))
        assert abs(near.std() - scale * 0.5) < 4 * scale * 0.5 / math.sqrt(2 * len(near))


@pytest.mark.parametrize("base", [Normal((2,)), Mixture((2,), 3), Normal((1, 2, 2))])
def test_noise_is_scaled_by_the_temperature(base):
    draws = []
    for temperature in (1.0, 0.5, 1e-30):
        torch.manual_seed(1)
        draws.append(base.sample(5, temperature))
    warm, cool, mode = draws
    torch.testing.assert_close(cool - mode, 0.5 * (warm - mode))
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match=f"temperature={wrong} must be a positive number"):
            base.sample(5, temperature=wrong)
    with pytest.raises(InputError, match="n=-1"):
        base.sample(-1)


def test_categories_are_drawn_with_their_probabilities():
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    counts = sample_categorical(probabilities.log().expand(20_000, 4)).bincount(minlength=4) / 20_000
    assert ((counts - probabilities).abs() <= 4 * (probabilities * (1 - probabilities) / 20_000).sqrt()).all()
    assert sample_categorical(torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize(("n", "dim", "components"), [(60, 13, 4), (40, 2, 8), (9, 3, 8)])
def test_fits_to_few_points_stay_near_the_gaussian(float64, n, dim, components, correlated):
    """Components of a few points each, whose own variances would be next to nothing in some direction."""
    factor = torch.randn(dim, dim) / dim**0.5 + torch.eye(dim)
    x, other = 100 * torch.randn(n, dim) @ factor, 100 * torch.randn(2000, dim) @ factor
    truth = torch.distributions.MultivariateNormal(torch.zeros(dim), 1e4 * factor.T @ factor)
    base = Mixture((dim,), components, correlated).fit(x)
    excess = (truth.log_prob(other) - base.log_prob(other)).mean().item()
    assert excess < 0.5 * dim


def test_the_units_of_points_do_not_change_the_fit(float64):
    x = torch.cat([torch.randn(100, 2) + 3, 0.5 * torch.randn(100, 2) - 3])
    for correlated in (False, True):
        figures = []
        for unit in (torch.ones(2), torch.tensor([1e-6, 1e5])):
            torch.manual_seed(0)
            base = Mixture((2,), 2, correlated).fit(unit * x + unit)
            figures.append(base.log_prob(unit * x) + unit.log().sum())
        torch.testing.assert_close(*figures)


@pytest.mark.parametrize(
    ("components", "z", "names"),
    [
        (0, torch.randn(50, 2), "components=0 "),
        (5, torch.randn(4, 2), "4 points are too few to fit components=5 to: pass at least 5"),
        (1, torch.zeros(1, 2), "1 points are too few"),
        (5, torch.randn(50, 3), r"shape \(50, 3\)"),
        (5, torch.full((50, 2), math.nan), "not all finite"),
    ],
)
def test_bad_input_is_named(components, z, names):
    with pytest.raises(InputError, match=names):
        Mixture((2,), components).fit(z)
