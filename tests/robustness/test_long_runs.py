"""Memory does not grow over many steps, records and states."""

from __future__ import annotations

import dataclasses
import resource
from typing import Any

from train_flows.run.folder import Run
from train_flows.run.loop import train

from .small_runs import CONTEXT, TRAINING, SmallTask

WARM_UP = 0.2  # share of the steps


def measure_memory(steps: int) -> dict[str, float]:
    """Train for a number of steps in a fresh process, and compare its peak of memory with that after the warm-up.

    Returns:
        ``steps``; ``megabytes_warm`` and ``megabytes``, the peaks; ``growth``, the relative difference.
    """
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_train, args=(steps, theirs))
    process.start()
    warm, last = ours.recv()
    process.join()
    return {"steps": steps, "megabytes_warm": warm, "megabytes": last, "growth": last / warm - 1}


def _train(steps: int, pipe: Any) -> None:
    every = max(1, round(WARM_UP * steps / 4))
    task = SmallTask(dataclasses.replace(TRAINING, steps=steps, batch_size=8, validate_every=every, likelihood_from=1))
    peaks = []
    validate = task.validate

    def measured() -> dict[str, float]:
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return validate()

    task.validate = measured
    train(task, Run.temporary(), quiet=True)
    pipe.send((peaks[4], peaks[-1]))


def test_memory_does_not_grow():
    assert measure_memory(120)["growth"] < 0.02
