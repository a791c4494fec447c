"""Ranks of held-out values in the conditional distributions of a density, one column at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from anode import Solver
from cnf import Density
from cnf.tables import TableDensity
from cnf.tables.columns import encode
from train_flows.data import Split
from train_flows.evaluation import chunk_size, to_model
from train_flows.evaluation.pruning import find_prune, keyword

POINTS, ROUNDS = 20, 5  # of a column: values in one round; the first round is at quantiles of known values
BEYOND = (0.1, 1.0)  # distances of its points outside of the known values, as shares of their range
WIDEST = 3.5  # normal deviation of the outermost levels of the other rounds
SOLVER = Solver(rtol=1e-4, atol=1e-4)
MAX_ROWS, FEWEST_ROWS = 200, 20  # test rows; below the latter, columns are left out
MAX_NUMBERS = 2**20  # in all points, which is half a minute of one core for seven columns

LogDensity = Callable[[Tensor, Tensor], Tensor]  # log p (B,) of points (B, D), and the rows (B,) they belong to


@torch.no_grad()
def conditional_ranks(model: Density, test: Split, known: Tensor) -> dict[int, Tensor]:
    """Return F(x_j | all other cells of the row), (N,), by the place j of each number column, for the first test rows.

        F(x_j | x_others) = int_(t < x_j) p(t, x_others) dt / int p(t, x_others) dt

    The joint density is taken at x_j and at 100 more values: quantiles of known rows, then values where the mass found
    so far is; between them, log p is linear. The error is about 0.002, for conditional distributions down to a
    thousandth of the width of the marginal one. A narrow second mode can be missed.

    States stay as they are: categories, contexts, atoms and gaps; rows where column j has an atom or a gap are left
    out. Values recorded in steps get uniform noise of that width, as in training, and F is that of the noisy value.

    The cost is that of log_prob at 101 points for each row and column. There are up to 200 rows, fewer if the points
    have more than 2^20 numbers; for more than 22 columns some columns are left out.

    Args:
        model: a density of the rows of a table.
        test: held-out rows, in random order.
        known: rows (M, D), such as those of training.

    Returns:
        The ranks; none if the density is not exact.

    Raises:
        anode.SolverError: if a solve fails.
    """
    flow = model.flow if isinstance(model, TableDensity) else model
    if flow is None or flow.kind != "exact":
        return {}
    x, c, known = to_model(model, (test.x, test.c, known))
    columns = list(range(x.shape[1]))
    present, occurs = torch.ones_like(x, dtype=torch.bool), torch.ones_like(known, dtype=torch.bool)
    if isinstance(model, TableDensity):
        columns = model.numbers
        rows, others = encode(model.columns, x), encode(model.columns, known)
        c = model.features(rows.states, model.prepare_context(c, len(x)))
        x, known = rows.y.to(model.like), others.y
        present, occurs = rows.present, others.present
    loose, prune, size = flow.with_solver(SOLVER), keyword(find_prune(flow)), chunk_size(x.shape[1:])

    def log_density(points: Tensor, of: Tensor) -> Tensor:
        parts = zip(points.split(size), of.split(size), strict=True)
        log_p = torch.cat([loose.log_prob(part, None if c is None else c[rows], **prune) for part, rows in parts])
        return log_p.double().nan_to_num(-torch.inf, -torch.inf)

    numbers = (POINTS * ROUNDS + 1) * x.shape[1]  # of a rank
    count = max(FEWEST_ROWS, min(MAX_ROWS, MAX_NUMBERS // (numbers * len(columns))))
    found = {}
    for j, column in enumerate(columns[: max(1, MAX_NUMBERS // (numbers * count))]):
        of, values = present[:, j].nonzero().squeeze(1)[:count], known[occurs[:, j], j]
        if len(of) and len(values):
            found[column] = ranks(log_density, x, of, j, values)
    return found


def ranks(log_density: LogDensity, x: Tensor, of: Tensor, column: int, known: Tensor) -> Tensor:
    """Return the ranks (R,) of a column at the rows ``of`` (R,) of x (N, D), from values (M,) that are known."""

    def log_p(grid: Tensor) -> Tensor:
        points, rows = (each.repeat_interleave(grid.shape[1], 0) for each in (x[of], of))
        points[:, column] = grid.flatten().to(x)
        return log_density(points, rows).view(grid.shape)

    own, known = x[of, column, None].double(), known.double()
    inside = torch.quantile(known, torch.linspace(0, 1, POINTS - 2 * len(BEYOND)).to(own))
    low, high = inside[0], inside[-1]
    beyond = (high - low) * torch.tensor(BEYOND).to(own)
    grid = torch.cat([own, torch.cat([low - beyond, inside, high + beyond]).expand(len(of), -1)], 1)
    levels = torch.special.ndtr(torch.linspace(-WIDEST, WIDEST, POINTS).to(own)).expand(len(of), -1).contiguous()
    values = log_p(grid)
    for _ in range(ROUNDS - 1):
        new = _zoomed(*_ordered(grid, values), levels)
        grid, values = torch.cat([grid, new], 1), torch.cat([values, log_p(new)], 1)
    grid, values = _ordered(grid, values)
    return _distribution(grid, values).gather(1, torch.searchsorted(grid, own)).squeeze(1)


def _ordered(grid: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    grid, order = grid.sort(1)
    return grid, values.gather(1, order)


def _distribution(grid: Tensor, log_p: Tensor) -> Tensor:
    """Return the distribution function (R, K) at increasing points (R, K), between which log p is linear.

    A cell of width w, with the density p at its higher end and p exp(-d) at the other, has the mass p w (1 - e^-d) / d.
    """
    log_p = log_p - log_p.amax(1, keepdim=True)
    drop = log_p.diff(dim=1).abs().nan_to_num(1e9).clamp(1e-9, 1e9)
    mass = grid.diff(dim=1) * torch.maximum(log_p[:, 1:], log_p[:, :-1]).exp() * -torch.expm1(-drop) / drop
    f = torch.cat([mass.new_zeros(len(mass), 1), mass.cumsum(1)], 1)
    return f / f[:, -1:]


def _zoomed(grid: Tensor, log_p: Tensor, levels: Tensor) -> Tensor:
    """Return points (R, L) where the mass is: the quantiles at levels (R, L) of trapezoids between points (R, K)."""
    p = (log_p - log_p.amax(1, keepdim=True)).exp()
    f = (grid.diff(dim=1) * (p[:, 1:] + p[:, :-1])).cumsum(1)
    f = torch.cat([f.new_zeros(len(f), 1), f], 1) / f[:, -1:]
    above = torch.searchsorted(f, levels).clamp(1, f.shape[1] - 1)
    (low, start), (high, end) = ((f.gather(1, at), grid.gather(1, at)) for at in (above - 1, above))
    return start + (end - start) * ((levels - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
