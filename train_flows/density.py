"""``train-flows density DATA``: train a continuous normalizing flow, report it, draw it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from anode import SolverError
from cnf import Density, density_model
from cnf.models import KIND
from train_flows import (
    command_line,
    data,
    drift,
    gaussian,
    image_pictures,
    likelihood,
    likelihood_table,
    objectives,
    pictures,
    processes,
    recipes,
    session,
    unused,
)
from train_flows.checkpoint import Run
from train_flows.data import Dataset
from train_flows.growth import Growth, doubled
from train_flows.guards import Guards
from train_flows.loop import shuffled_batches
from train_flows.precision import InPrecision, suited, suited_batch
from train_flows.settings import (
    Augmentation,
    DensityNumerics,
    Model,
    Objective,
    RunSettings,
    Scales,
    Source,
)
from train_flows.task import Task
from train_flows.text import lines_of
from train_flows.training import Training
from train_flows.unused import MATCHING

VALIDATION = 5000  # samples at most
SECTIONS = ("model", "scales", "augmentation", "objective", "numerics", "training", "growth")  # what is learnt, how


@dataclass(frozen=True)
class Settings:
    """Train a continuous normalizing flow on samples, evaluate it on held-out ones and draw it.

    Data: two-dimensional densities; tables; digits, mnist, fashion, cifar10 and svhn; a folder of images, in classes
    or not, or with those in train/ and test/.
    The defaults depend on the data: ask with them, as in ``train-flows density moons --help``.
    """

    data: Source = field(default_factory=Source)
    model: Model = field(default_factory=Model)
    scales: Scales = field(default_factory=Scales)
    augmentation: Augmentation = field(default_factory=Augmentation)
    objective: Objective = field(default_factory=Objective)
    numerics: DensityNumerics = field(default_factory=DensityNumerics)
    training: Training = field(default_factory=Training)
    growth: Growth = field(default_factory=Growth)
    guards: Guards = field(default_factory=Guards)
    run: RunSettings = field(default_factory=RunSettings)


def main(args: list[str]) -> None:
    """Run the command line ``train-flows density``; nothing is written before everything typed is known to be good."""
    started = time.monotonic()
    settings = parse(args)
    settings.training.check()
    settings.growth.check()
    goal, augmented = settings.objective, settings.augmentation
    unused.check(unused.Sections(settings.model, settings.scales, augmented, goal), recipe(settings))
    objectives.check(goal, augmented, settings.scales, settings.training.steps, settings.data.conditional)
    settings.guards.check()
    figures, where = settings.numerics.figures(), settings.run
    device = session.start(where)
    wanted = dataclasses.asdict(settings.data)
    dataset = processes.first_alone(lambda: data.load(**wanted, seed=where.of_data()))  # who may download
    unused.check_discrete(settings.scales, dataset.levels)
    for note in dataset.notes:
        print(f"note: {note}")
    batch_size = session.fitting_batch(settings.training.batch_size, dataset.size)
    settings = dataclasses.replace(settings, training=dataclasses.replace(settings.training, batch_size=batch_size))
    settings.growth.check_with(settings.training, dataset.size)
    trained = build(settings, dataset).to(device, getattr(torch, where.dtype))
    session.begin_noise(where)
    model = trained.with_solver(figures)  # the same weights: what is validated, stored and reported
    what = task(settings, dataset, trained, model)
    about = {"classes": dataset.given.names} if dataset.given else {}
    run = session.open_run(settings, KIND, dataset, model, **about)
    before = time.monotonic() - started
    with session.resumable(run, "density"):
        stopped = fit(settings, run, dataset, model, what, where.deadline(started))
        report(settings, run, dataset, model, before, (*dataset.notes, *stopped))
        for note in stopped:
            print(f"{note}; {session.how_to_go_on(run, 'density')}")


def parse(args: list[str]) -> Settings:
    """The settings of a command line."""
    settings = command_line.parse(Settings(), args, "density", KIND, recipe, data.NAMES.__contains__)
    session.check_precision(settings.training.precision, settings.numerics, settings.run)
    return settings


def recipe(settings: Settings) -> dict[str, Any]:
    """Values that suit the data and the objective, where others are not typed."""
    return recipes.density(settings.data.source or "", settings.objective.objective, settings.data.image_size)


def build(settings: Settings, dataset: Dataset) -> Density:
    """The untrained model, with the solver of training and the standardisation of the training part."""
    return blank(settings, dataset, data=dataset.train)


def blank(settings: Settings, dataset: Dataset, **more: Any) -> Density:
    """The untrained model for the data, which it has not seen, with further arguments."""
    augmented = settings.augmentation
    return density_model(
        dataset.shape,
        **dataclasses.asdict(settings.model),
        **dataclasses.asdict(settings.scales),
        extra=augmented.extra,
        augmentation=augmented.augmentation,
        posterior=augmented.posterior,
        correlated=augmented.correlated,
        levels=dataset.levels,
        context=len(dataset.given.names) if dataset.given else 0,
        solver=settings.numerics.training(),
        **more,
    )


def task(settings: Settings, dataset: Dataset, trained: Density, model: Density) -> Task:
    """The task of training a density on the device it is on.

    Args:
        settings: of the run.
        dataset: its data.
        trained: solves as training does.
        model: shares its weights, and solves as validation does.
    """
    validation = suited_batch(model, dataset.samples("validation", VALIDATION))

    def validate() -> dict[str, float]:
        figures = likelihood.of_one_draw(model, validation, objectives.energies(goal))
        return figures | objective.check() if isinstance(objective, drift.FixedSteps) else figures

    goal, training = settings.objective, objectives.staged(settings.objective, settings.training)
    stream = _batches(dataset, training.batch_size, settings.run.of_data(), model)
    batch = doubled(stream, settings.growth.double_at)
    objective, batch = objectives.build(goal, settings.augmentation, trained, batch, training.steps)
    if training.precision != "float32":
        objective = InPrecision(objective, training.precision)
    if goal.objective != MATCHING and not settings.numerics.training().adaptive:
        compare = partial(drift.compare, trained, model, validation)
        objective = drift.FixedSteps(objective, compare, dataset.shape.numel(), settings.numerics.refine)
    return Task(objective, batch, validate, training, settings.growth)


def _batches(dataset: Dataset, batch_size: int, seed: int, model: Density) -> Callable[[int], Any]:
    """Shuffled training samples, with what they are given, as a function of the step, from memory or from the disk."""
    if dataset.disk is None:
        return shuffled_batches(suited_batch(model, dataset.samples("train")), batch_size, seed)
    read = dataset.disk.batches(batch_size, seed)
    return lambda step: suited(model, processes.share_of(read(step)))


def fit(
    settings: Settings, run: Run, dataset: Dataset, model: Density, what: Task, deadline: float = math.inf
) -> tuple[str, ...]:
    """Train, keeping the weights of the best validation NLL in the run folder.

    Args:
        settings: of the run.
        run: its folder.
        dataset: its data.
        model: solves as validation does; holds the best weights at the end.
        what: the task, which trains the weights of the model.
        deadline: of ``time.monotonic()``, after which to stop.

    Returns:
        Where training stands, if the deadline came before its end; see :func:`train_flows.session.fit`.
    """
    validated = min(VALIDATION, len(dataset.validation))
    print(f"{dataset.size} samples to train on, {validated} to validate on; nll: {_validated_as(model)}")
    if dataset.levels is not None:
        validate = image_pictures.followed(what.validate, run, model, what.training, dataset)
        what = dataclasses.replace(what, validate=validate)
    return session.fit(run, model, what, "nll", settings.guards, settings.run, deadline)


def _validated_as(model: Density) -> str:
    """What the validation figures are."""
    figure = likelihood.kind_of(model, 1)
    if model.draws and figure["kind"] == "exact":  # by the sum over components, of which one is drawn here
        figure |= {"kind": "bound", "samples": 1}
    return f"validation NLL in nats ({likelihood_table.how(figure)})"


def report(settings: Settings, run: Run, dataset: Dataset, model: Density, before: float, notes: Sequence[str]) -> None:
    """Evaluate on the test part, draw the pictures, write ``result.json`` and print the table.

    Args:
        settings: of the run.
        run: its folder.
        dataset: its data.
        model: with the best weights.
        before: seconds spent before training.
        notes: sentences worth keeping with the figures.
    """
    started = time.monotonic()
    session.seed_noise(0)  # as ``train-flows evaluate`` does, for figures with noise
    figures = likelihood.measure(model, dataset.samples("test"), settings.numerics.figures())
    rows = [likelihood_table.table(figures)]
    drifted = drift.of_best(run.records(), dataset.shape.numel(), dataset.levels is not None)
    if drifted is not None:
        figures["drift"] = drifted
        rows.append(lines_of([("drift of training", drift.describe(drifted))]))
    if dataset.table:
        figures["gaussian_nll"] = gaussian.nll(dataset)
        rows.append(gaussian.beside(figures, likelihood.log_scale(model)))
    if processes.rank():
        return
    try:
        pictures.draw(run, dataset, model)
    except SolverError as error:
        print(f"note: a picture is missing: {error}")
    trained = run.records()[-1]["seconds"] if run.records() else 0
    seconds = before + trained + time.monotonic() - started
    session.write_result(run, KIND, settings.run.seed, seconds, figures, notes)
    rows.append(lines_of([("seconds", f"{seconds:.0f}"), ("run", str(run.folder))]))
    print(f"\ntest part of {dataset.name}, {len(dataset.test)} samples", *rows, sep="\n")
