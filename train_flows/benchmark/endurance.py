"""What long trainings cost besides their steps: memory that grows, and time to save."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from cnf import MaximumLikelihood, density_model
from train_flows import density, session
from train_flows.benchmark.timing import resident_megabytes
from train_flows.checkpoint import Run
from train_flows.data import toy
from train_flows.journal import Memory
from train_flows.loop import shuffled_batches, train
from train_flows.training import Training

WARM_UP = 0.1  # of the steps
CPU = torch.device("cpu")


def soak(steps: int) -> dict[str, float]:
    """Take many tiny steps of likelihood, and watch the memory of this process.

    Returns:
        ``steps``; ``megabytes_warm``, resident after a tenth of them; ``megabytes``, after the last; ``growth``, the
        share by which the second exceeds the first; ``seconds``.
    """
    model = density_model((2,), hidden=(4, 4))
    training = Training(steps, batch_size=8, validate_every=max(1, round(WARM_UP * steps)))
    resident: list[float] = []

    def validate() -> dict[str, float]:
        resident.append(resident_megabytes())
        return {"nll": 0.0}

    batch = shuffled_batches(torch.randn(1000, 2), training.batch_size, seed=0)
    started = time.monotonic()
    train(MaximumLikelihood(model), training, batch, validate, lambda: None, Memory(), CPU, quiet=True)
    warm, last = resident[1], resident[-1]
    seconds = round(time.monotonic() - started, 1)
    growth = last / warm - 1
    return {"steps": steps, "megabytes_warm": warm, "megabytes": last, "growth": growth, "seconds": seconds}


class Timed:
    """A journal that adds up the seconds another one takes.

    Args:
        run: the other.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.seconds = 0.0

    def log(self, record: dict[str, Any]) -> None:
        """Keep one record."""
        started = time.perf_counter()
        self.run.log(record)
        self.seconds += time.perf_counter() - started

    def save_state(self, step: int, state: dict[str, Any]) -> None:
        """Keep the state of a step."""
        started = time.perf_counter()
        self.run.save_state(step, state)
        self.seconds += time.perf_counter() - started

    def load_state(self, device: torch.device | str) -> dict[str, Any] | None:
        """The newest state, or None before the first."""
        return self.run.load_state(device)


def saving(steps: int, folder: Path) -> dict[str, float]:
    """Train the density of two moons by its recipe for some steps, with records and states as often as it has them.

    Returns:
        ``seconds``, of training without validation; ``seconds_saving``, of weights, records and states; ``share``, of
        the second in the first.
    """
    settings = density.parse(["moons", "--steps", str(steps), "--out", str(folder)])
    dataset = toy.load("moons", 0)
    session.start(settings.run)
    trained = density.build(settings, dataset)
    model = trained.with_solver(settings.numerics.figures())
    task = density.task(settings, dataset, trained, model)
    run = session.open_run(settings, density.KIND, dataset, model)
    journal, kept = Timed(run), 0.0

    def keep_best() -> None:
        nonlocal kept
        started = time.perf_counter()
        session.keep(run, model)
        kept += time.perf_counter() - started

    of_task = (task.objective, task.training, task.batch, task.validate)
    train(*of_task, keep_best, journal, CPU, quiet=True, growth=task.growth)
    seconds, seconds_saving = run.records()[-1]["seconds_training"], journal.seconds + kept
    return {"seconds": seconds, "seconds_saving": seconds_saving, "share": seconds_saving / seconds}
