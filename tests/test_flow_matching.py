"""Flow matching against closed forms, couplings against brute force, and bad input."""

import itertools
import math
from itertools import permutations

import pytest
import torch
from fields import Linear, wild
from tasks import minimise
from torch import nn

from anode import Field, InputError, MLPField, Solver
from cnf import Compose, Continuous, Flow, FlowMatching, Normal, density_model
from cnf.flow_matching import COMPONENT_POINTS, NEAR, optimal_transport

ANGLE = math.pi / 2


class Optimum(Field):
    """The optimum of flow matching from N(0, I) to N(m, s^2 I): a linear field, by regression of normal variables."""

    def __init__(self, mean, std, interpolation):
        super().__init__()
        self.mean, self.std, self.interpolation = mean, std, interpolation

    def forward(self, t, x, c=None):
        t = t.view(-1, 1)
        if self.interpolation == "straight":
            alpha, beta, da, db = t, 1 - t, 1 + 0 * t, 0 * t - 1
        else:
            sin, cos = (ANGLE * t).sin(), (ANGLE * t).cos()
            alpha, beta, da, db = sin, cos, ANGLE * cos, -ANGLE * sin
        variance = (alpha * self.std) ** 2 + beta**2
        covariance = alpha * da * self.std**2 + beta * db
        return da * self.mean + covariance / variance * (x - alpha * self.mean)


@pytest.mark.parametrize("interpolation", ["straight", "variance-preserving"])
def test_the_optimum_from_gaussian_to_gaussian(float64, interpolation):
    """Among fields, the closed form has the least loss, and its flow is the Gaussian of the data."""
    mean, std = torch.tensor([2.0, -1.0]), 0.5
    x, field = mean + std * torch.randn(40_000, 2), Optimum(mean, std, interpolation)

    def loss(factor, shift):
        torch.manual_seed(1)
        other = Field.wrap(lambda t, y: factor * field(t, y) + shift)
        return FlowMatching(Flow(Continuous(other), Normal((2,))), interpolation=interpolation)(x).item()

    best = loss(1.0, 0.0)
    for factor, shift in ((1.05, 0.0), (0.95, 0.0), (1.0, 0.1), (1.0, -0.1)):
        assert loss(factor, shift) > best + 1e-4
    flow = Flow(Continuous(field, Solver(rtol=1e-9, atol=1e-9)), Normal((2,)))
    expected = torch.distributions.Normal(mean, std).log_prob(x[:50]).sum(1)
    torch.testing.assert_close(flow.log_prob(x[:50]), expected, rtol=0, atol=1e-6)


def test_flow_matching_trains_the_density():
    data = torch.randn(4000, 2) * torch.tensor([3.0, 0.5]) + torch.tensor([10.0, 0.0])
    flow = density_model((2,), data, hidden=(32, 32))
    nn.init.normal_(flow.split()[1].field.layers[-1].weight, std=1.0)  # away from the solution, the zero field
    before = -flow.log_prob(data).mean()
    objective = FlowMatching(flow, coupling="optimal-transport")
    batches = itertools.cycle(data[: 15 * 256].split(256))
    minimise(lambda: objective(next(batches)), flow, 150, 1e-2)
    entropy = 1 + math.log(2 * math.pi) + math.log(1.5)
    assert before > entropy + 0.5
    assert -flow.log_prob(data).mean() < entropy + 0.2


def spied(flow):
    """Record the times and points at which a zero field is evaluated."""
    seen = []
    flow.split()[1].field.forward = lambda t, x, c=None: seen.append((t, x)) or torch.zeros_like(x)
    return seen


def test_times_are_stratified_and_independent_of_places():
    """Otherwise the field would learn sorted data near the base at one end, near the data at the other."""
    flow = density_model((1,), hidden=(8,))
    seen = spied(flow)
    for _ in range(400):
        FlowMatching(flow)(torch.zeros(50, 1))
    times = torch.stack([t for t, _ in seen])
    parts = (50 * times).floor()
    assert torch.equal(parts.sort(1).values, torch.arange(50.0).expand(400, 50))
    within = 50 * times - parts
    assert abs(within.mean() - 0.5) < 5 / (12 * 400 * 50) ** 0.5
    places = torch.arange(50.0) - 24.5
    slopes = (times - 0.5) @ places / places.square().sum() * 50  # 1 if times follow places
    assert abs(slopes.mean()) < 5 * slopes.std() / 400**0.5


def test_noise_blurs_the_data(float64):
    """For data at one point the loss of the zero field does not depend on sigma, the spread of the points does."""
    flow = Flow(Continuous(Linear(torch.zeros(1, 1), torch.zeros(1))), Normal((1,)))
    losses, seen = [], spied(flow)
    for sigma in (0.0, 0.7):
        torch.manual_seed(0)
        losses.append(FlowMatching(flow, sigma=sigma)(torch.zeros(50_000, 1)))
        t, x = seen[-1]
        spread = (x[:, 0].square() - (1 - t).square()).mean()  # the variance beyond that of the path
        assert spread == pytest.approx(sigma**2, abs=0.02)
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("base", ["normal", "mixture"])
def test_augmented_densities_weigh_the_divergence_of_the_posterior(float64, base):
    x = torch.randn(40, 1)
    model = wild(density_model((1,), hidden=(6, 6), extra=1, posterior="learned", base=base))
    _, y, z, c, kl = model.matching_pair(x)
    assert (y.shape, z.shape, c, model.couples_base) == ((40, 2), (40, 2), None, False)
    assert kl.any()
    losses = []
    for weight in (0.0, 2.0):
        torch.manual_seed(1)
        losses.append(FlowMatching(model, kl=weight)(x))
    torch.manual_seed(1)
    torch.testing.assert_close(losses[1] - losses[0], 2 * model.matching_pair(x).kl.mean())
    losses[1].backward()
    assert all(parameter.grad is None for parameter in model.flow.base.parameters())


def test_images_and_contexts():
    model = density_model((1, 2, 2), torch.randint(17, (50, 1, 2, 2)), hidden=(8, 8), levels=17)
    FlowMatching(model, "optimal-transport")(torch.randint(17, (20, 1, 2, 2))).backward()
    flow = density_model((2,), hidden=(8, 8), context=3)
    for coupling in ("independent", "optimal-transport"):
        FlowMatching(flow, coupling)((torch.randn(20, 2), torch.randn(20, 3))).backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_optimal_transport_is_a_permutation_of_least_cost(float64):
    z, x = torch.randn(6, 2), torch.randn(6, 2)
    coupled = optimal_transport(z, x)
    assert sorted(map(tuple, coupled.tolist())) == sorted(map(tuple, z.tolist()))
    least = min((x - z[list(order)]).square().sum() for order in permutations(range(6)))
    assert (x - coupled).square().sum() == pytest.approx(least.item())
    images = torch.randn(2, 30, 1, 3)
    assert (images[1] - optimal_transport(*images)).square().sum() < (images[1] - images[0]).square().sum()


def permuted(z, x, c, smallest=0):
    """The order in which a coupling puts base points."""
    coupled = optimal_transport(z, x, c, smallest)
    order = (coupled.unsqueeze(1) == z).flatten(2).all(2).int().argmax(1)
    assert torch.equal(z[order], coupled)
    assert torch.equal(order.sort().values, torch.arange(len(z)))
    return order


def test_couplings_within_classes_are_of_least_cost(float64):
    """Small groups against all permutations; a class of one sample keeps its base point."""
    classes = torch.tensor([2, 0, 1, 1, 0, 1, 0, 3, 1, 0])
    z, x, c = torch.randn(10, 2), torch.randn(10, 2), nn.functional.one_hot(classes).double()
    order = permuted(z, x, c)
    assert torch.equal(classes[order], classes)
    assert (order[0], order[7]) == (0, 7)
    total = 0.0
    for k in range(4):
        rows = (classes == k).nonzero().flatten()
        orders = (rows[list(each)] for each in permutations(range(len(rows))))
        total += min((x[rows] - z[each]).square().sum() for each in orders)
    cost = (x - z[order]).square().sum()
    assert cost == pytest.approx(total.item())
    assert (x - optimal_transport(z, x)).square().sum() <= cost <= (x - z).square().sum()


def correlations(z, c):
    """The correlations of columns, without those of zeros."""
    return torch.corrcoef(torch.cat([z, c], 1).T)[: z.shape[1], z.shape[1] :]


def test_base_points_do_not_depend_on_classes(float64):
    """A coupling that ignores classes gives the upper half of the data the upper half of the base points."""
    x, z = torch.randn(4000, 2), torch.randn(4000, 2)
    c = (x[:, 1:] > 0).double()
    parts = list(zip(z.split(400), x.split(400), c.split(400), strict=True))
    blind = torch.cat([optimal_transport(z, x) for z, x, _ in parts])
    coupled = torch.cat([optimal_transport(z, x, c) for z, x, c in parts])
    error = 4000**-0.5
    assert correlations(blind, c)[1] > 0.7
    assert (correlations(coupled, c).abs() < 4 * error).all()
    assert (x - coupled).square().sum() < 0.8 * (x - z).square().sum()


@pytest.mark.parametrize("columns", [1, 3])
def test_pairs_of_real_contexts_are_near(columns, float64):
    c = torch.randn(300, columns)
    x, z = c[:, :1] + 0.3 * torch.randn(300, 2), torch.randn(300, 2)
    order = permuted(z, x, c)
    spread = (c - c.mean(0)).square().sum(1).mean().sqrt()
    assert 0 < (c - c[order]).norm(dim=1).mean() <= NEAR * spread
    cost = (x - z[order]).square().sum()
    assert (x - optimal_transport(z, x)).square().sum() < cost < (x - z).square().sum()
    scaled = optimal_transport(100 * z, 100 * x, 7 * c)
    torch.testing.assert_close(scaled, 100 * z[order])


def test_few_columns_of_contexts_are_equal_rows(float64):
    """Rounded contexts are groups if there are at most half as many different ones as samples."""
    z, x = torch.randn(8, 2), torch.randn(8, 2)
    c = torch.tensor([[0.5], [0.7], [0.5], [0.7], [-0.0], [9.0], [0.0], [9.0]])
    order = permuted(z, x, c)
    assert torch.equal(c[order], c)


def test_mixtures_couple_within_components():
    """With contexts that are components, base points stay in theirs; the paths of the loss are shorter."""
    data = torch.cat([torch.rand(2000, 2) - 3, torch.rand(2000, 2) + 3])
    flow = density_model((2,), data, extra=2, augmentation="categorical", hidden=(8, 8))
    spied(flow)
    x = data[torch.randperm(len(data))[: 4 * COMPONENT_POINTS]]
    losses = [FlowMatching(flow, coupling)(x) for coupling in ("independent", "optimal-transport")]
    assert losses[1] < 0.3 * losses[0]  # of the zero field: mean squared displacements
    with pytest.raises(InputError, match="a batch of 64 needs 1000 points, for groups: 2; pass larger batches"):
        FlowMatching(flow, "optimal-transport")(data[::63][:64])


def test_bad_flow_matching_is_refused():
    ode = Continuous(MLPField(2))
    with pytest.raises(InputError, match="one Continuous"):
        FlowMatching(Flow(Compose([ode, Continuous(MLPField(2))]), Normal((2,))))
    for options in ({"coupling": "entropic"}, {"interpolation": "curved"}, {"sigma": -1.0}, {"kl": math.inf}):
        with pytest.raises(InputError, match=next(iter(options))):
            FlowMatching(Flow(ode, Normal((2,))), **options)
    with pytest.raises(InputError, match="momentum"):
        FlowMatching(density_model((2,), extra=2, augmentation="momentum"))


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        (torch.randn(5, 1), r"x of shape \(5, 1\)"),
        (torch.randn(0, 2), "batch is empty"),
        ((torch.randn(1, 2), torch.randn(1, 3)), "a batch of 1 needs 2 points"),
        ((torch.randn(5, 2), torch.randn(4, 3)), r"c of shape \(4, 3\)"),
    ],
)
def test_bad_batches_are_refused(batch, names):
    with pytest.raises(InputError, match=names):
        FlowMatching(density_model((2,), hidden=(8,), context=3), "optimal-transport")(batch)
