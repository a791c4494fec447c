"""Records for TensorBoard: it shows the figures of metrics.jsonl, also after a stop."""

import itertools
import sys
import time

import pytest
from tasks import Quadratic

from anode import InputError
from train_flows.run.folder import Run, summary_writer
from train_flows.run.loop import train
from train_flows.settings import Training

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose writers begin a second apart: TensorBoard reads files in the order of their names, the seconds."""
    clock = itertools.count(1_700_000_000)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    run = Run.create(tmp_path / "run", "test", {}, {}, {})
    run.tensorboard = True
    return run


def shown(run):
    """Return the scalars that TensorBoard shows of a run: names to values by step."""
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


@pytest.mark.parametrize("stop", [None, 3])
def test_every_figure_of_every_record_is_shown(run, stop):
    """Of a run in one go, and of one that failed at a step after its last state."""
    training = Training(steps=6, validate_every=2)
    if stop is not None:
        with pytest.raises(ZeroDivisionError):
            train(Quadratic(training, {stop}, ZeroDivisionError()), run)
        run.log({"step": 4, "nll": 99.0})  # no state was saved after it
    assert train(Quadratic(training), run)
    recorded = {name: {} for record in run.records() for name in record if name != "step"}
    for record in run.records():
        for name in set(record) - {"step"}:
            recorded[name][record["step"]] = pytest.approx(record[name], rel=1e-6)
    assert shown(run) == recorded
    assert list(recorded["nll"]) == [0, 2, 4, 6]
    Run.create(run.folder, "test", {}, {}, {}, overwrite=True)
    assert not (run.folder / "tensorboard").exists()


def test_its_absence_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(InputError, match=r"--tensorboard needs tensorboard: python -m pip install 'augmented-flows"):
        summary_writer()
