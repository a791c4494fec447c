"""Frames of a training: evenly thinned, and whole after a kill at any moment."""

import numpy as np
import pytest

from anode import CheckpointError, Solver, SolverError
from train_flows.run import distributed
from train_flows.run.animation import frames, keep_frame
from train_flows.run.folder import FRAMES_FILE, Run


@pytest.fixture
def run():
    return Run.temporary()


def validate(run, step, computed=None):
    """Keep a frame that shows its step, note it, and record the step."""

    def compute():
        if computed is not None:
            computed.append(step)
        return np.full((2, 3), step, dtype=np.float32)

    keep_frame(run, compute)
    run.log({"step": step})


@pytest.mark.parametrize(("records", "stride"), [(1, 1), (60, 1), (61, 2), (120, 2), (121, 4), (250, 8)])
def test_60_frames_at_most_are_kept_at_even_distances(run, records, stride):
    computed = []
    for number in range(records):
        validate(run, 5 * number, computed)
    found = frames(run)
    assert list(found) == [5 * number for number in range(0, records, stride)]
    assert len(found) <= 60
    assert all((frame == step).all() for step, frame in found.items())
    assert len(computed) <= 60 + 30 * np.log2(stride)  # others cost nothing


def test_a_frame_without_a_record_is_replaced(run):
    validate(run, 0)
    keep_frame(run, lambda: np.full((2, 3), -1.0))  # a kill follows
    assert list(frames(run)) == [0]
    validate(run, 7)
    assert {step: frame[0, 0] for step, frame in frames(run).items()} == {0: 0, 7: 7}


def test_a_failed_solve_leaves_a_note(run, capsys):
    def fail():
        raise SolverError("step underflow", 0.5, 100, Solver())

    validate(run, 0)
    keep_frame(run, fail)
    run.log({"step": 5})
    validate(run, 10)
    assert list(frames(run)) == [0, 10]
    assert "note: the frame of record 1 is missing: step underflow" in capsys.readouterr().out


def test_the_first_of_several_processes_computes(run, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    validate(run, 0, computed := [])
    assert computed == []
    assert not (run.folder / FRAMES_FILE).exists()


@pytest.mark.parametrize("damage", [lambda content: content[:-30], lambda _: b"", lambda _: b"words"])
def test_damage_is_noticed(run, damage):
    validate(run, 0)
    path = run.folder / FRAMES_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"frames.npz is damaged .*: remove it"):
        frames(run)
