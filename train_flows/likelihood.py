"""The likelihood of a density on samples: its value, what kind of figure it is, how exact, and what it costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from anode import InputError, Solver, SolverError, count_evals
from anode.evaluations import Evaluations
from cnf import Continuous, Density, Dequantize, LiftedFlow, PathOptions, Standardize
from train_flows import processes
from train_flows.text import lines_of

CHUNK = 2500  # samples solved together


def measure(model: Density, x: Tensor, solver: Solver, samples: int = 64) -> dict[str, Any]:
    """Measure a density on samples.

    Args:
        model: the density.
        x: (N, *S), at least two.
        solver: an adaptive solver; the NLL is also taken at tolerances ten times tighter.
        samples: importance samples of a bound.

    Returns:
        ``nll`` and ``nll_tighter`` (see :func:`nll`; None where the tighter solve fails); ``inverse_error``, the mean
        of ||x - decode(encode(x))||, in the units of the data (for a lifted flow, of y = lift(x)), and
        ``inverse_error_standardized``, in units of the standardisation (None for a lifted flow); ``nfe_log_prob`` and
        ``nfe_sample``, evaluations of the field a solve of up to 2,500 samples.
    """
    if len(x) < 2:
        raise InputError(f"{len(x)} samples are too few to evaluate on: pass at least 2")
    tighter = dataclasses.replace(solver, rtol=solver.rtol / 10, atol=solver.atol / 10)
    at, at_tighter = model.with_solver(solver), model.with_solver(tighter)
    with torch.no_grad():
        with torch.random.fork_rng():  # so that the tighter solve sees the same noise
            value, nfe_log_prob = nll(at, x, samples)
        try:
            value_tighter = nll(at_tighter, x, samples)[0]
        except SolverError:
            value_tighter = None
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
        samples: importance samples of a bound; one, whatever is asked, where its divergence is estimated (importance
            weights of estimates would give no bound).

    Returns:
        ``value``, ``standard_error`` (over x), ``kind``, ``tolerance``, ``probes``, ``samples``, and
        ``value_standardized``, the NLL of the data divided by their standard deviations, the unit of published tables
        (None for discrete data); and the mean number of evaluations a solve.
    """
    lifted = isinstance(model, LiftedFlow)
    samples = samples if lifted and model.flow.kind == "exact" else 1

    def solved(part: Tensor) -> tuple[Tensor, Evaluations]:
        with count_evals(model) as nfe:
            return log_prob(model, part, samples).cpu(), nfe

    parts, counts = zip(*processes.shared_out(x.split(CHUNK), solved), strict=True)
    log_p = torch.cat(parts).double()
    discrete = any(isinstance(part, Dequantize) for part in model.modules())
    ode = next(iter(odes(model)), None)
    figure = {
        "value": -log_p.mean().item(),
        "standard_error": log_p.std().item() / math.sqrt(len(x)),
        "kind": model.kind,
        "tolerance": ode and {"rtol": ode.solver.rtol, "atol": ode.solver.atol},
        "probes": ode.probes if ode and ode.divergence == "hutchinson" else None,
        "samples": samples if lifted else None,
        "value_standardized": None if discrete else -log_p.mean().item() - log_scale(model),
    }
    return figure, each(counts)


def each(counts: Iterable[Evaluations]) -> float:
    """The mean evaluations of a solve."""
    counts = list(counts)
    return sum(nfe.forward for nfe in counts) / max(1, sum(nfe.solves for nfe in counts))


def importance_samples(model: Density, asked: int | None) -> int:
    """How many to take: those asked for, or 64.

    Raises:
        InputError: when some are asked for, and the model knows no bound that they would tighten.
    """
    if asked is not None and model.kind != "bound":
        raise InputError(f"--samples {asked} is for bounds, this log-density is of kind {model.kind!r}: drop it")
    return 64 if asked is None else asked


def log_prob(model: Density, x: Tensor, samples: int) -> Tensor:
    """Log-densities (B,) in nats, of a bound by so many draws; by one, where the log-density is estimated."""
    if not isinstance(model, LiftedFlow):
        return model.log_prob(x)
    return model.log_prob(x, samples=samples if model.flow.kind == "exact" else 1)


@torch.no_grad()
def of_one_draw(model: Density, x: Tensor, energies: Sequence[str] = ()) -> dict[str, float]:
    """The mean NLL in nats, of a bound from one draw, and mean path energies, of the same solves.

    Args:
        model: the density.
        x: (N, *S).
        energies: which; see :class:`~cnf.PathOptions`.

    Returns:
        ``nll``, the mean evaluations of a solve as ``nfe_log_prob``, and the energies by name.
    """

    def solved(part: Tensor) -> tuple[dict[str, Tensor], Evaluations]:
        with count_evals(model) as nfe:
            bound = model.elbo_on_path(part, path=PathOptions(tuple(energies)))
        return {"nll": -bound.value.cpu(), **{name: bound.energies[name].cpu() for name in energies}}, nfe

    found, counts = zip(*processes.shared_out(x.split(CHUNK), solved), strict=True)
    figures = {name: _mean([part[name] for part in found]) for name in found[0]}
    return {"nll": figures.pop("nll"), "nfe_log_prob": each(counts), **figures}


def log_scale(model: Density) -> float:
    """The log-determinant of the standardisation in a model, in nats."""
    return sum(float(part.scale.log().sum()) for part in model.modules() if isinstance(part, Standardize))


def table(report: dict[str, Any]) -> str:
    """A report as lines to read."""
    tighter, relative = report["nll_tighter"], report["inverse_error_standardized"]
    deviations = "" if relative is None else f" ({relative:.2e} standard deviations)"
    lines = [
        ("NLL", describe(report["nll"])),
        ("NLL, tighter", "the solve failed" if tighter is None else describe(tighter)),
        ("inverse error", f"{report['inverse_error']:.2e}{deviations}"),
        ("NFE of log_prob", f"{report['nfe_log_prob']:.0f}"),
        ("NFE of sampling", f"{report['nfe_sample']}"),
    ]
    return lines_of(lines)


def describe(figure: dict[str, Any]) -> str:
    """A likelihood in words: value, standard error, kind and how it was computed."""
    how = {
        "exact": "exact",
        "estimate": f"unbiased estimate, {figure['probes']} probe(s)",
        "bound": f"upper bound, {figure['samples']} importance sample(s)",
    }[figure["kind"]]
    rtol, atol = figure["tolerance"]["rtol"], figure["tolerance"]["atol"]
    return f"{figure['value']:.4f} +- {figure['standard_error']:.4f} nats ({how}, rtol {rtol:g}, atol {atol:g})"


def _inverse_error(model: Density, x: Tensor) -> tuple[float, float | None]:
    lifted = isinstance(model, LiftedFlow)
    y = model.lift(x).point if isinstance(model, LiftedFlow) else x
    error = torch.cat([part - model.returned(part) for part in y.split(CHUNK)])
    scales = [part.scale for part in model.modules() if isinstance(part, Standardize)]
    return _mean_norm(error), _mean_norm(error / scales[0]) if scales and not lifted else None


def _mean(parts: Sequence[Tensor]) -> float:
    return torch.cat(list(parts)).cpu().double().mean().item()


def _mean_norm(x: Tensor) -> float:
    return x.flatten(1).norm(dim=1).cpu().double().mean().item()


def odes(model: Density) -> list[Continuous]:
    """The ODEs of a model."""
    return [part for part in model.modules() if isinstance(part, Continuous)]
