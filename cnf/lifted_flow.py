"""The density of what is lifted: known through bounds, which importance weighting tightens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anode import InputError
from cnf.continuous import Continuous
from cnf.density import Bound, Density, Ends, copies_together, repeated
from cnf.lifts import Lift
from cnf.transforms import Compose, PathOptions


class Weighted(NamedTuple):
    """An importance-weighted bound.

    Attributes:
        value: log (1/K) sum_k w_k, (B,), in nats.
        standard_error: of that over the draws, to first order: std(w) / (mean(w) sqrt(K)), (B,); NaN for K = 1.
    """

    value: Tensor
    standard_error: Tensor


class LiftedFlow(Density):
    """The density, or probability mass, of x when y ~ q(y given x) is modelled by a density of y.

    Its likelihood is known through lower bounds only; :meth:`log_prob` tightens with ``samples``.

    Args:
        lift: how x becomes y.
        flow: the density of y, a :class:`~cnf.Flow` or a :class:`~cnf.CategoricalFlow`.

    Raises:
        InputError: when ``lift`` is not a :class:`Lift`; in particular, zero padding is not a density.
    """

    def __init__(self, lift: Lift, flow: Density) -> None:
        super().__init__()
        if not isinstance(lift, Lift):
            raise InputError(
                f"lift={lift} is not a Lift: a density needs y ~ q(y given x) with a known log q. "
                "Zero padding (Augment) has none; its flow would not integrate to 1."
            )
        self.lift = lift
        self.flow = flow

    @property
    def kind(self) -> str:
        """See :attr:`Density.kind`: always ``"bound"``."""
        return "bound"

    @property
    def draws(self) -> bool:
        """See :attr:`Density.draws`: always."""
        return True

    @property
    def paired(self) -> bool:
        """See :attr:`Density.paired`; those of the density of y."""
        return self.flow.paired

    @property
    def like(self) -> Tensor:
        """See :attr:`Density.like`."""
        return self.flow.like

    def elbo_on_path(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Bound:
        """Log p(y) - log q(y given x) for one draw of y, (B,): its expectation is below log p(x given c)."""
        y, log_q, kl = self.lift(x, c)
        bound = self.flow.elbo_on_path(y, c, path)
        return Bound(bound.value - log_q, bound.energies, kl)

    def log_prob(self, x: Tensor, c: Tensor | None = None, samples: int = 64) -> Tensor:
        """The importance-weighted bound log (1/K) sum_k p(y_k) / q(y_k given x), (B,).

        Args:
            x: (B, *S).
            c: context, (B, C), or None.
            samples: K; the expected bound rises with it towards log p(x given c).

        Raises:
            InputError: when the flow only estimates its log-density and K > 1: the mean of exp(estimate) is too large,
                so that the result would be no bound.

        References:
            Burda, Grosse, Salakhutdinov 2016, arXiv 1509.00519, equation 8.
        """
        return self.log_prob_with_error(x, c, samples).value

    def log_prob_with_error(self, x: Tensor, c: Tensor | None = None, samples: int = 64) -> Weighted:
        """The same bound with its standard error over the draws; see :meth:`log_prob`.

        As many draws are solved together as :func:`cnf.density.copies_together` says.
        """
        self.check_draws(samples)
        each = min(samples, copies_together(x))
        counts = [min(each, samples - done) for done in range(0, samples, each)]
        log_weights = torch.cat([self._log_weight(*repeated(k, x, c)).view(k, len(x)) for k in counts])
        value = log_weights.logsumexp(0) - math.log(samples)
        spread = (log_weights - value).exp().std(0) if samples > 1 else torch.full_like(value, math.nan)
        return Weighted(value, spread / math.sqrt(samples))

    def _log_weight(self, x: Tensor, c: Tensor | None) -> Tensor:
        y, log_q, _ = self.lift(x, c)
        return self.flow.log_prob(y, c) - log_q

    def check_draws(self, samples: int) -> None:
        """See :meth:`Density.check_draws`, and :meth:`log_prob`."""
        super().check_draws(samples)
        if samples > 1 and self.flow.kind == "estimate":
            raise InputError(
                f"samples={samples} of an estimated log-density is no bound: use divergence='exact' or elbo"
            )

    def ends(self, x: Tensor, c: Tensor | None = None) -> Ends:
        """See :meth:`Density.ends`."""
        y, _, kl = self.lift(x, c)
        return self.flow.ends(y, c)._replace(kl=kl)

    def parts(self) -> tuple[Compose, Continuous]:
        """See :meth:`Density.parts`; those of the density of y."""
        return self.flow.parts()

    def sample(self, n: int, c: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """See :meth:`Density.sample`; the temperature is that of the density of y."""
        return self.lift.project(self.flow.sample(n, c, temperature))

    @torch.no_grad()
    def sample_paths(self, n: int, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Density.sample_paths`; of y, projected."""
        return torch.stack([self.lift.project(y) for y in self.flow.sample_paths(n, times, c)])

    def returned(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Density.returned`; of points y."""
        return self.flow.returned(x, c)
