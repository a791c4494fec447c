"""The benchmark of irregular time series: all ways compute the states and gradients of the same solutions."""

import json

import pytest
import torch
from torch.distributions import Normal
from torchdiffeq import odeint

from anode import count_evals
from anode.time_series import series_model
from train_flows.benchmark import irregular_series as work

DATA = work.oscillations(work.Sizes(3, 7))


def moving(kind, solver):
    """A model whose paths are not constant, as those of a new one are."""
    model = series_model(2, data=DATA, kind=kind, hidden=(6,), solver=solver)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def test_every_way_has_a_row_of_each_task(run, tmp_path):
    status, out, _ = run("benchmark", "series", "--quick", "--repeats", 1)
    assert status == 0
    content = json.loads((tmp_path / "benchmark-series.json").read_text())
    assert {"command", "machine", "versions", "work"} <= set(content)
    names = [(row["kind"], row["task"], row["way"]) for row in content["rows"]]
    assert names == [(kind, task, way) for kind in work.KINDS for task in work.TASKS for way in work.WAYS]
    for row in content["rows"]:
        assert row["way"] in out
        assert row["seconds"] > 0
        assert row["points"] == row["evaluations"] * (1 if row["way"] == work.LOOP else 3) > 0
        assert row["error"] < 1e-2
        assert row["error_tight"] < 1e-6
        if row["way"] == work.BATCH:
            assert (row["ratio"], row["difference"]) == (1, 0)
    assert "exists" in run("benchmark", "series", "--quick", "--repeats", 1)[2]


@pytest.mark.parametrize("kind", work.KINDS)
@pytest.mark.parametrize("way", work.WAYS)
def test_the_states_are_those_of_each_series_alone(float64, kind, way):
    model = moving(kind, work.TIGHT)
    found = work.forecast(work.WAYS[way](model, DATA))
    for i, (_, series) in enumerate(work.one_by_one(model, DATA)):
        known = model._history(series)
        start = model.paths.start(known, 0).states[0]
        path = odeint(model.paths.field, start, known.times[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found[i], path[:, 0], rtol=1e-7, atol=1e-7)
        assert (path[-1] - path[0]).abs().max() > 0.1


@pytest.mark.parametrize("kind", work.KINDS)
@pytest.mark.parametrize("way", [way for way in work.WAYS if way != work.BATCH])
def test_the_gradients_are_those_of_the_batch(float64, monkeypatch, kind, way):
    model = moving(kind, work.TIGHT)
    monkeypatch.setattr(Normal, "rsample", lambda q, shape: q.mean.expand(*shape, *q.mean.shape))  # not random
    gradients = []
    for each in (work.BATCH, way):
        work.step(work.WAYS[each](model, DATA))
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("way", [way for way in work.WAYS if "torchdiffeq" not in way])
def test_evaluations_are_those_that_solvers_count(way):
    parts = work.WAYS[way](moving("node", work.TIGHT), DATA)
    batches = work.batches_of(parts[0][0].paths.field, lambda: work.forecast(parts))
    with count_evals() as evaluations:
        work.forecast(parts)
    assert (len(batches), sum(batches)) == (evaluations.forward, evaluations.points)
    assert evaluations.solves == len(parts)
