"""One model on one function: training it, once a seed, and what is kept of it."""

from __future__ import annotations

import dataclasses
import io
import math
import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from anode import Classifier, SolverError, classifier
from train_flows.data import paper
from train_flows.data.labelled import Pairs
from train_flows.errors import TrainingError
from train_flows.loop import Training, shuffled_batches, train
from train_flows.supervised import Supervised, measure

STREAMS = 1_000_003  # between the seeds of weights, points and slices, lest points repeat the stream of the weights


@dataclass(frozen=True)
class Trial:
    """One model on one function of the paper, with the paper's settings as defaults."""

    name: str  # in figures and tables
    data: str  # of train_flows.data.paper
    model: dict[str, Any] = field(default_factory=dict)  # arguments of anode.classifier that differ
    lr: float = 1e-3  # of Adam
    epochs: int = 30
    points: int = 3000
    batch_size: int = 64
    removed: int = 0  # of ten slices of the plane, to validate on
    snapshots: tuple[int, ...] = ()  # epochs whose features are kept


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        trial: what was tried.
        seed: of points, weights and batches.
        status: ``"success"``, or what ended the training: ``"too many steps"``, ``"step underflow"``,
            ``"non-finite state"`` or ``"non-finite loss"``.
        records: one an epoch, from epoch 0, before training.
        model: the network at the end.
        train: the points it learnt from.
        validation: those in the removed slices, if any.
        features: states at time 1 of up to 1,000 training points, by epoch.
    """

    trial: Trial
    seed: int
    status: str
    records: list[dict[str, float]]
    model: Classifier
    train: Pairs
    validation: Pairs | None
    features: dict[int, Tensor]

    def result(self) -> dict[str, Any]:
        """Plain values for a file of results."""
        names = {name: None for record in self.records for name in record}  # in order
        history = {name: [_short(record.get(name)) for record in self.records] for name in names}
        trial = {name: value for name, value in vars(self.trial).items() if name != "snapshots"}
        return {**trial, "seed": self.seed, "status": self.status, "history": history}


class Memory:
    """A journal that keeps records in memory, and no state."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def log(self, record: dict[str, Any]) -> None:
        """Keep one record."""
        self.records.append(record)

    def save_state(self, step: int, state: dict[str, Any]) -> None:
        """Do nothing."""

    def load_state(self, device: torch.device | str) -> None:
        """Start anew."""


def points(trial: Trial, seed: int) -> tuple[Pairs, Pairs | None]:
    """The training points of a trial, and those in the removed slices."""
    pairs = paper.sample(trial.data, trial.points, seed + STREAMS)
    if not trial.removed:
        return pairs, None
    return paper.split_slices(pairs, trial.removed, torch.Generator().manual_seed(seed + 2 * STREAMS))


def attempt(trial: Trial, seed: int) -> Outcome:
    """Train the model of a trial; a diverging solve is an outcome, not an error.

    The loss is smooth-L1 to the targets, as in the paper. Records hold means over the batches of the epoch for
    ``loss``, ``nfe_forward`` and ``nfe_backward``, and figures of all points at its end for the rest; ``seconds`` are
    those of the steps alone.

    Raises:
        KeyboardInterrupt: when a signal asks to stop.
    """
    pairs, validation = points(trial, seed)
    torch.manual_seed(seed)
    model = classifier(pairs.x.shape[1:], pairs.y.shape[1], **trial.model)
    objective = Supervised(model, "smooth-l1")
    batch_size = min(trial.batch_size, len(pairs.x))
    per_epoch = len(pairs.x) // batch_size
    training = Training(trial.epochs * per_epoch, batch_size, trial.lr, "constant", math.inf, per_epoch)
    journal, features = Memory(), {}
    measuring = 0.0  # seconds, which are not of training

    def figures() -> dict[str, float]:
        nonlocal measuring
        started, before = time.monotonic(), measuring
        at_end = measure(objective, pairs)
        epoch = len(journal.records)
        if epoch in trial.snapshots:
            with torch.no_grad():
                features[epoch] = model.features(pairs.x[shown(pairs)])
        found = {"epoch": epoch, "train_loss": at_end.pop("loss"), **at_end}
        if validation is not None:
            at_gaps = measure(objective, validation)
            found |= {"validation_loss": at_gaps["loss"], "validation_accuracy": at_gaps["accuracy"]}
        measuring += time.monotonic() - started
        return found | {"measuring": before}

    status = "success"
    try:
        finished = train(
            objective,
            training,
            shuffled_batches(tuple(pairs), batch_size, seed),
            figures,
            lambda: None,
            journal,
            Accelerator(cpu=True),
            criterion="train_loss",
            quiet=True,
        )
        if not finished:
            raise KeyboardInterrupt
    except TrainingError as error:
        status = error.__cause__.cause if isinstance(error.__cause__, SolverError) else "non-finite loss"
    for record in journal.records:
        record["seconds"] = round(record["seconds"] - record.pop("measuring"), 2)
    if status == "success" and not all(math.isfinite(value) for value in journal.records[-1].values()):
        status = "non-finite loss"
    return Outcome(trial, seed, status, journal.records, model, pairs, validation, features)


def shown(pairs: Pairs) -> slice:
    """A thousand points at most, evenly taken, for pictures."""
    return slice(None, None, max(1, len(pairs.x) // 1000))


def attempt_each(trials: Sequence[Trial], seeds: Iterable[int], workers: int) -> Generator[tuple[int, Outcome]]:
    """Every trial with every seed, ``workers`` at a time, as they finish, with their place in the order of seeds.

    Args:
        trials: what to try.
        seeds: of the repetitions.
        workers: processes of one thread; one stays in this process.

    Raises:
        TrainingError: when a process dies.
        KeyboardInterrupt: when a signal asks to stop.
    """
    pairs = [(trial, seed) for seed in seeds for trial in trials]
    with tqdm(total=len(pairs), unit="run", disable=None) as bar:
        for place, outcome in _one_by_one(pairs) if workers == 1 else _side_by_side(pairs, workers):
            bar.write(describe(outcome))
            bar.update()
            yield place, outcome


def _one_by_one(pairs: Sequence[tuple[Trial, int]]) -> Generator[tuple[int, Outcome]]:
    for place, (trial, seed) in enumerate(pairs):
        yield place, attempt(trial, seed)


def _side_by_side(pairs: Sequence[tuple[Trial, int]], workers: int) -> Generator[tuple[int, Outcome]]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads in the middle of their work
    waiting, running = deque(enumerate(pairs)), {}
    with _stoppable(), ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < workers:  # no more, so that a stop finds none queued
                    place, (trial, seed) = waiting.popleft()
                    running[pool.submit(_packed, trial, seed)] = place
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda future: future.exception() is not None):
                    packed = future.result()
                    yield running.pop(future), torch.load(io.BytesIO(packed), weights_only=False)  # our own bytes
        except BrokenProcessPool as error:
            raise TrainingError(f"a process died, perhaps for want of memory ({error}): lower --workers") from error
        finally:
            for future in running:
                future.cancel()
            for process in multiprocessing.active_children() if running else ():
                process.terminate()


@contextmanager
def _stoppable() -> Generator[None]:
    """Turn SIGTERM into a KeyboardInterrupt, so that a stop leaves no process behind."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _packed(trial: Trial, seed: int) -> bytes:
    """An outcome as bytes: tensors as such would hold a file descriptor each."""
    buffer = io.BytesIO()
    torch.save(attempt(trial, seed), buffer)
    return buffer.getvalue()


def describe(outcome: Outcome) -> str:
    """One line about an outcome."""
    trial, last = outcome.trial, outcome.records[-1] if outcome.records else {}
    figures = "  ".join(
        f"{name} {last[name]:.4g}" for name in ("loss", "accuracy", "nfe_forward", "seconds") if name in last
    )
    return f"{trial.data} {trial.name} seed {outcome.seed}: {outcome.status}  {figures}"


def quick(trials: Sequence[Trial]) -> list[Trial]:
    """The trials at a size for tests: 2 epochs of 320 points."""
    return [dataclasses.replace(trial, epochs=2, points=320, snapshots=trial.snapshots and (0, 2)) for trial in trials]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
