"""The experiments of the paper: their files at a small size, their outcomes when runs fail, and what a run is."""

import dataclasses
import json
import math
import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from anode import Solver, classifier
from train_flows import paper
from train_flows.errors import TrainingError
from train_flows.paper import nfe, report, tolerance, trials
from train_flows.paper.trials import Trial, attempt, attempt_each

SMALL = Trial("NODE", "spheres", epochs=3, points=200)


def attempt_in_order(*args, **kwargs):
    return [outcome for _, outcome in sorted(attempt_each(*args, **kwargs), key=lambda pair: pair[0])]


@pytest.fixture
def small_solves(monkeypatch):
    monkeypatch.setattr(tolerance, "TOLERANCES", (1e-3, 1e-5, 1e-7))
    monkeypatch.setattr(tolerance, "REPEATS", 1)
    monkeypatch.setattr(tolerance, "POINTS", 20)


@pytest.mark.usefixtures("small_solves")
@pytest.mark.parametrize("experiment", paper.ON_FUNCTIONS)
def test_every_experiment_writes_runs_figure_and_table(run, tmp_path, experiment):
    status, out, err = run("paper", experiment, "--quick", "--seeds", 2, "--workers", 1, "--out", "results")
    assert (status, err) == (0, "")
    content = json.loads((tmp_path / "results" / f"{experiment}.json").read_text())
    assert {"command", "machine", "versions", "experiment", "quick", "seeds", "findings", "summary", "runs"} <= set(
        content
    )
    assert content["seeds"] == [0, 1]
    assert content["quick"] is True
    assert content["complete"] is True
    runs = [each for each in content["runs"] if "history" in each]
    assert len(runs) % 2 == 0
    assert len(runs) > 0
    for each in runs:
        assert {"name", "data", "model", "lr", "epochs", "points", "batch_size", "seed", "status"} <= set(each)
        history = each["history"]
        names = {"epoch", "loss", "mse", "accuracy", "train_loss", "nfe", "nfe_forward", "nfe_backward", "seconds"}
        assert names <= set(history)
        assert all(len(values) == each["epochs"] + 1 for values in history.values())
        assert history["loss"][0] is None  # before training
        assert all(math.isfinite(value) for value in history["loss"][1:])
        assert each["status"] == "success"
    assert {row["runs"] for row in content["summary"]} == {2}
    for row in content["summary"]:
        assert row["model"] in out
    assert (tmp_path / "results" / f"{experiment}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_is_the_papers_training(monkeypatch):
    """Against the loop written out: Adam, shuffled batches, smooth-L1, means over an epoch."""
    outcome = attempt(SMALL, seed=3)
    pairs, _ = trials.points(SMALL, 3)
    torch.manual_seed(3)
    model = classifier((2,), 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batch = trials.shuffled_batches(tuple(pairs), 64, 3)
    losses = []
    for step in range(9):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.smooth_l1_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    got = [record["loss"] for record in outcome.records[1:]]
    assert got == pytest.approx([np.mean(losses[i : i + 3]) for i in (0, 3, 6)], rel=1e-4)
    torch.testing.assert_close(outcome.model(pairs.x), model(pairs.x), rtol=1e-3, atol=1e-4)
    assert outcome.records[-1]["train_loss"] == pytest.approx(
        F.smooth_l1_loss(model(pairs.x), pairs.y).item(), rel=1e-3
    )


def test_seeds_reproduce_exactly():
    first, again, other = (attempt(SMALL, seed).result()["history"] for seed in (0, 0, 1))
    for each in (first, again, other):
        del each["seconds"]
    assert first == again
    assert first != other


def test_workers_change_nothing():
    alone, beside = (attempt_in_order([SMALL], range(2), workers) for workers in (1, 2))
    for one, two in zip(alone, beside, strict=True):
        assert [r["loss"] for r in one.records[1:]] == [r["loss"] for r in two.records[1:]]
        x = one.train.x
        assert torch.equal(one.model(x), two.model(x))


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ({"solver": {"rtol": 1e-9, "atol": 1e-9, "max_steps": 2}}, "too many steps"),
        ({"model": "resnet"}, "non-finite loss"),
    ],
)
def test_failures_are_outcomes_and_the_others_go_on(model, status):
    failing = dataclasses.replace(SMALL, name="failing", model=model)
    if status == "non-finite loss":
        failing = dataclasses.replace(failing, lr=1e30)
    outcomes = attempt_in_order([failing, SMALL], range(2), workers=1)
    assert [o.status for o in outcomes] == [status, "success"] * 2
    rows = {row["model"]: row for row in report.summarize(outcomes)}
    assert (rows["failing"]["succeeded"], rows["NODE"]["succeeded"]) == (0, 2)
    assert "loss" not in rows["failing"]
    assert "0/2" in report.table(list(rows.values()))
    assert json.loads(json.dumps(outcomes[0].result()))["status"] == status


@pytest.mark.usefixtures("small_solves")
@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("experiment", paper.ON_FUNCTIONS)
def test_experiments_survive_failing_runs(run, tmp_path, monkeypatch, experiment, failing):
    real = trials.train

    def train(*args, **kwargs):
        if torch.initial_seed() < failing:
            raise TrainingError("made up")
        return real(*args, **kwargs)

    monkeypatch.setattr(trials, "train", train)
    status, out, err = run("paper", experiment, "--quick", "--seeds", 2, "--workers", 1)
    assert (status, err) == (0, "")
    content = json.loads((tmp_path / "paper" / f"{experiment}.json").read_text())
    statuses = {each["seed"]: each["status"] for each in content["runs"] if each.get("seed") in (0, 1)}
    assert statuses == {seed: "non-finite loss" if seed < failing else "success" for seed in (0, 1)}
    assert f"{2 - failing}/2" in out
    assert (tmp_path / "paper" / f"{experiment}.png").exists()


def test_snapshots_are_features_of_the_epoch():
    trial = dataclasses.replace(SMALL, snapshots=(0, 3))
    outcome = attempt(trial, 0)
    assert set(outcome.features) == {0, 3}
    every = trials.shown(outcome.train)
    torch.testing.assert_close(outcome.features[3], outcome.model.features(outcome.train.x[every]))
    torch.manual_seed(0)
    torch.testing.assert_close(outcome.features[0], classifier((2,), 1).features(outcome.train.x[every]))


def test_validation_points_lie_in_the_gaps():
    trial = dataclasses.replace(SMALL, removed=3, points=1000)
    outcome = attempt(trial, 0)
    assert len(outcome.train.x) + len(outcome.validation.x) == 1000
    measured = F.smooth_l1_loss(outcome.model(outcome.validation.x), outcome.validation.y)
    assert outcome.records[-1]["validation_loss"] == pytest.approx(measured.item(), rel=1e-3)


def test_summaries_are_over_seeds():
    outcomes = attempt_in_order([SMALL], range(3), workers=1)
    (row,) = report.summarize(outcomes)
    losses = [o.records[-1]["loss"] for o in outcomes]
    assert row["loss"]["mean"] == pytest.approx(np.mean(losses))
    assert row["loss"]["sd"] == pytest.approx(np.std(losses, ddof=1))
    assert report.summarize(outcomes[:1])[0]["loss"]["sd"] is None
    assert report.curves(outcomes, "loss").shape == (3, 4)


def test_solves_at_tolerances_are_what_they_say(monkeypatch):
    monkeypatch.setattr(tolerance, "REPEATS", 1)
    rows = tolerance.measure(classifier((2,), 1), torch.randn(50, 2))
    direct, adjoint = ([row for row in rows if row["gradient"] == kind] for kind in ("direct", "adjoint"))
    assert [row["tolerance"] for row in direct] == list(tolerance.TOLERANCES)
    for loose, tight in pairwise(direct):
        assert tight["nfe_forward"] >= loose["nfe_forward"]
    assert direct[-1]["error"] < 1e-5 < direct[0]["error"]
    assert all(row["nfe_backward"] == 0 for row in direct)
    assert all(row["nfe_backward"] > 0 for row in adjoint)
    assert direct[-1]["bytes_kept"] > 5 * direct[0]["bytes_kept"]  # grows with the steps
    assert adjoint[-1]["bytes_kept"] == adjoint[0]["bytes_kept"] < direct[0]["bytes_kept"]


def test_kept_bytes_are_those_of_the_graph():
    x = torch.randn(100, 10, requires_grad=True)
    with tolerance.kept_bytes() as kept:
        y = (x.exp() * 2).sum()
        assert kept() == 100 * 10 * 4  # the result of exp
        x.exp().sum()  # no one holds on to this
        assert kept() == 100 * 10 * 4
        y.backward()
    assert kept() == 0


def test_a_failed_reference_is_a_row(monkeypatch):
    monkeypatch.setattr(tolerance, "REFERENCE", Solver(rtol=1e-9, atol=1e-9, max_steps=1))
    assert tolerance.measure(classifier((2,), 1), torch.randn(5, 2)) == [{"status": "reference: too many steps"}]


def test_a_run_that_breaks_in_the_last_step_is_written(run, tmp_path, monkeypatch):
    breaking = [Trial("ResNet", "spheres", {"model": "resnet"}, lr=1e30)]
    monkeypatch.setattr(nfe, "TRIALS", breaking)
    monkeypatch.setattr(nfe, "_findings", lambda _: {"ratio": math.inf})
    monkeypatch.setattr(trials, "quick", lambda wanted: [dataclasses.replace(t, points=64, epochs=1) for t in wanted])
    assert run("paper", "nfe", "--quick", "--seeds", 1, "--workers", 1)[0] == 0
    content = json.loads((tmp_path / "paper" / "nfe.json").read_text(), parse_constant=pytest.fail)
    (only,) = content["runs"]
    assert only["status"] == "non-finite loss"
    assert only["history"]["train_loss"][-1] is None
    assert content["findings"] == {"ratio": None}


def test_finished_runs_survive_a_stop(run, tmp_path, monkeypatch):
    real, calls = trials.attempt, []

    def attempt(trial, seed):
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(trial, seed)

    monkeypatch.setattr(trials, "attempt", attempt)
    status, _, err = run("paper", "nfe", "--quick", "--seeds", 2, "--workers", 1)
    assert (status, err) == (130, "error: interrupted\n")
    content = json.loads((tmp_path / "paper" / "nfe.json").read_text())
    assert content["complete"] is False
    assert len(content["runs"]) == 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts the descriptors in /proc")
def test_many_runs_need_few_file_descriptors():
    before = len(os.listdir("/proc/self/fd"))
    outcomes = attempt_in_order([dataclasses.replace(SMALL, epochs=1, model={"model": "resnet"})], range(6), 2)
    assert len(outcomes) == 6
    assert len(os.listdir("/proc/self/fd")) < before + 20


class TestCommandLine:
    def test_lists_the_experiments(self, run):
        status, out, _ = run("paper")
        assert status == 0
        for name in paper.EXPERIMENTS:
            assert name in out

    @pytest.mark.parametrize(
        ("args", "names"),
        [
            (["nef"], ["'nef' is unknown", *paper.EXPERIMENTS]),
            (["nfe", "--seeds", "0"], ["--seeds 0"]),
            (["nfe", "--workers", "0"], ["--workers 0"]),
            (["nfe", "--out", "taken"], ["--out taken is a file"]),
        ],
    )
    def test_refuses(self, run, tmp_path, args, names):
        (tmp_path / "taken").write_text("mine")
        status, _, err = run("paper", *args)
        assert status == 2
        assert len(err.splitlines()) == 1
        assert all(name in err for name in names)
        assert [path.name for path in tmp_path.iterdir()] == ["taken"]

    def test_results_are_not_overwritten_unasked(self, run, tmp_path):
        (tmp_path / "paper").mkdir()
        (tmp_path / "paper" / "nfe.json").write_text("mine")
        status, _, err = run("paper", "nfe", "--quick")
        assert status == 2
        assert "--overwrite" in err
        assert (tmp_path / "paper" / "nfe.json").read_text() == "mine"
