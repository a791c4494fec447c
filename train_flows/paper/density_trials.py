"""One density trained once: a run of ``train-flows density`` without a folder, and what is measured of it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from anode import InputError, count_evals
from cnf import Density
from train_flows import data, density, likelihood, recipes
from train_flows.command_line import cooked
from train_flows.data import Dataset, toy
from train_flows.journal import Memory
from train_flows.loop import train
from train_flows.paper.outcomes import Outcome, Place, status_of
from train_flows.portions import together
from train_flows.provenance import device_name

QUICK = {"steps": 4, "validate_every": 2, "likelihood_steps": 2, "batch_size": 32, "hidden": (8, 8)}
FEW = 100  # samples of a part


Measure = Callable[[Density, Dataset], dict[str, float]]


@dataclass(frozen=True)
class DensityTrial:
    """One density on one data set."""

    name: str  # in figures and tables
    data: str  # of ``train-flows density``
    options: dict[str, Any] = field(default_factory=dict)  # of it, beside the recipe of the data
    quick: bool = False  # at a size for tests

    @property
    def epochs(self) -> int:
        """How many records there are after the first."""
        training = self.settings(0).training
        return -(-training.steps // training.validate_every)

    def plain(self) -> dict[str, Any]:
        """All that matters to the figures, what comes of the recipe too."""
        sections = {name: vars(getattr(self.settings(0), name)) for name in density.SECTIONS}
        plain = {"name": self.name, "data": self.data, **sections} | ({"quick": True} if self.quick else {})
        return json.loads(json.dumps(plain))

    def settings(self, seed: int) -> density.Settings:
        """Those of the run."""
        values = {**recipes.density(self.data), **self.options, **(QUICK if self.quick else {}), "seed": seed}
        return cooked(density.Settings(), values)


def load(trial: DensityTrial, seed: int, data_root: str) -> Dataset:
    """The data of a trial: by name, or a table that lies in ``data_root``.

    Raises:
        InputError: when there is no such data set, or it cannot be used.
    """
    source = trial.data if trial.data in data.NAMES else str(Path(data_root, trial.data))
    dataset = data.load(source, seed, data_root=data_root)
    if not trial.quick:
        return dataset
    few = {part: getattr(dataset, part)[:FEW] for part in ("train", "validation", "test")}
    return dataclasses.replace(dataset, **few)


def _nothing(model: Density, dataset: Dataset) -> dict[str, float]:
    return {}


def attempt(trial: DensityTrial, seed: int, place: Place, measure: Measure = _nothing) -> Outcome | None:
    """Train the density of a trial, and measure it with the weights of the best validation on the test part.

    Records are those of the run folder, with what ``measure`` makes of model and data; the last also holds ``test_nll``
    with its ``standard_error``, ``nfe_log_prob`` and ``nfe_sample``, and the best ``validation_nll`` with its
    evaluations ``nfe_validation``.

    Returns:
        The outcome; None when the deadline has passed.

    Raises:
        KeyboardInterrupt: when a signal asks to stop.
    """
    if time.time() > place.deadline:
        return None
    settings, dataset = trial.settings(seed), load(trial, seed, place.data_root)
    torch.manual_seed(seed)
    device = torch.device(place.device)
    trained = density.build(settings, dataset).to(device)
    model = trained.with_solver(settings.numerics.figures())
    task, journal = density.task(settings, dataset, trained, model), Memory()
    best: dict[str, Any] = {}

    def keep_best() -> None:
        best.update({name: tensor.clone() for name, tensor in model.state_dict().items()})

    def validate() -> dict[str, float]:
        return task.validate() | measure(model, dataset)

    def work() -> bool:
        of_task = (task.objective, task.training, task.batch)
        return train(*of_task, validate, keep_best, journal, device, quiet=True, growth=task.growth)

    def test() -> None:
        model.load_state_dict(best)
        journal.records[-1] |= _tested(model, dataset, seed)

    return Outcome(trial, seed, status_of(work, journal, test), journal.records, device_name(device))


@torch.no_grad()
def _tested(model: Density, dataset: Dataset, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    validated, nfe_validation = likelihood.nll(model, dataset.validation[: density.VALIDATION], samples=1)
    figure, nfe = likelihood.nll(model, dataset.test, samples=1)
    with count_evals(model) as counted:
        model.sample(min(len(dataset.test), together(dataset.shape)))
    return {
        "validation_nll": validated["value"],
        "nfe_validation": nfe_validation,
        "test_nll": figure["value"],
        "standard_error": figure["standard_error"],
        "nfe_log_prob": nfe,
        "nfe_sample": counted.forward,
    }


def checked(trials: list[DensityTrial], quick: bool) -> list[DensityTrial]:
    """The trials, at a size for tests where that is asked for.

    Raises:
        InputError: when one is on data that are no density of two dimensions.
    """
    for trial in trials:
        if trial.data not in toy.DENSITIES:
            raise InputError(f"--data {trial.data} is unknown: choose from {', '.join(toy.DENSITIES)}")
    return [dataclasses.replace(trial, quick=True) for trial in trials] if quick else trials
