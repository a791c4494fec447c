"""Categorical augmentation: a finite mixture of flows that share one field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from anode import InputError
from cnf.continuous import Continuous
from cnf.density import TOGETHER, Bound, Density, Ends, check_samples, for_each, parts_of, repeated
from cnf.mixture import Mixture, drawn
from cnf.transforms import Compose, Path, Transform


class CategoricalFlow(Density):
    """A mixture of K flows, each of its own base, that share one transform with the component as context.

        p(x) = sum_k weights_k N(g(x, k); means_k, diag(scales_k^2)) |det dg/dx|

    The likelihood is an exact sum, of K times the work of one flow; a sample takes the work of one. Modes, scales and
    weights are no work of the ODE. With a posterior q(k given x), training takes the work of one flow as well: of
    E_q [log p(x, k) - log q(k given x)], a lower bound of log p(x).

    Args:
        transform: g, whose context is the component as K indicators, beside those of a conditional density.
        base: the components.
        posterior: q(k given x) is that of another mixture of as many components, where the data are before the ODE;
            it is not trained. None for no draws: training sums over the components, too.

    Raises:
        InputError: for an estimated divergence: a sum of exponentials of estimates would be biased.

    References:
        Dinh, Sohl-Dickstein, Larochelle, Pascanu 2019, arXiv 1903.07714 (mixtures of flows by a discrete index).

    Example:
        >>> from anode import MLPField
        >>> from cnf import Continuous
        >>> flow = CategoricalFlow(Continuous(MLPField(2, context=3)), Mixture((2,), components=3))
        >>> flow.log_prob(torch.randn(5, 2)).shape, flow.sample(7).shape
        (torch.Size([5]), torch.Size([7, 2]))
    """

    def __init__(self, transform: Transform, base: Mixture, posterior: Mixture | None = None) -> None:
        super().__init__()
        self.transform = transform
        self.base = base
        self.posterior = None if posterior is None else posterior.requires_grad_(False)
        self._check_divergence()

    @property
    def kind(self) -> str:
        """See :attr:`Density.kind`: always ``"exact"``."""
        return "exact"

    @property
    def draws(self) -> bool:
        """See :attr:`Density.draws`: with a posterior."""
        return self.posterior is not None

    @property
    def like(self) -> Tensor:
        """See :attr:`Density.like`."""
        return self.base.like

    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Density.log_prob`."""
        return self.log_joint(x, c).logsumexp(0)

    def elbo_on_path(self, x: Tensor, c: Tensor | None = None, path: Path | None = None) -> Bound:
        """See :meth:`Density.elbo_on_path`; tight without a posterior, and energies means over p(k given x) then."""
        if self.posterior is not None:
            return self._of_one_component(self.posterior, x, c, path)
        log_joint, energies = self._pulled_back(x, c, path)
        shares = log_joint.detach().softmax(0)
        return Bound(log_joint.logsumexp(0), {name: (shares * energy).sum(0) for name, energy in energies.items()})

    def log_joint(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Log p(x, k given c) in nats for every component, (K, B); their softmax is p(k given x)."""
        return self._pulled_back(x, c, None)[0]

    def ends(self, x: Tensor, c: Tensor | None = None) -> Ends:
        """See :meth:`Density.ends`: components are drawn by posterior or base, and base points by their components.

        A base fitted to the data (:meth:`cnf.Mixture.fit`) makes these the data's own clusters.
        """
        check_samples("x", x, c, self.base.shape, self.like.dtype)
        static, ode = self.parts()
        x = static.encode(x, c)
        k, _ = self._drawn(self.posterior or self.base, x)
        return Ends(ode, x, self.base.sample_of(k), self._context(k, c), paired=True)

    def parts(self) -> tuple[Compose, Continuous]:
        """See :meth:`Density.parts`."""
        return parts_of(self.transform)

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None) -> Tensor:
        """See :meth:`Density.sample`."""
        k = self.base.sample_components(n)
        return self.transform.decode(self.base.sample_of(k), self._context(k, for_each(c, n)))

    @torch.no_grad()
    def sample_paths(self, n: int, times: Sequence[float] | Tensor) -> Tensor:
        """See :meth:`Density.sample_paths`."""
        static, ode = self.parts()
        k = self.base.sample_components(n)
        paths = ode.trajectory(self.base.sample_of(k), times, self._context(k, None))
        return torch.stack([static.decode(x) for x in paths])

    def returned(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Density.returned`; by the most probable component of each."""
        context = self._context(self.log_joint(x, c).argmax(0), c)
        return self.transform.decode(self.transform.encode(x, context), context)

    def _check_divergence(self) -> None:
        if any(isinstance(part, Continuous) and part.divergence != "exact" for part in self.transform.modules()):
            raise InputError("a sum over components needs divergence='exact': of estimates it would be biased")

    def _context(self, k: Tensor, c: Tensor | None) -> Tensor:
        """The components (B,) as indicators, beside the context of a conditional density."""
        indicators = F.one_hot(k, len(self.base.logits)).to(self.like.dtype)
        return indicators if c is None else torch.cat([indicators, c], 1)

    def _of_one_component(self, posterior: Mixture, x: Tensor, c: Tensor | None, path: Path | None) -> Bound:
        k, log_q = self._drawn(posterior, self.parts()[0].encode(x))
        z, log_det, energies = self.transform(x, self._context(k, c), path)
        return Bound(self.base.log_joint(z, k) + log_det - log_q, energies)

    def _drawn(self, posterior: Mixture, x: Tensor) -> tuple[Tensor, Tensor]:
        """Components (B,) given points next to the ODE, and the logarithms of their probabilities."""
        with torch.no_grad():
            log_q = posterior.log_joint(x.unsqueeze(1), slice(None)).log_softmax(1)
            k = drawn(log_q)
            return k, log_q.gather(1, k.unsqueeze(1)).squeeze(1)

    def _pulled_back(self, x: Tensor, c: Tensor | None, path: Path | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Log p(x, k) and the energies of the paths, (K, B); as many components at once as make 16,384 points."""
        self._check_divergence()
        check_samples("x", x, c, self.base.shape, self.like.dtype)
        log_joint, energies = [], []
        for ks in torch.arange(len(self.base.logits), device=x.device).split(max(1, TOGETHER // max(1, len(x)))):
            points, contexts = repeated(len(ks), x, c)
            k = ks.repeat_interleave(len(x))
            z, log_det, along = self.transform(points, self._context(k, contexts), path)
            log_joint.append((self.base.log_joint(z, k) + log_det).view(len(ks), -1))
            energies.append({name: energy.view(len(ks), -1) for name, energy in along.items()})
        return torch.cat(log_joint), {name: torch.cat([part[name] for part in energies]) for name in energies[0]}
