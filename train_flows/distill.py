"""``train-flows distill RUN``: put a few residual steps with exact determinants in the place of a density's ODE."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import cnf
from anode import InputError, Solver, SolverError, count_evals
from anode.errors import config
from cnf import Density, DensityConfig, MixtureFlow, ResidualSteps
from cnf.batches import split_batch
from cnf.mixture_flow import FEWEST_PRUNED
from cnf.models import KIND
from cnf.residual_steps import MAX_DIM
from train_flows import density
from train_flows.command_line import read
from train_flows.data import Split
from train_flows.evaluation import costs, likelihood, to_model, wording
from train_flows.evaluation.folds import FOLDED, has_residual_steps, measure_folds
from train_flows.evaluation.pruning import find_prune
from train_flows.run import session
from train_flows.run.folder import Run, free_folder
from train_flows.run.loop import Trainer, fit, train
from train_flows.run.step import shuffled_batches
from train_flows.settings import Count, DensitySettings, Objective, RunSettings, Training, from_config, to_sections

ROWS = 8192  # whose states are learnt, at most
REGRESSION_BATCH = 512
LEARNING_RATE = 5e-3
VALIDATE_EVERY = 50
TIMED_ROWS = 1000  # at most
REPEATS = 3


@config
class Settings:
    """Distil a trained density into one of a few residual steps: regress on its states, then maximise the likelihood.

    Attributes:
        run: folder of the run of the density, whose ODE is replaced
        steps: number of residual steps
        regression_steps: optimiser steps of the regression on the states of the ODE
        train_steps: optimiser steps of the likelihood
        certify: bound the residual steps so that they are certain to be invertible
        out: folder of the new run; RUN-distilled if omitted
        device: cpu, cuda, cuda:1 or mps; auto takes a CUDA GPU if there is one
        overwrite: replace an existing run
    """

    positional: ClassVar = {"run": "RUN"}
    run: Path
    steps: Count = 4
    regression_steps: Count = 1000
    train_steps: Count = 800
    certify: bool = False
    out: Path | None = None
    device: str = "auto"
    overwrite: bool = False


def main(args: list[str]) -> None:
    """Run the command line ``train-flows distill``; the new run is written once the regression is done."""
    started = time.monotonic()
    typed = read(Settings, args, "distill")
    source = Run.open(typed.run, KIND)
    settings = student_settings(typed, source)
    device = session.begin(settings.run)
    teacher = cnf.load(typed.run, device)
    assert isinstance(teacher, Density), "of that kind"
    dataset = density.load(settings)
    if dataset.digest() != source.config["data"]["sha256"]:
        raise InputError(
            f"{dataset.name} has changed since {typed.run} was trained on it, or {typed.run} has the columns of its "
            "--init: restore the data, or pass a run without --init"
        )
    settings = density.fit_to_data(settings, dataset)
    student = density.build(settings, dataset).to(device)
    copy_weights(teacher, student)
    error = regress(teacher, student, dataset.train, typed.regression_steps, settings.run.seed)
    task = density.DensityTask(settings, dataset, student)
    task.run = run = session.open_run(settings.run, to_sections(settings), KIND, task.validated.arguments, dataset)
    Trainer(task, run).save()  # a resumed run begins with these weights
    before = time.monotonic() - started
    with session.resumable(run, density.PROGRAM.name):
        notes = fit(task, run, settings.run, density.PROGRAM.name, started, task.validated)
        run.load_best(task.validated)
        density.report(task, run, before, (*dataset.notes, *notes))
        print("", compare(teacher, task, run, error), sep="\n")


def student_settings(typed: Settings, source: Run) -> DensitySettings:
    """Return the settings of the new run: data and seed of the teacher's run, its model with residual steps.

    Raises:
        InputError: for a density that residual steps cannot replace, or a folder that exists.
    """
    trained = from_config(DensitySettings, typed.run, source.config)
    check_teacher(typed.run, trained.model, source.config["model"])
    teacher = typed.run.resolve()
    beside = os.path.relpath(teacher.with_name(f"{teacher.name}-distilled"))
    folder = typed.out or free_folder(Path(beside))
    if folder.resolve() == teacher:
        raise InputError(f"--out {folder} is the run to distil: pass another --out")
    if free_folder(folder) != folder and not typed.overwrite:
        raise InputError(f"--out {folder} exists: pass another --out, or replace it with --overwrite")
    training = Training(
        steps=typed.train_steps,
        batch_size=trained.training.batch_size,
        lr=LEARNING_RATE,
        weight_decay=trained.training.weight_decay,
        ema=trained.training.ema,
        validate_every=min(VALIDATE_EVERY, typed.train_steps),
    )
    return DensitySettings(
        data=trained.data,
        model=student_config(trained.model, typed.steps, typed.certify),
        objective=Objective(smoothing=trained.objective.smoothing),
        training=training,
        run=RunSettings(
            out=str(folder),
            seed=trained.run.seed,
            device=typed.device,
            dtype=trained.run.dtype,
            overwrite=typed.overwrite,
        ),
    )


def check_teacher(folder: Path, model: DensityConfig, arguments: Mapping[str, Any]) -> None:
    """Raise an :class:`anode.InputError` for a density that does not have one ODE to replace by residual steps.

    Args:
        folder: its run.
        model: its description.
        arguments: the plain values that rebuild it, among them ``shape`` and ``levels``.
    """
    if "columns" in arguments:
        raise InputError(f"{folder} is of a table with other columns than numbers, whose flow keeps its ODE: omit it")
    dim = math.prod(arguments["shape"])
    again = "distil a density trained with"
    refusals = (
        (model.residual_steps > 0, f"has {model.residual_steps} residual steps already: {again}out --residual-steps"),
        (len(arguments["shape"]) > 1, "is a density of images, which residual steps do not serve: sample it as it is"),
        (arguments["levels"] is not None, f"is a density of discrete data: {again} real numbers"),
        (
            model.augmented > 0,
            f"has {model.augmented} augmented dimensions, which make its likelihood a bound: {again}out --extra, or "
            "with --augmentation categorical",
        ),
        (model.blocks > 1, f"has {model.blocks} ODEs in a row: {again} --blocks 1"),
        (dim > MAX_DIM, f"has {dim} dimensions, and exact determinants are for at most {MAX_DIM}: keep its ODE"),
    )
    for holds, reason in refusals:
        if holds:
            raise InputError(f"{folder} {reason}")


def student_config(teacher: DensityConfig, steps: int, certify: bool = False) -> DensityConfig:
    """Return the description of a density with residual steps, of a bounded field, in place of the ODE."""
    unbounded = teacher.hidden and teacher.activation[0] != "tanh"
    return dataclasses.replace(
        teacher,
        residual_steps=steps,
        certify=certify,
        activation=("tanh", "silu") if unbounded else teacher.activation,
        divergence="exact",
        probes=1,
        noise="rademacher",
        solver=Solver(),
    )


def copy_weights(teacher: Density, student: Density) -> None:
    """Give the student the weights of the teacher; a new field stays if it is another function, or in a mixture.

    Steps of the field of an ODE are Euler's, which seldom fold. In a mixture of flows, whose paths are short, a new
    field learns as surely, and the likelihood gets further with it.
    """
    ours, kept = student.state_dict(), teacher.state_dict()
    same = teacher.description is not None and student.description is not None
    same = same and teacher.description.activation == student.description.activation and kept.keys() == ours.keys()
    if isinstance(teacher, MixtureFlow) or not same:
        kept = {name: value for name, value in kept.items() if ".field." not in name}
    student.load_state_dict({**ours, **kept})


class Regression:
    """Task of the regression: residual steps learn the states x_0, ..., x_n of paths from data to base, step by step.

        loss = mean |f(t_i, x_i, c) - n (x_i - x_{i+1})|^2    over rows, dimensions and steps

    Args:
        training: how to optimise.
        steps: the n residual steps.
        states: states of N rows, (N, n + 1, D).
        c: contexts of the field, (N, C), or None.
        seed: of the batches.
    """

    criterion = None

    def __init__(self, training: Training, steps: ResidualSteps, states: Tensor, c: Tensor | None, seed: int) -> None:
        self.training = training
        self.model = steps
        self.rows: Any = states if c is None else (states, c)
        self.batch: Callable[[int], Any] = shuffled_batches(self.rows, training.batch_size, seed)

    def loss_name(self, step: int) -> str:
        """Return the name of the loss."""
        return "loss"

    def objective(self, batch: Any, step: int) -> Tensor:
        """Return the mean squared error of the field."""
        states, c = split_batch(batch)
        n, errors = self.model.steps, []
        for i, (x, wanted) in enumerate(pairwise(states.unbind(1))):
            errors.append(self.model.field(x.new_full((), 1 - i / n), x, c) - n * (x - wanted))
        return torch.stack(errors).square().mean()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the root mean square of the errors of single steps, in standard deviations of the base."""
        return {"error": self.objective(self.rows, 0).sqrt().item() / self.model.steps}


@torch.no_grad()
def states_of(teacher: Density, data: Split, n: int) -> tuple[Tensor, Tensor | None]:
    """Return states of the teacher's ODE at t = 1, 1 - 1/n, ..., 0 from up to 8,192 rows of data, and its contexts.

    A mixture draws the component of a row as in training.

    Returns:
        States (N, n + 1, D), and contexts (N, C) or None.
    """
    x, c = split_batch(data.head(ROWS).batch(slice(None)))
    pair = teacher.matching_pair(*to_model(teacher, (x, c)))
    times = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    ode = teacher.split()[1]
    paths = ode.trajectory(ode.encode(pair.x, pair.c), times, pair.c)
    return paths.flip(0).transpose(0, 1).contiguous(), pair.c


def regress(teacher: Density, student: Density, data: Split, optimiser_steps: int, seed: int) -> float:
    """Fit the residual steps of the student to the states of the teacher; return the error of a step."""
    residual = student.split()[1]
    assert isinstance(residual, ResidualSteps), "as the description says"
    states, c = states_of(teacher, data, residual.steps)
    size = min(REGRESSION_BATCH, len(states))
    training = Training(steps=optimiser_steps, batch_size=size, lr=LEARNING_RATE, validate_every=optimiser_steps)
    task = Regression(training, residual, states, c, seed)
    train(task, Run.temporary(), quiet=True)
    error = task.validate()["error"]
    session.tell(
        f"regression on the states of {len(states):,} samples: the error of a step is {error:.2g} (root mean square, "
        "in standard deviations of the base)"
    )
    return error


def compare(teacher: Density, task: density.DensityTask, run: Run, error: float) -> str:
    """Measure both flows on the same test rows; return a table, and add the figures to ``result.json``."""
    test, trained_on = task.dataset.test, task.training.steps * task.training.batch_size
    data = test.head(costs.in_proportion(task.validated, len(test), trained_on)[0])
    figures = {"teacher": measured(teacher, data), "student": measured(task.validated, data)}
    result = run.result() or {}
    notes = [*result.get("notes", ())]
    if mass := figures["student"]["folds"]["mass"]:
        notes.append(
            f"the NLL of the residual steps is too low by about {math.log1p(mass):.2g} nats, for they fold: pass more "
            "--steps, or --certify"
        )
        session.tell(f"note: {notes[-1]}")
    run.write_result({**result, "distillation": {"regression_error": error, **figures}}, notes)
    names = ("", "NLL in nats", "kind", "NFE of log_prob", "NFE of sampling", "ms of log_prob", "ms of sampling")
    ode, residual = in_words("ODE", figures["teacher"]), in_words("residual steps", figures["student"])
    columns = zip((*names, "least determinant"), ode, residual, strict=True)
    width = max(map(len, ode))
    rows = [(name, f"{one:<{width}}  {other}") for name, one, other in columns]
    return wording.lines(
        [*rows, ("measured on", f"{len(data):,} test samples, times on {min(len(data), TIMED_ROWS):,}")]
    )


def measured(model: Density, data: Split) -> dict[str, Any]:
    """Measure a density: likelihood of all rows, folds, evaluations and seconds of the first 1,000.

    Seconds are the best of three calls after one that is not counted.

    Returns:
        ``nll`` (see :func:`likelihood.nll`, pruned like the figures of a run); ``folds`` of residual steps (see
        :func:`measure_folds`), else None; ``nfe_log_prob``, of one pass, gate included;
        ``seconds_log_prob``; ``nfe_sample`` and ``seconds_sample``, None if the inverse fails.
    """
    prune = find_prune(model) if len(data) >= FEWEST_PRUNED else None
    with torch.no_grad():
        figure, _ = likelihood.nll(model, data, 1, prune)
    folds = measure_folds(model, data) if has_residual_steps(model) else None
    figures = {"nll": {**figure, "kind": FOLDED} if folds and folds["mass"] else figure, "folds": folds}
    x, c = to_model(model, split_batch(data.head(TIMED_ROWS).batch(slice(None))))
    calls = {"log_prob": lambda: likelihood.log_prob(model, x, 1, c, prune), "sample": lambda: model.sample(len(x), c)}
    for name, call in calls.items():
        seconds: list[float] = []
        with suppress(SolverError), torch.no_grad():  # a map that folds does not have an inverse
            for _ in range(1 + REPEATS):
                started = time.perf_counter()
                with count_evals(model) as nfe:
                    call().cpu()  # which waits for the device
                seconds.append(time.perf_counter() - started)
        done = len(seconds) > REPEATS
        pruned = prune if name == "log_prob" else None
        figures |= {
            f"nfe_{name}": likelihood.nfe_of_pass(model, [nfe], pruned) if done else None,
            f"seconds_{name}": min(seconds[1:]) if done else None,
        }
    return figures


def in_words(title: str, figures: Mapping[str, Any]) -> list[str]:
    """Return the column of one flow in the table."""

    def number(name: str, form: str, unit: float = 1.0) -> str:
        return "-" if figures[name] is None else format(figures[name] / unit, form)

    nll = figures["nll"]
    return [
        title,
        f"{nll['value']:.4f} +- {nll['standard_error']:.4f}",
        wording.how(nll),
        *(number(f"nfe_{name}", ".0f") for name in ("log_prob", "sample")),
        *(number(f"seconds_{name}", ".1f", 1e-3) for name in ("log_prob", "sample")),
        wording.describe_folds(figures["folds"]) if figures["folds"] else "-",
    ]
