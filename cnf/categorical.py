"""Categorical augmentation: a finite mixture of flows that share one field."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from anode import InputError
from cnf.bases import Normal
from cnf.continuous import Continuous
from cnf.density import Bound, Density, Ends, check_samples, copies_together, for_each, repeated
from cnf.mixture import Mixture, drawn
from cnf.transforms import Compose, PathOptions, Transform


class CategoricalFlow(Density):
    """A mixture of K flows that share one field, each in the coordinates of its own component.

        p(x) = sum_k weights_k N(z_k; 0, I) |det dz_k/dx|,    z_k = g(R_k (s(x) - means_k), k)

    with static transforms s, the whitening R_k of the component and the flow g of an ODE whose context is k. Modes,
    scales and weights are no work of the ODE, and what it has to bend looks alike in every component. The likelihood is
    an exact sum, of K times the work of one flow; a sample takes the work of one. Training can take that, too: it draws
    k by the mixture as it was at first, q(k given x), and raises E_q [log p(x, k) - log q(k given x)], a lower bound.

    Args:
        static: s, next to the data.
        mixture: the components; :meth:`cnf.Mixture.fit` starts them as those of s(x).
        ode: g, whose context is the component as K indicators, beside those of a conditional density.
        draw: whether :meth:`elbo` draws one component, instead of the sum over all.
        told: whether the field is told the component; otherwise all flows are one, at different places and scales, and
            the context of the ODE is that of a conditional density alone.

    Raises:
        InputError: for an estimated divergence: a sum of exponentials of estimates would be biased.

    References:
        Dinh, Sohl-Dickstein, Larochelle, Pascanu 2019, arXiv 1903.07714 (mixtures of flows by a discrete index).

    Example:
        >>> from anode import MLPField
        >>> from cnf import Compose, Continuous
        >>> ode = Continuous(MLPField(2, context=3))
        >>> flow = CategoricalFlow(Compose([]), Mixture((2,), components=3), ode)
        >>> flow.log_prob(torch.randn(5, 2)).shape, flow.sample(7).shape
        (torch.Size([5]), torch.Size([7, 2]))
    """

    def __init__(
        self, static: Transform, mixture: Mixture, ode: Continuous, draw: bool = False, told: bool = True
    ) -> None:
        super().__init__()
        self.static = static
        self.mixture = mixture
        self.ode = ode
        self.told = told
        self.base = Normal(mixture.shape)
        self.posterior = copy.deepcopy(mixture).requires_grad_(False) if draw else None
        self._check_divergence()

    @property
    def kind(self) -> str:
        """See :attr:`Density.kind`: always ``"exact"``."""
        return "exact"

    @property
    def draws(self) -> bool:
        """See :attr:`Density.draws`."""
        return self.posterior is not None

    @property
    def paired(self) -> bool:
        """See :attr:`Density.paired`: they are of one component."""
        return True

    @property
    def like(self) -> Tensor:
        """See :attr:`Density.like`."""
        return self.base.like

    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Density.log_prob`."""
        return self.log_joint(x, c).logsumexp(0)

    def log_joint(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Log p(x, k given c) in nats for every component, (K, B); their softmax is p(k given x)."""
        return self._of_all(x, c, None)[0]

    def elbo_on_path(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Bound:
        """See :meth:`Density.elbo_on_path`; where no component is drawn it is tight, with mean energies over k."""
        if self.posterior is not None:
            k, log_q = self._drawn(self.posterior, self._static_point(x, c))
            log_joint, energies = self._of_one(x, k, c, path)
            return Bound(log_joint - log_q, energies)
        log_joint, energies = self._of_all(x, c, path)
        shares = log_joint.detach().softmax(0)
        return Bound(log_joint.logsumexp(0), {name: (shares * energy).sum(0) for name, energy in energies.items()})

    def ends(self, x: Tensor, c: Tensor | None = None) -> Ends:
        """See :meth:`Density.ends`; the component of each sample is drawn by the mixture."""
        x = self._static_point(x, c)
        k, _ = self._drawn(self.posterior or self.mixture, x)
        with torch.no_grad():  # or scales would grow, which leaves nothing to be learnt
            x = self.mixture.standardized(x, k)[0]
        return Ends(self.ode, x, self.base.sample(len(x)), self._context(k, c))

    def parts(self) -> tuple[Compose, Continuous]:
        """See :meth:`Density.parts`; without the coordinates of the components."""
        return Compose([self.static]), self.ode

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """See :meth:`Density.sample`; the temperature is of the noise within the components."""
        k = self.mixture.sample_components(n)
        return self._decoded(self.base.sample(n, temperature), k, for_each(c, n))

    @torch.no_grad()
    def sample_paths(self, n: int, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Density.sample_paths`; from the mixture."""
        k = self.mixture.sample_components(n)
        paths = self.ode.trajectory(self.base.sample(n), times, self._context(k, for_each(c, n)))
        return torch.stack([self.static.decode(self.mixture.placed(x, k)) for x in paths])

    def returned(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Density.returned`; by the most probable component of each."""
        k = self.log_joint(x, c).argmax(0)
        local = self.mixture.standardized(self._static_point(x, c), k)[0]
        return self._decoded(self.ode.encode(local, self._context(k, c)), k, c)

    def _decoded(self, z: Tensor, k: Tensor, c: Tensor | None) -> Tensor:
        return self.static.decode(self.mixture.placed(self.ode.decode(z, self._context(k, c)), k))

    def _static_point(self, x: Tensor, c: Tensor | None) -> Tensor:
        check_samples("x", x, c, self.base.shape, self.like.dtype)
        return self.static.encode(x)

    def _check_divergence(self) -> None:
        if self.ode.divergence != "exact":
            raise InputError("a sum over components needs divergence='exact': of estimates it would be biased")

    def _context(self, k: Tensor, c: Tensor | None) -> Tensor | None:
        """The components (B,) as indicators, where the field is told, beside the context of a conditional density."""
        if not self.told:
            return c
        indicators = F.one_hot(k, len(self.mixture.logits)).to(self.like.dtype)
        return indicators if c is None else torch.cat([indicators, c], 1)

    @torch.no_grad()
    def _drawn(self, posterior: Mixture, x: Tensor) -> tuple[Tensor, Tensor]:
        """Components (B,) given points next to the ODE, and the logarithms of their probabilities."""
        log_q = posterior.log_joint(x.unsqueeze(1), slice(None)).log_softmax(1)
        k = drawn(log_q)
        return k, log_q.gather(1, k.unsqueeze(1)).squeeze(1)

    def _of_one(
        self, x: Tensor, k: Tensor, c: Tensor | None, path: PathOptions | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Log p(x, k) and the energies of the path, (B,), of a component for each sample."""
        y, log_det, _ = self.static(x)
        local, log_det_local = self.mixture.standardized(y, k)
        z, log_det_ode, energies = self.ode(local, self._context(k, c), path)
        log_weight = self.mixture.logits.log_softmax(0)[k]
        return log_weight + self.base.log_prob(z) + log_det + log_det_local + log_det_ode, energies

    def _of_all(self, x: Tensor, c: Tensor | None, path: PathOptions | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The same of all components, (K, B); see :func:`cnf.density.copies_together`."""
        self._check_divergence()
        check_samples("x", x, c, self.base.shape, self.like.dtype)
        log_joint, energies = [], []
        for ks in torch.arange(len(self.mixture.logits), device=x.device).split(copies_together(x)):
            points, contexts = repeated(len(ks), x, c)
            found, along = self._of_one(points, ks.repeat_interleave(len(x)), contexts, path)
            log_joint.append(found.view(len(ks), len(x)))
            energies.append({name: energy.view(len(ks), len(x)) for name, energy in along.items()})
        return torch.cat(log_joint), {name: torch.cat([part[name] for part in energies]) for name in energies[0]}
