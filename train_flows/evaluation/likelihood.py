"""The likelihood of a density on samples: its value, what kind of figure it is, how exact it is, and what it costs.

Discrete data, such as pixels x in {0, ..., levels - 1}^D, are also reported in

    bits/dim = NLL / (D ln 2)

Published bits/dim are different bounds of it:

- FFJORD (Grathwohl et al. 2019, arXiv 1810.01367): one draw of uniform dequantisation an image, here ``nll_one_draw``
- VFlow (Chen et al. 2020, arXiv 2002.09741) and i-DODE (Zheng et al. 2023, arXiv 2305.03935): importance-weighted, of
  4,096 and up to 20 draws, which is lower; here ``nll``, with the number of draws in ``samples``
- the code of RNODE (Finlay et al. 2020, arXiv 2002.02798): the density at the middle of the bins, which is not a bound
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anode import InputError, Solver, SolverError, count_evals
from anode.evaluations import Evaluations
from anode.units import moments
from cnf import Continuous, Density, Dequantize, LiftedFlow, ResidualSteps, Standardize, VariationalAugment
from cnf.batches import split_batch, weighted_mean
from cnf.mixture_flow import FEWEST_PRUNED
from cnf.tables import TableDensity
from cnf.transforms import SolveOptions
from train_flows.data import Dataset, Split
from train_flows.evaluation import chunks, in_chunks, mixed_gaussian, to_model
from train_flows.evaluation.folds import FOLDED, has_residual_steps, measure_folds
from train_flows.evaluation.pruning import certificate, find_prune, keyword, mixture_of
from train_flows.run import distributed

IMPORTANCE_SAMPLES = 64  # of a bound, unless another number is asked for
MAX_NUMBERS = 2**23  # in all importance samples
DRIFT_SAMPLES = 500


def measure(
    model: Density,
    data: Split,
    solver: Solver,
    samples: int | None = None,
    precision: str = "float32",
    prune: float | None = None,
) -> dict[str, Any]:
    """Measure a density on at least two samples.

    Args:
        model: the density.
        data: samples, with contexts if the density is conditional.
        solver: an adaptive one; the NLL is also taken at tolerances ten times tighter.
        samples: importance samples of a bound; when None, 64, or fewer for many numbers.
        precision: of the fields, to see its effect on the NLL; all other figures are in full precision.
        prune: responsibility below which components of a mixture are left out; None to sum all, as for few samples.

    Returns:
        ``nll``, ``nll_tighter`` and, for another precision, ``nll_bfloat16`` (see :func:`nll`; None if the tighter or
        less precise solve fails, or a model has no ODE); ``nll_one_draw`` of discrete data, the bound by one draw of
        the dequantisation, if ``nll`` is of more; ``inverse_error``, the mean of ||x - decode(encode(x))|| in the units
        of the data (for a lifted flow, of y = lift(x)), and ``inverse_error_standardized``, in standard deviations
        (None for a lifted flow; both None for residual steps whose inverse is not found); ``folds`` of residual steps,
        see :func:`~train_flows.evaluation.folds.measure_folds`, which makes ``"folded"`` of the kind of an NLL if there
        are any; ``nfe_log_prob`` and ``nfe_sample``, evaluations by all ODEs together of one chunk of
        samples; and if components are left out, ``certificate``, see
        :func:`~train_flows.evaluation.pruning.certificate`.
    """
    if len(data) < 2:
        raise InputError(f"{len(data)} samples are too few to evaluate on: pass at least 2")
    prune = prune if len(data) >= FEWEST_PRUNED else None
    first, c = split_batch(data.batch(chunks(data)[0]))
    samples = affordable_samples(len(data), first[0].numel()) if samples is None else samples
    at = model.with_solver(solver)
    at_tighter = model.with_solver(dataclasses.replace(solver, rtol=solver.rtol / 10, atol=solver.atol / 10))
    with torch.no_grad():
        with torch.random.fork_rng():  # the next solves see the same noise
            value, nfe_log_prob = nll(at, data, samples, prune)
        figures: dict[str, Any] = {"nll": value}
        if value["dequantisation"] and value["samples"] > 1:
            with torch.random.fork_rng():
                figures["nll_one_draw"] = nll(at, data, 1, prune)[0]
        if precision != "float32":
            with torch.random.fork_rng(), torch.autocast(model.like.device.type, getattr(torch, precision)):
                figures[f"nll_{precision}"] = _nll_or_none(at, data, samples, prune)
        figures["nll_tighter"] = _nll_or_none(at_tighter, data, samples, prune) if odes(model) else None
        nfe_sample: float | None = None
        try:
            with count_evals(at) as nfe:
                at.sample(len(first), to_model(at, c))
            nfe_sample = nfe.forward
            figures |= _inverse_error(at, data)
        except SolverError:
            if not has_residual_steps(model):
                raise
            figures |= {"inverse_error": None, "inverse_error_standardized": None}
    if has_residual_steps(model):
        figures["folds"] = folds = measure_folds(model, data)
        if folds["mass"]:
            figures |= {
                name: {**each, "kind": FOLDED} for name, each in figures.items() if name.startswith("nll") and each
            }
    if prune is not None:
        figures["certificate"] = certificate(at, data, prune)
    return {**figures, "nfe_log_prob": nfe_log_prob, "nfe_sample": nfe_sample}


def nll(
    model: Density, data: Split, samples: int = IMPORTANCE_SAMPLES, prune: float | None = None
) -> tuple[dict[str, Any], float]:
    """Return the mean negative log-likelihood in nats with its kind, and the evaluations of one pass, gate included.

    Args:
        model: the density.
        data: at least two samples.
        samples: importance samples of a bound; 1 if the divergence is estimated, because importance weights of
            estimates give no bound.
        prune: responsibility below which components of a mixture are left out.

    Returns:
        The figure: ``value``, the mean by the weights of the data, its ``standard_error``, ``kind``, ``tolerance``,
        ``probes``, ``samples``, ``dequantisation``, ``augmented``, ``prune`` (see :func:`kind_of`);
        ``evaluations_per_sample``, of all points that are solved for a sample, gates included; ``value_standardized``,
        the NLL of the data divided by their standard deviations, the unit of published tables (None for discrete data);
        ``bits_per_dim`` and ``bits_per_dim_standard_error`` of discrete data, else None. And the evaluations from data
        to base by all ODEs.
    """

    def solve(x: Tensor, c: Tensor | None) -> tuple[Tensor, Evaluations]:
        with count_evals(model) as nfe:
            return log_prob(model, x, samples, c, prune).cpu(), nfe

    found, counts = zip(*in_chunks(model, data, solve, "measuring the NLL"), strict=True)
    log_p = torch.cat(found).double()
    value, error = -weighted_mean(log_p, data.weights).item(), standard_error(log_p, data.weights)
    figure = {"value": value, "standard_error": error, **kind_of(model, samples, prune)}
    bit = math.log(2) * math.prod(model.event_shape) if figure["dequantisation"] else None
    figure |= {
        "evaluations_per_sample": sum(nfe.points for nfe in counts) / len(log_p),
        "value_standardized": None if bit else value - log_scale(model),
        "bits_per_dim": value / bit if bit else None,
        "bits_per_dim_standard_error": error / bit if bit else None,
    }
    return figure, nfe_of_pass(model, counts, prune)


@torch.no_grad()
def validation_nll(model: Density, data: Split, energies: Sequence[str] = ()) -> dict[str, float]:
    """Return the mean NLL in nats, a bound from one draw as in training, and the evaluations of one pass.

    A mixture of more than two flows is summed without the components that hardly matter; none is drawn.

    Returns:
        ``nll``, ``bits_per_dim`` of discrete data, ``nfe_log_prob``, evaluations by all ODEs together, and the means
        of the path energies of the names, see :class:`~cnf.SolveOptions`.
    """
    prune = find_prune(model)

    def solve(x: Tensor, c: Tensor | None) -> tuple[Tensor, Evaluations]:
        with count_evals(model) as nfe:
            bound = model.elbo(x, c, SolveOptions(tuple(energies)), **keyword(prune))
        return torch.stack([-bound.value, *(bound.energies[name] for name in energies)]).cpu(), nfe

    found, counts = zip(*in_chunks(model, data, solve, "validating", delay=2.0), strict=True)
    value, *of_paths = (weighted_mean(row, data.weights).item() for row in torch.cat(found, 1).double())
    bits = {"bits_per_dim": value / (math.log(2) * math.prod(model.event_shape))} if _dequantisation(model) else {}
    nfe = nfe_of_pass(model, counts, prune)
    return {"nll": value, **bits, "nfe_log_prob": nfe, **dict(zip(energies, of_paths, strict=True))}


@torch.no_grad()
def drift(trained: Density, model: Density, data: Split) -> dict[str, float]:
    """Compare the NLL by the fixed steps of training with the NLL by adaptive steps.

    Training can exploit the errors of its solver: with too few steps its NLL departs from the true one. The first 500
    samples are compared, by the same weights and noise, and the random generators stay as they are.

    Returns:
        ``nll_training_solver`` in nats, from one draw, and ``drift``, its difference from the adaptive one; nothing if
        the fixed steps fail.
    """

    def compare(rows: slice) -> dict[str, float]:
        x, c = to_model(model, split_batch(data.batch(rows)))
        weights = None if data.weights is None else data.weights[rows]
        with torch.random.fork_rng():
            adaptive = -weighted_mean(model.elbo(x, c).value.double(), weights).item()
        try:
            with torch.random.fork_rng():
                fixed = -weighted_mean(trained.elbo(x, c).value.double(), weights).item()
        except SolverError:
            return {}
        return {"nll_training_solver": fixed, "drift": fixed - adaptive}

    return distributed.shared_out([slice(DRIFT_SAMPLES)], compare)[0]


def log_prob(model: Density, x: Tensor, samples: int, c: Tensor | None = None, prune: float | None = None) -> Tensor:
    """Return log-densities (B,) in nats; a bound is of `samples` draws, of one if the log-density is estimated.

    ``prune`` leaves components of a mixture out, see :meth:`cnf.MixtureFlow.log_prob`.

    Under ``torch.autocast`` they are as inexact as in training, where :meth:`cnf.Density.log_prob` stays exact.
    """
    if torch.is_autocast_enabled(x.device.type):
        draws = draws_of(model, samples) if takes_draws(model) else 1
        values = torch.stack([model.elbo(x, c, **keyword(prune)).value for _ in range(draws)])
        return values.logsumexp(0) - math.log(draws)
    draws = {"samples": draws_of(model, samples)} if takes_draws(model) else {}
    return model.log_prob(x, c, **draws, **keyword(prune))


def standard_error(values: Tensor, weights: Tensor | None) -> float:
    """Return the standard error of the mean of values (N,), with shares p of the weights: sqrt(sum p^2 (v - m)^2).

    Equal weights get the unbiased variance, N / (N - 1) times as much.
    """
    if weights is None:
        return (values.std() / math.sqrt(len(values))).item()
    shares = weights / weights.sum()
    return (shares * (values - weighted_mean(values, weights))).norm().item()


def kind_of(model: Density, samples: int, prune: float | None = None) -> dict[str, Any]:
    """Describe what :func:`log_prob` returns.

    Returns:
        ``kind`` (``"exact"``, ``"estimate"`` or ``"bound"``), ``tolerance`` of the solver, None without an ODE,
        ``probes`` of an estimated divergence, importance ``samples`` of a bound, ``dequantisation`` of discrete data
        (None if they do not apply), ``augmented``, whether augmented variables are drawn, and ``prune``, the
        responsibility below which components are left out, or None.
    """
    ode = next(iter(odes(model)), None)
    return {
        "kind": model.kind if prune is None else "bound",
        "tolerance": ode and {"rtol": ode.solver.rtol, "atol": ode.solver.atol},
        "probes": ode.probes if ode and ode.divergence == "hutchinson" else None,
        "samples": draws_of(model, samples) if takes_draws(model) else None,
        "dequantisation": _dequantisation(model),
        "augmented": any(isinstance(part, VariationalAugment) for part in model.modules()),
        "prune": prune,
    }


def affordable_samples(count: int, dims: int) -> int:
    """Return the number of importance samples that takes eight million numbers at most: a power of two up to 64."""
    allowed = MAX_NUMBERS // (count * dims)
    return min(IMPORTANCE_SAMPLES, 2 ** max(0, allowed.bit_length() - 1))


def check_importance_samples(model: Density, samples: int | None) -> None:
    """Raise an :class:`anode.InputError` for a number of importance samples that would not tighten a bound."""
    if samples is None:
        return
    if not takes_draws(model):
        raise InputError(f"--samples {samples} is for bounds; this log-density is of kind {model.kind!r}: omit it")
    if draws_of(model, samples) != samples:
        raise InputError(
            f"--samples {samples} of an estimated log-density give no bound: omit it, or pass --divergence exact"
        )


def odes(model: nn.Module) -> list[Continuous]:
    """Return the ODEs of a model."""
    return [part for part in model.modules() if isinstance(part, Continuous)]


def log_scale(model: nn.Module) -> float:
    """Return the log-determinant of the standardisation in a model, in nats."""
    return sum(float(part.scale.log().sum()) for part in model.modules() if isinstance(part, Standardize))


def gaussian_figures(dataset: Dataset) -> dict[str, Any]:
    """Return ``gaussian_nll`` of a table and, of real numbers alone, ``heavy_tailed``, see :class:`Dataset`."""
    figures: dict[str, Any] = {"gaussian_nll": gaussian_nll(dataset)}
    return figures if dataset.kinds else {**figures, "heavy_tailed": list(dataset.heavy_tailed)}


def gaussian_nll(dataset: Dataset) -> float | None:
    """Return the test NLL in nats of the Gaussian, which a flow should beat; None if the covariance is singular."""
    log_p = gaussian_log_prob(dataset)
    return None if log_p is None else float(-np.average(log_p, weights=dataset.test.weights))


def gaussian_log_prob(dataset: Dataset) -> np.ndarray | None:
    """Return log-densities (N,) of the test part in nats by the Gaussian with mean and covariance of the training part.

    None if the covariance is singular. A table of several kinds has one Gaussian of the numbers on their scales and
    frequencies of states, see :mod:`train_flows.evaluation.mixed_gaussian`, by 64 draws of any noise.
    """
    from scipy.stats import multivariate_normal  # seconds, which images need not wait for

    train, rows, weights = dataset.train.head().x, dataset.test.head().x, dataset.train.weights
    if dataset.kinds:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return mixed_gaussian.log_prob(dataset.kinds, train, rows, IMPORTANCE_SAMPLES, weights).numpy()
    x, test = (part.double().flatten(1).numpy() for part in (train, rows))
    mean, scale = (moment.numpy() for moment in moments(torch.from_numpy(x), weights))
    covariance = np.cov(((x - mean) / scale).T, bias=True, aweights=weights)  # of columns of any units
    try:
        gaussian = multivariate_normal(mean / scale, covariance)
    except np.linalg.LinAlgError:
        return None
    return gaussian.logpdf(test / scale) - np.log(scale).sum()


def grid_figures(figure: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Return ``grid``: the ``steps`` of the columns with noise of their grid, and a bound on the recorded values.

    A recorded value k has the probability P(k) = step E[p(k + u)] over uniform u in [-step / 2, step / 2], so that

        -log P(k) <= -E[log p(k + u)] - log step

    which is ``nll_bound`` in nats, a density in the other columns; nothing without such columns.

    Args:
        figure: the NLL of the data with noise, of :func:`nll`.
        dataset: the data.
    """
    steps = {column: grid.step for column, grid in dataset.grids.items()}
    bound = figure["value"] - sum(map(math.log, steps.values()))
    return {"grid": {"steps": steps, "nll_bound": bound}} if steps else {}


def takes_draws(model: Density) -> bool:
    """Return True for a bound that more draws of noise or of augmented variables tighten."""
    return model.stochastic and isinstance(model, LiftedFlow | TableDensity)


def draws_of(model: Density, samples: int) -> int:
    """Return the number of draws of a bound: those asked for, but one of an estimate, which more do not tighten."""
    return 1 if any(ode.divergence != "exact" for ode in odes(model)) else samples


def _dequantisation(model: nn.Module) -> str | None:
    """Return the noise by which a model makes real numbers of discrete data; None for real data."""
    return next((part.noise for part in model.modules() if isinstance(part, Dequantize)), None)


def nfe_of_pass(model: Density, counts: Sequence[Evaluations], prune: float | None = None) -> float:
    """Return the mean evaluations from data to base, by all ODEs of the model, with the gate of a pruned mixture."""
    solves, flow = sum(nfe.solves for nfe in counts), mixture_of(model)
    if prune is not None and flow is not None and isinstance(flow.transform, Continuous | ResidualSteps):
        solves = sum(math.ceil(nfe.solves / 2) for nfe in counts)  # gate and flow; fewer than 100 samples skip the gate
    return max(1, len(odes(model))) * sum(nfe.forward for nfe in counts) / max(1, solves)


def _nll_or_none(model: Density, data: Split, samples: int, prune: float | None) -> dict[str, Any] | None:
    try:
        return nll(model, data, samples, prune)[0]
    except SolverError:
        return None


def _inverse_error(model: Density, data: Split) -> dict[str, float | None]:
    """Return the mean distance between points and their round trip through the base, plain and in scales."""
    scales = [part.scale for part in model.modules() if isinstance(part, Standardize)]
    lifted = isinstance(model, LiftedFlow | TableDensity)  # the scales are not those of x
    scale = scales[0] if scales and not lifted else torch.ones(())

    def distances(x: Tensor, c: Tensor | None) -> Tensor:
        y = model.lift(x.to(model.like.dtype), c).point if isinstance(model, LiftedFlow) else x
        error = (y - model.round_trip(y, c)).cpu().double()  # the squares of which stay finite
        error = error.masked_fill(y.isnan().cpu(), 0)  # missing cells
        return torch.stack([part.flatten(1).norm(dim=1) for part in (error, error / scale.cpu().double())])

    found = in_chunks(model, data, distances, "measuring the inverse")
    plain, relative = torch.cat(found, dim=1).mean(dim=1).tolist()
    return {"inverse_error": plain, "inverse_error_standardized": relative if scale.ndim else None}
