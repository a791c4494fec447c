"""Scores of the rows of a table: log-densities, percentiles among training rows, and cells that surprise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cnf.tables import TableDensity
from cnf.tables.columns import encode
from train_flows.data import Split
from train_flows.evaluation import in_chunks, likelihood

COMPARED = 10_000  # training rows that percentiles refer to, at most
TYPICAL = 100  # cells of training rows that stand in for a cell
DRAWS, MAX_DRAWS = 8, 64  # of the noise of a row: at least, if not asked for, and at most
ROW_DRAWS = 200_000  # in all, unless they are fewer than 8 a row


def affordable_draws(n: int) -> int:
    """Return the number of draws of noise for each of n rows: 8 to 64, and 200,000 in all if n allows it."""
    return min(MAX_DRAWS, max(DRAWS, ROW_DRAWS // n))


@torch.no_grad()
def log_densities(model: TableDensity, rows: Split, samples: int, prune: float | None, name: str) -> Tensor:
    """Return log-densities (N,) of rows without unknown cells, in nats and units of the table, float64.

    Args:
        model: the density.
        rows: cells, with contexts if it is conditional.
        samples: draws of noise if it is a bound.
        prune: responsibility below which components of a mixture are left out, or None.
        name: of the progress bar.
    """
    found = in_chunks(model, rows, lambda x, c: likelihood.log_prob(model, x, samples, c, prune).cpu().double(), name)
    return torch.cat(found)


def on_scales(model: TableDensity, log_p: Tensor, x: Tensor) -> Tensor:
    """Return log-densities of numbers on their scales (N,), from those in units of the table of rows x (N, D).

    They do not depend on units. Densities in units of the table are larger where a scale is fine, such as that of low
    prices, and rows without a number lack its unit, so that these do not tell odd rows from others.
    """
    return log_p - encode(model.columns, x, noise=False).log_det


def percentiles(values: Tensor, reference: Tensor) -> Tensor:
    """Return the share in percent of reference values (M,) below each value (N,)."""
    return 100 * torch.searchsorted(reference.sort().values, values).double() / len(reference)


@torch.no_grad()
def surprises(
    model: TableDensity, rows: Split, typical: Tensor, own: Tensor, samples: int, prune: float | None
) -> Tensor:
    """Return the nats (N, D) that rows would gain from typical cells in place of each cell.

        gain_j = log 1/K sum_k p(x with x_kj in place of x_j) - log p(x)

    with K typical rows x_k, the same for all rows and columns, and p of :func:`on_scales`. For typical cells of
    density r,

        gain_j = log E[r(x'_j)] - log p(x_j given the other cells),    x'_j ~ p(x_j given the other cells)

    so that it is a score of the column given the others, up to the density of the cells that stand in: these are
    typical of the column, not of the column given the others.

    Args:
        model: the density.
        rows: N rows.
        typical: cells (K, D) of training rows.
        own: log p(x), (N,), see :func:`on_scales`.
        samples: draws of noise for each row if the density is a bound.
        prune: responsibility below which components of a mixture are left out, or None.
    """
    n, k = len(rows), len(typical)
    gains = rows.x.new_empty(rows.x.shape)
    repeated = rows.take(torch.arange(n).repeat_interleave(k))
    for j in range(gains.shape[1]):
        x = repeated.x.clone()
        x[:, j] = typical[:, j].repeat(n)
        replaced = Split(x, c=repeated.c)
        log_q = log_densities(model, replaced, min(samples, DRAWS), prune, "replacing cells")
        gains[:, j] = on_scales(model, log_q, x).view(n, k).logsumexp(1) - math.log(k) - own
    return gains
