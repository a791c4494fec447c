"""What came of training one model once, as plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from anode import Solver, SolverError
from train_flows.errors import TrainingError
from train_flows.journal import Memory

SOLVER = Solver(rtol=1e-3, atol=1e-3, gradient="direct")  # of classifiers, if their trial has no other


class Tried(Protocol):
    """What was tried: a model on data, with everything that training it needs."""

    @property
    def name(self) -> str:
        """Of the model, in figures and tables."""
        ...

    @property
    def data(self) -> str:
        """What it learnt."""
        ...

    @property
    def epochs(self) -> int:
        """How long."""
        ...

    def plain(self) -> dict[str, Any]:
        """All settings as plain values."""
        ...


@dataclass(frozen=True)
class Place:
    """Where and until when a trial runs.

    Attributes:
        data_root: folder of images and tables.
        device: of model and data.
        states: folder of what unfinished trials continue from.
        deadline: of ``time.time()``, after which they stop.
    """

    data_root: str
    device: str
    states: Path
    deadline: float = math.inf


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        trial: what was tried.
        seed: of data, weights and batches.
        status: ``"success"``, or what ended the training: ``"too many steps"``, ``"step underflow"``,
            ``"non-finite state"`` or ``"non-finite loss"``.
        records: one an epoch, from epoch 0, before training.
        machine: where, for trials of several sittings.
        samples: of the model, for pictures, where there are any.
    """

    trial: Tried
    seed: int
    status: str
    records: list[dict[str, float]]
    machine: str | None = None
    samples: list[list[float]] | None = None

    def result(self) -> dict[str, Any]:
        """Plain values for a file of results."""
        names = {name: None for record in self.records for name in record}  # in order
        history = {name: [_short(record.get(name)) for record in self.records] for name in names}
        more: dict[str, Any] = {} if self.machine is None else {"machine": self.machine}
        if self.samples is not None:
            more["samples"] = [[_short(x) for x in sample] for sample in self.samples]
        return {**self.trial.plain(), "seed": self.seed, "status": self.status, **more, "history": history}


def records_of(history: dict[str, list[float | None]]) -> list[dict[str, float]]:
    """The records behind the history of a result."""
    rows = zip(*history.values(), strict=True)
    return [{name: x for name, x in zip(history, row, strict=True) if x is not None} for row in rows]


def ended(error: TrainingError | None, records: Sequence[Mapping[str, float]]) -> str:
    """The status of a training that raised an error or none, by its records."""
    if error is not None:
        return error.__cause__.cause if isinstance(error.__cause__, SolverError) else "non-finite loss"
    finite = all(math.isfinite(value) for value in records[-1].values())
    return "success" if finite else "non-finite loss"


def status_of(work: Callable[[], bool], journal: Memory, test: Callable[[], None] = lambda: None) -> str:
    """Train and test, and say how that ended; its records then hold ``seconds``, those of the steps alone.

    Args:
        work: trains, and returns whether it came to its end.
        journal: of the training.
        test: measures what was trained.

    Raises:
        KeyboardInterrupt: when a signal asked to stop.
    """
    failure = None
    try:
        if not work():
            raise KeyboardInterrupt
        test()
    except TrainingError as error:
        failure = error
    except SolverError as error:
        failure = TrainingError(f"the test failed: {error}", solving=True)
        failure.__cause__ = error
    for record in journal.records:
        record["seconds"] = record.pop("seconds_training")
    return ended(failure, journal.records)


def describe(outcome: Outcome) -> str:
    """One line about an outcome."""
    last = outcome.records[-1] if outcome.records else {}
    names = ("loss", "accuracy", "test_accuracy", "nfe_forward", "seconds")
    figures = "  ".join(f"{name} {last[name]:.4g}" for name in names if name in last)
    return f"{outcome.trial.data} {outcome.trial.name} seed {outcome.seed}: {outcome.status}  {figures}"


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
