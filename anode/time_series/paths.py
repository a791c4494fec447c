"""Paths of states through time: solutions of an ODE from one start, or with a jump at every observation.

Times are relative to the start of each series. A batch is one solve: a series of length L is rescaled to the unit
interval, dy/ds = L f(L s, y), and the dense output gives its row at its times without evaluations of the field
(:meth:`anode.Solver.states_at`). The union of all times on a common clock would cost more: each series would be
evaluated at the times of all others, and a short one integrated beyond its end, where the field is not trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import override

from anode.fields import Field
from anode.solver import Solver
from anode.time_series.encoders import ObservedStart, PosteriorStart
from anode.time_series.series import History


class CalendarField(Field):
    """A field with calendar features as context, f(t, y, c) with c = (sin, cos)(phase + rate t) for each period.

    Its own context is the phase 2 pi start / period of each series, (B, P), so that t is the time since the start.

    Args:
        field: a field with 2 P context features.
        periods: P periods, in the units of the data.
    """

    rates: Tensor

    def __init__(self, field: Field, periods: tuple[float, ...]) -> None:
        super().__init__()
        self.field = field
        self.periods = periods
        self.register_buffer("rates", torch.zeros(len(periods)))
        self.set_unit(1.0)

    def set_unit(self, unit: float) -> None:
        """Set the unit of t, in the units of the data."""
        self.rates.copy_(self.rates.new_tensor([2 * math.pi * unit / period for period in self.periods]))

    def phases(self, start: Tensor) -> Tensor:
        """Return the phases of times (B,) in the units of the data, (B, P)."""
        shares = torch.stack([start.double() / period % 1 for period in self.periods], dim=1)
        return (2 * math.pi * shares).to(self.rates.dtype)

    @override
    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        assert c is not None
        angles = c + (t.unsqueeze(-1) if t.ndim else t) * self.rates
        return self.field(t, x, torch.cat([angles.sin(), angles.cos()], dim=1))


class _Paths(nn.Module):
    """A field and the solver that reads its solutions off at times of each row."""

    def __init__(self, field: Field, solver: Solver) -> None:
        super().__init__()
        self.field = field
        self.solver = solver

    def phases(self, history: History) -> Tensor | None:
        """Return the context of the field, if it has calendar features."""
        return self.field.phases(history.start) if isinstance(self.field, CalendarField) else None

    def read_off(
        self, y: Tensor, since: Tensor, until: Tensor, times: Tensor, rows: Tensor, phases: Tensor | None
    ) -> Tensor:
        """Solve from states y (R, S) at times ``since`` (R,) up to ``until`` (R,), for the states (N, S) of N rows.

        Args:
            y: initial states.
            since: initial time of each row.
            until: end time of each row.
            times: times (N,), each between the ends of its row.
            rows: rows (N,).
            phases: context of the field.
        """
        length = until - since

        def f(s: Tensor, y: Tensor) -> Tensor:
            return length[:, None] * self.field(torch.addcmul(since, length, s.to(length.dtype)), y, phases)

        fractions = (times - since[rows]) / torch.where(length > 0, length, 1.0)[rows]
        return self.solver.states_at(f, y, 0.0, fractions.clamp(0, 1), rows, (phases,), self.field)


class SolvedPaths(_Paths):
    """Solutions of an ODE from one initial state through the history and beyond.

    Args:
        start: the initial state.
        field: the field.
        solver: numerics.
    """

    def __init__(self, start: ObservedStart | PosteriorStart, field: Field, solver: Solver) -> None:
        super().__init__(field, solver)
        self.dim = start.dim
        self.start = start

    @override
    def forward(self, history: History, times: Tensor, samples: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the states (K, B, T, S) at times (B, T), and the divergence (B,) of :class:`Start`.

        Args:
            history: observations.
            times: of the states.
            samples: see :class:`PosteriorStart`.
            noise: standard deviation of Gaussian noise on the initial states.
        """
        states, kl = self.start(history, samples)
        if noise:
            states = states + noise * torch.randn_like(states)
        phases = self.phases(history)
        (draws, batch, _), n = states.shape, times.shape[1]
        until = times.amax(1).repeat(draws)
        rows = torch.arange(draws * batch, device=times.device)
        path = self.read_off(
            states.flatten(0, 1),
            torch.zeros_like(until),
            until,
            times.repeat(draws, 1).flatten(),
            rows.repeat_interleave(n),
            None if phases is None else phases.repeat(draws, 1),
        )
        return path.view(draws, batch, n, -1), kl


class FilteredPaths(_Paths):
    """Hidden states that follow an ODE between observations and jump at them (ODE-RNN).

    The state at a time depends on the observations before it, so that the prediction of an observation never sees it.
    A batch is one solve for every observation, since each jump needs the state before it.

    Args:
        features: number D of features.
        width: width S of the hidden state.
        field: the field.
        solver: numerics.

    References:
        Rubanova, Chen, Duvenaud 2019, arXiv 1907.03907, section 3.1.
    """

    def __init__(self, features: int, width: int, field: Field, solver: Solver) -> None:
        super().__init__(field, solver)
        self.dim = width
        self.before = nn.Parameter(torch.zeros(width))  # the state before the first observation
        self.jump = nn.GRUCell(2 * features, width)

    @override
    def forward(self, history: History, times: Tensor, samples: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the states (1, B, T, S) at times (B, T), and zeros (B,); see :class:`SolvedPaths`."""
        (batch, n), steps, phases = times.shape, history.times.shape[1], self.phases(history)
        every = torch.arange(batch, device=times.device)
        valid = torch.arange(steps, device=times.device) < history.lengths[:, None]
        known = ((history.times[:, :, None] < times[:, None]) & valid[:, :, None]).sum(1).flatten()  # observations
        flat, rows = times.flatten(), every.repeat_interleave(n)
        h = self.before.expand(batch, -1)
        if noise:
            h = h + noise * torch.randn_like(h)
        picked = [(known == 0).nonzero().flatten()]
        found = [h[rows[picked[0]]]]
        for j in range(steps):
            seen = self.jump(torch.cat([history.values[:, j], history.mask[:, j]], dim=1), h)
            h = torch.where(valid[:, j, None], seen, h)
            if j + 1 < steps:
                here = ((known == j + 1) & (history.lengths[rows] > j + 1)).nonzero().flatten()
                since, until = history.times[:, j], history.times[:, j + 1]
                ends = torch.cat([until, flat[here]])
                states = self.read_off(h, since, until, ends, torch.cat([every, rows[here]]), phases)
                h, inside = states[:batch], states[batch:]
                picked.append(here)
                found.append(inside)
        here = (known == history.lengths[rows]).nonzero().flatten()
        since = history.times[:, -1]
        until = torch.maximum(since, times.amax(1))
        picked.append(here)
        found.append(self.read_off(h, since, until, flat[here], rows[here], phases))
        path = torch.cat(found)[torch.cat(picked).argsort()]
        return path.view(1, batch, n, -1), times.new_zeros(batch)
