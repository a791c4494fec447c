"""Costs at equal likelihood: the same for every call, with bounds tightened until they settle."""

import pytest
import torch
from stored_runs import spread

from cnf import density_model
from train_flows.data import Dataset, Split
from train_flows.evaluation import costs as module
from train_flows.evaluation.costs import costs


def table(n=50):
    part = Split(torch.randn(n, 2))
    return Dataset("t", part, part, part, ("a", "b"))


def test_an_exact_flow_takes_one_point_for_each_sample():
    model, data, before = spread(density_model((2,), hidden=(8, 8))), table(), torch.get_rng_state()
    found = costs(model, data)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        assert found["nll_test"] == pytest.approx(-model.log_prob(data.test.x).mean().item(), abs=1e-3)
    assert (found["points_log_prob"], found["raised"]) == (1, 0)
    for what in ("sample", "log_prob"):
        assert 0 < found[f"nfe_{what}_1e-05"] < found[f"nfe_{what}_1e-07"]
    again = costs(model, data)
    assert all(again[name] == value for name, value in found.items() if not name.startswith("seconds"))


def test_the_evaluations_are_those_of_double_precision():
    model, data = spread(density_model((2,), hidden=(8, 8))), table()
    single, double = costs(model, data), costs(model.double(), data)
    names = [name for name in single if name.startswith("nfe")]
    assert [single[name] for name in names] == [double[name] for name in names]


def test_a_mixture_of_flows_takes_a_point_for_each_component():
    model = spread(density_model((2,), hidden=(8, 8), extra=3, augmentation="categorical"))
    assert costs(model, table())["points_log_prob"] == 3


def test_draws_are_doubled_until_a_bound_settles(monkeypatch):
    model, data = spread(density_model((2,), hidden=(8, 8), extra=1)), table()
    with torch.no_grad():
        one = -model.log_prob(data.test.x, samples=1).mean().item()
    found = costs(model, data)
    assert found["points_log_prob"] >= module.MIN_DRAWS
    assert found["raised"] < module.CONVERGED
    assert found["nll_test"] < one
    monkeypatch.setattr(module, "MAX_NUMBERS", 4 * data.test.x.numel())
    assert costs(model, data)["points_log_prob"] == 4
