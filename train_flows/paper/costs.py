"""What solving a density costs and how good it is, in double precision, for comparisons at equal likelihood."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from anode import Solver, count_evals
from cnf import CategoricalFlow, Density, LiftedFlow
from train_flows import likelihood
from train_flows.data import Dataset

POINTS = 1000  # at most
TOLERANCES = (1e-5, 1e-7)
NLL_TOLERANCE = 1e-4
LEAST_DRAWS = 16  # of a bound, for each sample
MOST_NUMBERS = 2**18  # in all points that a bound is made of, components aside
LEAST_RAISED = 5e-3  # nats: when a doubling of the draws raises a bound by less, it is near its limit


@torch.no_grad()
def costs(model: Density, dataset: Dataset) -> dict[str, float]:
    """The evaluations of sampling and log_prob, and the NLL of test samples, for up to 1,000 of them.

    The samples, and the noise, are the same whenever and for whatever this is called.

    Returns:
        ``nfe_sample_1e-05``, ``nfe_log_prob_1e-05`` and the same at 1e-7, evaluations of a solve, with their
        ``seconds_sample_1e-05`` and so on, which for log_prob are those of one draw; ``nll_test``, nats at 1e-4, and
        ``points_log_prob``, how many points are solved for each sample to know it: components times draws of a bound,
        which are doubled, from 16 on, until that raises it by less than 0.005 nats, or there are as many as the data
        allow; and ``raised``, by how much the last doubling did.
    """
    x = dataset.test[:POINTS].to(next(model.parameters()).device)
    double = copy.deepcopy(model).double()
    x_double = x.double() if x.is_floating_point() else x
    figures: dict[str, float] = {}
    with torch.random.fork_rng():
        for tolerance in TOLERANCES:
            at = double.with_solver(Solver(rtol=tolerance, atol=tolerance))
            figures |= _cost(at, f"sample_{tolerance:.0e}", lambda at=at: at.sample(len(x)))
            figures |= _cost(at, f"log_prob_{tolerance:.0e}", lambda at=at: likelihood.log_prob(at, x_double, 1))
        return figures | _nll(model.with_solver(Solver(rtol=NLL_TOLERANCE, atol=NLL_TOLERANCE)), x)


def _cost(model: Density, name: str, solve: Callable[[], Tensor]) -> dict[str, float]:
    torch.manual_seed(0)
    started = time.perf_counter()
    with count_evals(model) as nfe:
        solve()
    return {f"nfe_{name}": nfe.each, f"seconds_{name}": time.perf_counter() - started}


def _nll(model: Density, x: Tensor) -> dict[str, float]:
    torch.manual_seed(0)
    value, draws, raised = likelihood.log_prob(model, x, 1), 1, 0.0
    while model.kind == "bound" and (draws < LEAST_DRAWS or raised >= LEAST_RAISED):
        together = torch.logaddexp(value, likelihood.log_prob(model, x, draws)) - math.log(2)
        value, draws, raised = together, 2 * draws, (together - value).mean().item()
        if 2 * draws * x.numel() > MOST_NUMBERS:
            break
    flow = model.flow if isinstance(model, LiftedFlow) else model
    components = len(flow.mixture.logits) if isinstance(flow, CategoricalFlow) else 1
    return {"nll_test": -value.double().mean().item(), "points_log_prob": components * draws, "raised": raised}
