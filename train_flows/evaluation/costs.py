"""Cost and quality of a density in double precision, for comparisons of densities at equal likelihood."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from anode import Solver, count_evals
from cnf import Density, LiftedFlow, MixtureFlow
from train_flows.data import Dataset
from train_flows.evaluation.chunks import to_model
from train_flows.evaluation.likelihood import log_prob

POINTS = 1000  # test samples, at most
TOLERANCES = (1e-5, 1e-7)
NLL_TOLERANCE = 1e-4
MIN_DRAWS = 16  # of a bound, for each sample
MAX_NUMBERS = 2**18  # in all points of a bound, components aside
CONVERGED = 5e-3  # nats: a bound is near its limit once doubling its draws raises it by less


@torch.no_grad()
def costs(model: Density, dataset: Dataset) -> dict[str, float]:
    """Return the evaluations of sampling and log_prob, and the NLL of up to 1,000 test samples.

    Samples and noise are the same in every call and for every model.

    Returns:
        ``nfe_sample_1e-05``, ``nfe_log_prob_1e-05`` and the same at 1e-7, evaluations of one solve, with their
        ``seconds_sample_1e-05`` and so on (those of log_prob are of one draw); ``nll_test``, in nats at 1e-4;
        ``points_log_prob``, the number of points solved for each sample: components times draws of a bound. The draws
        are doubled, from 16 on, until that raises the bound by less than 0.005 nats, or the data allow no more; and
        ``raised``, the effect of the last doubling in nats.
    """
    x, c = to_model(model, _test_samples(dataset))
    double = copy.deepcopy(model).double()
    x_double, c_double = to_model(double, (x, c))
    figures: dict[str, float] = {}
    with torch.random.fork_rng():
        for tolerance in TOLERANCES:
            at = double.with_solver(Solver(rtol=tolerance, atol=tolerance))
            figures |= _cost(at, f"sample_{tolerance:.0e}", lambda at=at: at.sample(len(x), c_double))
            figures |= _cost(at, f"log_prob_{tolerance:.0e}", lambda at=at: log_prob(at, x_double, 1, c_double))
        return figures | _nll(model.with_solver(Solver(rtol=NLL_TOLERANCE, atol=NLL_TOLERANCE)), x, c)


def _test_samples(dataset: Dataset) -> tuple[Tensor, Tensor | None]:
    test = dataset.test.head(POINTS)
    return test.x, test.c


def _cost(model: Density, name: str, solve: Callable[[], Tensor]) -> dict[str, float]:
    torch.manual_seed(0)
    started = time.perf_counter()
    with count_evals(model) as nfe:
        solve()
    return {f"nfe_{name}": nfe.per_solve, f"seconds_{name}": time.perf_counter() - started}


def _nll(model: Density, x: Tensor, c: Tensor | None) -> dict[str, float]:
    torch.manual_seed(0)
    value, draws, raised = log_prob(model, x, 1, c), 1, 0.0
    while model.kind == "bound" and (draws < MIN_DRAWS or raised >= CONVERGED):
        doubled = torch.logaddexp(value, log_prob(model, x, draws, c)) - math.log(2)
        value, draws, raised = doubled, 2 * draws, (doubled - value).mean().item()
        if 2 * draws * x.numel() > MAX_NUMBERS:
            break
    flow = model.flow if isinstance(model, LiftedFlow) else model
    components = len(flow.mixture.logits) if isinstance(flow, MixtureFlow) else 1
    return {"nll_test": -value.double().mean().item(), "points_log_prob": components * draws, "raised": raised}
