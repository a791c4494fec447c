"""``train-flows density DATA``: train a continuous normalizing flow, measure it, draw it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anode import Solver
from cnf import Density, density_model
from cnf.maximum_likelihood import Batch
from cnf.models import KIND
from train_flows import recipes
from train_flows.command_line import Program, parse, with_options
from train_flows.data import Dataset, known_density_data, load_density_data
from train_flows.evaluation import likelihood
from train_flows.evaluation.chunks import to_model
from train_flows.evaluation.costs import costs
from train_flows.figures import of_runs
from train_flows.objectives import DensityObjective, staged
from train_flows.run import distributed, session
from train_flows.run.folder import Run
from train_flows.run.loop import shuffled_batches, train
from train_flows.settings import LIKELIHOOD, MATCHING, DensitySettings, to_sections

VALIDATION_SAMPLES = 5000  # at most
PROGRAM = Program(
    name="density",
    about="Train a continuous normalizing flow on samples, measure it on held-out samples and draw it. The defaults "
    "depend on the data: train-flows density DATA --help shows them.",
    kind=KIND,
    recipe=recipes.density,
    known=known_density_data,
    common=("source", "conditional", "jitter", "image_size", "data_root", "download")
    + ("field", "hidden", "base", "extra", "augmentation", "divergence")
    + ("objective", "steps", "batch_size", "lr", "validate_every", "solver", "rtol", "atol")
    + ("out", "seed", "device", "overwrite", "budget_minutes", "resume"),
    api_only=("train_size", "test_size", "correlated", "probes", "noise", "dequantization", "alpha", "first_step")
    + ("lr_warm_up", "clip", "weight_decay", "likelihood_from", "restart_lr", "max_skipped", "kl_warm_up"),
)


def main(args: list[str]) -> None:
    """Run the command line ``train-flows density``; nothing is written before everything typed is known to be good."""
    started = time.monotonic()
    settings, origin = parse(PROGRAM, DensitySettings(), args)
    device = session.begin(settings.run)
    print(origin)
    dataset = load(settings)
    settings = fit_to_data(settings, dataset)
    trained = build(settings, dataset).to(device, getattr(torch, settings.run.dtype))
    task = DensityTask(settings, dataset, trained)
    run = session.open_run(settings.run, KIND, to_sections(settings), task.validated, describe(dataset))
    task.run = run
    with session.resumable(run, "density"):
        before = time.monotonic() - started
        notes = fit(task, run, settings, session.deadline(settings.run, started))
        report(run, dataset, task.validated, settings, before, (*dataset.notes, *notes))


def load(settings: DensitySettings) -> Dataset:
    """Load the data of a run."""
    wanted = dataclasses.asdict(settings.data)
    return distributed.first_alone(lambda: load_density_data(**wanted, seed=settings.run.seed))  # it may download


def fit_to_data(settings: DensitySettings, dataset: Dataset) -> DensitySettings:
    """Return the settings with a batch no larger than the data, and with the step at which likelihood begins."""
    batch_size = session.fitting_batch(settings.training.batch_size, len(dataset.train))
    training = staged(settings.objective, dataclasses.replace(settings.training, batch_size=batch_size))
    return dataclasses.replace(settings, training=training)


def build(settings: DensitySettings, dataset: Dataset) -> Density:
    """Build the untrained model with the solver of training, standardised by the training part."""
    return density_model(
        dataset.shape,
        data=dataset.train.head().x,
        context=len(dataset.context),
        levels=dataset.levels,
        config=dataclasses.replace(settings.model, solver=training_solver(settings)),
    )
