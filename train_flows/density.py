"""``train-flows density DATA``: train a continuous normalizing flow, measure it, draw it."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anode import Solver
from anode.units import moments, to_shares
from cnf import Density, FlowMatching, MaximumLikelihood, density_model
from cnf.batches import Batch, split_batch
from cnf.models import KIND
from cnf.tables import TableDensity, table_model
from cnf.tables.columns import encode
from train_flows import recipes
from train_flows.command_line import Program, parse
from train_flows.data import DENSITY_NAMES, Dataset, load_density_data
from train_flows.evaluation import costs, likelihood, pruning, to_model, two_sample, wording
from train_flows.run import distributed, session
from train_flows.run.folder import Run
from train_flows.run.loop import fit
from train_flows.run.step import shuffled_batches, weighted_batches
from train_flows.settings import (
    BOTH,
    LIKELIHOOD,
    LIKELIHOOD_SHARE,
    MATCHING,
    DensitySettings,
    Objective,
    Training,
    to_sections,
)

VALIDATION_SAMPLES = 5000  # at most
COSTLY_DIM = 20  # dimensions from which determinants take most of the time
UNTRAINED = (
    "no step had a better validation NLL than the untrained model, which is a Gaussian unless --base or --augmentation "
    "makes it a mixture: the stored model is the untrained one"
)
PROGRAM = Program(
    name="density",
    about="Train a continuous normalizing flow on samples, measure it on held-out samples and draw it. The defaults "
    "depend on the data: train-flows density DATA --help shows them. A table of few rows has others, which the first "
    "line of its run states.",
    kind=KIND,
    recipe=recipes.density,
    length="steps",
    known=lambda source: source in DENSITY_NAMES,
    common=(
        *("source", "conditional", "image_size", "data_root", "download"),
        *("field", "hidden", "base", "extra", "augmentation", "divergence"),
        *("objective", "steps", "batch_size", "lr", "validate_every", "solver", "rtol", "atol"),
        *("out", "seed", "device", "overwrite", "budget_minutes", "init", "resume"),
    ),
    api_only=(
        *("train_size", "test_size", "correlated", "probes", "noise", "dequantization", "alpha", "first_step"),
        *("smoothing", "kl_warm_up", "clip", "weight_decay", "likelihood_from", "max_skipped"),
        *("lr_warm_up", "restart_lr"),
    ),
)


def main(args: list[str]) -> None:
    """Run the command line ``train-flows density``; nothing is written before everything typed is known to be good."""
    started = time.monotonic()
    settings, _ = parse(PROGRAM, DensitySettings(), args)
    device = session.begin(settings.run)
    dataset = load(settings)
    settings, origin = parse(PROGRAM, DensitySettings(), args, *size(dataset))
    session.tell(origin)
    task = prepare(settings, dataset, device)
    sections = to_sections(task.settings)
    run = session.open_run(settings.run, sections, KIND, task.validated.arguments, dataset)
    before = time.monotonic() - started
    with session.resumable(run, PROGRAM.name):
        notes = train(task, run, started, PROGRAM.name)
        report(task, run, before, (*dataset.notes, *notes))


def prepare(settings: DensitySettings, dataset: Dataset, device: torch.device) -> DensityTask:
    """Build the model of a data set, ready to train, and say what there is to know about the data."""
    session.tell(*(f"note: {note}" for note in dataset.notes), *dataset.overview.splitlines())
    if settings.model.residual_steps and (dim := math.prod(dataset.shape) + settings.model.augmented) > COSTLY_DIM:
        session.tell(
            f"note: in {dim} dimensions, a residual step takes {dim} derivatives and a determinant of {dim} x {dim} a "
            "sample, which is most of the time of training"
        )
    settings = fit_to_data(settings, dataset)
    model = build(settings, dataset).to(device)
    session.take_initial_weights(settings.run, model)
    return DensityTask(settings, dataset, model)


def train(task: DensityTask, run: Run, started: float, command: str | None = None) -> list[str]:
    """Train in a run, which then has the best weights, as ``task.validated`` has; return notes for its figures.

    Args:
        task: of :func:`prepare`.
        run: its folder.
        started: ``time.monotonic()`` from which the budget of time counts.
        command: program that can continue the run, if any can.
    """
    task.run, data = run, task.dataset
    session.tell(
        f"{len(data.train)} samples to train on, {min(VALIDATION_SAMPLES, len(data.validation))} to validate on; "
        f"nll: {wording.validated_as(task.validated)}"
    )
    notes = fit(task, run, task.settings.run, command, started, task.validated)
    run.load_best(task.validated)
    return notes


def load(settings: DensitySettings) -> Dataset:
    """Load the data of a run, as they suit the weights that it starts from."""
    of_run = settings.run
    initial = of_run.init and Run.open(of_run.resume or os.path.relpath(of_run.init)).config["model"]
    return session.load_data(load_density_data, settings.data, settings.run, model=initial)


def size(dataset: Dataset) -> tuple[int, int, bool]:
    """Return what the recipe of a table follows: the numbers of training samples and of dimensions, if it has kinds."""
    return len(dataset.train), math.prod(dataset.shape), bool(dataset.kinds)


def fit_to_data(settings: DensitySettings, dataset: Dataset) -> DensitySettings:
    """Return the settings with a batch no larger than the data, and with the step at which likelihood begins.

    Categories alone are fitted without steps, and without a loss of paths.
    """
    if dataset.kinds and all(column.is_category for column in dataset.kinds):
        settings = dataclasses.replace(settings, objective=Objective())
    batch_size = session.fitting_batch(settings.training.batch_size, len(dataset.train))
    training, objective = dataclasses.replace(settings.training, batch_size=batch_size), settings.objective
    if objective.objective == BOTH:
        last = objective.likelihood_steps or math.ceil(LIKELIHOOD_SHARE * training.steps)
        training = dataclasses.replace(training, likelihood_from=training.steps - last or None)
    settings = dataclasses.replace(settings, training=training)
    settings.validate()
    return settings


def build(settings: DensitySettings, dataset: Dataset) -> Density:
    """Build the untrained model, standardised by the training part; training solves with loose tolerances.

    Contexts are standardised, too, unless they are indicators of classes.
    """
    solver, loosen = settings.model.solver, settings.objective.loosen
    solver = dataclasses.replace(solver, rtol=loosen * solver.rtol, atol=loosen * solver.atol)
    head = dataset.train.head()
    with session.default_dtype(getattr(torch, settings.run.dtype)):  # of the mean, too
        if dataset.kinds:
            config = dataclasses.replace(settings.model, solver=solver)
            x, c, weights = (None, None, None) if settings.run.init else (head.x, head.c, head.weights)
            return table_model(dataset.kinds, x, given=dataset.given, given_rows=c, weights=weights, config=config)
        return density_model(
            dataset.shape,
            data=None if settings.run.init else head.x,  # an initial run has its own standardisation
            context_data=None if settings.run.init or dataset.classes else head.c,
            weights=head.weights,
            context=len(dataset.context),
            levels=dataset.levels,
            config=dataclasses.replace(settings.model, solver=solver),
        )


def figures_solver(settings: DensitySettings) -> Solver:
    """Return the solver of validation, test and the stored model: always adaptive."""
    solver = settings.model.solver
    method = solver.method if solver.adaptive else "dopri5"
    return dataclasses.replace(solver, method=method, step_size=None, gradient="direct")


def smoothed(
    batch: Callable[[int], Any], samples: Tensor, share: float, weights: Tensor | None = None
) -> Callable[[int], Any]:
    """Return batches with normal noise, so that a model cannot learn the single samples.

    A sample x becomes m + sqrt(1 - b^2) (x - m) + b e with the share b, the mean m of the samples, and e ~ N(0, C) of
    their covariance C. Mean and covariance stay those of the samples, and b = 1 leaves the Gaussian alone.

    Args:
        batch: from a step to its samples, with or without contexts.
        samples: all samples, (N, *S).
        share: b.
        weights: relative weights (N,) of the samples.

    References:
        Rothfuss et al. 2019, arXiv 1907.08982 (noise as regularisation); West 1993, Approximating posterior
        distributions by mixtures (kernels that keep the covariance).
    """
    add_noise = smoothing_noise(samples, share, weights)

    def smooth(step: int) -> Any:
        x, c = split_batch(batch(step))
        return add_noise(x) if c is None else (add_noise(x), c)

    return smooth


def smoothed_rows(
    batch: Callable[[int], Any], samples: Tensor, share: float, model: TableDensity, weights: Tensor | None = None
) -> Callable[[int], Any]:
    """Return batches of rows whose numbers have noise as in :func:`smoothed`, on their scales; states stay."""
    add_noise = smoothing_noise(encode(model.columns, samples, noise=False).y, share, weights)

    def smooth(step: int) -> Any:
        x, c = split_batch(batch(step))
        rows = encode(model.columns, x, noise=False)
        x = model.decode(rows.states, add_noise(rows.y), recorded=False)
        return x if c is None else (x, c)

    return smooth


def smoothing_noise(samples: Tensor, share: float, weights: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Return the function that adds the noise of :func:`smoothed`, with the moments of samples (N, *S)."""
    mean, scale = moments(samples, weights)
    scale = torch.where(scale > 0, scale, 1.0).flatten()  # factored out, for columns of very different units
    shares = to_shares(samples.new_ones(len(samples)) if weights is None else weights, len(samples)).to(samples)
    root = torch.linalg.qr((samples - mean).flatten(1) / scale * shares.sqrt().unsqueeze(1)).R * scale

    def add_noise(x: Tensor) -> Tensor:
        noise = (torch.randn(len(x), len(root), dtype=x.dtype, device=x.device) @ root).view(x.shape)
        return mean + math.sqrt(1 - share**2) * (x - mean) + share * noise

    return add_noise


class DensityObjective:
    """The loss of a density: likelihood, flow matching, or likelihood from the step ``training.likelihood_from`` on."""

    def __init__(self, objective: Objective, training: Training, model: Density) -> None:
        self.training = training
        self.likelihood = self.matching = None
        if objective.objective != MATCHING:
            self.likelihood = MaximumLikelihood(model, objective.kinetic, objective.frobenius, objective.acceleration)
        if objective.objective != LIKELIHOOD:
            self.matching = FlowMatching(model, objective.coupling)

    def __call__(self, batch: Batch, step: int) -> Tensor:
        """Return the scalar loss of the batch of a step."""
        if self.matching is not None and self.matches(step):
            return self.matching(batch)
        assert self.likelihood is not None
        steps, warm_up = step - (self.training.likelihood_from or 0), self.training.kl_warm_up
        return self.likelihood(batch, kl_weight=min(1.0, (steps + 1) / warm_up) if warm_up else 1.0)

    def matches(self, step: int) -> bool:
        """Return True for a step of flow matching."""
        return self.likelihood is None or step < (self.training.likelihood_from or 0)


class DensityTask:
    """Training of a density, validated by its NLL in accurate solves.

    Attributes:
        model: the density with the solver of training.
        validated: the same weights with the solver of figures.
        run: folder of the run; snapshots of image samples go there.
        batch: from a step to its samples, with their contexts if the density is conditional.
        objective: from a batch and its step to the loss.
    """

    criterion = "nll"

    def __init__(self, settings: DensitySettings, dataset: Dataset, model: Density) -> None:
        self.settings = settings
        self.training = settings.training
        self.dataset = dataset
        self.model = model
        self.validated = model.with_solver(figures_solver(settings))
        self.run: Run | None = None
        self.objective = DensityObjective(settings.objective, settings.training, model)
        self.batch = self._shuffle()
        self._energies = tuple(self.objective.likelihood.weights) if self.objective.likelihood else ()
        self._validation = dataset.validation.head(VALIDATION_SAMPLES)
        self._drifts = settings.objective.objective != MATCHING and not settings.model.solver.adaptive

    def loss_name(self, step: int) -> str:
        """Return the name of the loss of a step; flow matching does not give a likelihood."""
        return "matching_loss" if self.objective.matches(step) else "loss"

    def validate(self) -> dict[str, float]:
        """Return the validation NLL in nats, what it cost, the weighed path energies, and the drift of fixed steps."""
        figures = likelihood.validation_nll(self.validated, self._validation, self._energies)
        if self._drifts:
            figures |= likelihood.drift(self.model, self.validated, self._validation)
        if self.training.measure != "none":
            test = self.dataset.validation if self.training.measure == "validation-costs" else self.dataset.test
            figures |= costs.costs(self.validated, dataclasses.replace(self.dataset, test=test))
        if self.dataset.levels is not None and self.run is not None:
            from train_flows.figures import of_runs

            of_runs.draw_snapshot(self.run, self.training, self.dataset, self.validated)
        return figures

    def _shuffle(self) -> Callable[[int], Any]:
        train, size, seed = self.dataset.train, self.training.batch_size, self.settings.run.seed
        if train.mapped:
            rows = shuffled_batches(torch.arange(len(train)), size, seed)
            batch = lambda step: to_model(self.model, train.batch(rows(step)))  # noqa: E731
        elif train.weights is not None:
            batch = weighted_batches(to_model(self.model, train.batch(slice(None))), train.weights, size, seed)
        else:
            batch = shuffled_batches(to_model(self.model, train.batch(slice(None))), size, seed)
        share = self.settings.objective.smoothing
        if not share:
            return batch
        samples, weights = to_model(self.model, train.head().x), train.weights
        if isinstance(self.model, TableDensity):
            return smoothed_rows(batch, samples, share, self.model, weights)
        return smoothed(batch, samples, share, weights)


def report(task: DensityTask, run: Run, before: float, notes: Sequence[str]) -> None:
    """Measure the model with its best weights on the test part, draw it, write ``result.json`` and print a table.

    Args:
        task: the training.
        run: its folder.
        before: seconds spent before training.
        notes: sentences to keep with the figures.
    """
    started, records, model = time.monotonic(), run.records(), task.validated
    trained_on, found = task.training.steps * task.training.batch_size, len(task.dataset.test)
    rows_measured, samples = costs.in_proportion(model, found, trained_on)
    dataset = dataclasses.replace(task.dataset, test=task.dataset.test.head(rows_measured))
    even = dataset.evened(task.settings.run.seed)  # for comparisons of samples with rows
    distributed.seed_noise(0)  # as train-flows evaluate does
    prune, solver = pruning.find_prune(model), figures_solver(task.settings)
    figures: dict[str, Any] = likelihood.measure(model, dataset.test, solver, samples, prune=prune)
    figures |= likelihood.grid_figures(figures["nll"], dataset)
    rows = [wording.likelihood_table(figures)]
    best = min(records, key=lambda record: record["nll"])
    if best["step"] == 0 < records[-1]["step"]:
        initial = task.settings.run.init
        said = UNTRAINED if initial is None else f"no step had a better validation NLL than the weights of {initial}"
        notes = [*notes, said]
        session.tell(said)
    if "drift" in best:
        figures["drift"] = best["drift"]
        words = f"{best['drift']:+.2g} nats (validation, fixed steps less adaptive ones)"
        rows.append(wording.lines([("drift of training", words)]))
    if dataset.is_table:
        figures |= likelihood.gaussian_figures(dataset)
        rows.append(wording.gaussian_row(figures))
    if dataset.kinds:
        figures["quality"] = two_sample.measure_table(model, even)
        rows.append(wording.quality_table(figures["quality"]))
    if distributed.rank():
        return
    from train_flows.figures import of_runs  # matplotlib takes a second, which --help need not wait for

    with distributed.progress_bar("drawing"):
        pictures = of_runs.draw_density(run, even, model)
    figures["seconds"] = round(before + records[-1]["seconds"] + time.monotonic() - started, 1)
    run.write_result(figures, notes)
    rows.append(wording.run_lines(figures["seconds"], run.folder, pictures))
    measured = f"{rows_measured:,}" if rows_measured == found else f"{rows_measured:,} of {found:,}"
    print(f"\ntest part of {dataset.name}, {measured} samples", *rows, sep="\n")
