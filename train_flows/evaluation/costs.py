"""Costs of a likelihood: comparisons of densities at equal likelihood, and the samples that a figure can afford."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from anode import Solver, count_evals
from anode.evaluations import Evaluations
from cnf import Density
from cnf.batches import weighted_mean
from cnf.mixture_flow import FEWEST_PRUNED
from train_flows.data import Dataset, Split
from train_flows.evaluation import to_model
from train_flows.evaluation.folds import has_residual_steps, measure_folds
from train_flows.evaluation.likelihood import affordable_samples, draws_of, log_prob, nfe_of_pass, odes, takes_draws
from train_flows.evaluation.pruning import certificate, find_prune, in_flow, mixture_of

POINTS = 1000  # test samples of costs, at most
TOLERANCES = (1e-5, 1e-7)  # of evaluations
NLL_TOLERANCE = 1e-4
MIN_DRAWS = 16  # of a bound, for each sample
FEWEST_NUMBERS = 2**17  # in the points that are always measured, if the data have so many
MAX_POINTS = 2**18  # numbers in all draws of a bound, components aside
CONVERGED = 5e-3  # nats: a bound is near its limit once doubling its draws raises it by less


def in_proportion(model: Density, count: int, points: int) -> tuple[int, int]:
    """Return how many of ``count`` samples to measure, with how many importance samples each, for a number of points.

    A bound takes 16 importance samples or more; 1,000 samples, if there are so many, are always measured.
    """
    dims = math.prod(model.event_shape)
    points = max(points, FEWEST_NUMBERS // dims)
    samples = draws_of(model, affordable_samples(count, dims)) if takes_draws(model) else 1
    while samples > MIN_DRAWS and count * samples > points:
        samples //= 2
    return min(count, max(POINTS, points // samples)), samples


@torch.no_grad()
def costs(model: Density, dataset: Dataset) -> dict[str, float]:
    """Return the evaluations of sampling and log_prob, and the NLL of up to 1,000 test samples.

    Samples and noise are the same in every call and for every model. A mixture of more than two flows is summed without
    the components that hardly matter.

    Returns:
        ``nfe_sample_1e-05``, ``nfe_log_prob_1e-05`` and the same at 1e-7, evaluations of one pass, gates
        included, with their ``seconds_sample_1e-05`` and so on (those of log_prob are of one draw);
        ``work_log_prob_1e-05`` and the same at 1e-7, evaluations for one sample by all points that are solved for it,
        gates included; ``nll_test``, in nats at 1e-4; ``points_log_prob``, the mean number of points solved for each
        sample: components times draws of a bound. The draws are doubled, from 16 on, until that raises the bound by
        less than 0.005 nats, or the data allow no more; ``raised``, the effect of the last doubling in nats;
        ``folded_mass`` of residual steps, an estimate of what their density integrates to beyond 1: the logarithm of
        the integral is added to the NLL, see :mod:`train_flows.evaluation.folds`; and if components are left out,
        ``gap_mean``, ``gap_error`` and ``gap_max``, see :func:`~train_flows.evaluation.pruning.certificate`.
    """
    test = dataset.test.head(POINTS)
    x, c = to_model(model, (test.x, test.c))
    double = copy.deepcopy(model).double()
    x_double, c_double = to_model(double, (x, c))
    figures: dict[str, float] = {}
    prune = find_prune(model) if len(x) >= FEWEST_PRUNED else None
    with torch.random.fork_rng():
        for tolerance in TOLERANCES:
            at = double.with_solver(Solver(rtol=tolerance, atol=tolerance))
            name, in_log_prob = f"sample_{tolerance:.0e}", f"log_prob_{tolerance:.0e}"
            found, seconds = _count(at, lambda at=at: at.sample(len(x), c_double))
            figures |= {f"nfe_{name}": found.per_solve, f"seconds_{name}": seconds}
            found, seconds = _count(at, lambda at=at: log_prob(at, x_double, 1, c_double, prune))
            per_solve = nfe_of_pass(at, [found], prune) / max(1, len(odes(at)))
            figures |= {f"nfe_{in_log_prob}": per_solve, f"seconds_{in_log_prob}": seconds}
            figures[f"work_{in_log_prob}"] = found.points / len(x)
        at = model.with_solver(Solver(rtol=NLL_TOLERANCE, atol=NLL_TOLERANCE))
        figures |= _converged_nll(at, test, prune)
        if has_residual_steps(at):
            figures["folded_mass"] = measure_folds(at, test)["mass"]
            figures["nll_test"] += math.log1p(figures["folded_mass"])
        if prune is not None:
            gaps = certificate(at, Split(x, c=c), prune)
            figures |= {name: value for name, value in gaps.items() if name.startswith("gap")}
        return figures


def _count(model: Density, solve: Callable[[], Tensor]) -> tuple[Evaluations, float]:
    """Return the evaluations of a solve, always with the same noise, and its seconds: of the process on a CPU."""
    clock = time.process_time if next(model.parameters()).is_cpu else time.perf_counter
    torch.manual_seed(0)
    started = clock()
    with count_evals(model) as nfe:
        solve().cpu()  # which waits for the device
    return nfe, clock() - started


def _converged_nll(model: Density, data: Split, prune: float | None) -> dict[str, float]:
    x, c = to_model(model, (data.x, data.c))
    torch.manual_seed(0)
    value, draws, raised = log_prob(model, x, 1, c, prune), 1, 0.0
    while model.kind == "bound" and (draws < MIN_DRAWS or raised >= CONVERGED):
        doubled = torch.logaddexp(value, log_prob(model, x, draws, c, prune)) - math.log(2)
        value, draws, raised = doubled, 2 * draws, (doubled - value).mean().item()
        if 2 * draws * x.numel() > MAX_POINTS:
            break
    points = draws * _components(model, x, c, prune)
    nll = -weighted_mean(value.double(), data.weights).item()
    return {"nll_test": nll, "points_log_prob": points, "raised": raised}


def _components(model: Density, x: Tensor, c: Tensor | None, prune: float | None) -> float:
    """Return the mean number of components that are solved for a sample."""
    mixture = mixture_of(model)
    if mixture is None or prune is None:
        return 1 if mixture is None else len(mixture.mixture.logits)
    flow, y, c = in_flow(model, x, c)
    return flow.solved_components(y, c, prune).sum().item() / len(x)
