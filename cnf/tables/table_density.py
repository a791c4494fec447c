"""The density of rows of a table: a probability of categories and states, and a flow of the numbers given these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from typing_extensions import override

from anode.errors import InputError
from anode.inputs import check_batch, to_tensor, whole_number
from cnf.batches import max_copies
from cnf.flow import Density, Elbo, MatchingPair, without_autocast
from cnf.lifted_flow import LiftedFlow
from cnf.mixture_flow import MixtureFlow
from cnf.tables.categories import Categories
from cnf.tables.columns import Column, Encoded, encode, flow_features, given_features
from cnf.tables.contexts import context_row
from cnf.transforms import Compose, SolveOptions, Transform

DRAWS = 8  # of the noise within the steps of recorded values, for log_prob


class TableDensity(Density):
    """The density of rows whose columns are numbers, categories, or numbers with atoms and gaps.

        log p(row given c) = log p(states given c) + log p(numbers on their scales given states, c)

    A row is float64 (D,): values, codes of categories, NaN where a cell is missing, see :class:`Column`. States are the
    category of a cell, or whether a number is on its scale, an atom, or missing. The flow is of the numbers on their
    scales; numbers in other states do not have a density and are masked.

    For categories the result is a probability, for numbers a density in their units, and for ordinal columns a
    probability again. Values that were recorded in steps stand for all values nearer than half a step; the logarithm of
    their mean density is bounded from below by draws of uniform noise.

    Args:
        columns: of the rows, in order.
        given: columns of the contexts c, rows (K,) of them.
        categories: the probability of the states of all columns that have several; None if none has.
        flow: density of the numbers, whose context are features of states and c; None without numbers.

    References:
        Theis et al. 2016, arXiv 1511.01844 (the bound by uniform noise).
    """

    def __init__(
        self,
        columns: Sequence[Column],
        given: Sequence[Column],
        categories: Categories | None,
        flow: Density | None,
    ) -> None:
        super().__init__()
        self.columns, self.given = tuple(columns), tuple(given)
        self.categories, self.flow = categories, flow
        self.event_shape = torch.Size([len(self.columns)])
        self.context = len(self.given)
        self.support = constraints.independent(constraints.real, 1)
        self.numbers = [i for i, column in enumerate(self.columns) if not column.is_category]
        self.discrete = [i for i, column in enumerate(self.columns) if column.states > 1]
        self.stochastic = any(column.step for column in self.columns) or isinstance(flow, LiftedFlow)
        self.couples_base = flow is not None and flow.couples_base

    @property
    @override
    def kind(self) -> str:
        if self.flow is None:
            return "exact"
        return "bound" if self.stochastic and self.flow.kind != "estimate" else self.flow.kind

    @property
    @override
    def like(self) -> Tensor:
        return next(self.parameters()).new_empty(0)

    @property
    @override
    def sample_dtype(self) -> torch.dtype:
        return torch.float64

    @property
    @override
    def arguments(self) -> dict[str, Any] | None:
        config = self.config
        if config is None:
            return None
        columns, given = ([asdict(column) for column in each] for each in (self.columns, self.given))
        return {"columns": columns, "given": given, **asdict(config)}

    @override
    def prepare(self, name: str, x: Any, c: Any, finite: bool = True) -> tuple[Tensor, Tensor | None]:
        """Convert rows x (B, D) to float64, check them, and return them with the features of their contexts."""
        x = to_tensor(name, x).to(self.like.device, torch.float64)
        check_batch(name, x, self.event_shape, "table")
        return x, self.prepare_context(c, len(x))

    @override
    def prepare_context(self, c: Any, n: int, finite: bool = True) -> Tensor | None:
        """Return features of the given columns (n, K): indicators of states, and numbers on their scales."""
        c = None if c is None else to_tensor("c", c).to(self.like.device, torch.float64)
        if not self.given:
            if c is not None and c.shape[-1]:
                raise InputError(f"c of shape {tuple(c.shape)} is given, but the density is given no columns: omit it")
            return None
        names = ", ".join(column.name for column in self.given)
        if c is None or c.shape != (n, len(self.given)):
            got = "missing" if c is None else f"of shape {tuple(c.shape)}"
            raise InputError(f"c is {got}: pass rows ({n}, {len(self.given)}) of {names}")
        return given_features(self.given, c).to(self.like)

    def features(self, states: Tensor, given: Tensor | None) -> Tensor | None:
        """Return the context (B, F) of the flow, see :func:`cnf.tables.columns.flow_features`."""
        return flow_features(self.columns, states, given, self.like)

    @override
    def elbo(
        self, x: Tensor, c: Tensor | None = None, options: SolveOptions | None = None, prune: float | None = None
    ) -> Elbo:
        x, given = self.prepare("x", x, c, finite=False)
        rows = encode(self.columns, x)
        value = self._log_prob_states(rows.states, given)
        if self.flow is None:
            return Elbo(value, {})
        keyword = {} if prune is None else {"prune": prune}
        bound = self.flow.elbo(rows.y.to(self.like), self.features(rows.states, given), options, **keyword)
        return Elbo(value + bound.value + self._corrections(rows), bound.energies, bound.kl)

    @override
    @without_autocast
    def log_prob(
        self, x: Tensor, c: Tensor | None = None, samples: int | None = None, prune: float | None = None
    ) -> Tensor:
        """Return log p(row given c) in nats, (B,).

        Args:
            x: rows (B, D).
            c: rows (B, K) of the given columns, or None.
            samples: number of draws of noise, if columns are recorded in steps; 8 if omitted, one of an estimate.
            prune: responsibility below which components of a mixture are left out, see :meth:`MixtureFlow.log_prob`.

        Raises:
            InputError: for cells that no column of the table can hold.
        """
        draws = whole_number("samples", samples or (DRAWS if self.kind == "bound" else 1))
        self.check_num_samples(draws)
        x, given = self.prepare("x", x, c)
        first = encode(self.columns, x, noise=False)
        value = self._log_prob_states(first.states, given)
        if self.flow is None:
            return value
        features, copies = self.features(first.states, given), min(draws, max_copies(x))
        found: list[Tensor] = []
        for done in range(0, draws, copies):
            k = min(copies, draws - done)
            rows = encode(self.columns, x.repeat(k, 1))
            repeated = None if features is None else features.repeat(k, 1)
            log_p = self._log_prob_numbers(rows.y.to(self.like), repeated, prune) + self._corrections(rows)
            found.append(log_p.view(k, len(x)))
        return value + torch.cat(found).logsumexp(0) - math.log(draws)

    def log_prob_encoded(self, rows: Encoded, given: Tensor | None = None) -> Tensor:
        """Return the log-densities (B,) of states and numbers on their scales, plus the log-determinants in ``rows``.

        Args:
            rows: from :func:`~cnf.tables.columns.encode`, or put together.
            given: features (B, F) of the given columns, from :meth:`prepare_context`.
        """
        value = self._log_prob_states(rows.states, given)
        if self.flow is None:
            return value
        features = self.features(rows.states, given)
        return value + self._log_prob_numbers(rows.y.to(self.like), features, None) + self._corrections(rows)

    @override
    def check_num_samples(self, samples: int) -> None:
        super().check_num_samples(samples)
        if samples > 1 and self.flow is not None and self.flow.kind == "estimate":
            raise InputError(
                f"samples={samples} of an estimated log-density do not give a bound: use divergence='exact' or elbo"
            )

    @override
    def matching_pair(self, x: Tensor, c: Tensor | None = None) -> MatchingPair:
        x, given = self.prepare("x", x, c, finite=False)
        rows = encode(self.columns, x)
        return self._flow.matching_pair(rows.y.to(self.like), self.features(rows.states, given))

    @override
    def split(self) -> tuple[Compose, Transform]:
        return self._flow.split()

    @override
    @without_autocast
    @torch.no_grad()
    def sample(
        self,
        n: int,
        c: Tensor | None = None,
        temperature: float = 1.0,
        complete: bool = False,
        given: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Draw n rows (n, D), float64, as they are recorded.

        Args:
            n: number of rows.
            c: one row (K,) of the given columns for all, or one for each (n, K), or None.
            temperature: see :meth:`Density.sample`; it does not apply to categories and states.
            complete: draw rows without missing cells: given that there are none.
            given: c by name, such as ``{"species": "Adelie", "flipper_length_mm": 200}``, see :func:`context_row`.
        """
        if given is not None:
            if c is not None:
                raise InputError("c and given are both passed: omit one")
            c = context_row(self.given, given)
        return self.decode(*self.sample_encoded(*self.prepare_draws(n, c), temperature, complete))

    def sample_encoded(
        self, n: int, given: Tensor | None, temperature: float = 1.0, complete: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draw states (n, V) and numbers on their scales (n, D'); ``given`` is from :meth:`prepare_draws`."""
        states = self.like.new_zeros(n, 0).long()
        if self.categories is not None:
            columns = [self.columns[i] for i in self.discrete]
            allowed = [torch.arange(each.states) < each.states - (complete and each.gaps) for each in columns]
            states = self.categories.sample(n, given, allowed=allowed)
        y = self.like.new_zeros(n, 0)
        if self.flow is not None:
            y = self.flow.sample(n, self.features(states, given), temperature)
        return states, y

    def decode(self, states: Tensor, y: Tensor, recorded: bool = True) -> Tensor:
        """Return rows (B, D) of states (B, V) and numbers on their scales (B, D')."""
        place = {i: position for position, i in enumerate(self.discrete)}
        scaled = dict(zip(self.numbers, y.double().T, strict=True))
        nothing, rows = y.new_zeros(len(y), dtype=torch.float64), []
        for i, column in enumerate(self.columns):
            cells = column.from_scale(scaled[i], recorded) if i in scaled else nothing
            rows.append(column.value_of(states[:, place[i]], cells) if i in place else cells)
        return torch.stack(rows, 1)

    @override
    def round_trip(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        x, given = self.prepare("x", x, c)
        rows = encode(self.columns, x, noise=False)
        y, features = rows.y.to(self.like), self.features(rows.states, given)
        if isinstance(self.flow, LiftedFlow):  # whose round trip is of lifted points
            y = self.flow.lift.project(self.flow.round_trip(self.flow.lift(y, features).point, features))
        elif self.flow is not None:
            y = self.flow.round_trip(y, features)
        return self.decode(rows.states, y, recorded=False)

    @property
    def _flow(self) -> Density:
        if self.flow is None:
            raise InputError("the table holds categories alone, without a flow: use the categories")
        return self.flow

    def _log_prob_states(self, states: Tensor, given: Tensor | None) -> Tensor:
        if self.categories is None:
            return self.like.new_zeros(len(states))
        return self.categories.log_prob(states, given)

    def _log_prob_numbers(self, y: Tensor, features: Tensor | None, prune: float | None) -> Tensor:
        flow = self._flow
        if isinstance(flow, LiftedFlow):
            return flow.log_prob(y, features, samples=1, prune=prune)
        if prune is None:
            return flow.log_prob(y, features)
        if not isinstance(flow, MixtureFlow):
            raise InputError(f"prune={prune} is for a mixture of flows: omit it")
        return flow.log_prob(y, features, prune)

    def _corrections(self, rows: Encoded) -> Tensor:
        """Return the log-determinants of the scales, less what the base says of absent numbers, which are at zero."""
        absent = (~rows.present).sum(1)
        return (rows.log_det + 0.5 * math.log(2 * math.pi) * absent).to(self.like)
