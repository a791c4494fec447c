"""Complete rows of a table: draws of the missing cells from their density given the other cells of the row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anode.inputs import whole_number
from cnf.bases import sample_categorical
from cnf.batches import MAX_POINTS
from cnf.flow import without_autocast
from cnf.tables.columns import Encoded, encode, present_numbers
from cnf.tables.table_density import TableDensity

DRAWS = 2000  # rows of the model, among which neighbours are found
NEIGHBOURS, OTHERS = 100, 12  # nearest draws, and others at random for values far from them
PROPOSALS = 500  # for each row
MISMATCH = 4.0  # squared distance of different states; numbers are in standard deviations
SWITCH = 0.1  # probability of a state that does not follow a neighbour
RIDGE = 0.1  # times the squared slopes of the regression on observed numbers
FLOOR = 1e-6  # variance of a kernel, relative to that of the draws


class Completed(NamedTuple):
    """Completions of rows.

    Attributes:
        rows: (n, B, D), float64, without missing cells.
        effective: effective sample size (sum w)^2 / sum w^2 of each row, (B,), at most the number of proposals.
    """

    rows: Tensor
    effective: Tensor


@dataclass(frozen=True, eq=False)
class Proposal:
    """A mixture over M neighbours: of states, and of normal distributions of the numbers that are on their scales.

        q(s, y) = 1/M sum_m prod_v [(1 - e) 1(s_v = s_mv) + e f_v(s_v)]  N(y_P; mu_mP, C_PP)

    with the numbers P that have state 0 in s, and e = 0.1.

    Attributes:
        states: s_m of the V missing discrete variables, (M, V).
        frequencies: f_v of the states of each variable, (K_v,).
        centers: mu_m of the U missing numbers, (M, U).
        covariance: C, (U, U).
        switches: the variable that says if a number is on its scale, (U,); -1 for numbers that always are.
    """

    states: Tensor
    frequencies: list[Tensor]
    centers: Tensor
    covariance: Tensor
    switches: Tensor

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw states (n, V) and numbers (n, U), of which those off their scales do not matter."""
        m = torch.randint(len(self.centers), (n,), device=self.centers.device)
        states = self.states[m]
        for v, frequencies in enumerate(self.frequencies):
            switched = torch.rand(n, device=m.device) < SWITCH
            others = sample_categorical(frequencies.log().expand(n, -1))
            states[:, v] = torch.where(switched, others, states[:, v])
        noise = torch.randn(n, self.centers.shape[1], dtype=self.centers.dtype, device=m.device)
        return states, self.centers[m] + noise @ torch.linalg.cholesky(self.covariance).mT

    def present(self, states: Tensor) -> Tensor:
        """Return True for the numbers (n, U) that are on their scales, from states (n, V)."""
        if not self.frequencies:
            return torch.ones(len(states), len(self.switches), dtype=torch.bool, device=states.device)
        return (self.switches < 0) | (states[:, self.switches.clamp_min(0)] == 0)

    def log_prob(self, states: Tensor, y: Tensor) -> Tensor:
        """Return log q (n,) of states (n, V) and numbers (n, U)."""
        log_q = y.new_zeros(len(y), len(self.centers))
        for s, own, frequencies in zip(states.T, self.states.T, self.frequencies, strict=True):
            log_q += ((1 - SWITCH) * (s[:, None] == own) + SWITCH * frequencies[s][:, None]).log()
        present = self.present(states)
        for pattern in present.unique(dim=0) if y.shape[1] else ():  # which refuses rows of 0 numbers
            rows = (present == pattern).all(1)
            root = torch.linalg.cholesky(self.covariance[pattern][:, pattern])
            differences = (y[rows][:, None] - self.centers)[..., pattern].flatten(0, 1)
            z = torch.linalg.solve_triangular(root, differences.mT, upper=False)
            constant = root.diagonal().log().sum() + 0.5 * len(root) * math.log(2 * math.pi)
            log_q[rows] -= (0.5 * z.square().sum(0) + constant).view(-1, len(self.centers))
        return log_q.logsumexp(1) - math.log(len(self.centers))


@without_autocast
@torch.no_grad()
def fill(model: TableDensity, x: Any, n: int, c: Any = None, proposals: int = PROPOSALS) -> Completed:
    """Draw n completions of rows with missing cells, from p(row given c) given the cells that a row has.

    The conditional density of a flow is unknown, so completions are resampled from proposals with weights p / q. The
    proposal q of a row is fitted to the draws of the model that are nearest to its observed cells, see
    :class:`Proposal`: the missing numbers of neighbours, corrected by a linear regression on the observed numbers,
    are the centers of kernels with the covariance of the residuals. As q is known, the weights are exact, and
    completions have the distribution of the model for many proposals. The effective sample size says if they are many.
    Observed values that are recorded in steps get noise within the step, a new draw for every proposal. Proposals are
    never missing: the density is that of rows without gaps.

    Args:
        model: the density; of a table without gaps, too.
        x: rows (B, D), NaN where a cell is missing.
        n: number of completions of each row.
        c: rows (B, K) of the given columns, or None.
        proposals: number of proposals for each row, each of which takes one evaluation of the density.

    Raises:
        InputError: for cells that no column of the table can hold.

    References:
        Rubin 1987, The calculation of posterior distributions by data augmentation: comment (importance resampling);
        Beaumont, Zhang, Balding 2002, Approximate Bayesian computation in population genetics (regression on nearest
        draws).

    Example:
        >>> from cnf.tables import Column, table_model
        >>> rows = torch.randn(100, 1) + 0.1 * torch.randn(100, 2)
        >>> model = table_model([Column("a"), Column("b")], rows, hidden=(8,))
        >>> fill(model, [[1.0, float("nan")]], 5).rows.shape
        torch.Size([5, 1, 2])
    """
    n, proposals = whole_number("n", n), whole_number("proposals", proposals)
    x, given = model.prepare("x", x, c)
    gaps = x.isnan()
    rows, effective = x.repeat(n, 1, 1), x.new_full((len(x),), float(proposals))
    if (empty := gaps.all(1)).any():  # draws of the model itself
        count = int(empty.sum())
        contexts = None if given is None else given[empty].repeat(n, 1)
        drawn = model.decode(*model.sample_encoded(n * count, contexts, complete=True))
        rows[:, empty] = drawn.view(n, count, -1)
    some = (gaps.any(1) & ~empty).nonzero().squeeze(1)
    if len(some):
        fitted = _Fitted(model, x[some], None if given is None else given[some])
        for chunk in torch.arange(len(some), device=x.device).split(max(1, MAX_POINTS // proposals)):
            drawn, effective[some[chunk]] = fitted.resampled(chunk, n, proposals)
            rows[:, some[chunk]] = torch.where(gaps[some[chunk]], drawn, x[some[chunk]])
    return Completed(rows, effective)


class _Fitted:
    """Proposals for rows (B, D) that lack cells, fitted to draws of the model."""

    def __init__(self, model: TableDensity, x: Tensor, given: Tensor | None) -> None:
        self.model, self.x, self.given = model, x, given
        columns, self.gaps = model.columns, x.isnan()
        inner = [0.0 if c.is_category else c.from_scale(x.new_zeros(()), recorded=False).item() for c in columns]
        self.rows = encode(columns, torch.where(self.gaps, x.new_tensor(inner), x), noise=False)
        contexts = None if given is None else given[torch.arange(DRAWS, device=x.device) % len(x)]
        self.states, y = model.sample_encoded(DRAWS, contexts, complete=True)
        y = torch.where(present_numbers(model.columns, self.states), y.double(), math.nan)
        self.mean = y.nanmean(0).nan_to_num(0.0)
        self.scale = (y - self.mean).square().nanmean(0).sqrt()
        self.scale = torch.where(self.scale > 0, self.scale, 1.0)  # of a constant, and of one that is never present
        features = [x.new_zeros(len(x), 0), x.new_zeros(DRAWS, 0)]
        if given is not None and contexts is not None:
            spread = contexts.double().std(0, correction=0)
            features = [part.double() / torch.where(spread > 0, spread, 1.0) for part in (given, contexts)]
        self.known = torch.cat([features[0], (self.rows.y - self.mean) / self.scale], 1)
        self.drawn = torch.cat([features[1], (y - self.mean) / self.scale], 1)  # NaN where not on the scale
        self.given_count = features[0].shape[1]
        self.frequencies = []
        for s, i in zip(self.states.T, model.discrete, strict=True):
            allowed = torch.arange(columns[i].states, device=x.device) < columns[i].states - columns[i].gaps
            counts = torch.bincount(s, minlength=columns[i].states).double() + allowed  # each occurs once more
            self.frequencies.append(counts / counts.sum())

    def resampled(self, chunk: Tensor, n: int, proposals: int) -> tuple[Tensor, Tensor]:
        """Return completions (n, b, D) of a chunk of b rows, and their effective sample sizes (b,)."""
        parts, log_q = zip(*(self._propose(row, proposals) for row in chunk.tolist()), strict=True)
        proposed = Encoded(*(torch.cat(part) for part in zip(*parts, strict=True)))
        given = None if self.given is None else self.given[chunk].repeat_interleave(proposals, 0)
        log_p = self.model.log_prob_encoded(proposed, given).double()
        weights = (log_p.view(len(chunk), -1) - torch.stack(log_q)).softmax(1)
        starts = proposals * torch.arange(len(chunk), device=chunk.device)
        picked = (starts + weights.multinomial(n, replacement=True).T).flatten()
        rows = self.model.decode(proposed.states[picked], proposed.y[picked])
        return rows.view(n, len(chunk), -1), 1 / weights.square().sum(1)

    def _propose(self, row: int, n: int) -> tuple[Encoded, Tensor]:
        """Draw n proposals for a row, and return them with log q (n,)."""
        model, gaps = self.model, self.gaps[row]
        proposal = self._proposal(row)
        new_states, z = proposal.sample(n)
        new_present = proposal.present(new_states)
        hidden, unknown = gaps[model.numbers], gaps[model.discrete]
        observed = (~gaps).nonzero().squeeze(1).tolist()
        rows = encode([model.columns[i] for i in observed], self.x[row, observed].expand(n, -1))
        states = self.rows.states[row].repeat(n, 1)
        states[:, unknown] = new_states
        y, present = (part[row].repeat(n, 1) for part in (self.rows.y, self.rows.present))
        y[:, ~hidden], present[:, ~hidden] = rows.y, rows.present
        y[:, hidden] = torch.where(new_present, self.mean[hidden] + self.scale[hidden] * z, 0.0)
        present[:, hidden] = new_present
        log_q = proposal.log_prob(new_states, z) - (new_present * self.scale[hidden].log()).sum(1)
        return Encoded(states, y, present, rows.log_det), log_q

    def _proposal(self, row: int) -> Proposal:
        """Fit the proposal of a row to the draws that are nearest to it."""
        model, known = self.model, self.known[row]
        hidden, unknown = self.gaps[row][model.numbers], self.gaps[row][model.discrete]
        seen = torch.cat([hidden.new_ones(self.given_count), ~hidden & self.rows.present[row]])
        apart = (self.drawn[:, seen] - known[seen]).square().nan_to_num(0.0).sum(1)
        differ = (self.states != self.rows.states[row])[:, ~unknown].sum(1)
        near = (apart + MISMATCH * differ).topk(NEIGHBOURS, largest=False).indices
        chosen = torch.cat([near, torch.randint(DRAWS, (OTHERS,), device=near.device)])
        numbers = _imputed(self.drawn[chosen])
        x, y = numbers[:, seen], numbers[:, self.given_count :][:, hidden]
        x_mean, y_mean = x[:NEIGHBOURS].mean(0), y[:NEIGHBOURS].mean(0)
        dx, dy = x[:NEIGHBOURS] - x_mean, y[:NEIGHBOURS] - y_mean
        slopes = torch.linalg.solve(dx.mT @ dx + RIDGE * torch.eye(dx.shape[1]).to(dx), dx.mT @ dy)
        residuals = dy - dx @ slopes
        centers = torch.cat([y_mean + (known[seen] - x_mean) @ slopes + residuals, y[NEIGHBOURS:]])
        covariance = residuals.mT @ residuals / NEIGHBOURS + FLOOR * torch.eye(dy.shape[1]).to(dy)
        variables = [i for i in model.discrete if self.gaps[row, i]]
        switches = [variables.index(i) if i in variables else -1 for i in model.numbers if self.gaps[row, i]]
        frequencies = [each for each, gap in zip(self.frequencies, unknown, strict=True) if gap]
        return Proposal(
            self.states[chosen][:, unknown],
            frequencies,
            centers,
            covariance,
            torch.tensor(switches, device=near.device, dtype=torch.int64),
        )


def _imputed(numbers: Tensor) -> Tensor:
    """Return numbers (M, D) with one at random of the same column in place of every NaN; 0 if there is none."""
    numbers = numbers.clone()
    for column in numbers.T:
        missing = column.isnan()
        known = column[~missing]
        count = int(missing.sum())
        column[missing] = known[torch.randint(len(known), (count,), device=known.device)] if len(known) else 0.0
    return numbers
