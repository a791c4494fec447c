"""Categorical augmentation: a finite mixture of flows that share one field."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F
from typing_extensions import override

from anode.errors import InputError
from anode.solver import Solver
from cnf.bases import Mixture, Normal, sample_categorical
from cnf.batches import max_copies, repeat_samples
from cnf.continuous import Continuous
from cnf.flow import Density, Elbo, MatchingPair, field_of, without_autocast
from cnf.residual_steps import ResidualSteps
from cnf.transforms import Compose, SolveOptions, Transform

CANDIDATE = 1e-6  # responsibility by the mixture of Gaussians above which the gate looks at a component
ONE_STEP = Solver("rk4", step_size=1.0)  # one step from data to base
FEWEST_PRUNED = 100  # samples: for fewer, the gate takes longer than it saves


class MixtureFlow(Density):
    """A mixture of K flows that share one field, each in the coordinates of one component.

        p(x) = sum_k weights_k N(z_k; 0, I) |det dz_k/dx|,    z_k = g(R_k (s(x) - means_k), k)

    with static transforms s, the whitening R_k of component k, and the flow g, of an ODE or of residual steps, whose
    context is k. The mixture learns modes, scales and weights, which the flow then need not produce. The likelihood is
    an exact sum at K times the cost of one flow, or a bound by the few components that matter, see :meth:`log_prob`;
    sampling costs one flow. Training can cost one flow, too: it draws k from the initial mixture, q(k given x), and
    raises the lower bound E_q [log p(x, k) - log q(k given x)].

    Args:
        static: s, next to the data.
        mixture: the components; :meth:`cnf.Mixture.fit` starts them as the mixture of s(x).
        transform: g, whose context is the component as K indicators, followed by the context of a conditional density.
        sample_component: if True, :meth:`elbo` draws one component instead of summing over all.

    Raises:
        InputError: for an estimated divergence, because a sum of exponentials of estimates would be biased.

    References:
        Dinh et al. 2019, arXiv 1903.07714 (mixtures of flows by a discrete index).

    Example:
        >>> from anode import MLPField
        >>> from cnf import Compose, Continuous
        >>> ode = Continuous(MLPField(2, context=3))
        >>> flow = MixtureFlow(Compose([]), Mixture((2,), components=3), ode)
        >>> flow.log_prob(torch.randn(5, 2)).shape, flow.sample(7).shape
        (torch.Size([5]), torch.Size([7, 2]))
    """

    couples_base = True  # a base point belongs to the component of its data point

    def __init__(
        self, static: Transform, mixture: Mixture, transform: Transform, sample_component: bool = False
    ) -> None:
        super().__init__()
        if not (isinstance(static, Transform) and isinstance(mixture, Mixture) and isinstance(transform, Transform)):
            kinds = ", ".join(type(part).__name__ for part in (static, mixture, transform))
            raise InputError(
                f"MixtureFlow({kinds}) needs a Transform, such as Compose([]), a Mixture and a Transform, such as "
                "Continuous(field)"
            )
        self.static = static
        self.mixture = mixture
        self.transform = transform
        self.base = Normal(mixture.shape)
        self.event_shape = mixture.shape
        self.support = constraints.independent(static.domain, len(mixture.shape))
        self.stochastic = sample_component
        self.posterior = copy.deepcopy(mixture).requires_grad_(False) if sample_component else None
        if any(isinstance(part, Continuous) and part.divergence != "exact" for part in transform.modules()):
            raise InputError("a sum over components needs divergence='exact': of estimates it would be biased")

    @property
    @override
    def kind(self) -> str:
        return "exact"

    @property
    @override
    def like(self) -> Tensor:
        return self.base.like

    @override
    @without_autocast
    def log_prob(self, x: Tensor, c: Tensor | None = None, prune: float | None = None, fill: bool = False) -> Tensor:
        """Return log p(x given c) in nats, (B,): exact, or a lower bound without the components that hardly matter.

        The candidates are the components whose responsibility for x, by the mixture of Gaussians as fitted or as
        trained, exceeds 1e-6; all of them if no fitted mixture is kept. One Runge-Kutta step over the whole interval
        estimates log p(x, k given c) of the candidates; for residual steps, their own points do, with traces in place
        of determinants. Components with an estimated responsibility above ``prune``, or a tenth of it by traces, and
        the one with the largest are solved and summed. Fewer than 100 samples, and samples whose pruned sum is not
        finite, get the sum of all components.

        Args:
            x: (B, *S), in the units of the data.
            c: context, (B, C), or None.
            prune: responsibility below which a component is left out, such as 0.01; None to sum all.
            fill: add the estimates for the candidates left out. The result is then an estimate, no bound, and nearer.

        Raises:
            InputError: if ``prune`` is not between 0 and 1, or ``fill`` has nothing to fill.
        """
        x, c = self.prepare("x", x, c)
        return self._log_joint_pruned(x, c, None, prune, fill)[0].logsumexp(0)

    @without_autocast
    def solved_components(self, x: Tensor, c: Tensor | None = None, prune: float = 1e-2) -> Tensor:
        """Return True for the components that :meth:`log_prob` solves for each sample, (K, B)."""
        x, c = self.prepare("x", x, c)
        return self._gate(x, c, self._candidates(x), prune)[0] if self._prunes(x, prune) else self._all(x)

    @without_autocast
    def log_joint(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Compute log p(x, k given c) in nats for every component, (K, B); its softmax is p(k given x)."""
        x, c = self.prepare("x", x, c)
        return self._log_joint_of_all(x, c, None)[0]

    @override
    def elbo(
        self,
        x: Tensor,
        c: Tensor | None = None,
        options: SolveOptions | None = None,
        prune: float | None = None,
    ) -> Elbo:
        """Compute the bound (B,); it is tight, with energies averaged over p(k given x), if no component is drawn.

        With ``prune`` it is the sum of :meth:`log_prob`, which waits for the device.
        """
        x, c = self.prepare("x", x, c, finite=False)
        if self.posterior is not None and prune is None:
            k, log_q = self._draw_component(self.posterior, self.static.encode(x))
            log_joint, energies = self._log_joint(x, k, c, options, self.transform)
            return Elbo(log_joint - log_q, energies)
        log_joint, energies = self._log_joint_pruned(x, c, options, prune)
        shares = log_joint.detach().softmax(0)
        return Elbo(log_joint.logsumexp(0), {name: (shares * energy).sum(0) for name, energy in energies.items()})

    @override
    def matching_pair(self, x: Tensor, c: Tensor | None = None) -> MatchingPair:
        x, c = self.prepare("x", x, c, finite=False)
        y = self.static.encode(x)
        k, _ = self._draw_component(self.posterior or self.mixture, y)
        with torch.no_grad():  # with gradients the scales would grow until nothing is left to learn
            local = self.mixture.to_component(y, k)[0]
        return MatchingPair(field_of(self.transform), local, self.base.sample(len(local)), self._context(k, c))

    @override
    def split(self) -> tuple[Compose, Transform]:
        """Return the static transforms, without the coordinates of the components, and the flow that they share."""
        return Compose([self.static]), self.transform

    @override
    @without_autocast
    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        n, c = self.prepare_draws(n, c)
        k = self.mixture.sample_components(n)
        return self._decode(self.base.sample(n, temperature), k, c)

    @override
    @without_autocast
    @torch.no_grad()
    def sample_paths(self, n: int, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        n, c = self.prepare_draws(n, c)
        k = self.mixture.sample_components(n)
        paths = self.transform.trajectory(self.base.sample(n), times, self._context(k, c))
        return torch.stack([self.static.decode(self.mixture.from_component(x, k)) for x in paths])

    @override
    @without_autocast
    def round_trip(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        k, local, context = self.likeliest_component(x, c)
        back = self.transform.decode(self.transform.encode(local, context), context)
        return self.static.decode(self.mixture.from_component(back, k))

    def likeliest_component(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the likeliest component of each point (B,), the points in its coordinates, and the flow's contexts."""
        x, c = self.prepare("x", x, c)
        k = self._log_joint_of_all(x, c, None)[0].argmax(0)
        return k, self.mixture.to_component(self.static.encode(x), k)[0], self._context(k, c)

    def _decode(self, z: Tensor, k: Tensor, c: Tensor | None) -> Tensor:
        return self.static.decode(self.mixture.from_component(self.transform.decode(z, self._context(k, c)), k))

    def _context(self, k: Tensor, c: Tensor | None) -> Tensor:
        """Join the indicators of components (B,) and the context of a conditional density."""
        indicators = F.one_hot(k, len(self.mixture.logits)).to(self.like.dtype)
        return indicators if c is None else torch.cat([indicators, c], 1)

    @torch.no_grad()
    def _draw_component(self, posterior: Mixture, y: Tensor) -> tuple[Tensor, Tensor]:
        """Draw k (B,) given points next to the ODE, with log q(k given y)."""
        log_q = posterior.log_joint(y.unsqueeze(1), slice(None)).log_softmax(1)
        k = sample_categorical(log_q)
        return k, log_q.gather(1, k.unsqueeze(1)).squeeze(1)

    def _prunes(self, x: Tensor, prune: float) -> bool:
        """Return True if components of samples x are left out."""
        if not 0 < prune < 1:
            raise InputError(f"prune={prune} must lie between 0 and 1, such as 0.01: None sums all components")
        return len(x) >= FEWEST_PRUNED and len(self.mixture.logits) > 1

    def _all(self, x: Tensor) -> Tensor:
        return torch.ones(len(self.mixture.logits), len(x), dtype=torch.bool, device=x.device)

    @torch.no_grad()
    def _candidates(self, x: Tensor) -> Tensor:
        """Return True for the components that may matter by the mixtures of Gaussians, (K, B); for all if unknown."""
        if self.posterior is None:
            return self._all(x)
        y = self.static.encode(x).unsqueeze(1)
        fitted, trained = (each.log_joint(y, slice(None)).softmax(1) for each in (self.posterior, self.mixture))
        return ~(torch.maximum(fitted, trained) <= CANDIDATE).T  # True for NaN, too

    @torch.no_grad()
    def _gate(self, x: Tensor, c: Tensor | None, candidates: Tensor, prune: float) -> tuple[Tensor, Tensor]:
        """Return True for the components to solve, and estimates of log p(x, k), -inf for the others, (K, B)."""
        flow = self.transform
        if isinstance(flow, Continuous):
            gate = Continuous(flow.field, ONE_STEP, extra=flow.extra)
        elif isinstance(flow, ResidualSteps):  # the same points with traces in place of determinants, hence more kept
            gate, prune = Continuous(flow.field, Solver("euler", step_size=1 / flow.steps)), prune / 10
        else:  # nothing cheaper is known
            return candidates, torch.full_like(candidates, -math.inf, dtype=x.dtype)
        estimates, _ = self._log_joint_where(candidates, x, c, None, gate)
        solved = candidates & ~(estimates.softmax(0) <= prune)  # all candidates of a sample with a NaN
        return solved.scatter(0, estimates.argmax(0, keepdim=True), True), estimates

    def _log_joint_pruned(
        self, x: Tensor, c: Tensor | None, options: SolveOptions | None, prune: float | None, fill: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute log p(x, k) and the energies, (K, B), of the components that matter; -inf and 0 for the others."""
        if fill and prune is None:
            raise InputError("fill=True has nothing to fill in a sum of all components: pass prune, such as 0.01")
        if prune is None or not self._prunes(x, prune):
            return self._log_joint_of_all(x, c, options)
        candidates = self._candidates(x)
        pairs = int(candidates.sum())
        rows = max(1, max_copies(x) * len(x) ** 2 // pairs)  # of one solve: the points of a chunk of the full sum
        log_joint, energies = [], []
        for some in torch.arange(len(x), device=x.device).split(rows):
            points, contexts = x[some], None if c is None else c[some]
            solved, estimates = self._gate(points, contexts, candidates[:, some], prune)
            found, along = self._log_joint_where(solved, points, contexts, options, self.transform)
            lost = ~found.detach().logsumexp(0).isfinite()
            if lost.any():  # unless the sum of all components is finite
                solved = solved | lost
                found, along = self._log_joint_where(solved, points, contexts, options, self.transform)
            log_joint.append(torch.where(solved, found, estimates) if fill else found)
            energies.append(along)
        return torch.cat(log_joint, 1), {name: torch.cat([part[name] for part in energies], 1) for name in energies[0]}

    def _log_joint_where(
        self,
        chosen: Tensor,
        x: Tensor,
        c: Tensor | None,
        options: SolveOptions | None,
        transform: Transform,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute log p(x, k) and the energies where ``chosen``, in one solve, else -inf and 0, (K, B)."""
        k, rows = chosen.nonzero(as_tuple=True)
        found, energies = self._log_joint(x[rows], k, None if c is None else c[rows], options, transform)
        log_joint = found.new_full(chosen.shape, -math.inf).masked_scatter(chosen, found)
        return log_joint, {
            name: energy.new_zeros(chosen.shape).masked_scatter(chosen, energy) for name, energy in energies.items()
        }

    def _log_joint(
        self, x: Tensor, k: Tensor, c: Tensor | None, options: SolveOptions | None, transform: Transform
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Compute log p(x, k) and the energies of the path, (B,), with one component for each sample."""
        y, log_det, _ = self.static(x)
        local, log_det_local = self.mixture.to_component(y, k)
        z, log_det_flow, energies = transform(local, self._context(k, c), **transform.keywords(options))
        log_weight = self.mixture.logits.log_softmax(0)[k]
        return log_weight + self.base.log_prob(z) + log_det + log_det_local + log_det_flow, energies

    def _log_joint_of_all(
        self, x: Tensor, c: Tensor | None, options: SolveOptions | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute log p(x, k) and the energies for every component, (K, B); see :func:`cnf.flow.max_copies`."""
        log_joint, energies = [], []
        for ks in torch.arange(len(self.mixture.logits), device=x.device).split(max_copies(x)):
            points, contexts = repeat_samples(len(ks), x, c)
            found, along = self._log_joint(points, ks.repeat_interleave(len(x)), contexts, options, self.transform)
            log_joint.append(found.view(len(ks), len(x)))
            energies.append({name: energy.view(len(ks), len(x)) for name, energy in along.items()})
        return torch.cat(log_joint), {name: torch.cat([part[name] for part in energies]) for name in energies[0]}
