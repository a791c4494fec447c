"""The speed benchmark: contenders that solve the same flow, and rows that mean what they say."""

import json
import os

import numpy as np
import pytest
import torch

from train_flows.benchmark import speed, speed_report
from train_flows.benchmark.contenders import Ours, contenders, random_weights
from train_flows.benchmark.overhead import again, calls_of
from train_flows.benchmark.timing import apart, peak_megabytes, pinned


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(speed, "PLANE", speed.PLANE._replace(hidden=(8, 8, 8), batch=16))
    monkeypatch.setattr(speed, "MANY", 32)
    monkeypatch.setattr(speed, "TRAINED", 2)
    monkeypatch.setattr(speed, "SWEEP", (1e-3, 1e-5))


def _results(contender, x, exact):
    """Samples; and where they are no estimates, densities and gradients."""
    points = contender.points(x)
    contender.step(points)
    with torch.no_grad():
        found = [np.asarray(contender.sample(points))]
        return [*found, np.asarray(contender.log_prob(points)), *contender.gradients()] if exact else found


@pytest.mark.parametrize("name", contenders(compile=False))
@pytest.mark.parametrize("exact", [True, False])
def test_contenders_solve_the_same_flow(name, exact):
    """Densities, samples and gradients of equal weights, with the exact trace; one probe of it is unbiased."""
    weights = [(2 * w.astype(np.float64), b.astype(np.float64)) for w, b in random_weights(3, (6, 5, 4), 0)]
    x = np.random.default_rng(0).normal(size=(7, 3))
    reference = contenders(compile=False)["torchdiffeq, direct"](weights, "tanh", 1e-10)
    contender = contenders(compile=False)[name](weights, "tanh", 1e-8, exact=exact)
    expected, found = _results(reference, x, True), _results(contender, x, exact)
    for a, b in zip(found, expected if exact else expected[:1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert [gradient.shape for gradient in contender.gradients()] == [part.shape for pair in weights for part in pair]


def test_rows_have_errors_and_evaluations_beside_their_seconds(run, tiny, tmp_path):
    status, out, _ = run(
        "benchmark", "speed", "--works", "cnf-2d", "small", "--repeats", 1, "--seeds", 2, "--threads", 1, "--no-compile"
    )
    assert status == 0
    content = json.loads((tmp_path / "benchmark-speed.json").read_text())
    assert (tmp_path / "benchmark-speed.png").exists()
    assert content["packages"]["torch"] == torch.__version__.split("+")[0]
    rows = content["rows"]
    names = set(contenders(compile=False))
    for task in ("step, exact", "step, one probe", "log_prob", "sample"):
        for seed in (0, 1):
            own = [r for r in rows if (r["work"], r["task"], r["seed"], r["tolerance"]) == ("cnf-2d", task, seed, 1e-5)]
            assert {row["contender"] for row in own} == names
            assert all(row["seconds"] > 0 for row in own)
            assert all((row["error"] is None) == (task == "step, one probe") for row in own)
            assert all(row["error"] is None or 0 < row["error"] < 1e-2 for row in own)
    steps = {row["contender"]: row["evaluations"] for row in rows if row["task"] == "step, exact" and not row["seed"]}
    assert steps["torchdiffeq, adjoint (FFJORD)"] > steps["torchdiffeq, direct"] > 0
    assert "overhead" in out
    assert all(name in out for name in names)


def test_ratios_are_means_over_seeds():
    def row(contender, seed, seconds):
        about = {"work": "w", "task": "t", "tolerance": 1e-5}
        return {**about, "contender": contender, "seed": seed, "seconds": seconds}

    rows = [row("ours", 0, 1.0), row("zuko", 0, 2.0), row("ours", 1, 2.0), row("zuko", 1, 16.0), row("big", 0, None)]
    assert speed_report.ratios(rows, "w", "t", 1e-5) == {"ours": {"ours": pytest.approx(1), "zuko": pytest.approx(4)}}


def _greedy():
    return torch.zeros(2**50)


def test_work_that_lacks_memory_is_none():
    assert apart(_greedy) is None
    assert apart(max, 2, 3) == 3


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--works", "cnf-3d", "cnf-3d is unknown"), ("--repeats", 0, "at least 1"), ("--out", "some.csv", ".json file")],
)
def test_bad_input(run, option, value, message):
    status, _, err = run("benchmark", "speed", option, value)
    assert status != 0
    assert message in err


@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_the_evaluations_of_a_step_are_made_again(gradient):
    ours = Ours(random_weights(2, (8, 8, 8), 0), "tanh", 1e-5, gradient=gradient)
    x = torch.randn(16, 2)
    counted = ours.evaluations(lambda: ours.step(x))
    calls = calls_of(Ours(random_weights(2, (8, 8, 8), 0), "tanh", 1e-5, gradient=gradient), x)
    assert len(calls) == counted
    assert {call.divergence for call in calls} == {True, False}  # an idle stage needs none
    assert 0 < sum(call.used for call in calls) < sum(call.graph for call in calls)
    assert all(call.graph for call in calls) == (gradient == "direct")
    again(ours.field, calls)
    assert all(torch.isfinite(weight.grad).all() for weight in ours.field.parameters())


def _work(megabytes):
    def work():
        return sum(torch.ones(250_000).sum() for _ in range(3)) + torch.ones(250_000 * megabytes).sum()

    work()  # what is freed is used again
    return lambda: (work(), torch.ones(250_000 * (megabytes + 100)).sum())


def test_the_peak_is_what_is_held_beyond_what_was_before():
    found = peak_megabytes(_work, 50)
    if found is None:
        pytest.skip("the system does not tell")
    assert 95 < found < 200


def test_work_is_kept_to_its_cores():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("the system cannot do that")
    before = os.sched_getaffinity(0)
    with pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_times_at_equal_errors():
    def row(contender, tolerance, error, seconds):
        about = {"work": "cnf-2d", "task": "log_prob", "seed": 0}
        return {**about, "contender": contender, "tolerance": tolerance, "error": error, "seconds": seconds}

    rows = []
    for name, factor in {"ours, checkpoint": 1.0, "exact": 1e-3, "loose": 1e3, "alike": 10.0}.items():
        rows += [row(name, 10.0**-k, factor * 10.0**-k, float(k)) for k in (4, 5, 6)]
    (block,) = speed_report._at_equal_error(rows)
    said = {line[:32].strip(): line[32:].strip() for line in block.splitlines()[1:]}
    assert said == {
        "ours, checkpoint": "5.0000",
        "exact": "at most 4.0000",
        "loose": "never so exact",
        "alike": "6.0000",
    }
