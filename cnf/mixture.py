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
    """A mixture of K Gaussians, whose means, scales and weights are learned, and their correlations where asked for.

        p(z) = sum_k weights_k N(z; means_k, C_k),    C_k^(-1) = R_k' R_k,    R_k = diag(1 / scales_k) (I + U_k)

    with strictly upper triangular U_k, zero unless components are correlated. A base of several pieces spares the flow
    from tearing one Gaussian apart. :meth:`fit` starts it as the mixture that data have already. Otherwise it starts
    near the standard normal, all weights equal: means are drawn from N(0, 0.1^2) and every scale is sqrt(1 - 0.1^2), so
    that the mean of p over that draw is N(0, I), and components differ enough to part. With one component it starts at
    N(0, I) itself.

    Args:
        shape: shape S of one sample.
        components: K.
        correlated: whether components have a full covariance, D (D - 1) / 2 numbers more each for samples of D
            elements, instead of a diagonal one.

    Raises:
        InputError: when ``components`` is less than 1.

    Example:
        >>> base = Mixture((2,), components=3)
        >>> base.log_prob(base.sample(5)).shape, base.weights.shape
        (torch.Size([5]), torch.Size([3]))
    """

    def __init__(self, shape: Sequence[int], components: int = 8, correlated: bool = False) -> None:
        super().__init__(shape)
        if components < 1:
            raise InputError(f"components={components} must be at least 1")
        spread = 0.1 if components > 1 else 0.0
        self.means = nn.Parameter(spread * torch.randn(components, *self.shape))
        self.log_scales = nn.Parameter(torch.full_like(self.means, math.log1p(-(spread**2)) / 2))
        self.logits = nn.Parameter(torch.zeros(components))
        above = self.shape.numel() * (self.shape.numel() - 1) // 2
        self.mixing = nn.Parameter(torch.zeros(components, above)) if correlated else None  # U_k, row by row

    @property
    def weights(self) -> Tensor:
        """The probabilities of the components, (K,)."""
        return self.logits.softmax(0)

    def log_prob(self, z: Tensor) -> Tensor:
        """See :meth:`Base.log_prob`; by logsumexp over the components."""
        return torch.logsumexp(self.log_joint(z.unsqueeze(1), slice(None)), 1)

    def log_joint(self, z: Tensor, k: Tensor | slice) -> Tensor:
        """Log p(z, k) = log weights_k N(z; means_k, C_k).

        Args:
            z: points (B, *S) for components k (B,); or (B, 1, *S) for K of them.
            k: which components.

        Returns:
            (B,), or (B, K).
        """
        eps = self._whitened(z, k)
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
            z = self._noise(len(a))
            eps = self._whitened(torch.cat([z[:, :own], a], 1).unsqueeze(1), slice(None))[:, :, own:]  # of a alone
            k = drawn(self.logits - (0.5 * eps.square() + self.log_scales[:, own:]).flatten(2).sum(2))
            z[:, own:] = eps[torch.arange(len(a)), k]
            z = self.placed(z, k)[:, :own]
        return torch.cat([z, a], 1)

    def sample_components(self, n: int) -> Tensor:
        """Draw n components, (n,)."""
        check_count(n)
        return drawn(self.logits.detach().expand(n, -1))

    def standardized(self, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Points (B, *S) in coordinates of components (B,), R_k (x - means_k), and log |det| of the map."""
        return self._whitened(x, k), -self.log_scales[k].flatten(1).sum(1)

    def placed(self, x: Tensor, k: Tensor) -> Tensor:
        """Points in the coordinates of components back where they belong, means_k + R_k^(-1) x."""
        y = self.log_scales[k].exp() * x
        if self.mixing is not None:
            upper, flat = self._unit_triangular(self.mixing)[k], y.flatten(1).unsqueeze(2)
            y = torch.linalg.solve_triangular(upper, flat, upper=True, unitriangular=True).view(y.shape)
        return self.means[k] + y

    def _whitened(self, z: Tensor, k: Tensor | slice) -> Tensor:
        """R_k (z - means_k) of points (B, *S) for components (B,), or (B, 1, *S) for all.

        As R_k is upper triangular, an element is made of those from its place on alone.
        """
        y = z - self.means[k]
        if self.mixing is not None:
            upper = self._unit_triangular(self.mixing)[k]
            y = torch.einsum("...ij,...j->...i", upper, y.flatten(-len(self.shape))).view(y.shape)
        return y * torch.exp(-self.log_scales[k])

    def _unit_triangular(self, mixing: Tensor) -> Tensor:
        """The matrices I + U_k (K, D, D)."""
        n = self.shape.numel()
        matrices = torch.eye(n, dtype=mixing.dtype, device=mixing.device).repeat(len(mixing), 1, 1)
        rows, columns = torch.triu_indices(n, n, 1, device=mixing.device)
        matrices[:, rows, columns] = mixing
        return matrices

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
        kind = "diag" if self.mixing is None else "full"
        found = GaussianMixture(k, covariance_type=kind, reg_covar=1e-4, random_state=seed).fit(chosen)
        precisions = torch.from_numpy(found.precisions_)
        scales = precisions.rsqrt()
        if self.mixing is not None:
            roots = torch.linalg.cholesky(precisions).mT
            scales = 1 / roots.diagonal(dim1=1, dim2=2)
            rows, columns = torch.triu_indices(*roots.shape[1:], 1)
            self.mixing.copy_((roots * scales.unsqueeze(2))[:, rows, columns])
        self.means.copy_(torch.from_numpy(found.means_).view_as(self.means))
        self.log_scales.copy_(scales.log().view_as(self.means))
        self.logits.copy_(torch.from_numpy(found.weights_).log())
        return self


def drawn(logits: Tensor) -> Tensor:
    """Draw k (B,) with probabilities softmax(logits), (B, K); also for B = 0, which torch's own sampler refuses."""
    # The first of K clocks of rates exp(logits) to ring is k with that probability.
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(1)
