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
from cnf import Continuous, Density, LiftedFlow, PathOptions, Standardize, VariationalAugment
from cnf.objectives import Batch
from train_flows import bits, processes
from train_flows.moments import Moments
from train_flows.portions import Given, Samples, chunks, given, portions, together
from train_flows.precision import layers_in
from train_flows.training import Precision

DRAWS = 64  # importance samples of a bound, unless others are asked for
MOST_NUMBERS = 2**23  # of all of them


def measure(
    model: Density, x: Samples, solver: Solver, samples: int | None = None, precision: Precision = "float32"
) -> dict[str, Any]:
    """Measure a density on samples.

    Args:
        model: the density.
        x: (N, *S), at least two, or portions of them, or the pair (x, c) of samples and contexts (N, C).
        solver: an adaptive solver; the NLL is also taken at tolerances ten times tighter.
        samples: importance samples of a bound; 64, or fewer of many numbers, when None.
        precision: of the fields, to see what it does to the NLL; all other figures are without.

    Returns:
        ``nll``, ``nll_tighter`` and, for another precision, ``nll_bfloat16`` (see :func:`nll`; None where the tighter
        or less precise solve fails); ``nll_one_draw`` of discrete data, by one draw of the dequantisation, where
        ``nll`` is of more (see :mod:`train_flows.bits`); ``inverse_error``, the mean
        of ||x - decode(encode(x))||, in the units of the data (for a lifted flow, of y = lift(x)), and
        ``inverse_error_standardized``, in units of the standardisation (None for a lifted flow); ``nfe_log_prob`` and
        ``nfe_sample``, evaluations by all ODEs together for up to 2,500 samples, fewer of many dimensions.
    """
    count = len(x[0]) if isinstance(x, tuple) else len(x)
    if count < 2:
        raise InputError(f"{count} samples are too few to evaluate on: pass at least 2")
    samples = _affordable(x, count) if samples is None else samples
    tighter = dataclasses.replace(solver, rtol=solver.rtol / 10, atol=solver.atol / 10)
    at, at_tighter = model.with_solver(solver), model.with_solver(tighter)
    with torch.no_grad():
        with torch.random.fork_rng():  # so that the next solves see the same noise
            value, nfe_log_prob = nll(at, x, samples)
        one_draw = {}
        if value["dequantisation"] and value["samples"] > 1:
            with torch.random.fork_rng():
                one_draw["nll_one_draw"] = nll(at, x, 1)[0]
        less = {}
        if precision != "float32":
            with torch.random.fork_rng(), layers_in(precision, next(model.parameters()).device):
                less[f"nll_{precision}"] = _nll_or_none(at, x, samples)
        value_tighter = _nll_or_none(at_tighter, x, samples)
        with count_evals(at) as nfe_sample:
            part, c = next(portions(at, x))
            n = min(count, together(part.shape[1:]))
            at.sample(n, None if c is None else c[:n])
        error, error_standardized = _inverse_error(at, x)
    return {
        "nll": value,
        **one_draw,
        "nll_tighter": value_tighter,
        **less,
        "inverse_error": error,
        "inverse_error_standardized": error_standardized,
        "nfe_log_prob": nfe_log_prob,
        "nfe_sample": nfe_sample.forward,
    }


def _nll_or_none(model: Density, x: Samples, samples: int) -> dict[str, Any] | None:
    try:
        return nll(model, x, samples)[0]
    except SolverError:
        return None


def nll(model: Density, x: Samples, samples: int = DRAWS) -> tuple[dict[str, Any], float]:
    """The mean negative log-likelihood in nats, what kind of figure it is, and the evaluations it took.

    Args:
        model: the density.
        x: see :func:`measure`.
        samples: importance samples of a bound; one, whatever is asked, where its divergence is estimated (importance
            weights of estimates would give no bound).

    Returns:
        ``value``, ``standard_error`` (over x), ``kind``, ``tolerance``, ``probes``, ``samples``;
        ``value_standardized``, the NLL of the data divided by their standard deviations, the unit of published tables
        (None for discrete data); for these (else None) their ``dequantisation``, and ``bits_per_dim`` with
        ``bits_per_dim_standard_error``, the same value in another unit; and the evaluations, see :func:`each`.
    """
    log_p, counts, dims = Moments(), [], 1

    def solved(part: Given) -> tuple[Tensor, Evaluations]:
        with count_evals(model) as nfe:
            return log_prob(model, part[0], samples, part[1]).cpu(), nfe

    for portion in portions(model, x):
        dims = portion[0][0].numel()
        for value, nfe in processes.shared_out(list(chunks(portion)), solved):
            log_p.add(value[:, None])
            counts.append(nfe)
    value, error = -log_p.mean.item(), math.sqrt(log_p.scatter.item() / (log_p.count - 1) / log_p.count)
    figure = {"value": value, "standard_error": error, **kind_of(model, samples)}
    discrete = figure["dequantisation"] is not None
    figure |= {
        "value_standardized": None if discrete else value - log_scale(model),
        "bits_per_dim": bits.per_dim(value, dims) if discrete else None,
        "bits_per_dim_standard_error": bits.per_dim(error, dims) if discrete else None,
    }
    return figure, each(model, counts)


def kind_of(model: Density, samples: int) -> dict[str, Any]:
    """What :func:`log_prob` with so many samples asked for is; see :func:`nll`."""
    ode = next(iter(odes(model)), None)
    return {
        "kind": model.kind,
        "tolerance": ode and {"rtol": ode.solver.rtol, "atol": ode.solver.atol},
        "probes": ode.probes if ode and ode.divergence == "hutchinson" else None,
        "samples": _draws(model, samples) if isinstance(model, LiftedFlow) else None,
        "dequantisation": bits.dequantisation(model),
        "augmented": any(isinstance(part, VariationalAugment) for part in model.modules()),
    }


def each(model: Density, counts: Iterable[Evaluations]) -> float:
    """The mean evaluations of a way from data to base, by all ODEs of the model, one solve of each."""
    counts = list(counts)
    return len(odes(model)) * sum(nfe.forward for nfe in counts) / max(1, sum(nfe.solves for nfe in counts))


def _affordable(x: Samples, count: int) -> int:
    """How many importance samples of so many x take eight million numbers at most: a power of two up to 64."""
    one = x if isinstance(x, Tensor) else x[0] if isinstance(x, tuple) else next(iter(x))
    allowed = MOST_NUMBERS // (count * max(1, one[0].numel()))
    return min(DRAWS, 2 ** max(0, allowed.bit_length() - 1))


def check_importance_samples(model: Density, asked: int | None) -> None:
    """Raise an :class:`~anode.InputError` for a number of importance samples where no bound would be tightened."""
    if asked is None:
        return
    if not isinstance(model, LiftedFlow):
        raise InputError(f"--samples {asked} is for bounds, this log-density is of kind {model.kind!r}: drop it")
    if _draws(model, asked) != asked:
        raise InputError(
            f"--samples {asked} of an estimated log-density are no bound: drop it, or evaluate with --divergence exact"
        )


def log_prob(model: Density, x: Tensor, samples: int, c: Tensor | None = None) -> Tensor:
    """Log-densities (B,) in nats, of a bound by so many draws; by one, where the log-density is estimated."""
    if not isinstance(model, LiftedFlow):
        return model.log_prob(x, c)
    return model.log_prob(x, c, samples=_draws(model, samples))


def _draws(model: LiftedFlow, samples: int) -> int:
    """So many as are asked for; one, where the log-density is estimated."""
    return samples if model.flow.kind == "exact" else 1


@torch.no_grad()
def of_one_draw(model: Density, x: Batch, energies: Sequence[str] = ()) -> dict[str, float]:
    """The mean NLL in nats, of a bound from one draw, and mean path energies, of the same solves.

    Args:
        model: the density.
        x: (N, *S), or the pair (x, c) of samples and contexts (N, C).
        energies: which; see :class:`~cnf.PathOptions`.

    Returns:
        ``nll``, of discrete data also as ``bits_per_dim``, the evaluations as ``nfe_log_prob``, see :func:`each`,
        and the energies by name.
    """

    def solved(part: Given) -> tuple[dict[str, Tensor], Evaluations]:
        with count_evals(model) as nfe:
            bound = model.elbo_on_path(*part, PathOptions(tuple(energies)))
        return {"nll": -bound.value.cpu(), **{name: bound.energies[name].cpu() for name in energies}}, nfe

    points, c = given(x)
    found, counts = zip(*processes.shared_out(list(chunks((points, c))), solved), strict=True)
    figures = {name: _mean([part[name] for part in found]) for name in found[0]}
    value = figures.pop("nll")
    in_bits = {"bits_per_dim": bits.per_dim(value, points[0].numel())} if bits.dequantisation(model) else {}
    return {"nll": value, **in_bits, "nfe_log_prob": each(model, counts), **figures}


def log_scale(model: Density) -> float:
    """The log-determinant of the standardisation in a model, in nats."""
    return sum(float(part.scale.log().sum()) for part in model.modules() if isinstance(part, Standardize))


def _inverse_error(model: Density, x: Samples) -> tuple[float, float | None]:
    scales = [part.scale for part in model.modules() if isinstance(part, Standardize)]
    scale = scales[0] if scales and not isinstance(model, LiftedFlow) else None
    norms = Moments()
    for portion, c in portions(model, x):
        y = model.lift(portion, c).point if isinstance(model, LiftedFlow) else portion
        error = torch.cat([part - model.returned(part, each) for part, each in chunks((y, c))])
        norms.add(torch.stack([_norms(error), _norms(error if scale is None else error / scale)], dim=1))
    plain, relative = norms.mean.tolist()
    return plain, None if scale is None else relative


def _mean(parts: Sequence[Tensor]) -> float:
    return torch.cat(list(parts)).cpu().double().mean().item()


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).cpu().double()


def odes(model: Density) -> list[Continuous]:
    """The ODEs of a model."""
    return [part for part in model.modules() if isinstance(part, Continuous)]
