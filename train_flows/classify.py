"""``train-flows classify DATA``: train a neural ODE, an augmented one, or a discrete network to compare with."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from anode import Classifier, SolverError, classifier
from anode.classifiers import KIND
from train_flows import accuracy, command_line, pictures, processes, recipes, session
from train_flows.checkpoint import Run
from train_flows.data import classes
from train_flows.data.labelled import Labelled, Pairs
from train_flows.errors import TrainingError
from train_flows.guards import Guards
from train_flows.loop import shuffled_batches
from train_flows.settings import Labels, Network, Numerics, RunSettings
from train_flows.supervised import Supervised, measure, suited_pairs
from train_flows.task import Task
from train_flows.text import lines_of
from train_flows.training import Epochs

SHOWN, SHOWN_IMAGES = 5000, 1000  # training samples that a record measures, at most


@dataclass(frozen=True)
class Settings:
    """Train a classifier: a neural ODE (--extra 0), an augmented one (--extra 5), a ResNet or a perceptron (--model).

    Data: the functions spheres, intervals, ... of the ANODE paper; mnist, fashion, cifar10, svhn and digits; a folder
    of images, CLASS/*.png or train/CLASS/*.png and test/CLASS/*.png; wine and breast-cancer; a table with --target.
    The defaults depend on the data: ask with them, as in ``train-flows classify mnist --help``.
    """

    data: Labels = field(default_factory=Labels)
    network: Network = field(default_factory=Network)
    numerics: Numerics = field(default_factory=Numerics)
    training: Epochs = field(default_factory=Epochs)
    guards: Guards = field(default_factory=Guards)
    run: RunSettings = field(default_factory=RunSettings)


def main(args: list[str]) -> None:
    """Run the command line ``train-flows classify``; nothing is written before everything typed is known to be good."""
    started = time.monotonic()
    settings = parse(args)
    settings.training.check()
    settings.guards.check()
    solver, where = settings.numerics.value(), settings.run
    device = session.start(where)
    wanted = dataclasses.asdict(settings.data)
    dataset = processes.first_alone(lambda: classes.load(**wanted, seed=where.of_data()))  # who may download
    for note in dataset.notes:
        print(f"note: {note}")
    batch_size = session.fitting_batch(settings.training.batch_size, len(dataset.train.x))
    settings = dataclasses.replace(settings, training=dataclasses.replace(settings.training, batch_size=batch_size))
    model = classifier(
        dataset.shape,
        dataset.outputs,
        **dataclasses.asdict(settings.network),
        solver=solver,
        levels=dataset.levels,
        data=dataset.train.x if dataset.classes and not dataset.levels else None,  # others have a scale of their own
    ).to(device, getattr(torch, where.dtype))
    session.begin_noise(where)
    run = session.open_run(settings, KIND, dataset, model, classes=dataset.classes)
    before = time.monotonic() - started
    notes, stopped = list(dataset.notes), ()
    with session.resumable(run, "classify"):
        try:
            stopped = fit(settings, run, dataset, model, where.deadline(started))
        except TrainingError as error:
            if not (error.solving and session.load_best(run, model)):
                raise
            notes.append(f"training ended early: {error}")
            print(f"note: {notes[-1]}")
        report(settings, run, dataset, model, before, (*notes, *stopped))
        for note in stopped:
            print(f"{note}; {session.how_to_go_on(run, 'classify')}")


def parse(args: list[str]) -> Settings:
    """The settings of a command line."""

    def recipe(typed: Settings) -> dict[str, Any]:
        return recipes.classify(typed.data.source or "", typed.network.model)

    settings = command_line.parse(Settings(), args, "classify", KIND, recipe, classes.known)
    session.check_precision(settings.training.precision, settings.numerics, settings.run)
    return settings


def fit(settings: Settings, run: Run, dataset: Labelled, model: Classifier, deadline: float) -> tuple[str, ...]:
    """Train, keeping the weights of the best validation loss in the run folder; see :func:`session.fit`."""
    objective = Supervised(model, accuracy.loss_of(dataset.classes), settings.training.precision)
    train, validation, test, shown = (
        suited_pairs(model, part) for part in (dataset.train, dataset.validation, dataset.test, _shown(dataset))
    )
    training = settings.training.training(len(train.x))
    sizes = f"{len(train.x)} samples to train on, {len(validation.x)} to validate on, {len(test.x)} to test on"
    print(f"{sizes}; figures of training are of {len(shown.x)}")
    parts = {"train": shown, "validation": validation, "test": test}

    def validate() -> dict[str, float]:
        found = {name: measure(objective, part) for name, part in parts.items()}
        return {f"{name}_{figure}": found[name][figure] for name in parts for figure in ("loss", "accuracy")}

    batch = shuffled_batches(tuple(train), training.batch_size, settings.run.of_data())
    task = Task(objective, batch, validate, training)
    return session.fit(run, model, task, "validation_loss", settings.guards, settings.run, deadline)


def _shown(dataset: Labelled) -> Pairs:
    """The training samples that are measured."""
    return Pairs(*(part[: SHOWN_IMAGES if dataset.levels else SHOWN] for part in dataset.train))


def report(
    settings: Settings, run: Run, dataset: Labelled, model: Classifier, before: float, notes: Sequence[str]
) -> None:
    """Measure the best weights, write ``result.json``, print the table and draw the pictures.

    Figures are those of the test part, and accuracy and loss of some training samples.

    Args:
        settings: of the run.
        run: its folder.
        dataset: its data.
        model: with the best weights.
        before: seconds spent before training.
        notes: sentences worth keeping with the figures.
    """
    started = time.monotonic()
    records = run.records()
    figures = accuracy.measure(model, suited_pairs(model, dataset.test), dataset.classes)
    learnt = measure(Supervised(model, accuracy.loss_of(dataset.classes)), suited_pairs(model, _shown(dataset)))
    figures |= {f"train_{name}": learnt[name] for name in ("accuracy", "loss")}
    figures["nfe_backward"] = records[-1].get("nfe_backward", 0.0) if records else 0.0  # mean over the last epoch
    trained = records[-1]["seconds"] if records else 0
    seconds = before + trained + time.monotonic() - started
    if processes.rank():
        return
    session.write_result(run, KIND, settings.run.seed, seconds, figures, notes)
    print(f"\ntest part of {dataset.name}, {len(dataset.test.x)} samples", accuracy.table(figures), sep="\n")
    print(lines_of([("seconds", f"{seconds:.0f}"), ("run", str(run.folder))]))
    try:
        pictures.draw_classifier(run, dataset, model)
    except (SolverError, np.linalg.LinAlgError) as error:
        print(f"note: a picture is missing: {error}")
