"""The experiments on densities: their files at a small size, that sittings add up, and what a run is."""

import dataclasses
import importlib
import json
import math
import time

import pytest
import torch

from cnf import load
from train_flows import paper, recipes
from train_flows.paper import density_trials, ffjord, path_energies, report, variational_trials
from train_flows.paper.command import OTHER_SEEDS
from train_flows.paper.density_trials import DensityTrial
from train_flows.paper.outcomes import Outcome, Place
from train_flows.paper.variational_trials import VariationalTrial

FIGURES = {
    "path-energies": {"nll", "loss", "acceleration", "kinetic", "test_nll", "validation_nll", "nfe_log_prob"},
    "couplings": {"nll", "loss", "test_nll", "validation_nll", "nfe_log_prob", "nfe_sample"},
    "ffjord": {"nll", "loss", "test_nll", "seconds"},
    "augmented-density": {"nll", "nll_test", "points_log_prob", "nfe_sample_1e-07", "nfe_log_prob_1e-05", "test_nll"},
    "augmented-tuning": {"nll", "nll_test", "nfe_sample_1e-07", "validation_nll"},
    "planar": {"kl", "loss", "standard_error", "nfe_sample"},
}
QUICK = ("--quick", "--workers", 1, "--out", "results")
DATA = {
    "path-energies": "annulus",
    "couplings": "moons",
    "ffjord": "2spirals",
    "augmented-density": "checkerboard",
    "augmented-tuning": "checkerboard",
    "planar": "u1",
}


@pytest.fixture
def place(tmp_path):
    return Place("data", "cpu", tmp_path / "states")


@pytest.mark.parametrize("experiment", paper.ON_DENSITIES)
def test_every_experiment_writes_runs_figure_and_table(run, tmp_path, monkeypatch, experiment):
    data = DATA[experiment]
    command = ("paper", experiment, *QUICK, "--data", data, "--seeds")
    status, out, err = run(*command, 2)
    assert (status, err) == (0, "")
    path = tmp_path / "results" / f"{experiment}-{data}.json"
    content = json.loads(path.read_text())
    assert content["complete"]
    first = OTHER_SEEDS.get(experiment, 0)
    assert content["seeds"] == [first, first + 1]
    for each in content["runs"]:
        assert each["status"] == "success"
        assert FIGURES[experiment] <= set(each["history"])
        assert all(math.isfinite(each["history"][name][-1]) for name in FIGURES[experiment])
    assert all(value is None or math.isfinite(value) for value in _numbers(content["findings"]))
    assert all(row["model"] in out for row in content["summary"])
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"

    module = importlib.import_module(f"train_flows.paper.{experiment.replace('-', '_')}")
    monkeypatch.setattr(module, "attempt", lambda *_: pytest.fail("trained again"))
    assert run(*command, 2, "--resume")[0] == 0
    again, before = (
        [math.inf if value is None else value for value in _numbers(findings)]
        for findings in (json.loads(path.read_text())["findings"], content["findings"])
    )
    assert again == pytest.approx(before, rel=2e-2, abs=2e-2)  # records are rounded, and intervals magnify that
    monkeypatch.setattr(module, "attempt", lambda *_: None)
    status, out, _ = run(*command, 3, "--resume")
    assert status == 0
    assert "runs are missing" in out
    assert run("paper", experiment, *QUICK[:-1], "none")[0] == 0  # where no run is finished


def _numbers(findings):
    """All of them, whether they come one by one or several together."""
    return [x for value in findings.values() for x in (value.values() if isinstance(value, dict) else [value])]


def test_a_trial_is_a_run_of_the_program(run, tmp_path, place, monkeypatch):
    """The same weights, and so the same figures, as the command line gives."""
    monkeypatch.setattr("train_flows.pictures.draw", lambda *_: None)
    options = {"steps": 6, "validate_every": 2, "hidden": (8, 8), "batch_size": 64, "acceleration": 0.1, "ema": 0.5}
    typed = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", *_words(value))]
    assert run("density", "moons", *typed, "--seed", 1)[0] == 0
    outcome = density_trials.attempt(DensityTrial("some", "moons", options), 1, place)
    records = [json.loads(line) for line in (tmp_path / "runs/moons/metrics.jsonl").read_text().splitlines()]
    assert [record["nll"] for record in outcome.records] == [record["nll"] for record in records]
    assert records[-1]["acceleration"] > 0
    test_nll = json.loads((tmp_path / "runs/moons/result.json").read_text())["nll"]["value"]
    assert outcome.records[-1]["test_nll"] == pytest.approx(test_nll, abs=1e-6)
    assert load(tmp_path / "runs/moons").kind == "exact"


def test_a_trial_of_another_recipe_is_another_trial(monkeypatch):
    """So that a file of results never mixes them."""
    before, steps = DensityTrial("some", "moons").plain(), recipes.DENSITY["toy"]["steps"]
    monkeypatch.setitem(recipes.DENSITY["toy"], "steps", steps + 1)
    assert DensityTrial("some", "moons").plain() != before
    assert DensityTrial("some", "moons", {"steps": steps}).plain() == before


def _words(value):
    return map(str, value) if isinstance(value, tuple) else [str(value)]


@pytest.mark.parametrize(
    ("attempt", "trial"),
    [
        (density_trials.attempt, DensityTrial("some", "moons", {"lr": 1e9, "max_steps": 3}, quick=True)),
        (
            variational_trials.attempt,
            VariationalTrial("some", "u1", "planar field", {"units": 4}, lr=1e9, steps=20, batch_size=16),
        ),
    ],
)
def test_a_run_that_fails_is_an_outcome(place, attempt, trial):
    outcome = attempt(trial, 0, place)
    assert outcome.status in ("too many steps", "non-finite state", "step underflow", "non-finite loss")
    assert attempt(trial, 0, dataclasses.replace(place, deadline=time.time() - 1)) is None


def test_a_flow_at_its_target_has_no_divergence():
    """An untrained CNF is the standard normal; so is this target, up to a constant that is known."""
    target = variational_trials.Target(
        "normal", 2, lambda x: -x.square().sum(1) / 2 + 3, log_normalizer=math.log(2 * math.pi) + 3
    )
    flow = variational_trials.Flow(
        variational_trials.TRANSFORMS["perceptron field"](2, [8]), variational_trials.Normal((2,))
    )
    each, samples = variational_trials.divergences(flow, target, 50)
    torch.testing.assert_close(each, torch.zeros(50, dtype=torch.float64), rtol=0, atol=1e-5)
    assert samples.shape == (50, 2)


def test_the_weight_is_that_of_the_fewest_evaluations_within_what_is_allowed():
    def group(weight, nfe, *values):
        trial = DensityTrial(f"acceleration {weight:g}", "annulus")
        records = [[{"validation_nll": value, "nfe_validation": nfe}] for value in values]
        return [Outcome(trial, seed, "success", each) for seed, each in enumerate(records)]

    groups = {0.0: group(0.0, 50, 1.0, 2.0), 3e-4: group(3e-4, 40, 1.0, 2.0), 1e-3: group(1e-3, 30, 1.038, 2.0)}
    assert path_energies._chosen({**groups, 3e-3: group(3e-3, 20, 1.05, 2.0)}) == 1e-3
    assert path_energies._chosen({**groups, 3e-3: group(3e-3, 35, 1.0, 2.0)}) == 1e-3
    assert path_energies._chosen({0.0: groups[0.0], 3e-3: group(3e-3, 20, 1.05, 2.0)}) is None
    assert path_energies._chosen({1e-3: groups[1e-3]}) is None


def test_the_time_to_a_likelihood_is_when_it_is_reached_for_good():
    records = [{"seconds": float(i), "nll": nll} for i, nll in enumerate((3.0, 1.0, 2.0, 0.9, 0.8))]
    outcome = Outcome(DensityTrial("some", "moons"), 0, "success", records)
    assert [ffjord._seconds_to(outcome, nll) for nll in (3.0, 1.0, 0.85, 0.5)] == [0.0, 3.0, 4.0, math.inf]


def test_samples_survive_their_file():
    trial = VariationalTrial("some", "u1", "planar")
    result = json.loads(json.dumps(Outcome(trial, 0, "success", [{"kl": 1.0}], "here", [[1.5, 2.25]]).result()))
    assert result["samples"] == [[1.5, 2.25]]
    assert (
        report.summarize([Outcome(trial, 0, "success", [{}, {"kl": 1.0, "nfe_forward": 2.0}])])[0]["kl"]["mean"] == 1.0
    )


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("planar", "--data", "u9"), "u1, u2, u3, u4"),
        (("couplings", "--data", "nothing"), "nothing"),
        (("path-energies", "--small"), "--small is for image-curves"),
        (("nfe", "--resume"), "--resume is for image-curves"),
        (("couplings", "--data", "moons", "moons"), "twice"),
        (("couplings", "--budget-minutes", "0"), "--budget-minutes 0.0 must be"),
    ],
)
def test_bad_command_lines_are_refused(run, typed, message):
    status, _, err = run("paper", *typed, "--quick")
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
