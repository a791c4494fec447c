"""``train-flows density DATA``: train a continuous normalizing flow, report it, draw it."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from accelerate import Accelerator
from scipy.stats import multivariate_normal

from anode import InputError, Solver, storage
from cnf import Density, MaximumLikelihood, density_model
from cnf.models import KIND
from train_flows import data, evaluate, pictures, recipes, runs
from train_flows.checkpoint import Run
from train_flows.data import Dataset
from train_flows.errors import TrainingError
from train_flows.loop import Training, shuffled_batches, train

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class Source:
    """What to learn."""

    source: tyro.conf.Positional[str | None] = None  # moons, 8gaussians, ..., digits, power, ... or a table's path
    jitter: Flag = False  # add noise to columns of few distinct values
    data_root: str = "data"  # folder of the published tables


@dataclass(frozen=True)
class Model:
    """The field and its divergence."""

    hidden: tuple[int, ...] = (128, 128)  # widths of the hidden layers
    activation: Literal["tanh", "softplus", "relu", "silu"] = "tanh"  # of the hidden layers
    time: Literal["none", "concat", "bias"] = "bias"  # how the field depends on time
    divergence: Literal["exact", "hutchinson"] = "exact"  # exact or estimated
    probes: int = 1  # Hutchinson probes averaged
    noise: Literal["rademacher", "gaussian"] = "rademacher"  # of the probes


@dataclass(frozen=True)
class Numerics:
    """How ODEs are solved."""

    solver: str = "dopri5"  # of training; figures of a fixed-step one are taken by dopri5
    rtol: float = 1e-5  # relative tolerance of all figures
    atol: float = 1e-5  # absolute tolerance of all figures
    loosen: float = 10.0  # training solves at this multiple of rtol and atol
    step_size: float | None = None  # of a fixed-step solver
    gradient: Literal["direct", "adjoint"] = "direct"  # through the steps, or by the adjoint
    max_steps: int = 1000  # a solve that takes more has failed

    def training(self) -> Solver:
        """The solver of training."""
        rtol, atol = self.loosen * self.rtol, self.loosen * self.atol
        return Solver(self.solver, rtol, atol, self.step_size, self.max_steps, self.gradient)

    def figures(self) -> Solver:
        """The solver of validation, tests and the stored model: always adaptive."""
        method = self.solver if self.training().adaptive else "dopri5"
        return Solver(method, self.rtol, self.atol, max_steps=self.max_steps)


@dataclass(frozen=True)
class RunSettings:
    """Where and how to run."""

    out: str | None = None  # run folder; runs/DATA when omitted
    seed: int = 0  # of data, weights, batches and noise
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto takes a GPU where there is one
    overwrite: Flag = False  # replace an existing run
    resume: str | None = None  # continue this run with all its settings


@dataclass(frozen=True)
class Settings:
    """Train a continuous normalizing flow on samples, evaluate it on held-out ones and draw it."""

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
    device = runs.device(settings.run.device)
    dataset = data.load(**dataclasses.asdict(settings.data), seed=settings.run.seed)
    for note in dataset.notes:
        print(f"note: {note}")
    settings = _with_fitting_batch(settings, len(dataset.train))
    torch.manual_seed(settings.run.seed)
    trained = build(settings, dataset).to(device)
    model = trained.with_solver(settings.numerics.figures())  # the same weights: what is validated, stored and reported
    run = _open(settings, dataset, model)
    if fit(settings, run, dataset, trained, model):
        report(settings, run, dataset, model, started)
    else:
        print(f"stopped; continue with: train-flows density --resume {run.folder}")


def parse(args: list[str]) -> Settings:
    """The settings of a command line: defaults, then the recipe of the data set, then what was typed."""
    typed = _cli(args, Settings())
    if typed.run.resume is not None:
        return _resumed(typed, typed.run.resume)
    source = typed.data.source
    if source is None:
        raise InputError("no data set given: pass a name such as moons, or the path of a table")
    recipe = recipes.density(source)
    sections = {}
    for section in dataclasses.fields(Settings):
        default = getattr(Settings(), section.name)
        known = {name: value for name, value in recipe.items() if hasattr(default, name)}
        sections[section.name] = dataclasses.replace(default, **known)
    settings = _cli(args, Settings(**sections))
    if Path(source).is_file():
        source = str(Path(source).resolve())  # found again from any working directory
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, source=source))


def _cli(args: list[str], default: Settings) -> Settings:
    return tyro.cli(
        Settings, args=args, default=default, prog="train-flows density", config=(tyro.conf.OmitArgPrefixes,)
    )


def _resumed(typed: Settings, folder: str) -> Settings:
    """The settings a run was started with."""
    if typed != Settings(run=RunSettings(resume=folder)):
        raise InputError(f"--resume {folder} takes every setting from the run: drop the other options")
    stored = runs.config(folder)["settings"]
    stored["model"]["hidden"] = tuple(stored["model"]["hidden"])
    stored["run"] |= {"resume": folder, "out": folder}
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
    if settings.run.resume is not None:
        return Run(settings.run.resume)
    run = Run.create(settings.run.out or f"runs/{dataset.name.split('.')[0]}", settings.run.overwrite)
    about = {"settings": dataclasses.asdict(settings), "data": dataset.name, "columns": dataset.columns}
    storage.write_config(run.folder, KIND, {"model": model.config, **about})
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
    validation = dataset.validation.to(device)[: 2 * evaluate.CHUNK]

    @torch.no_grad()
    def validate() -> dict[str, float]:
        figure, nfe = evaluate.nll(model, validation, samples=1)
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
        raise TrainingError(f"{error}; the last checkpoint and the best weights so far are in {run.folder}") from error
    model.load_state_dict(storage.read_weights(run.folder, device))
    return finished


def report(settings: Settings, run: Run, dataset: Dataset, model: Density, started: float) -> None:
    """Evaluate on the test part, write ``result.json``, draw the pictures and print the table."""
    test = dataset.test.to(next(model.parameters()).device)
    figures = evaluate.measure(model, test, settings.numerics.figures())
    rows = [evaluate.table(figures)]
    if dataset.table:
        figures["gaussian_nll"] = gaussian_nll(dataset)
        both = {"flow": figures["nll"]["value"], "full-covariance Gaussian": figures["gaussian_nll"]}
        log_scale = evaluate.log_scale(model)
        compared = ", ".join(f"{value - log_scale:.4f} {name}" for name, value in both.items())
        rows.append(evaluate.lines_of([("standardized", f"NLL in units of standard deviations: {compared} (nats)")]))
    pictures.draw(run, dataset, model)
    seconds = time.monotonic() - started
    result = {**runs.provenance(), "seed": settings.run.seed, "seconds": round(seconds, 1), **figures}
    storage.write_atomically(run.folder / "result.json", (json.dumps(result, indent=2) + "\n").encode())
    rows.append(evaluate.lines_of([("seconds", f"{seconds:.0f}"), ("run", str(run.folder))]))
    print(f"\ntest part of {dataset.name}, {len(test)} samples", *rows, sep="\n")


def gaussian_nll(dataset: Dataset) -> float:
    """Test NLL in nats of the Gaussian with mean and full covariance of the training part: what a flow should beat."""
    x, test = (part.double().flatten(1).numpy() for part in (dataset.train, dataset.test))
    scale = x.std(axis=0)  # factored out, for columns of very different units
    covariance = np.cov((x / scale).T, bias=True)
    gaussian = multivariate_normal(x.mean(axis=0) / scale, covariance, allow_singular=True)
    return float(np.log(scale).sum() - gaussian.logpdf(test / scale).mean())
