"""Jobs side by side end, all of them, where one fails or a signal comes; those that can save their states."""

import os
import signal
import threading
import time

import pytest
import torch

from anode import InputError
from train_flows.errors import TrainingError
from train_flows.paper import workers
from train_flows.signals import stop_signals


def work(kind, folder):
    """A job of a kind; it says when it has begun, and one that saves its state says so."""
    if kind == "training":
        with stop_signals() as stop:
            (folder / "begun").touch()
            while not stop():
                time.sleep(1.5)  # a step
        (folder / "saved").touch()
        raise KeyboardInterrupt
    if kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / "deaf").touch()
        time.sleep(1000)
    wait_for(folder / "begun")
    if kind == "failing":
        wait_for(folder / "deaf")
    if kind == "dying":
        os.kill(os.getpid(), signal.SIGKILL)
    raise {"failing": InputError("made up"), "large": torch.OutOfMemoryError("too large\nby far")}[kind]


def wait_for(path):
    while not path.exists():
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _in_time():
    """A test that hangs fails."""

    def late(*_):
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def test_a_job_that_fails_ends_the_others(tmp_path, monkeypatch):
    """One takes its time, saves its state and ends; one takes no notice, and is killed."""
    monkeypatch.setattr(workers, "GRACE", 4.0)
    with pytest.raises(InputError, match="made up"):
        list(workers.each(work, [(kind, tmp_path) for kind in ("training", "deaf", "failing")], 3))
    assert (tmp_path / "saved").exists()


def test_want_of_memory(tmp_path):
    (tmp_path / "begun").touch()
    with pytest.raises(TrainingError, match=r"want of memory, perhaps \(too large\): lower --workers"):
        list(workers.each(work, [("large", tmp_path)], 1))
    with pytest.raises(TrainingError, match=r"want of memory, perhaps \(its process died\): lower --workers"):
        list(workers.each(work, [("dying", tmp_path)], 2))


def test_a_signal_ends_all_with_their_state_saved(tmp_path):
    def stop():
        wait_for(tmp_path / "begun")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(KeyboardInterrupt):
        list(workers.each(work, [("training", tmp_path), ("training", tmp_path)], 2))
    assert (tmp_path / "saved").exists()
