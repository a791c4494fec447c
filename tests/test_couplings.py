"""The experiment on couplings given conditions: its data, its distance and its control."""

from itertools import permutations

import pytest
import torch

from anode import MLPField
from cnf import Continuous
from train_flows.experiments.couplings import ConditionsIgnored, eight_gaussians, moons, wasserstein


def test_the_base_has_eight_gaussians_on_a_circle():
    base = eight_gaussians()
    z = base.sample(20_000)
    assert (z.norm(dim=1).mean(), z.var(0).mean()) == (pytest.approx(5.01, abs=0.02), pytest.approx(12.6, abs=0.2))
    eighth = torch.atan2(z[:, 1], z[:, 0]).mul(4 / torch.pi).round().remainder(8).long()
    assert torch.allclose(eighth.bincount() / len(z), torch.tensor(1 / 8), atol=0.01)
    assert base.log_prob(torch.tensor([[5.0, 0.0]])) == pytest.approx(-2.079 - 1.838 + 2.303, abs=1e-3)


@pytest.mark.parametrize("condition", ["class", "continuous"])
def test_conditions_are_the_moon_or_a_coordinate(condition):
    x, c = moons(1000, condition, 0)
    if condition == "class":
        assert torch.equal(c.sum(1), torch.ones(1000))
        assert c.mean(0).tolist() == [0.5, 0.5]
        assert x[c[:, 0] == 1, 1].mean() > x[c[:, 1] == 1, 1].mean() + 1
    else:
        assert torch.equal(c, x[:, :1] / 3)


def test_the_distance_is_that_of_the_best_permutation():
    x, y = torch.randn(2, 6, 2)
    best = min((x - y[list(order)]).square().sum(1).mean() for order in permutations(range(6)))
    assert wasserstein(x, y) == pytest.approx(best.sqrt().item(), rel=1e-5)


def test_ignored_conditions_skew_base_points():
    x, c = moons(1000, "continuous", 0)
    pair = ConditionsIgnored(Continuous(MLPField(2, context=1)), eight_gaussians()).matching_pair(x, c)
    assert torch.corrcoef(torch.stack([pair.z[:, 0], c[:, 0]]))[0, 1] > 0.8
