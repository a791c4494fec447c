"""``train-flows benchmark tabular DATA ...``: flows of this package and of zuko, trained for the same time.

For each seed and data set the contenders train one after the other in one process, on the same split with the same
standardisation (and dequantisation, and whitening where the recipe of the CNF has it), and their best weights by the
same validation are measured on all of the test part: a mixture by the sum of all components. CNF and residual steps are
trained by the recipes of ``train-flows density DATA`` without and with ``--residual-steps 8``, which are not for
images; their cosine follows the elapsed time, and with two objectives, each gets half of it. MAF and NSF have five
transforms of 128 + 128 hidden features and Adam at 1e-3 with batches of 512.

Residual steps that fold have a density that integrates to 1 + m; log(1 + m) is added to their NLL, with the estimate of
m in ``mass``, see :mod:`train_flows.evaluation.folds`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from anode import InputError, Solver, SolverError, count_evals
from anode.errors import config
from cnf import Density, MixtureFlow
from train_flows import benchmark, density
from train_flows.benchmark.zuko_peers import PEER_SIZE, PEERS, peer, zuko
from train_flows.command_line import parse, read
from train_flows.data import Dataset, is_images
from train_flows.density import DensityObjective
from train_flows.evaluation import CHUNK_SAMPLES, likelihood
from train_flows.evaluation.folds import measure_folds
from train_flows.results_pages import contest_rows
from train_flows.run import TrainingError
from train_flows.run.folder import Run
from train_flows.run.loop import Trainer
from train_flows.settings import BOTH, LIKELIHOOD, MATCHING, DensitySettings, Objective, Training

Count = Annotated[int, Field(ge=1)]
CNF, STEPPED, GAUSSIAN = "CNF", "residual steps", "Gaussian"
PEER_TRAINING = Training(batch_size=512, lr=1e-3, schedule="constant")
MAX_STEPS = 10**9  # more than fit into any time
VALIDATING = 0.1  # of the time
MIN_VALIDATIONS, MAX_VALIDATIONS = 10, 200
SAMPLES = 10_000


@config
class Settings:
    """Train CNF, residual steps, MAF and NSF for the same time on every data set, and compare their test likelihoods.

    Attributes:
        sources: paths of tables, or names such as digits, moons or power
        minutes: training time of each contender
        seeds: number of seeds, from 0, of split, weights and batches
        threads: number of threads
        data_root: folder of the published tables
        out: JSON file of results
        overwrite: replace existing results
    """

    positional: ClassVar = {"sources": "DATA"}
    sources: tuple[str, ...] = ()
    minutes: Annotated[float, Field(gt=0)] = 5.0
    seeds: Count = 3
    threads: Count = torch.get_num_threads()
    data_root: str = "data"
    out: Path = Path("benchmark-tabular.json")
    overwrite: bool = False


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark tabular``."""
    settings = read(Settings, args, "benchmark tabular")
    benchmark.prepare(settings.out, settings.overwrite)
    if not settings.sources:
        raise InputError("no data set given: pass paths of tables, or names such as digits")
    zuko()  # raises an error before anything runs
    torch.set_num_threads(settings.threads)
    seeds = range(settings.seeds)
    for source in settings.sources:
        recipes_of(settings, source, 0)  # raises an error before anything runs
    contests: list[dict[str, Any]] = []
    for seed, source in itertools.product(seeds, settings.sources):
        recipes, dataset = recipes_of(settings, source, seed)
        about = {"data": dataset.name, "seed": seed, "sha256": dataset.digest(), "minutes": settings.minutes}
        about["recipe"] = {name: sections_of(recipe) for name, recipe in recipes.items()}
        about["recipe"]["peers"] = PEER_SIZE | dataclasses.asdict(PEER_TRAINING)
        contests.append({**about, **contest(dataset, recipes, 60 * settings.minutes)})
        benchmark.write(settings.out, __doc__, contests=contests)
        print(line(contests[-1]))
    print("", table(contests), settings.out, sep="\n")


def recipes_of(settings: Settings, source: str, seed: int) -> tuple[dict[str, DensitySettings], Dataset]:
    """Return the settings of ``train-flows density`` for each contender of this package, and the data."""
    args = [source, "--seed", str(seed), "--data-root", settings.data_root, "--device", "cpu"]
    dataset = density.load(parse(density.PROGRAM, DensitySettings(), args)[0])
    if dataset.kinds:
        raise InputError(f"{source} does not hold real numbers alone, which all contenders learn: leave columns out")
    options = {CNF: []} | ({} if is_images(source) else {STEPPED: ["--residual-steps", "8"]})
    size = density.size(dataset)
    return {
        name: parse(density.PROGRAM, DensitySettings(), [*args, *each], *size)[0] for name, each in options.items()
    }, dataset


def sections_of(recipe: DensitySettings) -> dict[str, Any]:
    """Return the sections of a recipe that say how a contender is trained."""
    return {name: part for name, part in dataclasses.asdict(recipe).items() if name not in ("data", "run")}


def contest(dataset: Dataset, recipes: Mapping[str, DensitySettings], seconds: float) -> dict[str, Any]:
    """Train and measure all contenders, one after the other.

    Args:
        dataset: the data.
        recipes: settings of the contenders of this package, the CNF first.
        seconds: training time of each contender, validations included.

    Returns:
        Facts about the data; ``unit``; ``rows``, one for each contender and one for the Gaussian; and ``differences``,
        the NLL of a contender minus that of another on the same samples. ``value`` and ``standard_error`` are in the
        unit, bits per dimension of discrete data, otherwise nats of the data divided by their standard deviations;
        ``nll`` is in nats; all are None if the NLL is not finite.

    Raises:
        SolverError: if the likelihood of a contender cannot be evaluated.
    """
    rows, log_p, cnf = [], {}, recipes[CNF]
    for name in (*recipes, *PEERS):
        row, log_p[name] = compete(enter(name, recipes.get(name, cnf), dataset), dataset, seconds)
        rows.append({"contender": name, **row})
    offset, nats, unit = likelihood.log_scale(density.build(cnf, dataset)), 1.0, "nats, standardized"
    if dataset.levels is not None:
        offset, nats, unit = 0.0, math.prod(dataset.shape) * math.log(2), "bits/dim, upper bound by one draw"
    for row in rows:
        row |= figure(-log_p[row["contender"]], offset, nats)
    gaussian = gaussian_nll(dataset)
    rows.append({"contender": GAUSSIAN, "value": gaussian and (gaussian - offset) / nats, "nll": gaussian})
    pairs = [*itertools.product(recipes, PEERS), *((name, CNF) for name in recipes if name != CNF)]
    differences = [{"of": f"{a} - {b}", **figure(log_p[b] - log_p[a], 0.0, nats)} for a, b in pairs]
    samples = {part: len(getattr(dataset, part)) for part in ("train", "validation", "test")}
    about = {"notes": list(dataset.notes), "samples": samples, "shape": list(dataset.shape), "unit": unit}
    return {**about, "rows": rows, "differences": differences}


def enter(name: str, recipe: DensitySettings, dataset: Dataset) -> density.DensityTask:
    """Return the training of a contender; the peers see the data as the CNF does, and are trained by likelihood.

    Args:
        name: ``"CNF"``, ``"residual steps"``, ``"MAF"`` or ``"NSF"``.
        recipe: settings of the contender, or of the CNF for a peer; its seed is the seed of all weights.
        dataset: the data.
    """
    torch.manual_seed(recipe.run.seed)
    model = density.build(recipe, dataset)
    training = PEER_TRAINING if name in PEERS else recipe.training
    batch_size = min(training.batch_size, len(dataset.train))
    training = dataclasses.replace(training, batch_size=batch_size, steps=MAX_STEPS, likelihood_from=None)
    settings = dataclasses.replace(recipe, training=training)
    if name in PEERS:
        model = peer(name, model)
        numerics = dataclasses.replace(recipe.model, solver=Solver())
        settings = dataclasses.replace(settings, objective=Objective(), model=numerics)
    return density.DensityTask(settings, dataset, model)


def compete(task: density.DensityTask, dataset: Dataset, seconds: float) -> tuple[dict[str, Any], Tensor]:
    """Train a contender and measure it with its best weights.

    Returns:
        The costs of training and sampling, with evaluations for each sample, and log-probabilities (N,) of all test
        samples in nats: of discrete data, a bound by one draw of the noise, which is the same for all contenders. The
        density of a contender that folds is divided by the estimate of its integral.
    """
    row, model = train_for(task, seconds), task.validated
    torch.manual_seed(0)
    with torch.no_grad(), count_evals(model) as nfe_log_prob:
        parts = [dataset.test.take(slice(i, i + CHUNK_SAMPLES)) for i in range(0, len(dataset.test), CHUNK_SAMPLES)]
        log_p = torch.cat([measure(model, part.head().x) for part in parts])
    failures = [] if row["status"] == "success" else [row["status"]]
    if task.settings.model.residual_steps:
        row |= measure_folds(model, dataset.test)
        log_p -= math.log1p(row["mass"])
    started = time.monotonic()
    with count_evals(model) as nfe_sample:
        try:
            for _ in range(SAMPLES // CHUNK_SAMPLES):
                model.sample(CHUNK_SAMPLES)
        except SolverError as error:
            failures.append(f"sampling: {error}")
    row |= {
        "nfe_log_prob": nfe_log_prob.points / len(dataset.test) or None,
        "nfe_sample": nfe_sample.points / SAMPLES or None,
        "status": "; ".join(failures) or "success",
        "seconds_sampling": time.monotonic() - started,
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }
    return row, log_p.double()


def measure(model: Density, x: Tensor) -> Tensor:
    """Return log-probabilities (B,) in nats: by the sum of all components of a mixture; of discrete data, a bound."""
    return model.log_joint(x).logsumexp(0) if isinstance(model, MixtureFlow) else model.elbo(x).value


def train_for(task: density.DensityTask, seconds: float) -> dict[str, Any]:
    """Train for some time, validations included, and give the model its best weights.

    With flow matching and likelihood, each gets half of the time, and the learning rate starts again. A cosine ends
    with the time.

    Returns:
        ``steps``, ``validations``, ``seconds_training``, and ``status``: ``"success"``, or why training ended early.
    """
    started, status, trainers = time.monotonic(), "success", []
    objective, training = task.settings.objective, task.settings.training
    stages = {objective.objective: training}
    if objective.objective == BOTH:
        stages = {MATCHING: training, LIKELIHOOD: dataclasses.replace(training, lr=training.restart_lr or training.lr)}
    for name, task.training in stages.items():
        task.objective = DensityObjective(dataclasses.replace(objective, objective=name), task.training, task.model)
        trainers.append(Trainer(task, Run.temporary()))
        try:
            train_stage(trainers[-1], seconds / len(stages))
        except TrainingError as error:
            status = str(error)
            break
    best = min(trainers, key=lambda trainer: trainer.progress.best)
    best.run.load_best(task.validated)
    return {
        "steps": sum(trainer.progress.step for trainer in trainers),
        "validations": sum(len(trainer.run.records()) for trainer in trainers),
        "seconds_training": time.monotonic() - started,
        "status": status,
    }


def train_stage(trainer: Trainer, seconds: float) -> None:
    """Take steps until the time is up, and validate for a tenth of it; the last validation ends with the time.

    Raises:
        TrainingError: if training cannot continue.
    """
    started, elapsed, due, validation = time.monotonic(), 0.0, 0.0, 0.0
    while True:
        if elapsed >= due:
            trainer.record()
            validation = time.monotonic() - started - elapsed
            gap = min(max(seconds / MAX_VALIDATIONS, (1 / VALIDATING - 1) * validation), seconds / MIN_VALIDATIONS)
            elapsed += validation
            due = elapsed + gap
        if elapsed >= seconds - validation:
            break
        if trainer.training.schedule == "cosine":
            for group in trainer.optimizer.param_groups:  # the schedule of a training without end changes nothing
                group["lr"] *= (1 + math.cos(math.pi * elapsed / (seconds - validation))) / 2
        trainer.step()
        elapsed = time.monotonic() - started
    if trainer.progress.step > trainer.progress.recorded:
        trainer.record()


def figure(nll: Tensor, offset: float = 0.0, nats: float = 1.0) -> dict[str, float | None]:
    """Return the mean over samples as (nll - offset) / nats with its standard error, and nats; None if not finite."""
    mean, error = nll.mean().item(), nll.std().item() / math.sqrt(len(nll))
    found = {"value": (mean - offset) / nats, "standard_error": error / nats, "nll": mean}
    return {name: x if math.isfinite(x) else None for name, x in found.items()}


def gaussian_nll(dataset: Dataset) -> float | None:
    """Return the test NLL in nats of the full-covariance Gaussian; of x + u for discrete data, u ~ U[0, 1).

    The mean of log p(x + u) over u is below the log of the probability of x, so that this is a bound as well, by one
    draw of u.
    """
    if dataset.levels is not None:
        torch.manual_seed(0)
        train, test = (dataclasses.replace(x, x=x.x + torch.rand(x.x.shape)) for x in (dataset.train, dataset.test))
        dataset = dataclasses.replace(dataset, train=train, test=test)
    return likelihood.gaussian_nll(dataset)


# Tables


def line(result: dict[str, Any]) -> str:
    """Return one line about a contest."""
    values = [f"{x['contender']} {'-' if x['value'] is None else format(x['value'], '.4f')}" for x in result["rows"]]
    failed = [f"{x['contender']}: {x['status']}" for x in result["rows"] if x.get("status", "success") != "success"]
    return "; ".join([f"{result['data']} seed {result['seed']}: {'  '.join(values)} ({result['unit']})", *failed])


def table(contests: Sequence[dict[str, Any]]) -> str:
    """Return the means over the seeds, a row for each data set; a figure that some seed lacks is a dash."""
    rows = pd.DataFrame(contest_rows({"contests": contests})).astype(object)
    return rows.where(rows.notna(), "-").to_string(index=False, float_format="{:.4f}".format)
