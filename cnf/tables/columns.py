"""Columns of a table: which values they take, and the scale on which a flow sees them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from anode.errors import InputError, config
from anode.units import moments

Kind = Literal["continuous", "positive", "bounded", "ordinal", "date", "category"]
Scale = Literal["linear", "log", "logit", "asinh"]


NAMED_ATOMS = 10  # of more atoms a flow sees the values, of fewer the names


@config
class Column:
    """One column of a table, in plain values that are stored with a model.

    A cell is a number: the value, the code of a category (its place in ``categories``), or a date in days since
    ``first``. A missing cell is NaN. A cell of a number is in one of several states: a value on the scale, one of the
    atoms, or missing.

    Attributes:
        name: of the column.
        kind: category, whose cells are codes; ordinal, whole numbers that have probabilities, by a bound; the others
            have densities: continuous, positive (above ``low``), bounded (between ``low`` and ``high``), date.
        categories: names of the categories, by code.
        scale: function of a value x: x itself, log (x - low), the logit of (x - low) / (high - low), or asinh of
            (x - center) / spread. A flow sees it less its center, divided by its spread; asinh as it is.
        low: values are above it; None without a bound.
        high: values are below it; None without a bound.
        center: middle of the values on the scale, or for asinh of the values themselves; see :meth:`fitted`.
        spread: their standard deviation, or for asinh any measure of the width of most values.
        atoms: single values that have probabilities, not densities, in increasing order; they do not lie on the scale.
        step: distance of recorded values, which stand for all values nearer than half of it; 0 if not rounded.
        origin: one of the recorded values.
        gaps: True if cells may be missing, with a probability that is learned.
        first: day 0 of a date, such as 2024-01-31.
        day_first: True if dates are written as 31/01/2024.
    """

    name: str
    kind: Kind = "continuous"
    categories: tuple[str, ...] = ()
    scale: Scale = "linear"
    low: float | None = None
    high: float | None = None
    center: float = 0.0
    spread: Annotated[float, Field(gt=0)] = 1.0
    atoms: tuple[float, ...] = ()
    step: Annotated[float, Field(ge=0)] = 0.0
    origin: float = 0.0
    gaps: bool = False
    first: str | None = None
    day_first: bool = False

    def __post_init__(self) -> None:
        if self.kind == "category" and not self.categories:
            raise InputError(f"categories=() of column {self.name} must name the values of a category")
        if (self.scale in ("log", "logit") and self.low is None) or (self.scale == "logit" and self.high is None):
            raise InputError(
                f"scale={self.scale!r} of column {self.name} needs low" + ", high" * (self.scale == "logit")
            )
        if any(one >= other for one, other in pairwise(self.atoms)):
            raise InputError(f"atoms={self.atoms} of column {self.name} must increase")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise InputError(f"low={self.low} of column {self.name} must be below high={self.high}")

    @property
    def is_category(self) -> bool:
        """True if cells are codes of categories."""
        return self.kind == "category"

    @property
    def states(self) -> int:
        """Number of discrete states of a cell: categories, or on the scale, then atoms; then missing, if it can be."""
        return (len(self.categories) or 1 + len(self.atoms)) + self.gaps

    @property
    def recurs(self) -> bool:
        """True if there are more than 10 atoms, of which a flow sees the values, not an indicator of each."""
        return len(self.atoms) > NAMED_ATOMS

    @property
    def num_features(self) -> int:
        """Number of features by which a flow sees the state of a cell, see :func:`state_features`."""
        return 1 + self.gaps if self.recurs else self.states * (self.states > 1)

    @property
    def bounds(self) -> tuple[float, float]:
        """The open interval of values on the scale: recorded values stand for half a step more on either side."""
        low, high = (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)
        return low - self.step / 2, high + self.step / 2

    def state_of(self, x: Tensor) -> Tensor:
        """Return the states (N,) of cells (N,), int64.

        Raises:
            InputError: for a cell that has none: a missing one without ``gaps``, an unknown code, one out of bounds.
        """
        if self.is_category:
            state = x.nan_to_num(len(self.categories)).long()
            known = (x.isnan() | (x == state)) & (state >= 0) & (state < self.states)
        else:
            state = torch.zeros_like(x, dtype=torch.int64)
            if self.atoms:
                atoms = torch.tensor(self.atoms, dtype=x.dtype, device=x.device)
                place = torch.searchsorted(atoms, x.contiguous()).clamp_max(len(atoms) - 1)
                state = torch.where(atoms[place] == x, place + 1, state)
            state[x.isnan()] = 1 + len(self.atoms)
            low, high = self.bounds
            known = torch.where(state == 0, (x > low) & (x < high) & x.isfinite(), state < self.states)
        if not known.all():
            row = int((~known).nonzero()[0])
            raise InputError(f"column {self.name} cannot hold {x[row].item():g} (row {row}): {self._allowed()}")
        return state

    def value_of(self, state: Tensor, x: Tensor) -> Tensor:
        """Return cells (N,) from their states and values on the scale, (N,); those of categories do not matter."""
        fixed = [*range(len(self.categories))] or [math.nan, *self.atoms]
        table = torch.tensor([*fixed, math.nan][: self.states], dtype=x.dtype, device=x.device)
        return table[state] if self.is_category else torch.where(state == 0, x, table[state])

    def fitted(self, x: Tensor, weights: Tensor | None = None) -> Column:
        """Return the column with center and spread of the training cells x (N,), for scales other than asinh.

        Cells can have relative weights (N,).
        """
        if self.is_category or self.scale == "asinh":
            return self
        kept = x.isfinite() if self.recurs else self.state_of(x) == 0
        if weights is not None:
            kept &= weights > 0
        if not kept.any():
            return replace(self, center=0.0, spread=1.0)
        y = replace(self, center=0.0, spread=1.0).to_scale(x[kept])[0]
        center, spread = moments(y, None if weights is None else weights[kept])
        return replace(self, center=center.item(), spread=spread.item() or 1.0)

    def to_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a flow sees of values (N,), and the logarithms of the slopes there."""
        low, high = self.bounds
        if self.scale == "asinh":
            z = (x - self.center) / self.spread
            return z.asinh(), -0.5 * (1 + z.square()).log() - math.log(self.spread)
        if self.scale == "log":
            y = (x - low).log()
            slope = -y
        elif self.scale == "logit":
            y = ((x - low) / (high - x)).log()
            slope = math.log(high - low) - (x - low).log() - (high - x).log()
        else:
            y, slope = x, torch.zeros_like(x)
        return (y - self.center) / self.spread, slope - math.log(self.spread)

    def from_scale(self, y: Tensor, recorded: bool = True) -> Tensor:
        """Return the values (N,) of what a flow sees, by default as they are recorded: rounded, within the bounds."""
        low, high = self.bounds
        if self.scale == "asinh":
            return self._recorded(self.center + self.spread * y.sinh(), recorded)
        y = self.center + self.spread * y
        if self.scale == "log":
            y = low + y.exp()
        elif self.scale == "logit":
            y = low + (high - low) * y.sigmoid()
        return self._recorded(y, recorded)

    def _recorded(self, x: Tensor, recorded: bool) -> Tensor:
        if not recorded:
            inside = 0.501 * self.step  # so that noise as wide as a step stays within the bounds
            low, high = self.bounds
            return x.clamp(low + inside, high - inside) if self.step else x
        if self.step:
            x = self.origin + self.step * ((x - self.origin) / self.step).round()
        return x if self.low is None and self.high is None else x.clamp(self.low, self.high)

    def _allowed(self) -> str:
        if self.is_category:
            return f"its codes are 0 to {len(self.categories) - 1}" + ", NaN if missing" * self.gaps
        low, high = (format(end, "g") for end in self.bounds)
        return f"values lie between {low} and {high}" + ", NaN if missing" * self.gaps


class Encoded(NamedTuple):
    """Rows as the parts of a density take them."""

    states: Tensor  # of the columns that have several, (B, V), int64
    y: Tensor  # numbers on their scales, 0 where they are not present, (B, D)
    present: Tensor  # True for numbers on their scales, (B, D)
    log_det: Tensor  # of the scales, summed over the present numbers, (B,)


def encode(columns: Sequence[Column], x: Tensor, noise: bool = True) -> Encoded:
    """Return the states and the numbers of rows x (B, len(columns)), float64.

    Values that are recorded in steps get uniform noise as wide as a step, unless ``noise`` is False. The logarithm of
    the step of ordinal columns counts in the log-determinant, which makes probabilities of densities.
    """
    states, y, present = [x.new_zeros(len(x), 0).long()], [x.new_zeros(len(x), 0)], [x.new_zeros(len(x), 0).bool()]
    log_det = x.new_zeros(len(x))
    for column, cells in zip(columns, x.T, strict=True):
        state = column.state_of(cells)
        if column.states > 1:
            states.append(state.unsqueeze(1))
        if column.is_category:
            continue
        on_scale = state == 0
        if column.step and noise:
            cells = cells + column.step * (torch.rand_like(cells) - 0.5)
        value, slope = column.to_scale(cells)
        if column.kind == "ordinal":
            slope = slope + math.log(column.step or 1.0)
        y.append(torch.where(on_scale, value, 0.0).unsqueeze(1))
        present.append(on_scale.unsqueeze(1))
        log_det = log_det + torch.where(on_scale, slope, 0.0)
    return Encoded(torch.cat(states, 1), torch.cat(y, 1), torch.cat(present, 1), log_det)


def state_features(columns: Sequence[Column], states: Tensor, like: Tensor) -> Tensor:
    """Return features (B, F) of the states (B, V) of columns that have several: indicators.

    A column that recurs has the value of its atom on its scale, 0 without one, and an indicator of a missing cell.
    """
    features = [like.new_zeros(len(states), 0)]
    for column, state in zip(columns, states.T, strict=True):
        if column.recurs:
            atoms = torch.tensor([math.nan, *column.atoms, math.nan], dtype=torch.float64, device=states.device)
            value = column.to_scale(atoms)[0].nan_to_num(0.0)[state]
            features.append(value.unsqueeze(1).to(like))
            if column.gaps:
                features.append((state == column.states - 1).unsqueeze(1).to(like))
        else:
            features.append(F.one_hot(state, column.states).to(like))
    return torch.cat(features, 1)


def given_features(given: Sequence[Column], c: Tensor) -> Tensor:
    """Return features (B, F) of given columns c (B, K), float64: those of states, and numbers on their scales."""
    features = [c.new_zeros(len(c), 0)]
    for column, cells in zip(given, c.T, strict=True):
        state = column.state_of(cells)
        if column.states > 1:
            features.append(state_features([column], state.unsqueeze(1), c))
        if not column.is_category:
            features.append(torch.where(state == 0, column.to_scale(cells)[0], 0.0).unsqueeze(1))
    return torch.cat(features, 1)


def present_numbers(columns: Sequence[Column], states: Tensor) -> Tensor:
    """Return True for the numbers (B, D) that are on their scales in states (B, V) of the columns that have several."""
    present, place = [], 0
    for column in columns:
        if not column.is_category:
            present.append(states[:, place] == 0 if column.states > 1 else states.new_ones(len(states)).bool())
        place += column.states > 1
    return torch.stack(present, 1) if present else states.new_zeros(len(states), 0).bool()


def flow_features(columns: Sequence[Column], states: Tensor, given: Tensor | None, like: Tensor) -> Tensor | None:
    """Return the context (B, F) of the flow of numbers; None without features.

    It begins with the mask of the numbers on their scales, if some can be absent; then come features of the states
    (B, V) of the columns that have several, and those of what is given.
    """
    discrete = [column for column in columns if column.states > 1]
    parts = [state_features(discrete, states, like)] if discrete else []
    if any(not column.is_category for column in discrete):
        parts = [present_numbers(columns, states).to(like), *parts]
    parts += [] if given is None else [given.to(like)]
    return torch.cat(parts, 1) if parts else None
