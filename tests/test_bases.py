"""Bases against torch's own distributions, quadrature and their own samplers."""

import math

import pytest
import torch

from anode import InputError
from cnf.bases import Normal
from cnf.mixture import Mixture


def far_mixture(shape=(2,), components=5, correlated=False):
    """A mixture whose components differ in place, width and weight, and in their correlations."""
    base = Mixture(shape, components, correlated)
    for name, parameter in base.named_parameters():
        torch.nn.init.normal_(parameter, std={"means": 2.0, "log_scales": 0.4, "logits": 1.0, "mixing": 0.5}[name])
    return base


def by_torch(base):
    """The same mixture, of samples of one dimension of shape, by torch.distributions."""
    normal = torch.distributions.MultivariateNormal(base.means, covariances(base))
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=base.logits), normal)


def covariances(base):
    """Those of the components (K, D, D), from the definition of their parameters."""
    roots = []
    for k, scales in enumerate(base.log_scales.exp()):
        upper, above = torch.eye(len(scales), dtype=scales.dtype), iter(() if base.mixing is None else base.mixing[k])
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
    eps, log_det = base.standardized(z, k)
    density = base.log_joint(z, k) - base.logits.log_softmax(0)[k]
    torch.testing.assert_close(Normal((1, 2, 2)).log_prob(eps) + log_det, density)
    torch.testing.assert_close(base.placed(eps, k), z)


@pytest.mark.parametrize("correlated", [False, True])
def test_samples_of_several_axes_are_the_flattened_ones(float64, correlated):
    image, flat = far_mixture((1, 2, 3), 4, correlated), Mixture((6,), 4, correlated)
    flat.load_state_dict({name: value.reshape(4, -1).squeeze() for name, value in image.state_dict().items()})
    z = torch.randn(7, 1, 2, 3)
    torch.testing.assert_close(image.log_prob(z), flat.log_prob(z.flatten(1)))
    assert image.sample(5).shape == (5, 1, 2, 3)


@pytest.mark.parametrize("components", [1, 3])
def test_standard_normal_components_are_the_normal_base(float64, components):
    base = Mixture((2, 3), components)
    for parameter in (base.means, base.log_scales):
        torch.nn.init.zeros_(parameter)
    torch.nn.init.normal_(base.logits)  # of no meaning where components are equal
    z = torch.randn(7, 2, 3)
    torch.testing.assert_close(base.log_prob(z), Normal((2, 3)).log_prob(z))


@torch.no_grad()
@pytest.mark.parametrize("components", [1, 8])
def test_it_starts_near_the_standard_normal(float64, components):
    base = Mixture((2,), components)
    z = torch.randn(2000, 2)
    kl = (Normal((2,)).log_prob(z) - base.log_prob(z)).mean()
    assert kl.abs() < 0.01
    assert len(base.means.unique(dim=0)) == components


@torch.no_grad()
def test_the_mean_of_starts_is_the_standard_normal(float64):
    """Of the densities at a point, over the draws of the means, within 5 standard errors."""
    z = torch.tensor([[0.0, 0.0], [1.0, -1.0], [3.0, 0.0]])
    densities = torch.stack([Mixture((2,), 2).log_prob(z).exp() for _ in range(4000)])
    error = densities.std(0) / len(densities) ** 0.5
    assert ((densities.mean(0) - Normal((2,)).log_prob(z).exp()).abs() < 5 * error).all()


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
def test_every_parameter_has_a_gradient_at_the_start(correlated):
    base = Mixture((3,), 4, correlated)
    base.log_prob(torch.randn(50, 3)).mean().backward()
    assert all((parameter.grad != 0).all() for parameter in base.parameters())


@pytest.mark.parametrize("correlated", [False, True])
def test_gradients_equal_finite_differences(float64, correlated):
    base = far_mixture((3,), 3, correlated)
    names, values = zip(*base.named_parameters(), strict=True)

    def log_prob(z, *values):
        return torch.func.functional_call(_Call(base), {f"base.{n}": v for n, v in zip(names, values, strict=True)}, z)

    assert torch.autograd.gradcheck(log_prob, (torch.randn(4, 3, requires_grad=True), *values))


class _Call(torch.nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, z):
        return self.base.log_prob(z)


def test_components_part_to_fit_separate_pieces(float64):
    """Two narrow pieces of unequal weight are found from the start at one place."""
    x = torch.cat([0.3 * torch.randn(1500, 2) + 3, 0.3 * torch.randn(500, 2) - 3])
    base = Mixture((2,), 2)
    optimizer = torch.optim.Adam(base.parameters(), 0.1)
    for _ in range(400):
        optimizer.zero_grad()
        (-base.log_prob(x).mean()).backward()
        optimizer.step()
    order = base.means[:, 0].argsort()
    torch.testing.assert_close(base.means[order].mean(1), torch.tensor([-3.0, 3.0]), rtol=0, atol=0.1)
    torch.testing.assert_close(base.weights[order], torch.tensor([0.25, 0.75]), rtol=0, atol=0.02)
    torch.testing.assert_close(base.log_scales.exp(), torch.full((2, 2), 0.3), rtol=0, atol=0.05)


def test_far_points_have_finite_log_density_and_gradient():
    base = Mixture((2,), 3)
    z = torch.full((1, 2), 1e6, requires_grad=True)
    log_p = base.log_prob(z)
    (gradient,) = torch.autograd.grad(log_p.sum(), z)
    assert torch.isfinite(log_p).all()
    assert torch.isfinite(gradient).all()


def test_it_moves_and_is_stored():
    base = far_mixture().to(torch.float64)
    z = base.sample(6)
    assert z.dtype == torch.float64
    assert base.log_prob(z).dtype == torch.float64
    assert set(base.state_dict()) == {"means", "log_scales", "logits"}
    other = Mixture((2,), 5).to(torch.float64)
    other.load_state_dict(base.state_dict())
    assert torch.equal(other.log_prob(z), base.log_prob(z))


@pytest.mark.parametrize("components", [0, -2])
def test_bad_components_are_named(components):
    with pytest.raises(InputError, match=f"components={components} "):
        Mixture((2,), components)


@pytest.mark.parametrize(
    ("z", "names"),
    [
        (torch.randn(4, 2), "4 points are too few to fit components=5 to: pass at least 5"),
        (torch.randn(50, 3), r"z of shape \(50, 3\)"),
        (torch.full((50, 2), math.nan), "z is not finite in 50 of 50"),
    ],
)
def test_points_that_no_mixture_fits_are_named(z, names):
    with pytest.raises(InputError, match=names):
        Mixture((2,), 5).fit(z)
    with pytest.raises(InputError, match="1 points are too few"):
        Mixture((2,), 1).fit(torch.zeros(1, 2))


@pytest.mark.parametrize("correlated", [False, True])
def test_a_mixture_is_drawn_given_a_part_of_it(float64, correlated):
    """The rest has the moments of p(z given a), of components with Gaussian regressions on a."""
    base = far_mixture(correlated=correlated)
    a = torch.tensor([[0.7]]).expand(200_000, 1)
    z = base.sample_beside(a)
    assert torch.equal(z[:, 1:], a)
    mean, cov = base.means, covariances(base)
    shares = base.weights * torch.distributions.Normal(mean[:, 1], cov[:, 1, 1].sqrt()).log_prob(a[0]).exp()
    shares = shares / shares.sum()
    given = mean[:, 0] + cov[:, 0, 1] / cov[:, 1, 1] * (a[0] - mean[:, 1])
    left = cov[:, 0, 0] - cov[:, 0, 1].square() / cov[:, 1, 1]
    second = (shares * (given.square() + left)).sum()
    for got, wanted in ((z[:, 0], (shares * given).sum()), (z[:, 0].square(), second)):
        assert (got.mean() - wanted).abs() < 5 * got.std() / len(a) ** 0.5


@pytest.mark.parametrize("base", [Normal((2,)), Mixture((2,), 3)])
def test_bad_counts_are_named(base):
    with pytest.raises(InputError, match="n=-1"):
        base.sample(-1)
