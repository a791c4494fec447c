"""Records for TensorBoard: what it reads is what metrics.jsonl holds, also after a stop."""

import itertools
import sys
import time
from collections import defaultdict

import pytest

from train_flows import loop
from train_flows.checkpoint import Run
from train_flows.tensorboard import WithTensorBoard

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TINY = ["--steps", "6", "--validate-every", "2", "--hidden", "8", "--batch-size", "64", "--tensorboard"]


@pytest.fixture(autouse=True)
def _apart(monkeypatch):
    """Writers begin a second apart or more: TensorBoard reads files in the order of their names, which tell seconds."""
    clock = itertools.count(1_700_000_000)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr("train_flows.pictures.draw", lambda *_: None)
    monkeypatch.setattr("train_flows.pictures.draw_classifier", lambda *_: None)


def shown(folder):
    """The scalars that TensorBoard shows of a run: names to (step, value)."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def kept(folder):
    """The same of its records, in the precision of TensorBoard."""
    figures = defaultdict(list)
    for record in Run(folder).records():
        for name, value in record.items():
            if name != "step":
                figures[name].append((record["step"], pytest.approx(value, rel=1e-6)))
    return figures


def stop(monkeypatch, step):
    """Ask for a stop before the given step, as Ctrl-C would."""
    asked = itertools.count()

    class Signals:
        def __enter__(self):
            return lambda: next(asked) >= step

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(loop, "stop_signals", Signals)


def test_every_figure_of_every_record_is_shown(run, tmp_path):
    assert run("density", "moons", *TINY)[0] == 0
    folder = tmp_path / "runs" / "moons"
    assert [step for step, _ in shown(folder)["nll"]] == [0, 2, 4, 6]
    assert {"loss", "nfe_forward", "nfe_backward", "lr", "seconds"} <= set(shown(folder))
    assert shown(folder) == kept(folder)


def test_those_of_classifiers_too(run, tmp_path):
    options = ["--epochs", "1", "--batch-size", "512", "--hidden", "4"]
    assert run("classify", "spheres", *options, "--tensorboard")[0] == 0
    folder = tmp_path / "runs" / "spheres"
    assert "validation_accuracy" in shown(folder)
    assert shown(folder) == kept(folder)


def test_none_without_asking(run, tmp_path):
    assert run("density", "moons", *TINY[:-1])[0] == 0
    assert not (tmp_path / "runs" / "moons" / "tensorboard").exists()


@pytest.mark.parametrize("step", [0, 3, 4])
def test_goes_on_after_a_stop(run, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        stop(patch, step)
        assert run("density", "moons", *TINY)[0] == 0
    assert run("density", "--resume", "runs/moons")[0] == 0
    folder = tmp_path / "runs" / "moons"
    assert [step for step, _ in shown(folder)["nll"]] == [0, 2, 4, 6]
    assert shown(folder) == kept(folder)


@pytest.mark.parametrize("saved", [[0], [0, 2]])
def test_what_was_recorded_after_the_last_state_is_not_shown_twice(tmp_path, saved):
    run = Run(tmp_path)
    for attempt in (1, 2):
        with WithTensorBoard(run) as journal:
            state = journal.load_state()
            assert state == ({"step": saved[-1]} if attempt == 2 else None)
            for step in (0, 2, 4) if state is None else range(saved[-1] + 2, 5, 2):
                journal.log({"step": step, "nll": 10.0 * attempt + step})
                if step in saved:
                    journal.save_state(step, {"step": step})
    first = len(saved)
    assert shown(tmp_path)["nll"] == [(step, 10.0 * (1 if i < first else 2) + step) for i, step in enumerate((0, 2, 4))]
    assert shown(tmp_path) == kept(tmp_path)


def test_records_are_on_the_disk_before_the_state_is(tmp_path):
    """A kill after a state may cut off later records, which resuming makes again, but not those before."""
    sizes = []

    def size():
        return sum(path.stat().st_size for path in (tmp_path / "tensorboard").iterdir())

    class Watched(Run):
        def save_state(self, step, state):
            sizes.append(size())

    with WithTensorBoard(Watched(tmp_path)) as journal:
        journal.load_state()
        journal.log({"step": 0, **{f"figure {i}": 1.0 for i in range(300)}})
        journal.save_state(0, {"step": 0})
    assert sizes == [size()]


def test_another_run_in_the_folder_leaves_nothing_behind(run, tmp_path):
    assert run("density", "moons", *TINY)[0] == 0
    assert run("density", "moons", *TINY[:-1], "--overwrite")[0] == 0
    assert not (tmp_path / "runs" / "moons" / "tensorboard").exists()


@pytest.mark.parametrize("command", [["density", "moons"], ["classify", "spheres"]])
def test_its_absence_is_said_before_anything_is_written(run, tmp_path, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    status, _, err = run(*command, "--tensorboard")
    assert status == 2
    assert err == "error: --tensorboard needs tensorboard: python -m pip install 'augmented-flows[tensorboard]'\n"
    assert not list(tmp_path.iterdir())
