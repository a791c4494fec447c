"""What a density costs to solve and how good it is, in double precision, for comparisons at equal likelihood."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor

from anode import Solver, count_evals
from cnf import Density
from train_flows import likelihood
from train_flows.data import Dataset

POINTS = 1000  # of a solve
TOLERANCES = (1e-5, 1e-7)
DRAWS = 16  # of a bound


@torch.no_grad()
def costs(model: Density, dataset: Dataset) -> dict[str, float]:
    """Evaluations of sampling and log_prob for 1,000 points at several tolerances, and the test NLL.

    The points, and all noise, are the same whenever and for whatever this is called.

    Returns:
        ``nfe_sample_1e-05``, ``nfe_log_prob_1e-05`` and so on, evaluations of one solve; ``work_log_prob_1e-05``,
        evaluations times points, over the number of samples; ``seconds_sample_1e-05``; and ``nll_test``, in nats, of
        the test samples at 1e-5, where it is a bound by 16 draws.
    """
    device = next(model.parameters()).device
    double = copy.deepcopy(model).double()
    x = _double(dataset.test[:POINTS].to(device))
    figures: dict[str, float] = {}
    with torch.random.fork_rng():
        for tolerance in TOLERANCES:
            at = double.with_solver(Solver(rtol=tolerance, atol=tolerance))
            torch.manual_seed(0)
            started = time.perf_counter()
            with count_evals(at) as nfe:
                at.sample(POINTS)
            figures[f"nfe_sample_{tolerance:.0e}"] = nfe.each
            figures[f"seconds_sample_{tolerance:.0e}"] = time.perf_counter() - started
            torch.manual_seed(0)
            with count_evals(at) as nfe:
                log_p = likelihood.log_prob(at, x, DRAWS)
            figures[f"nfe_log_prob_{tolerance:.0e}"] = nfe.each
            if tolerance == TOLERANCES[0]:
                figures["nll_test"] = -log_p.mean().item()
    return figures


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
