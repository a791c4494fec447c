"""``train-flows evaluate RUN``: measure a stored model, how exact the figures are, and their cost."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch

import anode
import cnf
from anode import InputError, Solver, storage
from anode.classifiers import KIND as CLASSIFIER
from anode.errors import config
from anode.solver import solvers_in
from anode.time_series.series_models import KIND as SERIES
from cnf import Density
from cnf.models import KIND as DENSITY
from cnf.tables import Column
from train_flows.command_line import read
from train_flows.data import Dataset, is_images, known_labelled_data, load_density_data, load_labelled_data
from train_flows.data.dataset import description_of
from train_flows.data.grids import Grid
from train_flows.evaluation import accuracy, likelihood, pruning, two_sample, wording
from train_flows.forecasting.forecast_settings import ForecastSettings
from train_flows.run import distributed, session
from train_flows.run.folder import Run
from train_flows.settings import ClassifySettings, DensitySettings, Positive, Precision, Seed, from_config

SETTINGS: dict[str, Any] = {DENSITY: DensitySettings, CLASSIFIER: ClassifySettings}
LOAD: dict[str, Any] = {DENSITY: load_density_data, CLASSIFIER: load_labelled_data}


@config
class Settings:
    """Evaluate a stored model: likelihood of a density, accuracy of a classifier or scores of forecasts, and the cost.

    Attributes:
        run: folder of the run
        data: data set, table or folder of images; the run's own test part if omitted
        rtol: relative tolerance; that of the run if omitted
        atol: absolute tolerance; that of the run if omitted
        divergence: divergence of a density; that of the run if omitted
        samples: importance samples of a density whose likelihood is a bound; up to 64 if omitted
        prune: responsibility below which components of a mixture are left out; 0 sums all, 0.01 if omitted
        classify: classify by the density given each class, for a run with --conditional
        precision: precision of the fields of a density, to see its effect on the NLL; that of training if omitted
        seed: seed of the noise
        device: cpu, cuda, cuda:1 or mps; auto takes a CUDA GPU if there is one
        json: print one JSON object
    """

    positional: ClassVar = {"run": "RUN", "data": "DATA"}
    run: str
    data: str | None = None
    rtol: Positive | None = None
    atol: Positive | None = None
    divergence: Literal["exact", "hutchinson"] | None = None
    samples: int | None = None
    prune: float | None = None
    classify: bool = False
    precision: Precision | None = None
    seed: Seed = 0
    device: str = "auto"
    json: bool = False


def main(args: list[str]) -> None:
    """Run the command line ``train-flows evaluate``."""
    settings = read(Settings, args, "evaluate")
    stored = storage.read_config(settings.run, DENSITY, CLASSIFIER, SERIES)
    device = session.find_device(settings.device)
    distributed.connect(device)
    if stored["kind"] == SERIES:
        figures, said = _forecast(settings, device, stored)
    elif stored["kind"] == CLASSIFIER:
        figures = _classifier(settings, device)
        said = wording.accuracy_table(figures)
    else:
        figures = _density(settings, device, stored)
        said = "\n".join(_lines(figures))
    print(json.dumps(figures) if settings.json else said)


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    yield wording.likelihood_table(figures)
    if "gaussian_nll" in figures:
        yield wording.gaussian_row(figures)
    if "quality" in figures:
        yield wording.quality_table(figures["quality"])
    if "classifier" in figures:
        yield wording.density_table(figures["classifier"])


def _density(settings: Settings, device: torch.device, stored: dict[str, Any]) -> dict[str, Any]:
    model = cnf.load(settings.run, device)
    assert isinstance(model, Density), "of that kind"
    _check_divergence(settings, model)
    for ode in likelihood.odes(model):
        ode.divergence = settings.divergence or ode.divergence
    solver = next(iter(solvers_in(model)), None)
    if solver is None:
        _refuse_tolerances(settings)
        solver = Solver()
    if not solver.adaptive:  # whose tolerances mean nothing
        solver = Solver(rtol=solver.rtol, atol=solver.atol, max_steps=solver.max_steps)
    solver = _with_tolerances(settings, solver)
    likelihood.check_importance_samples(model, settings.samples)
    prune = pruning.find_prune(model, settings.prune)
    dataset = _load(settings)
    distributed.seed_noise(settings.seed)
    trained = stored.get("settings", {}).get("training", {}).get("precision", "float32")
    figures = likelihood.measure(model, dataset.test, solver, settings.samples, settings.precision or trained, prune)
    figures |= likelihood.grid_figures(figures["nll"], dataset)
    if dataset.is_table and dataset.levels is None:
        dataset = _with_training_rows(settings, dataset)
        figures |= likelihood.gaussian_figures(dataset) if len(dataset.train) else {}
        figures["quality"] = two_sample.measure_table(model.with_solver(solver), dataset)
    if settings.classify:
        samples = figures["nll"]["samples"] or 1
        figures["classifier"] = accuracy.measure_density(model.with_solver(solver), dataset.test, samples)
    return figures


def _classifier(settings: Settings, device: torch.device) -> dict[str, Any]:
    return accuracy.measure(_without_density(settings, device, "a classifier"), _load(settings).test)


def _forecast(settings: Settings, device: torch.device, stored: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the scores of a model of series, and their table."""
    from train_flows.forecasting import (
        comparison,
        loading,
    )  # pandas takes half a second, which --help need not wait for

    run = from_config(ForecastSettings, settings.run, stored)
    model = _without_density(settings, device, "a model of series")
    if settings.data is None:
        data = loading.load_run_series(run, stored, settings.run)
    else:
        data = loading.load_other_series(settings.data, run, stored)
    distributed.seed_noise(settings.seed)
    figures, notes = comparison.compare(model, data)
    said = [comparison.table(figures, data), *comparison.verdict(figures), *(f"note: {note}" for note in notes)]
    return figures, "\n".join([f"test part of {data.name}", *said])


def _without_density(settings: Settings, device: torch.device, what: str) -> Any:
    """Load a model that is not a density, in words, with the tolerances asked for."""
    for name in ("divergence", "samples", "prune", "precision", "classify"):
        value = getattr(settings, name)
        if value is not None and value is not False:
            typed = f"--{name}" if value is True else f"--{name} {value}"
            raise InputError(f"{typed} is for densities, {settings.run} is {what}: omit it")
    model = anode.load(settings.run, device)
    solver = next(iter(solvers_in(model)), None)
    if solver is None or not solver.adaptive:
        _refuse_tolerances(settings)
    elif settings.rtol is not None or settings.atol is not None:
        model = model.with_solver(_with_tolerances(settings, solver))
    return model


def _check_divergence(settings: Settings, model: Density) -> None:
    """Raise an error for a divergence that a model does not have, or whose estimates would bias its likelihood."""
    typed = f"--divergence {settings.divergence}"
    if settings.divergence is not None and not likelihood.odes(model):
        raise InputError(f"{typed} is for ODEs, {settings.run} does not have one: omit it")
    if settings.divergence == "hutchinson" and pruning.mixture_of(model) is not None:
        raise InputError(
            f"{typed} would bias the likelihood of {settings.run}, a mixture of flows: a sum over components takes "
            "exponentials of the estimates; omit it"
        )


def _refuse_tolerances(settings: Settings) -> None:
    """Raise an error for tolerances of a model that takes no adaptive steps."""
    if settings.rtol is not None or settings.atol is not None:
        raise InputError(
            f"--rtol and --atol have no effect on {settings.run}, which takes no adaptive steps: drop them"
        )


def _with_tolerances(settings: Settings, solver: Solver) -> Solver:
    return dataclasses.replace(solver, rtol=settings.rtol or solver.rtol, atol=settings.atol or solver.atol)


def _load(settings: Settings) -> Dataset:
    """Load the samples to measure, and say which they are."""
    dataset, part = load_test_part(settings.run, settings.data)
    if settings.classify and not (dataset.context and dataset.context == dataset.classes):
        raise InputError(f"--classify is for densities given the class, {settings.run} is given none: omit it")
    if not settings.json:
        print(f"{part}: {len(dataset.test):,} samples")
    return dataset


def _with_training_rows(settings: Settings, dataset: Dataset) -> Dataset:
    """Return other data with the training part of the run, if it can still be read."""
    if len(dataset.train):
        return dataset
    try:
        trained = load_test_part(settings.run)[0]
    except InputError as error:
        print(f"note: figures that need the training rows are left out: {error}", file=sys.stderr)
        return dataset
    return dataclasses.replace(dataset, train=trained.train, heavy_tailed=trained.heavy_tailed)


def load_test_part(folder: str, source: str | None = None) -> tuple[Dataset, str]:
    """Load a data set whose test part is to be evaluated on: that of a run, or other data in the order of a model.

    Args:
        folder: of a run, or of a model that was saved without one.
        source: a data set, which is split as the run's own data were, or the path of a table or of a folder of images.

    Returns:
        The data set, and what its test part is, in words.
    """
    config = storage.read_config(folder, DENSITY, CLASSIFIER)
    kind, model = config["kind"], config["model"]
    if source is None:
        Run.open(folder)  # raises an error for a model that was saved without a run
    settings = from_config(SETTINGS[kind], folder, config) if "settings" in config else SETTINGS[kind]()
    options: dict[str, Any] = {"task": settings.model.task} if kind == CLASSIFIER else {}
    if source is None or (settings.data.source and settings.data.source in (source, os.path.realpath(source))):
        dtype = getattr(torch, settings.run.dtype)
        if kind == DENSITY and settings.run.init:
            options["model"] = model
        dataset = LOAD[kind](**dataclasses.asdict(settings.data), **options, seed=settings.run.seed, dtype=dtype)
        if settings.run.init:  # which may have other columns
            dataset = dataset.match(config["data"], folder)
        if dataset.digest() != config["data"]["sha256"]:
            raise InputError(
                f"{dataset.name} has changed since {folder} was trained on it, so its test part is unknown: name the "
                "data to evaluate on"
            )
        others = "" if source is None else f", on whose other samples {folder} was trained"
        return dataset, f"test part of {dataset.name}{others}"

    trained = description_of(config)
    if kind == DENSITY and model.get("context") and not trained["context"]:
        raise InputError(f"{folder} is a density given {model['context']} numbers without names: use it by cnf.load")
    if kind == DENSITY and "columns" in model:
        from train_flows.data import tabular  # pandas takes half a second, which --help need not wait for

        columns, given = ([Column(**values) for values in model[part]] for part in ("columns", "given"))
        dataset = tabular.load_like(source, columns, given, settings.run.seed, weights=settings.data.weights)
        for note in dataset.notes:
            print(f"note: {note}", file=sys.stderr)
        return dataset, dataset.name
    options |= {"image_size": settings.data.image_size} if is_images(source) else {}
    if kind == CLASSIFIER:
        options["target"] = None if is_images(source) else settings.data.target
        if options["target"] is None and not (is_images(source) or known_labelled_data(source)):
            raise InputError(
                f"{folder} does not know which column of {source} to predict: use train-flows predict {folder} {source}"
            )
    else:
        options["model"] = model
    if kind == DENSITY and trained["context"]:
        of_classes = trained["context"] == trained["classes"]
        options |= {"conditional": True} if of_classes else {"given": tuple(trained["context"])}
    if not is_images(source):
        options["dtype"] = torch.float64  # models have their own
    if kind == DENSITY:
        options["weights"] = settings.data.weights
    dataset = LOAD[kind](source, seed=settings.run.seed, data_root=settings.data.data_root, split=False, **options)
    grids = {column: Grid(**values) for column, values in trained["grids"].items()}
    dataset = dataset.match(trained, folder).jittered(grids, settings.run.seed)
    for note in dataset.notes:
        print(f"note: {note}", file=sys.stderr)
    return dataset, f"test part of {dataset.name}" if len(dataset.train) else dataset.name
