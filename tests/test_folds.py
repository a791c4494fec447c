"""Folds of residual steps: the degree argument on a line, where all preimages can be counted, and their estimate."""

import math

import pytest
import torch
from torch import nn

from anode import Field, MLPField, Solver
from cnf import Compose, Flow, Mixture, MixtureFlow, Normal, ResidualSteps, density_model, watch_determinants
from train_flows.data import Split
from train_flows.evaluation.folds import has_residual_steps, measure_folds
from train_flows.evaluation.likelihood import measure
from train_flows.evaluation.wording import describe_folds, likelihood_table

HALF, CELL = 12.0, 0.001


def folding(slope, context=0):
    """The density of z = x - slope tanh x, standard normal; a slope above 1 folds around x = 0."""
    field = MLPField(1, (1,), "tanh", "none", context)
    first, last = field.layers
    for parameter in field.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(first.weight, 1.0)
    nn.init.constant_(last.weight, slope)
    return Flow(ResidualSteps(field, 1), Normal((1,)))


@torch.no_grad()
def on_grid(flow):
    """A grid of x, with the images, determinants and densities |det| p(z) of its points."""
    x = torch.arange(-HALF, HALF, CELL)[:, None]
    with watch_determinants() as found:
        z = flow.transform(x).point
    determinants = found[0][:, 0]
    return x, z, determinants, flow.base.log_prob(z).exp() * determinants.abs()


def counted_mass(flow):
    """The mean number of preimages of a base point with a negative determinant, counted on a grid."""
    z = on_grid(flow)[1][:, 0]
    base = torch.arange(-4, 4, 0.01)
    counts = ((z[:-1, None] > base) & (z[1:, None] <= base)).sum(0)
    return (Normal((1,)).log_prob(base[:, None]).exp() * counts).sum().item() * 0.01


def draw(flow, n):
    """Draws from the density with 0 in place of negative determinants, divided by its integral."""
    x, _, determinants, p = on_grid(flow)
    return x[(p * (determinants > 0)).multinomial(n, replacement=True)] + CELL * (torch.rand(n, 1) - 0.5)


SLOPES = pytest.mark.parametrize("slope", [1.2, 1.5, 2.0, 3.0])


@SLOPES
def test_a_fold_has_a_negative_determinant(float64, slope):
    determinants = on_grid(folding(slope))[2]
    assert determinants.min().item() == pytest.approx(1 - slope)


@SLOPES
def test_the_signed_density_integrates_to_one(float64, slope):
    _, _, determinants, p = on_grid(folding(slope))
    assert (p * determinants.sign()).sum().item() * CELL == pytest.approx(1, abs=1e-6)


@SLOPES
def test_the_density_integrates_to_one_and_the_negative_mass(float64, slope):
    flow = folding(slope)
    edge = math.sqrt(slope * (slope - 1)) - math.atanh(math.sqrt(1 - 1 / slope))  # |z| of three preimages
    mass = math.erf(edge / math.sqrt(2))
    assert counted_mass(flow) == pytest.approx(mass, abs=0.005)
    total = flow.log_prob(on_grid(flow)[0]).exp().sum().item() * CELL
    assert total == pytest.approx(1 + mass, abs=1e-5)


@SLOPES
@pytest.mark.parametrize("mixed", [False, True])
def test_the_negative_mass_is_estimated(float64, slope, mixed):
    flow = folding(slope, context=2 if mixed else 0)
    plain = folding(slope)
    x, mass = draw(plain, 1000), counted_mass(plain)
    if mixed:
        flow = MixtureFlow(Compose([]), Mixture((1,), 2), flow.transform)
        nn.init.zeros_(flow.mixture.means)
        nn.init.zeros_(flow.mixture.log_scales)
    found = measure_folds(flow, Split(x))
    share = mass / (1 + mass)  # of the draws with a second preimage at the other side of the fold
    error = math.sqrt(share / (1 - share) ** 3 / 1000)  # of share / (1 - share)
    assert found["mass"] == pytest.approx(mass, abs=4 * error + 1e-3)


def test_what_is_measured(float64):
    flow, x = folding(2.0), torch.tensor([[-3.0], [0.0], [0.5], [3.0]])
    found = measure_folds(flow, Split(x))
    assert found["least_data"] == pytest.approx(-1)
    assert found["negative_data"] == 0.5
    assert found["mass"] >= 0.5
    assert "fold" in describe_folds(found)


def test_steps_that_do_not_fold(float64):
    flow = folding(0.9)
    found = measure_folds(flow, Split(draw(flow, 300)))
    assert (found["mass"], found["returned"], found["negative_samples"]) == (0, 0, 0)
    assert found["least_data"] >= 0.1
    assert found["least_wide"] > 0
    assert "fold" not in describe_folds(found)


class Square(Field):
    """A field that is not bounded: x - f(x) = a - x^2 reaches no number above a."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, t, x, c=None):
        return x + x**2 - self.a


def test_base_points_without_an_image_count(float64):
    found = measure_folds(Flow(ResidualSteps(Square(-9.0), 1), Normal((1,))), Split(-torch.rand(3, 1)))
    assert found["negative_data"] == 0
    assert found["mass"] >= 1


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (2,), "context": 2},
        {"shape": (2,), "extra": 1, "posterior": "learned"},
        {"shape": (2,), "extra": 3, "augmentation": "categorical", "posterior": "fitted", "context": 1},
        {"shape": (1, 2, 2), "levels": 5, "extra": 1},
        {"shape": (1, 2, 2), "levels": 5, "extra": 2, "augmentation": "categorical"},
    ],
)
def test_every_density_is_measured(options):
    x = torch.randint(5, (50, *options["shape"])) if "levels" in options else torch.randn(50, *options["shape"])
    c = torch.randn(50, options["context"]) if "context" in options else None
    model = density_model(data=x, residual_steps=3, hidden=(8,), **options)  # the identity
    found = measure_folds(model, Split(x, c=c))
    assert (found["mass"], found["least_data"], found["least_wide"]) == (0, 1, 1)


def test_measuring_leaves_random_numbers_alone(float64):
    flow, x = folding(2.0), torch.randn(20, 1)
    state = torch.get_rng_state()
    assert measure_folds(flow, Split(x)) == measure_folds(flow, Split(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_densities_with_residual_steps_are_known():
    assert has_residual_steps(folding(1.0))
    assert not has_residual_steps(Flow(Compose([]), Normal((1,))))


@pytest.mark.parametrize(
    ("slope", "kind", "said"), [(0.5, "exact", "(exact)"), (2.0, "folded", "not exact: the steps fold")]
)
def test_a_folded_likelihood_is_not_called_exact(float64, slope, kind, said):
    flow = folding(slope)
    figures = measure(flow, Split(draw(flow, 200)), Solver())
    assert figures["nll"]["kind"] == kind
    assert said in likelihood_table(figures)


def test_figures_survive_an_inverse_that_is_not_found(float64):
    class Square(Field):  # z = a x^2, which has no negative values
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.ones(()))

        def forward(self, t, x, c=None):
            return x - self.a * x.square()

    flow = Flow(ResidualSteps(Square(), 1), Normal((1,)))
    figures = measure(flow, Split(torch.rand(200, 1) + 0.5), Solver())
    assert figures["nfe_sample"] is None
    assert figures["folds"]["negative_samples"] == pytest.approx(0.5, abs=0.1)  # each counts once
    assert figures["nll"]["kind"] == "folded"
    assert "the inverse is not found" in likelihood_table(figures)
