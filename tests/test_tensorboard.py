"""Records for TensorBoard: it shows the figures of metrics.jsonl, also after a stop."""

import itertools
import sys
import time
from collections import defaultdict

import pytest
from tasks import Quadratic

from anode import InputError
from train_flows.run.folder import Run, summary_writer
from train_flows.run.loop import train
from train_flows.settings import Training

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TRAINING = Training(steps=6, validate_every=2)


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    """Let writers begin a second apart: TensorBoard reads files in the order of their names, which tell seconds."""
    clock = itertools.count(1_700_000_000)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))


@pytest.fixture
def run(tmp_path):
    run = Run.create(tmp_path / "run", "test", {}, {}, {})
    run.tensorboard = True
    return run


def shown(run):
    """Return the scalars that TensorBoard shows of a run: names to (step, value)."""
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def recorded(run):
    """Return the figures of its records in the same form, in the precision of TensorBoard."""
    figures = defaultdict(list)
    for record in run.records():
        for name, value in record.items():
            if name != "step":
                figures[name].append((record["step"], pytest.approx(value, rel=1e-6)))
    return figures


@pytest.mark.parametrize("stop", [None, 0, 3, 4])
def test_every_figure_of_every_record_is_shown(run, stop):
    """Of a run in one go, and of one that was stopped before a step."""
    if stop is not None:
        first, now = Quadratic(TRAINING), [0.0]
        batch, clean = first.batch, time.monotonic

        def late(step):
            now[0] = 1e9 * (step >= stop - 1)
            return batch(step)

        first.batch = late
        time.monotonic = lambda: now[0]
        try:
            assert not train(first, run, deadline=-1.0 if stop == 0 else 1.0)
        finally:
            time.monotonic = clean
    assert train(Quadratic(TRAINING), run)
    assert [step for step, _ in shown(run)["nll"]] == [0, 2, 4, 6]
    assert {"loss", "nfe_forward", "nfe_backward", "lr", "seconds"} <= set(shown(run))
    assert shown(run) == recorded(run)


def test_none_without_asking(run):
    run.tensorboard = False
    train(Quadratic(TRAINING), run)
    assert not (run.folder / "tensorboard").exists()


@pytest.mark.parametrize("saved", [[0], [0, 2]])
def test_records_after_the_last_state_are_not_shown_twice(run, saved):
    for attempt in (1, 2):
        state = run.load_state()
        assert state == ({} if attempt == 2 else None)
        for step in (0, 2, 4) if state is None else range(saved[-1] + 2, 5, 2):
            run.log({"step": step, "nll": 10.0 * attempt + step})
            if step in saved:
                run.save_state(step, {})
    run.save_state(4, {})
    first = len(saved)
    assert shown(run)["nll"] == [(step, 10.0 * (1 if i < first else 2) + step) for i, step in enumerate((0, 2, 4))]
    assert shown(run) == recorded(run)


def test_overwriting_removes_the_events(run):
    train(Quadratic(TRAINING), run)
    Run.create(run.folder, "test", {}, {}, {}, overwrite=True)
    assert not (run.folder / "tensorboard").exists()


def test_its_absence_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(InputError, match=r"--tensorboard needs tensorboard: python -m pip install 'augmented-flows"):
        summary_writer()
