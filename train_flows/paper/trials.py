"""One model on one function: training it, once a seed, and what is kept of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from anode import Classifier, classifier
from train_flows.data import paper
from train_flows.data.labelled import Pairs
from train_flows.journal import Memory
from train_flows.loop import shuffled_batches, train
from train_flows.paper.outcomes import SOLVER, Outcome, describe, status_of
from train_flows.paper.workers import each
from train_flows.supervised import Supervised, measure
from train_flows.training import Training

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

    def plain(self) -> dict[str, Any]:
        """All settings that matter to the figures."""
        return {name: value for name, value in vars(self).items() if name != "snapshots"}


@dataclass(frozen=True, kw_only=True)
class Trained(Outcome):
    """What came of a trial, with what a picture of it needs.

    Attributes:
        model: the network at the end.
        train: the points it learnt from.
        validation: those in the removed slices, if any.
        features: states at time 1 of up to 1,000 training points, by epoch.
    """

    trial: Trial = field(kw_only=False)
    model: Classifier
    train: Pairs
    validation: Pairs | None
    features: dict[int, Tensor]


def points(trial: Trial, seed: int) -> tuple[Pairs, Pairs | None]:
    """The training points of a trial, and those in the removed slices."""
    pairs = paper.sample(trial.data, trial.points, seed + STREAMS)
    if not trial.removed:
        return pairs, None
    return paper.split_slices(pairs, trial.removed, torch.Generator().manual_seed(seed + 2 * STREAMS))


def attempt(trial: Trial, seed: int) -> Trained:
    """Train the model of a trial; a diverging solve is an outcome, not an error.

    The loss is smooth-L1 to the targets, as in the paper. Records hold means over the batches of the epoch for
    ``loss``, ``nfe_forward`` and ``nfe_backward``, and figures of all points at its end for the rest; ``seconds`` are
    those of the steps alone.

    Raises:
        KeyboardInterrupt: when a signal asks to stop.
    """
    pairs, validation = points(trial, seed)
    torch.manual_seed(seed)
    options: dict[str, Any] = {"solver": SOLVER, **trial.model}
    model = classifier(pairs.x.shape[1:], pairs.y.shape[1], **options)
    objective = Supervised(model, "smooth-l1")
    batch_size = min(trial.batch_size, len(pairs.x))
    per_epoch = len(pairs.x) // batch_size
    training = Training(trial.epochs * per_epoch, batch_size, trial.lr, "constant", math.inf, validate_every=per_epoch)
    journal, features = Memory(), {}

    def figures() -> dict[str, float]:
        at_end = measure(objective, pairs)
        epoch = len(journal.records)
        if epoch in trial.snapshots:
            with torch.no_grad():
                features[epoch] = model.features(pairs.x[shown(pairs)])
        found = {"epoch": epoch, "train_loss": at_end.pop("loss"), **at_end}
        if validation is not None:
            at_gaps = measure(objective, validation)
            found |= {"validation_loss": at_gaps["loss"], "validation_accuracy": at_gaps["accuracy"]}
        return found

    def work() -> bool:
        return train(
            objective,
            training,
            shuffled_batches(tuple(pairs), batch_size, seed),
            figures,
            lambda: None,
            journal,
            torch.device("cpu"),
            criterion="train_loss",
            quiet=True,
        )

    status = status_of(work, journal)
    return Trained(
        trial, seed, status, journal.records, model=model, train=pairs, validation=validation, features=features
    )


def shown(pairs: Pairs) -> slice:
    """A thousand points at most, evenly taken, for pictures."""
    return slice(None, None, max(1, len(pairs.x) // 1000))


@dataclass
class Attempts:
    """Trains trials with every seed; the runs that are finished are on disk, whatever happens to the others.

    Attributes:
        seeds: of the repetitions.
        workers: runs side by side.
        quick: train at a size for tests.
        write: keeps plain values of what there is so far.
        others: none; see :class:`~train_flows.paper.sittings.Sittings`.
        missing: none.
        caption: none.
    """

    seeds: Sequence[int]
    workers: int
    quick: bool
    write: Callable[..., None]
    finished: list[dict[str, Any]] = field(default_factory=list)
    others: tuple[dict[str, Any], ...] = ()
    missing: int = 0
    caption: str = ""

    def __post_init__(self) -> None:
        self.write([], self.about, complete=False)  # fails here, if anywhere

    @property
    def about(self) -> dict[str, Any]:
        """What there is to know of all runs."""
        return {"seeds": list(self.seeds)}

    def __call__(self, wanted: Sequence[Trial], seeds: Sequence[int] | None = None) -> list[Trained]:
        """Every trial with every seed, by default those that were asked for, in the order of seeds."""
        outcomes: dict[int, Trained] = {}
        wanted = quick(wanted) if self.quick else wanted
        for place, outcome in attempt_each(wanted, seeds or self.seeds, self.workers):
            outcomes[place] = outcome
            self.finished.append(outcome.result())
            self.write(self.finished, self.about, complete=False)
        return [outcomes[place] for place in sorted(outcomes)]


def attempt_each(trials: Sequence[Trial], seeds: Iterable[int], workers: int) -> Generator[tuple[int, Trained]]:
    """Every trial with every seed, ``workers`` at a time, as they finish, with their place in the order of seeds."""
    jobs = [(trial, seed) for seed in seeds for trial in trials]
    with tqdm(total=len(jobs), unit="run", disable=None) as bar:
        for place, outcome in each(attempt, jobs, workers):
            bar.write(describe(outcome))
            bar.update()
            yield place, outcome


def quick(trials: Sequence[Trial]) -> list[Trial]:
    """The trials at a size for tests: 2 epochs of 320 points."""
    return [dataclasses.replace(trial, epochs=2, points=320, snapshots=trial.snapshots and (0, 2)) for trial in trials]
