"""Two connected processes against one with the joined batch."""

import json
import os
import pickle
import signal
import time
from pathlib import Path

import pytest
import torch

from anode import Solver, SolverError, storage
from train_flows import processes
from train_flows.benchmark import children
from train_flows.checkpoint import Run

LIKELIHOOD = ["--objective", "likelihood", "--hidden", "16", "16"]


def typed(out, *more, steps=6):
    size = ["--steps", str(steps), "--validate-every", "3", "--batch-size", "64", "--dtype", "float64"]
    return ["density", "moons", *size, *more, "--out", str(out)]


def together(args, log):
    """Run a command line in two processes; gives exit statuses and outputs."""
    both = children.start_together(2, args, log)
    for child in both:
        child.join(120)
    return [child.exitcode for child in both], [log.with_suffix(f".{i}.log").read_text() for i in range(2)]


def alone(args, log):
    child = children.start(args, log)
    child.join(120)
    assert child.exitcode == 0, log.read_text()


def test_two_processes_train_like_one(tmp_path):
    """The same gradients, and so weights; the same figures, each sample counted once; one writes and prints."""
    alone(typed(tmp_path / "one", *LIKELIHOOD), tmp_path / "one.log")
    statuses, said = together(typed(tmp_path / "two", *LIKELIHOOD), tmp_path / "two.log")
    assert statuses == [0, 0]
    assert "test part of moons" in said[0]
    assert said[1] == ""
    one, two = (storage.read_weights(tmp_path / name) for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-7, atol=1e-9)
    records, others = (Run(tmp_path / name).records() for name in ("one", "two"))
    for record, other in zip(records, others, strict=True):
        for name in record.keys() - {"seconds", "seconds_training"}:
            assert other[name] == pytest.approx(record[name], rel=1e-8)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    for name in ("value", "standard_error"):
        assert results[1]["nll"][name] == pytest.approx(results[0]["nll"][name], rel=1e-8)


def test_a_run_of_two_processes_continues_bit_for_bit(tmp_path):
    """Noise, of which each process has its own, included; a base that flow matching does not use, too."""
    noisy = ["--divergence", "hutchinson", "--hidden", "8", "8", "--base", "mixture", "--likelihood-steps", "4"]
    noisy += ["--objective", "flow-matching+likelihood"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert together(typed(whole, *noisy, steps=30), tmp_path / "whole.log")[0] == [0, 0]
    both = children.start_together(2, typed(cut, *noisy, steps=30), tmp_path / "cut.log")
    while not (cut / "state" / "latest").exists():
        time.sleep(0.01)
        assert all(child.is_alive() for child in both)
    time.sleep(0.05)  # between two records, perhaps
    os.kill(both[1].pid, signal.SIGTERM)  # one of them stops both
    for child in both:
        child.join(120)
    assert [child.exitcode for child in both] == [0, 0]
    assert "continue with" in (tmp_path / "cut.0.log").read_text()
    assert Run(cut).records()[-1]["step"] < 30
    assert together(["density", "--resume", str(cut)], tmp_path / "on.log")[0] == [0, 0]
    first, second = (storage.read_weights(folder) for folder in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)
    timeless = [
        [{name: value for name, value in record.items() if "seconds" not in name} for record in Run(folder).records()]
        for folder in (whole, cut)
    ]
    assert timeless[0] == timeless[1]


def test_a_solve_that_fails_in_one_process_ends_both(tmp_path):
    """With a message, not by waiting for each other."""
    statuses, said = together(typed(tmp_path / "run", *LIKELIHOOD, "--max-steps", "2"), tmp_path / "run.log")
    assert statuses == [1, 1]
    assert all("too many steps" in each for each in said)


def classifying(out, *more):
    size = ["--epochs", "2", "--hidden", "8", "--batch-size", "64", "--dtype", "float64"]
    return ["classify", "spheres", *size, *more, "--out", str(out)]


def test_two_processes_classify_like_one(tmp_path):
    alone(classifying(tmp_path / "one"), tmp_path / "one.log")
    statuses, said = together(classifying(tmp_path / "two"), tmp_path / "two.log")
    assert statuses == [0, 0], said
    assert (tmp_path / "two" / "features.png").exists()
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    for name in ("accuracy", "loss", "nfe", "samples"):
        assert two[name] == pytest.approx(one[name], rel=1e-3)  # adaptive steps suit the share of a batch
    statuses, said = together(["evaluate", str(tmp_path / "two"), "--json"], tmp_path / "on.log")
    assert statuses == [0, 0]
    assert json.loads(said[0])["loss"] == pytest.approx(two["loss"], rel=1e-6)


def test_solves_that_fail_while_measuring_end_both(tmp_path):
    statuses, said = together(classifying(tmp_path / "run", "--max-steps", "2"), tmp_path / "run.log")
    assert statuses == [1, 1]
    assert all("too many steps" in each for each in said)


def _halved(part):
    """Fails for the second part, which is that of the second process."""
    if part == 1:
        raise SolverError("too many steps", 0.5, 9, Solver())
    return part / 2


def test_a_part_that_fails_fails_everywhere(tmp_path):
    with pytest.raises(SolverError, match=r"too many steps at t = 0\.5"):
        processes.shared_out([0, 1, 2], _halved)
    again = pickle.loads(pickle.dumps(SolverError("too many steps", 0.5, 9, Solver())))
    assert (str(again), again.cause) == (str(SolverError("too many steps", 0.5, 9, Solver())), "too many steps")


def test_a_process_that_dies_takes_the_other_down(tmp_path):
    both = children.start_together(2, typed(tmp_path / "run", *LIKELIHOOD, steps=2000), tmp_path / "run.log")
    while not (tmp_path / "run" / "state" / "latest").exists():
        time.sleep(0.01)
        assert all(child.is_alive() for child in both)
    both[1].kill()
    both[0].join(60)
    assert both[0].exitcode not in (0, None)
    assert "another process is gone" in (tmp_path / "run.0.log").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["density", "moons", "--batch-size", "65"], "--batch-size 65 is shared by 2 processes: pass a multiple of 2"),
        (["paper", "nfe"], "paper runs in one process, 2 were started"),
    ],
)
def test_what_cannot_be_shared_is_refused(tmp_path, args, message):
    statuses, said = together(args, tmp_path / "run.log")
    assert statuses == [2, 2]
    assert all(message in each for each in said)


def test_one_process_is_a_group_of_one():
    device = torch.device("cpu")
    assert (processes.rank(), processes.count()) == (0, 1)
    assert processes.shared_out([1, 2, 3], lambda part: 2 * part) == [2, 4, 6]
    assert processes.everywhere(True, device)
    assert not processes.everywhere(False, device)
    assert Path("x") == processes.from_first(lambda: Path("x"))
