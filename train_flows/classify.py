"""``train-flows classify DATA``: train a neural ODE, an augmented one, or a discrete network to compare with."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from anode import Classifier, SolverError, classifier
from anode.classifiers import KIND
from train_flows import accuracy, command_line, pictures, recipes, session
from train_flows.checkpoint import Run
from train_flows.data import classes
from train_flows.data.labelled import Labelled, Pairs
from train_flows.loop import Epochs
from train_flows.settings import Labels, Network, Numerics, RunSettings, check_seed, find_device
from train_flows.supervised import Supervised, measure
from train_flows.text import lines_of

SHOWN = 5000  # training samples that a record measures, at most


@dataclass(frozen=True)
class Settings:
    """Train a classifier: a neural ODE (--extra 0), an augmented one (--extra 5), a ResNet or a perceptron (--model).

    The defaults depend on the data: ask with them, as in ``train-flows classify wine --help``.
    """

    data: Labels = field(default_factory=Labels)
    network: Network = field(default_factory=Network)
    numerics: Numerics = field(default_factory=Numerics)
    training: Epochs = field(default_factory=Epochs)
    run: RunSettings = field(default_factory=RunSettings)


def main(args: list[str]) -> None:
    """Run the command line ``train-flows classify``; nothing is written before everything typed is known to be good."""
    started = time.monotonic()
    settings = command_line.parse(Settings(), args, "classify", KIND, recipes.classify, classes.known)
    settings.training.check()
    check_seed(settings.run.seed)
    solver, device = settings.numerics.value(), find_device(settings.run.device)
    dataset = classes.load(settings.data.source or "", settings.run.seed, settings.data.target)
    for note in dataset.notes:
        print(f"note: {note}")
    batch_size = session.fitting_batch(settings.training.batch_size, len(dataset.train.x))
    settings = dataclasses.replace(settings, training=dataclasses.replace(settings.training, batch_size=batch_size))
    torch.manual_seed(settings.run.seed)
    model = classifier(
        dataset.shape,
        dataset.outputs,
        **dataclasses.asdict(settings.network),
        solver=solver,
        data=None if dataset.classes is None else dataset.train.x,  # the paper's functions have their own scale
    ).to(device)
    run = session.open_run(settings, KIND, dataset, model, classes=dataset.classes)
    before = time.monotonic() - started
    if fit(settings, run, dataset, model):
        report(settings, run, dataset, model, before)
    else:
        print(f"stopped; continue with: train-flows classify --resume {run.folder}")


def fit(settings: Settings, run: Run, dataset: Labelled, model: Classifier) -> bool:
    """Train, keeping the weights of the best validation loss in the run folder; whether training came to its end."""
    device = next(model.parameters()).device
    objective = Supervised(model, accuracy.loss_of(dataset.classes))
    train, validation, test = (part.to(device) for part in (dataset.train, dataset.validation, dataset.test))
    training = settings.training.training(len(train.x))
    print(f"{len(train.x)} samples to train on, {len(validation.x)} to validate on, {len(test.x)} to test on")
    parts = {"train": Pairs(train.x[:SHOWN], train.y[:SHOWN]), "validation": validation, "test": test}

    def validate() -> dict[str, float]:
        found = {name: measure(objective, part) for name, part in parts.items()}
        return {f"{name}_{figure}": found[name][figure] for name in parts for figure in ("loss", "accuracy")}

    return session.fit(run, objective, model, tuple(train), training, validate, "validation_loss", settings.run.seed)


def report(settings: Settings, run: Run, dataset: Labelled, model: Classifier, before: float) -> None:
    """Measure the best weights on the test part, write ``result.json``, print the table and draw the pictures.

    Args:
        settings: of the run.
        run: its folder.
        dataset: its data.
        model: with the best weights.
        before: seconds spent before training.
    """
    started = time.monotonic()
    figures = accuracy.measure(model, dataset.test.to(next(model.parameters()).device), dataset.classes)
    trained = run.records()[-1]["seconds"] if run.records() else 0
    seconds = before + trained + time.monotonic() - started
    session.write_result(run, KIND, settings.run.seed, seconds, figures, dataset.notes)
    print(f"\ntest part of {dataset.name}, {len(dataset.test.x)} samples", accuracy.table(figures), sep="\n")
    print(lines_of([("seconds", f"{seconds:.0f}"), ("run", str(run.folder))]))
    try:
        pictures.draw_classifier(run, dataset, model)
    except (SolverError, np.linalg.LinAlgError) as error:
        print(f"note: a picture is missing: {error}")
