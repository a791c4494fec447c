"""One contest: every contender trained on one data set for the same time, then measured on its test part."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anode import count_evals
from cnf import Density
from train_flows import density, gaussian, likelihood
from train_flows.benchmark import peers
from train_flows.benchmark.clock import MANY, fit_into, train_for
from train_flows.data import Dataset
from train_flows.portions import CHUNK
from train_flows.settings import Objective
from train_flows.task import Task
from train_flows.training import Training

CNF = "CNF"
GAUSSIAN = "Gaussian"
CONTENDERS = (CNF, *peers.NAMES)
PEERS = Training(MANY, batch_size=512, lr=1e-3, schedule="constant")
SAMPLES = 10_000


class Unit(NamedTuple):
    """The unit figures are told in: (nats - offset) / nats of one.

    Attributes:
        name: of it.
        offset: in nats.
        nats: of one of it.
    """

    name: str
    offset: float
    nats: float


@dataclasses.dataclass(frozen=True)
class Contender:
    """A density that competes.

    Attributes:
        settings: how it is trained.
        trained: solves as training does.
        model: shares its weights, and solves as its figures do.
    """

    settings: density.Settings
    trained: Density
    model: Density

    def task(self, settings: density.Settings, dataset: Dataset) -> Task:
        """What it is trained for under some settings."""
        return density.task(settings, dataset, self.trained, self.model)


def enter(name: str, recipe: density.Settings, dataset: Dataset) -> Contender:
    """A contender before training; the peers see the data as the CNF does, and are trained by likelihood.

    Args:
        name: one of ``CONTENDERS``.
        recipe: settings of the CNF; its seed is that of all weights.
        dataset: the data.
    """
    torch.manual_seed(recipe.run.seed)
    trained = density.build(recipe, dataset)
    if name == CNF:
        return Contender(_fitting(recipe, dataset), trained, trained.with_solver(recipe.numerics.figures()))
    peer = peers.build(name, trained)
    return Contender(_fitting(dataclasses.replace(recipe, objective=Objective(), training=PEERS), dataset), peer, peer)


def _fitting(settings: density.Settings, dataset: Dataset) -> density.Settings:
    batch_size = min(settings.training.batch_size, dataset.size)
    return dataclasses.replace(settings, training=dataclasses.replace(settings.training, batch_size=batch_size))


def contest(dataset: Dataset, recipe: density.Settings, seconds: float) -> dict[str, Any]:
    """Train and measure all contenders, one after the other.

    Args:
        dataset: the data.
        recipe: settings of the CNF.
        seconds: of the training of each, its validations included.

    Returns:
        What the data are; ``unit``; ``rows``, one a contender and one of the Gaussian; and ``differences``, the NLL of
        the CNF less that of each peer on the same samples. ``value`` and ``standard_error`` are in the unit, ``nll`` is
        in nats.

    Raises:
        SolverError: when the CNF cannot be evaluated.
    """
    rows, log_p = [], {}
    for name in CONTENDERS:
        row, log_p[name] = compete(name, recipe, dataset, seconds)
        rows.append(row)
    unit = unit_of(dataset, enter(CNF, recipe, dataset).model)
    for row in rows:
        row |= _figure(-log_p[row["contender"]], unit)
    gaussian = _gaussian(dataset)
    value = None if gaussian is None else (gaussian - unit.offset) / unit.nats
    rows.append({"contender": GAUSSIAN, "value": value, "nll": gaussian})
    apart = unit._replace(offset=0.0)
    differences = [
        {"of": f"{CNF} - {name}", **_figure(log_p[name] - log_p[CNF], apart)} for name in CONTENDERS if name != CNF
    ]
    samples = {"train": dataset.size, "validation": len(dataset.validation), "test": len(dataset.test)}
    about = {"notes": dataset.notes, "samples": samples, "shape": dataset.shape, "unit": unit.name}
    return {**about, "rows": rows, "differences": differences}


def compete(name: str, recipe: density.Settings, dataset: Dataset, seconds: float) -> tuple[dict[str, Any], Tensor]:
    """Train a contender and measure it with its best weights.

    Returns:
        What training and sampling took, and the log-probability of every test sample (N,), of a bound for discrete
        data, in nats.
    """
    pilot = enter(name, recipe, dataset)
    settings = fit_into(seconds, pilot.settings, lambda settings: pilot.task(settings, dataset))
    contender = enter(name, recipe, dataset)
    model, best = contender.model, {}

    def keep_best() -> None:
        best.update({key: tensor.clone() for key, tensor in model.state_dict().items()})

    timed = train_for(seconds, contender.task(settings, dataset), keep_best)
    if best:
        model.load_state_dict(best)
    log_p, nfe = _log_prob(model, dataset.test)
    took, nfe_sample = _sampling(model)
    row = {
        "contender": name,
        "nfe_log_prob": nfe,
        "nfe_sample": nfe_sample,
        "seconds_training": timed.seconds,
        "seconds_sampling": took,
        "steps": len(timed.begun),
        "steps_planned": None if settings.training.steps == MANY else settings.training.steps,
        "validate_every": settings.training.validate_every,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "status": "success" if timed.failure is None else str(timed.failure),
    }
    return row, log_p


@torch.no_grad()
def _log_prob(model: Density, x: Tensor) -> tuple[Tensor, float | None]:
    """Log-probabilities in nats, of discrete data by one draw of the noise, the same for all models; and their NFE."""
    torch.manual_seed(0)
    parts = x.split(CHUNK)
    with count_evals(model) as nfe:
        log_p = torch.cat([model.elbo(part) for part in parts])
    return log_p.double(), _of_a_solve(nfe.forward, len(parts))


def _sampling(model: Density) -> tuple[float, float | None]:
    """Seconds that many samples take, and the NFE of a solve."""
    sizes = [CHUNK] * (SAMPLES // CHUNK)
    started = time.monotonic()
    with count_evals(model) as nfe:
        for n in sizes:
            model.sample(n)
    return time.monotonic() - started, _of_a_solve(nfe.forward, len(sizes))


def _of_a_solve(evaluations: int, solves: int) -> float | None:
    """None where nothing is solved."""
    return evaluations / solves if evaluations else None


def unit_of(dataset: Dataset, model: Density) -> Unit:
    """Bits per dimension of discrete data; else nats of the data divided by their standard deviations."""
    if dataset.levels is not None:
        return Unit("bits/dim, upper bound", 0.0, math.prod(dataset.shape) * math.log(2))
    return Unit("nats, standardized", likelihood.log_scale(model), 1.0)


def _figure(nll: Tensor, unit: Unit) -> dict[str, float | None]:
    """The mean over samples in a unit, with its standard error, and in nats; None for what is not finite."""
    mean, error = nll.mean().item(), nll.std().item() / math.sqrt(len(nll))
    found = {"value": (mean - unit.offset) / unit.nats, "standard_error": error / unit.nats, "nll": mean}
    return {name: x if math.isfinite(x) else None for name, x in found.items()}


def _gaussian(dataset: Dataset) -> float | None:
    """Test NLL in nats of the full-covariance Gaussian of the training part; of x + u for discrete data, u ~ U[0, 1).

    The mean of log p(x + u) over u is below the log of the probability of x, so that this is a bound as well.
    """
    if dataset.levels is not None:
        torch.manual_seed(0)
        train, test = (x + torch.rand(x.shape) for x in (dataset.train, dataset.test))
        dataset = dataclasses.replace(dataset, train=train, test=test)
    return gaussian.nll(dataset)
