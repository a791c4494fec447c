"""An autoregressive model of discrete variables, such as the categories of a table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode.errors import InputError
from anode.inputs import check_finite, to_tensor, whole_number
from anode.units import to_shares
from cnf.bases import sample_categorical
from cnf.batches import check_contexts, weighted_mean

BATCH = 2048  # rows of one step; fewer are taken together
FEW_ROWS, PARTS = 5000, 5  # below, every fifth is held out in turn; above, a tenth once
FEWEST_ROWS = 10  # fewer rows keep their frequencies
MAX_STEPS, STEPS_A_CHECK, PATIENCE = 1000, 10, 8  # of the fit; checks of held-out rows without a gain
MAX_CHECKED = 20_000  # held-out rows
ERRORS = 2  # standard errors by which their likelihood must rise
RATE, RATE_STEPS = 0.03, 100  # learning rate: 0.03 / (1 + step / 100)
PENALTY = 0.5  # times the squares of the matrices: minus the logarithm of a standard normal prior


class Rows(NamedTuple):
    """Rows of a table: states (N, V), features (N, G), and weights (N,) that sum to the number of rows."""

    states: Tensor
    c: Tensor
    weights: Tensor

    def at(self, rows: Tensor) -> Rows:
        """Return the rows at indices, or where a mask is True."""
        return Rows(self.states[rows], self.c[rows], self.weights[rows])

    def merged(self) -> Rows:
        """Return different rows with the sums of their weights; those with features stay."""
        if self.c.shape[1]:
            return self
        states, rows = self.states.unique(dim=0, return_inverse=True)
        weights = self.weights.new_zeros(len(states)).index_add_(0, rows, self.weights)
        return Rows(states, self.c[: len(states)], weights)


class Categories(nn.Module):
    """An autoregressive model of V discrete variables, given G features c.

        p(s | c) = prod_v p(s_v | s_1 .. s_(v-1), c),    logits = b + D [s, c] + W silu(A [s, c] + a)

    with states s as indicators. Masks let the logits of s_v depend on s_1 .. s_(v-1) only. The matrix D alone is a
    multinomial logistic regression of each variable on those before it, and b alone the frequencies of the states.
    All states have equal probabilities until :meth:`fit`. The parameters have ``requires_grad=False``: the model is
    fitted once, like a whitening, and then stays as it is while a flow trains.

    Args:
        sizes: number of states of each variable, K_1 .. K_V.
        given: G.
        hidden: number of hidden units.

    Attributes:
        sizes: K_1 .. K_V.
        given: G.

    References:
        Germain et al. 2015, arXiv 1502.03509 (masks).

    Example:
        >>> states = torch.tensor([[0, 2], [1, 0]] * 100)
        >>> model = Categories((2, 3)).fit(states)
        >>> model.log_prob(states[:2]).exp().round(decimals=1)
        tensor([0.5000, 0.5000])
        >>> model.sample(5).shape
        torch.Size([5, 2])
    """

    to_hidden: Tensor
    to_logits: Tensor
    past: Tensor
    c_mean: Tensor
    c_scale: Tensor

    def __init__(self, sizes: Sequence[int], given: int = 0, hidden: int = 64) -> None:
        super().__init__()
        self.sizes = tuple(whole_number("sizes", size) for size in sizes)
        if not self.sizes:
            raise InputError("sizes=() must name at least one variable: pass the number of states of each")
        self.given, hidden = whole_number("given", given, 0), whole_number("hidden", hidden)
        # Inputs of s_v have the order v = 1 .. V, features 0. A hidden unit of order u sees inputs up to u, and logits
        # of s_v see orders below v.
        orders = torch.tensor([v for v, size in enumerate(self.sizes, 1) for _ in range(size)])
        inputs = torch.cat([orders, orders.new_zeros(self.given)])
        lowest = 0 if self.given else min(1, len(self.sizes) - 1)
        units = lowest + torch.arange(hidden) % (len(self.sizes) - lowest)
        self.register_buffer("to_hidden", inputs <= units[:, None])
        self.register_buffer("to_logits", units < orders[:, None])
        self.register_buffer("past", inputs < orders[:, None])
        self.register_buffer("c_mean", torch.zeros(self.given))
        self.register_buffer("c_scale", torch.ones(self.given))
        self.first = nn.Parameter(torch.zeros(hidden, len(inputs)), requires_grad=False)
        self.first_bias = nn.Parameter(torch.zeros(hidden), requires_grad=False)
        self.second = nn.Parameter(torch.zeros(len(orders), hidden), requires_grad=False)
        self.direct = nn.Parameter(torch.zeros(len(orders), len(inputs)), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(len(orders)), requires_grad=False)

    def one_hot(self, states: Tensor) -> Tensor:
        """Return indicators (N, K_1 + .. + K_V) of states (N, V), in the floating-point type of the model."""
        return self._one_hot(self._check_states(states))

    def log_prob(self, states: Tensor, c: Tensor | None = None) -> Tensor:
        """Return log p(states | c), (N,), of states (N, V), given features (N, G).

        Raises:
            InputError: for states outside 0 .. K_v - 1, and features that do not fit.
        """
        states = self._check_states(states)
        return self._log_prob(states, self._check_features(c, len(states)))

    def sample(
        self,
        n: int,
        c: Tensor | None = None,
        observed: Tensor | None = None,
        allowed: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Draw states (n, V), given features (n, G); :meth:`sample_and_weight` explains the other arguments."""
        return self.sample_and_weight(n, c, observed, allowed)[0]

    @torch.no_grad()
    def sample_and_weight(
        self,
        n: int,
        c: Tensor | None = None,
        observed: Tensor | None = None,
        allowed: Sequence[Tensor | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw states (n, V) one variable after the other, and return the logarithms of their importance weights, (n,).

            log weight = sum_(v observed) log p(s_v | s_<v, c) + sum_(v drawn) log p(s_v allowed | s_<v, c)

        A state that is drawn does not know the observed states after it. Samples that are resampled by their weights
        have the distribution p(s | observed and allowed states, c). The weights are 1 if neither is passed.

        Args:
            n: number of samples.
            c: features (n, G).
            observed: states (n, V) to keep, and -1 for those to draw.
            allowed: for each variable a mask (K_v,) of the states that may be drawn, or None for all.

        Raises:
            InputError: for arguments that do not fit, and a variable without a state to draw.
        """
        n = whole_number("n", n, 0)
        c = self._check_features(c, n)
        states = torch.full((n, len(self.sizes)), -1, device=self.bias.device)
        if observed is not None:
            states = self._check_states(observed, "observed", lowest=-1).clone()
            if len(states) != n:
                raise InputError(f"observed has {len(states)} rows for n={n} samples: pass one row for each")
        masks = self._check_allowed(allowed)
        indicators = self.bias.new_zeros(n, len(self.bias))
        log_weights = self.bias.new_zeros(n)
        ends = list(itertools.accumulate(self.sizes))
        for v, (end, size) in enumerate(zip(ends, self.sizes, strict=True)):
            log_p = self._logits(indicators, c)[:, end - size : end].log_softmax(1)
            allowed_log_p = log_p if (mask := masks[v]) is None else log_p.masked_fill(~mask, -torch.inf)
            drawn = states[:, v] < 0
            if not (mask is None or mask.any()) and drawn.any():
                raise InputError(f"allowed[{v}] forbids all states: allow one, or pass observed states of variable {v}")
            states[:, v] = torch.where(drawn, sample_categorical(allowed_log_p), states[:, v])
            chosen = states[:, v : v + 1]
            log_weights += torch.where(drawn, allowed_log_p.logsumexp(1), log_p.gather(1, chosen).squeeze(1))
            indicators[:, end - size : end].scatter_(1, chosen, 1)
        return states, log_weights

    def fit(self, states: Tensor, c: Tensor | None = None, weights: Any = None, seed: int = 0) -> Self:
        """Fit the model by maximum likelihood to states (N, V), given features (N, G).

        Training starts at the frequencies of the states. Held-out rows choose the number of steps, which is 0 unless
        their likelihood rises by more than chance; then the model trains on all rows. The matrices have a standard
        normal prior. One pseudo-row, spread evenly over the states of each variable, gives a positive probability to
        states that do not occur. The global random state does not change.

        Args:
            states: rows of 0 .. K_v - 1.
            c: features, which are standardised.
            weights: relative weights (N,) of the rows; equal if None.
            seed: of the held-out rows, the initial weights and the batches.

        Raises:
            InputError: for arguments that do not fit, and no row with a positive weight.
        """
        states = self._check_states(states)
        c = self._check_features(c, len(states)).detach()
        weights = torch.ones(len(states)) if weights is None else weights
        weights = to_shares(weights, len(states)).to(self.bias)
        rows = Rows(states, c, weights).at(weights > 0)
        rows = rows._replace(weights=rows.weights / rows.weights.mean())
        self._standardize(rows)
        n, generator = len(rows.weights), torch.Generator().manual_seed(seed)
        steps = 0
        if n >= FEWEST_ROWS and (len(self.sizes) > 1 or self.given):  # otherwise frequencies are all there is
            shuffled = torch.randperm(n, generator=generator, device="cpu").to(states.device)
            parts = shuffled.tensor_split(PARTS) if n < FEW_ROWS else (shuffled[: n // 10],)
            steps = self._best_steps(rows, parts, seed)
        self._train(rows, None, steps, seed)
        return self

    def _best_steps(self, rows: Rows, parts: Sequence[Tensor], seed: int) -> int:
        """Return the number of steps with the least mean NLL of rows that are held out, one part after the other."""
        curves = []
        for part in parts:
            rest = torch.ones_like(rows.weights, dtype=torch.bool).index_fill(0, part, False)
            curves.append(self._train(rows.at(rest), rows.at(part[:MAX_CHECKED]), MAX_STEPS, seed))
        checks = min(map(len, curves))
        table = torch.tensor([curve[:checks] for curve in curves], dtype=torch.float64)  # (parts, checks)
        best = int(table.mean(0).argmin())
        gains = table[:, 0] - table[:, best]
        error = gains.std() / len(gains) ** 0.5 if len(gains) > 1 else 0.0
        return STEPS_A_CHECK * best if gains.mean() > ERRORS * error else 0

    @torch.no_grad()
    def _train(self, rows: Rows, held_out: Rows | None, steps: int, seed: int) -> list[float]:
        """Train from the start, and return the NLL of held-out rows at every check, until it does not fall."""
        rows = rows.merged()
        held_out = None if held_out is None else held_out.merged()
        generator = torch.Generator().manual_seed(seed)
        self._start(rows, generator)
        n, ends, curve = rows.weights.sum(), rows.weights.double().cumsum(0), []
        prior = self._pseudo_row() / n
        self.requires_grad_(True)
        optimizer = torch.optim.Adam(self.parameters(), RATE, fused=True)
        for step in range(steps + 1):
            if held_out is not None and step % STEPS_A_CHECK == 0:
                curve.append(-weighted_mean(self._log_prob(held_out.states, held_out.c), held_out.weights).item())
                if len(curve) - 1 - min(range(len(curve)), key=curve.__getitem__) >= PATIENCE:
                    break
            if step == steps:
                break
            batch = rows
            if len(rows.weights) > BATCH:
                places = (
                    torch.rand(BATCH, generator=generator, dtype=ends.dtype, device="cpu").to(ends.device) * ends[-1]
                )
                batch = rows.at(torch.searchsorted(ends, places).clamp(max=len(ends) - 1))
                batch = batch._replace(weights=torch.ones_like(batch.weights))
            for group in optimizer.param_groups:
                group["lr"] = RATE / (1 + step / RATE_STEPS)
            with torch.enable_grad():
                indicators = self._one_hot(batch.states)
                log_p = self._log_softmax(indicators, batch.c)
                norm = sum(matrix.square().sum() for matrix in (self.first, self.second, self.direct))
                loss = PENALTY * norm / n - weighted_mean(((indicators + prior) * log_p).sum(1), batch.weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.requires_grad_(False)
        return curve

    def _start(self, rows: Rows, generator: torch.Generator) -> None:
        """Set the biases to the frequencies of the states, and the other weights so that only they matter at first."""
        counts = (self._one_hot(rows.states) * rows.weights[:, None]).sum(0) + self._pseudo_row()
        self.bias.copy_((counts / (rows.weights.sum() + 1)).log())
        for parameter in (self.first_bias, self.second, self.direct):
            parameter.zero_()
        scale = (len(self.sizes) + self.given) ** -0.5  # of the inputs
        self.first.copy_(scale * torch.randn(self.first.shape, generator=generator, device="cpu"))

    def _standardize(self, rows: Rows) -> None:
        """Take the means and scales of the features from rows."""
        weights = rows.weights[:, None] / rows.weights.sum()
        mean = (weights * rows.c).sum(0)
        scale = (weights * (rows.c - mean).square()).sum(0).sqrt()
        self.c_mean.copy_(mean)
        self.c_scale.copy_(torch.where(scale > 1e-6 * mean.abs(), scale, 1.0))  # or constant

    def _pseudo_row(self) -> Tensor:
        """Return the indicators of one row (sum K,), spread evenly over the states of each variable."""
        return torch.cat([self.bias.new_full((size,), 1 / size) for size in self.sizes])

    def _log_prob(self, states: Tensor, c: Tensor) -> Tensor:
        indicators = self._one_hot(states)
        return (indicators * self._log_softmax(indicators, c)).sum(1)

    def _log_softmax(self, indicators: Tensor, c: Tensor) -> Tensor:
        """Return the logarithms of the probabilities of all states, (N, sum K)."""
        return torch.cat([part.log_softmax(1) for part in self._logits(indicators, c).split(self.sizes, 1)], 1)

    def _logits(self, indicators: Tensor, c: Tensor) -> Tensor:
        """Return the logits (N, sum K) of all states, from indicators (N, sum K) and features (N, G)."""
        inputs = torch.cat([indicators, (c - self.c_mean) / self.c_scale], 1)
        hidden = F.silu(F.linear(inputs, self.first * self.to_hidden, self.first_bias))
        return F.linear(inputs, self.direct * self.past, self.bias) + F.linear(hidden, self.second * self.to_logits)

    def _one_hot(self, states: Tensor) -> Tensor:
        starts = torch.tensor([0, *itertools.accumulate(self.sizes)][:-1], device=states.device)
        return self.bias.new_zeros(len(states), len(self.bias)).scatter_(1, states + starts, 1)

    def _check_states(self, states: Any, name: str = "states", lowest: int = 0) -> Tensor:
        """Return states (N, V) as int64 on the device of the model, or raise an :class:`InputError`."""
        states = to_tensor(name, states).to(self.bias.device)
        if states.ndim != 2 or states.shape[1] != len(self.sizes):
            raise InputError(f"{name} of shape {tuple(states.shape)} do not fit: pass (N, {len(self.sizes)})")
        whole = states.long()
        wrong = (states != whole) | (whole < lowest) | (whole >= torch.tensor(self.sizes, device=whole.device))
        if wrong.any():
            row, v = wrong.nonzero()[0].tolist()
            raise InputError(
                f"{name}[{row}, {v}]={states[row, v].item():g} is not a state of variable {v}: "
                f"pass {lowest} to {self.sizes[v] - 1}"
            )
        return whole

    def _check_features(self, c: Any, n: int) -> Tensor:
        """Return features (n, G) in the type of the model, also if G = 0, or raise an :class:`InputError`."""
        features = self.bias.new_zeros(n, 0) if c is None else to_tensor("c", c).to(self.bias)
        check_contexts(None if c is None else features, n, self.given)
        check_finite("c", features)
        return features

    def _check_allowed(self, allowed: Sequence[Tensor | None] | None) -> list[Tensor | None]:
        """Return masks of states on the device of the model, or raise an :class:`InputError`."""
        masks = [None] * len(self.sizes) if allowed is None else list(allowed)
        masks = [None if mask is None else torch.as_tensor(mask, device=self.bias.device).bool() for mask in masks]
        shapes = [(size,) if mask is None else tuple(mask.shape) for mask, size in zip(masks, self.sizes, strict=False)]
        if len(masks) != len(self.sizes) or shapes != [(size,) for size in self.sizes]:
            raise InputError(f"allowed has shapes {shapes}: pass a mask or None for each of the sizes {self.sizes}")
        return masks
