"""``train-flows density DATA``: train a continuous normalizing flow, report it, draw it."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from accelerate import Accelerator
from scipy.stats import multivariate_normal

from anode import InputError, SolverError, storage
from cnf import Density, MaximumLikelihood, density_model
from cnf.models import KIND
from train_flows import data, likelihood, pictures, recipes
from train_flows.checkpoint import RESULT, Run
from train_flows.data import Dataset
from train_flows.errors import TrainingError
from train_flows.loop import Training, shuffled_batches, train
from train_flows.provenance import provenance
from train_flows.settings import Model, Numerics, RunSettings, Source, check_seed, find_device

VALIDATION = 5000  # samples at most


@dataclass(frozen=True)
class Settings:
    """Train a continuous normalizing flow on samples, evaluate it on held-out ones and draw it.

    The defaults depend on the data: ask with them, as in ``train-flows density moons --help``.
    """

    data: Source = field(default_factory=Source)
    model: Model = field(default_factory=Model)
    numerics: Numerics = field(default_factory=Numerics)
    training: Training = field(default_factory=Training)
    run: RunSettings = field(default_factory=RunSettings)


def main(args: list[str]) -> None:
    """Run the command line ``train-flows density``; nothing is written before everything typed is known to be good."""
    started = time.monotonic()
    settings = parse(args)
    settings.training.check()
    check_seed(settings.run.seed)
    figures, device = settings.numerics.figures(), find_device(settings.run.device)
    dataset = data.load(**dataclasses.asdict(settings.data), seed=settings.run.seed)
    for note in dataset.notes:
        print(f"note: {note}")
    settings = _with_fitting_batch(settings, len(dataset.train))
    torch.manual_seed(settings.run.seed)
    trained = build(settings, dataset).to(device)
    model = trained.with_solver(figures)  # the same weights: what is validated, stored and reported
    run = _open(settings, dataset, model)
    before = time.monotonic() - started
    if fit(settings, run, dataset, trained, model):
        report(settings, run, dataset, model, before)
    else:
        print(f"stopped; continue with: train-flows density --resume {run.folder}")


def parse(args: list[str]) -> Settings:
    """The settings of a command line: defaults, then the recipe of the data set, then what was typed."""
    asking = [arg for arg in args if arg in ("-h", "--help")]
    typed = _cli([arg for arg in args if arg not in asking], Settings())
    source = typed.data.source
    if asking and source is None:
        return _cli(args, Settings())  # prints the help and exits; with a data set, below, its recipe is the default
    if typed.run.resume is not None:
        return _resumed(typed, typed.run.resume)
    if source is None:
        raise InputError("no data set given: pass a name such as moons, or the path of a table")
    recipe = recipes.density(source)
    sections = {}
    for section in dataclasses.fields(Settings):
        default = getattr(Settings(), section.name)
        known = {name: value for name, value in recipe.items() if hasattr(default, name)}
        sections[section.name] = dataclasses.replace(default, **known)
    settings = _cli(args, Settings(**sections))
    if source not in data.NAMES and Path(source).exists():
        source = str(Path(source).resolve())  # found again from any working directory
    root = str(Path(settings.data.data_root).resolve())
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, source=source, data_root=root))


def _cli(args: list[str], default: Settings) -> Settings:
    return tyro.cli(
        Settings, args=args, default=default, prog="train-flows density", config=(tyro.conf.OmitArgPrefixes,)
    )


def _resumed(typed: Settings, folder: str) -> Settings:
    """The settings a run was started with; only the device may be another, for it may not exist here."""
    device = typed.run.device
    if typed != Settings(run=RunSettings(resume=folder, device=device)):
        raise InputError(f"--resume {folder} takes every setting but --device from the run: drop the other options")
    stored = Run(folder).config(KIND)["settings"]
    stored["model"]["hidden"] = tuple(stored["model"]["hidden"])
    stored["run"] |= {"resume": folder, "out": folder} | ({"device": device} if device != "auto" else {})
    return Settings(
        data=Source(**stored["data"]),
        model=Model(**stored["model"]),
        numerics=Numerics(**stored["numerics"]),
        training=Training(**stored["training"]),
        run=RunSettings(**stored["run"]),
    )


def _with_fitting_batch(settings: Settings, samples: int) -> Settings:
    if samples >= settings.training.batch_size:
        return settings
    print(f"note: the batch shrinks from {settings.training.batch_size} to the {samples} training samples")
    return dataclasses.replace(settings, training=dataclasses.replace(settings.training, batch_size=samples))


def build(settings: Settings, dataset: Dataset) -> Density:
    """The untrained model, with the solver of training and the standardisation of the training part."""
    return density_model(
        dataset.shape,
        **dataclasses.asdict(settings.model),
        levels=dataset.levels,
        solver=settings.numerics.training(),
        data=dataset.train,
    )


def _open(settings: Settings, dataset: Dataset, model: Density) -> Run:
    """The run to continue, or a new folder with its configuration."""
    about = {"name": dataset.name, "sha256": dataset.digest(), "notes": dataset.notes}
    if settings.run.resume is not None:
        run = Run(settings.run.resume)
        if run.config(KIND)["data"]["sha256"] != about["sha256"]:
            raise InputError(f"{dataset.name} has changed since {run.folder} began: restore it, or train anew")
        return run
    run = Run.create(settings.run.out or f"runs/{dataset.name.split('.')[0]}", settings.run.overwrite)
    config = {
        "model": model.config,
        "settings": dataclasses.asdict(settings),
        "data": about,
        "columns": dataset.columns,
    }
    storage.write_config(run.folder, KIND, {**config, **provenance()})
    return run


def fit(settings: Settings, run: Run, dataset: Dataset, trained: Density, model: Density) -> bool:
    """Train, keeping the weights of the best validation NLL in the run folder.

    Args:
        settings: of the run.
        run: its folder.
        dataset: its data.
        trained: solves as training does.
        model: shares its weights, and solves as validation does; holds the best weights at the end.

    Returns:
        Whether training came to its end; False when it was asked to stop.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    accelerator = Accelerator(cpu=device.type == "cpu")
    validation = dataset.validation.to(device)[:VALIDATION]
    print(f"{len(dataset.train)} samples to train on, {len(validation)} to validate on; nll: {_validated_as(model)}")

    @torch.no_grad()
    def validate() -> dict[str, float]:
        figure, nfe = likelihood.nll(model, validation, samples=1)
        return {"nll": figure["value"], "nfe_log_prob": nfe}

    try:
        finished = train(
            MaximumLikelihood(trained),
            settings.training,
            shuffled_batches(dataset.train.to(device), settings.training.batch_size, settings.run.seed),
            validate,
            lambda: storage.write_weights(run.folder, model.state_dict()),
            run,
            accelerator,
        )
    except TrainingError as error:
        kept = (run.folder / storage.WEIGHTS).exists()
        what = "the last checkpoint and the best weights so far are" if kept else "nothing was learnt yet"
        raise TrainingError(f"{error}; {what} in {run.folder}") from error
    model.load_state_dict(storage.read_weights(run.folder, device))
    return finished


def _validated_as(model: Density) -> str:
    """What the validation figures are."""
    solver = likelihood.odes(model)[0].solver
    kind = "upper bound, one sample" if model.kind == "bound" else model.kind
    return f"validation NLL in nats ({kind}, rtol {solver.rtol:g}, atol {solver.atol:g})"


def report(settings: Settings, run: Run, dataset: Dataset, model: Density, before: float) -> None:
    """Evaluate on the test part, draw the pictures, write ``result.json`` and print the table.

    Args:
        settings: of the run.
        run: its folder.
        dataset: its data.
        model: with the best weights.
        before: seconds spent before training.
    """
    started = time.monotonic()
    torch.manual_seed(0)  # as ``train-flows evaluate`` does, for figures with noise
    test = dataset.test.to(next(model.parameters()).device)
    figures = likelihood.measure(model, test, settings.numerics.figures())
    rows = [likelihood.table(figures)]
    if dataset.table:
        figures["gaussian_nll"] = gaussian_nll(dataset)
        rows.append(_comparison(figures, likelihood.log_scale(model)))
    try:
        pictures.draw(run, dataset, model)
    except SolverError as error:
        print(f"note: a picture is missing: {error}")
    trained = run.records()[-1]["seconds"] if run.records() else 0
    seconds = before + trained + time.monotonic() - started
    command = run.config(KIND)["command"]
    result = provenance() | {"command": command, "seed": settings.run.seed, "seconds": round(seconds, 1), **figures}
    if dataset.notes:
        result["notes"] = dataset.notes  # such as jitter, without which the figures would mislead
    storage.write_atomically(run.folder / RESULT, (json.dumps(result, indent=2) + "\n").encode())
    rows.append(likelihood.lines_of([("seconds", f"{seconds:.0f}"), ("run", str(run.folder))]))
    print(f"\ntest part of {dataset.name}, {len(test)} samples", *rows, sep="\n")


def _comparison(figures: dict[str, Any], log_scale: float) -> str:
    """Flow and Gaussian in units of standard deviations, where tables of any units compare."""
    gaussian = figures["gaussian_nll"]
    flow = f"{figures['nll']['value'] - log_scale:.4f}"
    other = "its covariance is singular" if gaussian is None else f"{gaussian - log_scale:.4f}"
    return likelihood.lines_of([("NLL, standardized", f"{flow} nats (full-covariance Gaussian: {other})")])


def gaussian_nll(dataset: Dataset) -> float | None:
    """Test NLL in nats of the Gaussian with mean and full covariance of the training part: what a flow should beat.

    None when the covariance is singular, so that there is no such density.
    """
    x, test = (part.double().flatten(1).numpy() for part in (dataset.train, dataset.test))
    scale = x.std(axis=0)  # factored out, for columns of very different units
    covariance = np.cov((x / scale).T, bias=True)
    try:
        gaussian = multivariate_normal(x.mean(axis=0) / scale, covariance)
    except np.linalg.LinAlgError:
        return None
    return float(np.log(scale).sum() - gaussian.logpdf(test / scale).mean())
