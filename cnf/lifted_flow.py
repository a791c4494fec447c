"""The density of lifted data: a lower bound that importance weighting tightens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints
from typing_extensions import override

from anode.errors import InputError
from anode.inputs import whole_number
from cnf.batches import max_copies, repeat_samples
from cnf.flow import Density, Elbo, MatchingPair, without_autocast
from cnf.lifts import Lift
from cnf.mixture_flow import MixtureFlow
from cnf.transforms import Compose, SolveOptions, Transform


class LiftedFlow(Density):
    """The density, or probability mass, of x if y ~ q(y given x) is modelled by a density of y.

    :meth:`log_prob` is a lower bound that tightens with ``samples``.

    Args:
        lift: the map from x to y.
        flow: the density of y, a :class:`cnf.Flow` or a :class:`cnf.MixtureFlow`.

    Example:
        >>> from cnf import Dequantize, Flow, Logit, Normal
        >>> model = LiftedFlow(Dequantize(4), Flow(Logit(), Normal((2,))))
        >>> model.log_prob(torch.randint(4, (5, 2)), samples=8).shape, model.kind
        (torch.Size([5]), 'bound')
    """

    stochastic = True

    def __init__(self, lift: Lift, flow: Density) -> None:
        super().__init__()
        if not isinstance(lift, Lift):
            raise InputError(
                f"lift={lift} is not a Lift: a density needs y ~ q(y given x) with a known log q. "
                "Zero padding (Augment) has none; its flow would not integrate to 1."
            )
        if not isinstance(flow, Density):
            raise InputError(f"flow of type {type(flow).__name__} is not a density of y: pass a Flow or a MixtureFlow")
        self.lift = lift
        self.flow = flow
        with torch.no_grad():
            x = lift.project(flow.like.new_zeros(1, *flow.event_shape))
        self.event_shape = torch.Size(x.shape[1:])
        if 0 in self.event_shape:
            raise InputError(
                f"lift={lift} leaves nothing of the {tuple(flow.event_shape)} that flow models: enlarge flow"
            )
        self.support = constraints.independent(lift.domain, len(self.event_shape))
        self.couples_base = flow.couples_base

    @property
    @override
    def kind(self) -> str:
        return "bound"

    @property
    @override
    def like(self) -> Tensor:
        return self.flow.like

    @override
    def elbo(
        self, x: Tensor, c: Tensor | None = None, options: SolveOptions | None = None, prune: float | None = None
    ) -> Elbo:
        """Compute log p(y) - log q(y given x) for one draw of y, (B,): its expectation is below log p(x given c).

        ``prune`` is for a :class:`MixtureFlow` of y, see :meth:`MixtureFlow.elbo`.
        """
        x, c = self.prepare("x", x, c, finite=False)
        y, log_q, kl = self.lift(x, c)
        bound = self.flow.elbo(y, c, options) if prune is None else self._mixture(prune).elbo(y, c, options, prune)
        return Elbo(bound.value - log_q, bound.energies, kl)

    @override
    @without_autocast
    def log_prob(self, x: Tensor, c: Tensor | None = None, samples: int = 64, prune: float | None = None) -> Tensor:
        """Compute the importance-weighted bound log (1/K) sum_k p(y_k) / q(y_k given x), (B,), in nats.

        The draws of :func:`cnf.batches.max_copies` copies of x are solved together.

        Args:
            x: (B, *S).
            c: context, (B, C), or None.
            samples: K; the expected bound rises with it towards log p(x given c).
            prune: responsibility below which components of a mixture are left out, see :meth:`MixtureFlow.log_prob`.

        Raises:
            InputError: if x does not fit the model; if the flow only estimates its log-density and K > 1, because the
                mean of exp(estimate) is too large, so that the result would not be a bound; if ``prune`` is given and
                the flow is not a mixture.

        References:
            Burda et al. 2016, arXiv 1509.00519, equation 8.
        """
        samples = whole_number("samples", samples)
        self.check_num_samples(samples)
        x, c = self.prepare("x", x, c, finite=False)
        self.lift.check_values(x)
        copies = min(samples, max_copies(x))
        counts = [min(copies, samples - done) for done in range(0, samples, copies)]
        log_weights = torch.cat([self._log_weight(*repeat_samples(k, x, c), prune).view(k, len(x)) for k in counts])
        return log_weights.logsumexp(0) - math.log(samples)

    @override
    def check_num_samples(self, samples: int) -> None:
        super().check_num_samples(samples)
        if samples > 1 and self.flow.kind == "estimate":
            raise InputError(
                f"samples={samples} of an estimated log-density do not give a bound: use divergence='exact' or elbo"
            )

    @override
    def matching_pair(self, x: Tensor, c: Tensor | None = None) -> MatchingPair:
        x, c = self.prepare("x", x, c, finite=False)
        y, _, kl = self.lift(x, c)
        return self.flow.matching_pair(y, c)._replace(kl=kl)

    @override
    def split(self) -> tuple[Compose, Transform]:
        return self.flow.split()

    @override
    @without_autocast
    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        return self.lift.project(self.flow.sample(*self.prepare_draws(n, c), temperature))

    @override
    @without_autocast
    @torch.no_grad()
    def sample_paths(self, n: int, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        n, c = self.prepare_draws(n, c)
        return torch.stack([self.lift.project(y) for y in self.flow.sample_paths(n, times, c)])

    @override
    def round_trip(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.flow.round_trip(x, self.prepare_context(c, len(x)))

    def _log_weight(self, x: Tensor, c: Tensor | None, prune: float | None) -> Tensor:
        y, log_q, _ = self.lift(x, c)
        log_p = self.flow.log_prob(y, c) if prune is None else self._mixture(prune).log_prob(y, c, prune)
        return log_p - log_q

    def _mixture(self, prune: float) -> MixtureFlow:
        """Return the density of y, whose components are to be pruned."""
        if not isinstance(self.flow, MixtureFlow):
            raise InputError(
                f"prune={prune} is for a MixtureFlow, {type(self.flow).__name__} does not have components: omit it"
            )
        return self.flow
