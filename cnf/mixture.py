"""A learned mixture of Gaussians as base, which can start as that of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from anode import InputError
from cnf.bases import Base, check_count
from cnf.density import check_samples

FITTED = 20_000  # points that a mixture is fitted to


class Mixture(Base):
    """A mixture of K Gaussians with diagonal covariance, whose means, scales and weights are learned.

        p(z) = sum_k weights_k N(z; means_k, diag(scales_k^2))

    A base of several pieces spares the flow from tearing one Gaussian apart. :meth:`fit` starts it as the mixture that
    data have already. Otherwise it starts near the standard normal, all weights equal: means are drawn from
    N(0, 0.1^2) and every scale is sqrt(1 - 0.1^2), so that the mean of p over that draw is N(0, I), and components
    differ enough to part. With one component it starts at N(0, I) itself.

    Args:
        shape: shape S of one sample.
        components: K.

    Raises:
        InputError: when ``components`` is less than 1.

    Example:
        >>> base = Mixture((2,), components=3)
        >>> base.log_prob(base.sample(5)).shape, base.weights.shape
        (torch.Size([5]), torch.Size([3]))
    """

    def __init__(self, shape: Sequence[int], components: int = 8) -> None:
        super().__init__(shape)
        if components < 1:
            raise InputError(f"components={components} must be at least 1")
        spread = 0.1 if components > 1 else 0.0
        self.means = nn.Parameter(spread * torch.randn(components, *self.shape))
        self.log_scales = nn.Parameter(torch.full_like(self.means, math.log1p(-(spread**2)) / 2))
        self.logits = nn.Parameter(torch.zeros(components))

    @property
    def weights(self) -> Tensor:
        """The probabilities of the components, (K,)."""
        return self.logits.softmax(0)

    def log_prob(self, z: Tensor) -> Tensor:
        """See :meth:`Base.log_prob`; by logsumexp over the components."""
        return torch.logsumexp(self.log_joint(z.unsqueeze(1), slice(None)), 1)

    def log_joint(self, z: Tensor, k: Tensor | slice) -> Tensor:
        """Log p(z, k) = log weights_k N(z; means_k, diag(scales_k^2)).

        Args:
            z: points (B, *S) for components k (B,); or (B, 1, *S) for K of them.
            k: which components.

        Returns:
            (B,), or (B, K).
        """
        eps = (z - self.means[k]) * torch.exp(-self.log_scales[k])
        log_normal = -(0.5 * (eps.square() + math.log(2 * math.pi)) + self.log_scales[k])
        return self.logits.log_softmax(0)[k] + log_normal.flatten(-len(self.shape)).sum(-1)

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """See :meth:`Base.sample`; the temperature is of the noise within the components."""
        return self.placed(self._noise(n, temperature), self.sample_components(n))

    def sample_beside(self, a: Tensor) -> Tensor:
        """See :meth:`Base.sample_beside`; from the components as likely as a makes them."""
        own = self.shape[0] - a.shape[1]
        with torch.no_grad():
            eps = (a.unsqueeze(1) - self.means[:, own:]) * torch.exp(-self.log_scales[:, own:])
            log_normal = -(0.5 * eps.square() + self.log_scales[:, own:]).flatten(2).sum(2)
            z = self.placed(self._noise(len(a)), drawn(self.logits + log_normal))[:, :own]
        return torch.cat([z, a], 1)

    def sample_components(self, n: int) -> Tensor:
        """Draw n components, (n,)."""
        check_count(n)
        return drawn(self.logits.detach().expand(n, -1))

    def standardized(self, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Points (B, *S) in coordinates of components (B,), (x - means_k) / scales_k, and log |det| of the map."""
        log_scales = self.log_scales[k]
        return (x - self.means[k]) * torch.exp(-log_scales), -log_scales.flatten(1).sum(1)

    def placed(self, x: Tensor, k: Tensor) -> Tensor:
        """Points in the coordinates of components back where they belong, means_k + scales_k x."""
        return self.means[k] + self.log_scales[k].exp() * x

    @torch.no_grad()
    def fit(self, z: Tensor) -> Self:
        """Start as the mixture of the points ``z`` (N, *S), by expectation maximisation on 20,000 at most.

        Raises:
            InputError: for points of another shape, not finite, or fewer than components, or than two.
        """
        check_samples("z", z, None, self.shape, z.dtype)
        k = len(self.logits)
        if len(z) < max(2, k):
            raise InputError(f"{len(z)} points are too few to fit components={k} to: pass at least {max(2, k)}")
        chosen = z[torch.randperm(len(z))[:FITTED]].flatten(1).double().cpu().numpy()
        seed = int(torch.randint(2**31 - 1, ()))
        found = GaussianMixture(k, covariance_type="diag", reg_covar=1e-4, random_state=seed).fit(chosen)
        self.means.copy_(torch.from_numpy(found.means_).view_as(self.means))
        self.log_scales.copy_(torch.from_numpy(found.covariances_).log().view_as(self.means) / 2)
        self.logits.copy_(torch.from_numpy(found.weights_).log())
        return self


def drawn(logits: Tensor) -> Tensor:
    """Draw k (B,) with probabilities softmax(logits), (B, K); also for B = 0, which torch's own sampler refuses."""
    # The first of K clocks of rates exp(logits) to ring is k with that probability.
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(1)
