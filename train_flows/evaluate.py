"""``train-flows evaluate RUN``: the likelihood of a stored density, how exact it is, and what it costs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

import cnf
from anode import InputError, Solver, count_evals
from cnf import Continuous, Density, Flow, LiftedFlow, Standardize
from train_flows import data, runs
from train_flows.data import tables

CHUNK = 2500  # samples solved together


@dataclass(frozen=True)
class Settings:
    """Evaluate a stored density: NLL, its standard error, inverse error and evaluations of the field."""

    run: tyro.conf.Positional[Path]  # folder of the run
    data: tyro.conf.Positional[str | None] = None  # data set or table; the test part of the run's own when omitted
    rtol: float | None = None  # relative tolerance; the run's own when omitted
    atol: float | None = None  # absolute tolerance; the run's own when omitted
    divergence: Literal["exact", "hutchinson"] | None = None  # the run's own when omitted
    samples: int = 64  # importance samples, for a model whose likelihood is a bound
    seed: int = 0  # of noise
    device: str = "auto"  # where to compute
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False  # print one JSON object


def main(args: list[str]) -> None:
    """Run the command line ``train-flows evaluate``."""
    settings = tyro.cli(Settings, args=args, prog="train-flows evaluate")
    device = runs.device(settings.device)
    model = cnf.load(settings.run, device)
    if settings.divergence is not None:
        for ode in _odes(model):
            ode.divergence = settings.divergence
    torch.manual_seed(settings.seed)
    report = measure(model, _points(settings).to(device), _solver(model, settings), settings.samples)
    print(json.dumps(report) if settings.json else table(report))


def measure(model: Density, x: Tensor, solver: Solver, samples: int = 64) -> dict[str, Any]:
    """Measure a density on samples.

    Args:
        model: the density.
        x: (N, *S), at least two.
        solver: an adaptive solver; the NLL is also taken at tolerances ten times tighter.
        samples: importance samples of a bound.

    Returns:
        ``nll`` and ``nll_tighter`` (see :func:`nll`); ``inverse_error``, the mean of ||x - decode(encode(x))||, in
        the units of the data and (``inverse_error_standardized``) in their standard deviations; ``nfe_log_prob`` and
        ``nfe_sample``, evaluations of the field a solve of up to 2,500 samples.
    """
    if len(x) < 2:
        raise InputError(f"{len(x)} samples are too few to evaluate on: pass at least 2")
    tighter = dataclasses.replace(solver, rtol=solver.rtol / 10, atol=solver.atol / 10)
    at, at_tighter = model.with_solver(solver), model.with_solver(tighter)
    with torch.no_grad():
        value, nfe_log_prob = nll(at, x, samples)
        value_tighter, _ = nll(at_tighter, x, samples)
        with count_evals(at) as nfe_sample:
            at.sample(min(len(x), CHUNK))
        error, error_standardized = _inverse_error(at, x)
    return {
        "nll": value,
        "nll_tighter": value_tighter,
        "inverse_error": error,
        "inverse_error_standardized": error_standardized,
        "nfe_log_prob": nfe_log_prob,
        "nfe_sample": nfe_sample.forward,
    }


def nll(model: Density, x: Tensor, samples: int = 64) -> tuple[dict[str, Any], float]:
    """The mean negative log-likelihood in nats, what kind of figure it is, and the evaluations of a solve.

    Args:
        model: the density.
        x: (N, *S).
        samples: importance samples of a bound.

    Returns:
        ``value``, ``standard_error`` (over x), ``kind``, ``tolerance``, ``probes``, ``samples``, and
        ``value_standardized``, the NLL of the data divided by their standard deviations, the unit of published tables
        (None for a bound); and the mean number of evaluations a solve.
    """
    bound = isinstance(model, LiftedFlow)
    log_prob: Callable[[Tensor], Tensor] = (lambda x: model.log_prob(x, samples=samples)) if bound else model.log_prob
    with count_evals(model) as nfe:
        log_p = torch.cat([log_prob(part) for part in x.split(CHUNK)]).double()
    solves = math.ceil(len(x) / CHUNK) * (samples if bound else 1)
    ode = _odes(model)[0]
    figure = {
        "value": -log_p.mean().item(),
        "standard_error": log_p.std().item() / math.sqrt(len(x)),
        "kind": model.kind,
        "tolerance": {"rtol": ode.solver.rtol, "atol": ode.solver.atol},
        "probes": ode.probes if ode.divergence == "hutchinson" else None,
        "samples": samples if bound else None,
        "value_standardized": None if bound else -log_p.mean().item() - log_scale(model),
    }
    return figure, nfe.forward / solves


def log_scale(model: Density) -> float:
    """The log-determinant of the standardisation in a model, in nats."""
    return sum(float(part.scale.log().sum()) for part in model.modules() if isinstance(part, Standardize))


def table(report: dict[str, Any]) -> str:
    """A report as lines to read."""
    lines = [
        ("NLL", describe(report["nll"])),
        ("NLL, tighter", describe(report["nll_tighter"])),
        (
            "inverse error",
            f"{report['inverse_error']:.2e} ({report['inverse_error_standardized']:.2e} standard deviations)",
        ),
        ("NFE of log_prob", f"{report['nfe_log_prob']:.0f}"),
        ("NFE of sampling", f"{report['nfe_sample']}"),
    ]
    return lines_of(lines)


def lines_of(rows: list[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    return "\n".join(f"{name:<16} {value}" for name, value in rows)


def describe(figure: dict[str, Any]) -> str:
    """A likelihood in words: value, standard error, kind and how it was computed."""
    how = {
        "exact": "exact",
        "estimate": f"unbiased estimate, {figure['probes']} probe(s)",
        "bound": f"upper bound, {figure['samples']} importance sample(s)",
    }[figure["kind"]]
    rtol, atol = figure["tolerance"]["rtol"], figure["tolerance"]["atol"]
    return f"{figure['value']:.4f} +- {figure['standard_error']:.4f} nats ({how}, rtol {rtol:g}, atol {atol:g})"


def _inverse_error(model: Density, x: Tensor) -> tuple[float, float]:
    """In the space where the flow lives: of y = lift(x) for a lifted flow."""
    if isinstance(model, LiftedFlow):
        x, _ = model.lift(x)
        model = model.flow
    assert isinstance(model, Flow)
    scale = x.std(0).clamp_min(torch.finfo(x.dtype).tiny)
    error = torch.cat([part - model.decode(model.encode(part)) for part in x.split(CHUNK)])
    return _mean_norm(error), _mean_norm(error / scale)


def _mean_norm(x: Tensor) -> float:
    return x.flatten(1).norm(dim=1).double().mean().item()


def _odes(model: Density) -> list[Continuous]:
    return [part for part in model.modules() if isinstance(part, Continuous)]


def _solver(model: Density, settings: Settings) -> Solver:
    asked = {name: getattr(settings, name) for name in ("rtol", "atol") if getattr(settings, name) is not None}
    return dataclasses.replace(_odes(model)[0].solver, **asked)


def _points(settings: Settings) -> Tensor:
    """What to evaluate on, checked against the columns of the run."""
    config = runs.config(settings.run)
    if settings.data is None:
        return data.load(**config["settings"]["data"], seed=config["settings"]["run"]["seed"]).test
    if Path(settings.data).suffix or Path(settings.data).exists():
        values, columns = tables.read(settings.data, least_rows=2)
        return _fitting(torch.from_numpy(values).float(), columns, settings, config)
    named = data.load(settings.data)
    return _fitting(named.test, named.columns, settings, config)


def _fitting(x: Tensor, columns: tuple[str, ...], settings: Settings, config: dict[str, Any]) -> Tensor:
    trained, shape = config["columns"], config["model"]["shape"]
    if x[0].numel() != math.prod(shape):
        raise InputError(
            f"{settings.data} has {x[0].numel()} columns, {settings.run} was trained on {len(trained)} "
            f"({', '.join(trained[:8])}{', ...' if len(trained) > 8 else ''}): pass the same columns"
        )
    if sorted(columns) == sorted(trained):  # named alike, perhaps in another order
        x = x.flatten(1)[:, [columns.index(name) for name in trained]]
    return x.reshape(len(x), *shape)
