"""``train-flows classify DATA``: train a neural ODE, an augmented one, or a discrete network to compare with."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from anode import Classifier, classifier_model
from anode.classifiers import KIND
from anode.storage import write_atomically
from train_flows import recipes
from train_flows.command_line import Program, parse
from train_flows.data import Dataset, known_labelled_data, load_labelled_data
from train_flows.evaluation import accuracy, to_model, wording
from train_flows.run import TrainingError, distributed, session
from train_flows.run.folder import Run
from train_flows.run.loop import fit
from train_flows.run.step import shuffled_batches
from train_flows.settings import ClassifySettings, to_sections

MEASURED_SAMPLES, MEASURED_IMAGES = 5000, 1000  # training samples that a record measures, at most
SNAPSHOT_POINTS = 1000  # about as many training points have their features stored
FEATURES_FILE = "features.npz"
PROGRAM = Program(
    name="classify",
    about="Train a classifier: a neural ODE (--extra 0), an augmented one (--extra 5), a ResNet or a perceptron "
    "(--model). The defaults depend on the data: train-flows classify DATA --help shows them.",
    kind=KIND,
    recipe=recipes.classify,
    length="epochs",
    known=known_labelled_data,
    common=(
        *("source", "target", "image_size", "train_size", "data_root", "download"),
        *("task", "model", "extra", "field", "hidden", "activation"),
        *("epochs", "batch_size", "lr", "schedule", "solver", "rtol", "atol"),
        *("out", "seed", "device", "overwrite", "budget_minutes", "init", "resume"),
    ),
    api_only=(
        *("steps", "validate_every", "lr_warm_up", "kl_warm_up", "likelihood_from", "restart_lr", "measure"),
        *("max_skipped", "first_step"),
    ),
)


def main(args: list[str]) -> None:
    """Run the command line ``train-flows classify``; nothing is written before everything typed is known to be good."""
    started = time.monotonic()
    settings, _ = parse(PROGRAM, ClassifySettings(), args)
    device = session.begin(settings.run)
    dataset = load(settings)
    settings, origin = parse(PROGRAM, ClassifySettings(), args, len(dataset.train))
    session.tell(origin, *(f"note: {note}" for note in dataset.notes))
    settings = fit_to_data(settings, dataset)
    model = build(settings, dataset).to(device)
    session.take_initial_weights(settings.run, model)
    run = session.open_run(settings.run, to_sections(settings), KIND, model.arguments, dataset)
    task = ClassifyTask(settings, dataset, model, run)
    measured = len(task.parts["train"])
    print(
        f"{len(dataset.train)} samples to train on, {len(dataset.validation)} to validate on, {len(dataset.test)} to "
        f"test on{f'; figures of training are of {measured}' if measured < len(dataset.train) else ''}"
    )
    before = time.monotonic() - started
    with session.resumable(run, PROGRAM.name):
        notes = [*dataset.notes, *fit_or_end_early(task, run, started)]
        report(task, run, before, notes)


def load(settings: ClassifySettings) -> Dataset:
    """Load the data of a run."""
    return session.load_data(load_labelled_data, settings.data, settings.run, task=settings.model.task)


def fit_to_data(settings: ClassifySettings, dataset: Dataset) -> ClassifySettings:
    """Return the settings with a batch no larger than the data, and with epochs counted in steps."""
    batch_size = session.fitting_batch(settings.training.batch_size, len(dataset.train))
    training = dataclasses.replace(settings.training, batch_size=batch_size)
    return dataclasses.replace(settings, training=settings.epochs.in_steps(training, len(dataset.train)))


def build(settings: ClassifySettings, dataset: Dataset) -> Classifier:
    """Build the untrained model; functions of the paper keep their scale, pixels are scaled to [0, 1]."""
    train, fitted = dataset.train, dataset.is_table and not settings.run.init  # whose weights scale the data, too
    with session.default_dtype(getattr(torch, settings.run.dtype)):  # of the mean, too
        return classifier_model(
            dataset.shape,
            dataset.outputs,
            data=train.x if fitted else None,
            target=train.y if fitted and settings.model.task == "regression" else None,
            levels=dataset.levels,
            classes=dataset.classes,
            config=settings.model,
        )


class ClassifyTask:
    """Training of a classifier, validated by its loss."""

    def __init__(self, settings: ClassifySettings, dataset: Dataset, model: Classifier, run: Run) -> None:
        self.settings = settings
        self.training = settings.training
        self.criterion = "validation_loss" if settings.epochs.keep == "best" else None
        self.dataset = dataset
        self.model = model
        self.run = run
        samples = to_model(model, dataset.train.batch(slice(None)))
        self.batch = shuffled_batches(samples, self.training.batch_size, settings.run.seed)
        measured = dataset.train.head(MEASURED_IMAGES if dataset.levels else MEASURED_SAMPLES)
        self.parts = {"train": measured, "validation": dataset.validation, "test": dataset.test}

    def objective(self, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        """Return the mean loss of inputs and targets."""
        target = self.model.target
        return accuracy.loss(self.model(batch[0]), batch[1], None if target is None else target.scale)

    def loss_name(self, step: int) -> str:
        """Return the name of the loss in records."""
        return "loss"

    def validate(self) -> dict[str, float]:
        """Return loss and accuracy, or RMSE, of samples from each part, and store features of the epochs asked for."""
        found = {name: accuracy.figures(self.model, part)[0] for name, part in self.parts.items()}
        epoch = len(self.run.records())
        if epoch in self.settings.epochs.snapshots and not distributed.rank():
            self._store_features(epoch)
        return {
            f"{part}_{figure}": value
            for part, figures in found.items()
            for figure, value in figures.items()
            if part == "train" or figure in ("loss", "accuracy", "rmse")
        }

    @torch.no_grad()
    def _store_features(self, epoch: int) -> None:
        """Add the states at time 1 of some training points to the features of earlier epochs."""
        path = self.run.folder / FEATURES_FILE
        points = self.dataset.train.take(slice(None, None, max(1, len(self.dataset.train) // SNAPSHOT_POINTS)))
        stored = dict(np.load(path)) if path.exists() and epoch else {}
        features = self.model.features(to_model(self.model, points.x)).cpu().numpy()
        assert points.y is not None, "classifiers have targets"
        content = io.BytesIO()
        np.savez(content, **stored | {"x": points.x.numpy(), "y": points.y.numpy(), f"epoch_{epoch}": features})
        write_atomically(path, content.getvalue())


def fit_or_end_early(task: ClassifyTask, run: Run, started: float) -> list[str]:
    """Train, and give the model the weights to keep; a solve that fails after the first record ends training early."""
    try:
        notes = fit(task, run, task.settings.run, PROGRAM.name, started)
    except TrainingError as error:
        if not (error.solving and run.load_best(task.model)):
            raise
        notes = [f"training ended early: {error}"]
        print(f"note: {notes[0]}")
    run.load_best(task.model)
    return notes


def report(task: ClassifyTask, run: Run, before: float, notes: Sequence[str]) -> None:
    """Measure the model on the test part, write ``result.json``, print the table and draw the pictures.

    Args:
        task: the training, whose model has the weights to keep.
        run: its folder.
        before: seconds spent before training.
        notes: sentences to keep with the figures.
    """
    started, records, dataset = time.monotonic(), run.records(), task.dataset
    figures = accuracy.measure(task.model, dataset.test)
    learnt = accuracy.figures(task.model, task.parts["train"])[0]
    figures |= {f"train_{name}": learnt[name] for name in ("accuracy", "rmse", "loss") if name in learnt}
    figures["nfe_backward"] = records[-1].get("nfe_backward", 0.0)  # mean over the last epoch
    if distributed.rank():
        return
    figures["seconds"] = round(before + records[-1]["seconds"] + time.monotonic() - started, 1)
    run.write_result(figures, notes)
    print(f"\ntest part of {dataset.name}, {len(dataset.test)} samples", wording.accuracy_table(figures), sep="\n")
    from train_flows.figures import of_runs  # matplotlib takes a second, which --help need not wait for

    with distributed.progress_bar("drawing"):
        pictures = of_runs.draw_classifier(run, dataset, task.model)
    print(wording.run_lines(figures["seconds"], run.folder, pictures))
