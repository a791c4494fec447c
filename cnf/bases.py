"""Base distributions: the standard normal, and a learned mixture of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from anode.errors import InputError
from anode.inputs import to_shape, whole_number
from anode.units import samples_to_fit, to_shares

MAX_FIT_POINTS = 20_000
ADDED_VARIANCES = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)  # to those of fitted components, as shares of the data's


class Base(nn.Module):
    """A distribution of base points z.

    Args:
        shape: shape S of one sample; a number D stands for (D,).

    Attributes:
        like: an empty tensor with the device and floating-point type of the base.
        has_rsample: True if samples carry the gradient of every parameter.
    """

    like: Tensor
    has_rsample: ClassVar[bool] = False

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size(to_shape(shape))
        self.register_buffer("like", torch.empty(0), persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, (B,), of points (B, *S)."""
        raise NotImplementedError

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draw n samples, (n, *S), without a graph; see :meth:`cnf.Density.sample` for the temperature."""
        raise NotImplementedError

    def _draw_noise(self, n: int, temperature: float) -> Tensor:
        """Draw normal numbers (n, *S) with the temperature as standard deviation."""
        if not (isinstance(temperature, Real) and temperature > 0 and math.isfinite(temperature)):
            raise InputError(f"temperature={temperature} must be a positive number, such as 0.8")
        n = whole_number("n", n, 0)
        return float(temperature) * torch.randn(n, *self.shape, dtype=self.like.dtype, device=self.like.device)


class Normal(Base):
    """The standard normal base N(0, I)."""

    has_rsample = True

    @override
    def log_prob(self, z: Tensor) -> Tensor:
        return standard_normal_log_prob(z)

    @override
    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        return self._draw_noise(n, temperature)


class Mixture(Base):
    """A mixture of K Gaussians with learned means, scales and weights, and optionally learned correlations.

        p(z) = sum_k weights_k N(z; means_k, C_k),    C_k^(-1) = R_k' R_k,    R_k = diag(1 / scales_k) (I + U_k)

    with strictly upper triangular U_k, zero unless components are correlated. With a base of several modes, the flow
    does not have to tear one Gaussian apart. :meth:`fit` starts it as a mixture fitted to data. Otherwise it starts
    near the standard normal with equal weights: means are drawn from N(0, 0.1^2) and every scale is sqrt(1 - 0.1^2), so
    that the mean of p over these draws is N(0, I), and the components can separate. One component starts at N(0, I).

    Args:
        shape: shape S of one sample.
        components: K.
        correlated: give every component a full covariance instead of a diagonal one; D (D - 1) / 2 parameters more
            each for samples of D elements.

    Example:
        >>> base = Mixture((2,), components=3)
        >>> base.log_prob(base.sample(5)).shape, base.weights.shape
        (torch.Size([5]), torch.Size([3]))
    """

    def __init__(self, shape: Sequence[int], components: int = 8, correlated: bool = False) -> None:
        super().__init__(shape)
        components = whole_number("components", components)
        spread = 0.1 if components > 1 else 0.0
        self.means = nn.Parameter(spread * torch.randn(components, *self.shape))
        self.log_scales = nn.Parameter(torch.full_like(self.means, math.log1p(-(spread**2)) / 2))
        self.logits = nn.Parameter(torch.zeros(components))
        above = self.shape.numel() * (self.shape.numel() - 1) // 2
        self.off_diagonal = nn.Parameter(torch.zeros(components, above)) if correlated else None  # U_k, row by row

    @property
    def weights(self) -> Tensor:
        """The probabilities of the components, (K,)."""
        return self.logits.softmax(0)

    @override
    def log_prob(self, z: Tensor) -> Tensor:
        return torch.logsumexp(self.log_joint(z.unsqueeze(1), slice(None)), 1)

    def log_joint(self, z: Tensor, k: Tensor | slice) -> Tensor:
        """Return log p(z, k) = log weights_k N(z; means_k, C_k).

        Its shape is (B,) for points z (B, *S) and components k (B,); or (B, K) for z (B, 1, *S) and ``slice(None)``.
        """
        log_normal = _log_normal(self._whiten(z, k)) - self.log_scales[k]
        return self.logits.log_softmax(0)[k] + log_normal.flatten(-len(self.shape)).sum(-1)

    @override
    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        return self.from_component(self._draw_noise(n, temperature), self.sample_components(n))

    def sample_components(self, n: int) -> Tensor:
        """Draw n component indices, (n,)."""
        return sample_categorical(self.logits.detach().expand(whole_number("n", n, 0), -1))

    def to_component(self, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Map points (B, *S) to the coordinates of components (B,): R_k (x - means_k), and log |det| of the map."""
        return self._whiten(x, k), -self.log_scales[k].flatten(1).sum(1)

    def from_component(self, x: Tensor, k: Tensor) -> Tensor:
        """Map points from the coordinates of components back: means_k + R_k^(-1) x."""
        y = self.log_scales[k].exp() * x
        if self.off_diagonal is not None:
            upper, flat = self._unit_triangular(self.off_diagonal)[k], y.flatten(1).unsqueeze(2)
            y = torch.linalg.solve_triangular(upper, flat, upper=True, unitriangular=True).view(y.shape)
        return self.means[k] + y

    def _whiten(self, z: Tensor, k: Tensor | slice) -> Tensor:
        """Return R_k (z - means_k) of points (B, *S) for components (B,), or (B, 1, *S) for all."""
        y = z - self.means[k]
        if self.off_diagonal is not None:
            upper = self._unit_triangular(self.off_diagonal)[k]
            y = torch.einsum("...ij,...j->...i", upper, y.flatten(-len(self.shape))).view(y.shape)
        return y * torch.exp(-self.log_scales[k])

    def _unit_triangular(self, off_diagonal: Tensor) -> Tensor:
        """Return the matrices I + U_k, (K, D, D)."""
        n = self.shape.numel()
        matrices = torch.eye(n, dtype=off_diagonal.dtype, device=off_diagonal.device).repeat(len(off_diagonal), 1, 1)
        rows, columns = torch.triu_indices(n, n, 1, device=off_diagonal.device)
        matrices[:, rows, columns] = off_diagonal
        return matrices

    @torch.no_grad()
    def fit(self, z: Tensor, weights: Any = None) -> Self:
        """Fit the mixture by expectation maximisation to at most 20,000 of the points ``z`` (N, *S).

        Points with relative weights (N,) are drawn in proportion to them, with replacement.

        In units of the variances of z, 1e-4 is added to the variances of the components. If a component has fewer than
        ten points, or ten for each row of a full covariance, the likelihood of held-out points chooses the addition; it
        is 1 for fewer than two points a component, or five in all.
        """
        from sklearn.mixture import GaussianMixture  # imported here: it is slow, and only fitting needs it

        z = samples_to_fit("z", z, self.shape)
        k = len(self.logits)
        if len(z) < max(2, k):
            raise InputError(f"{len(z)} points are too few to fit components={k} to: pass at least {max(2, k)}")
        rows = torch.randperm(len(z))[:MAX_FIT_POINTS]
        if weights is not None:
            places = torch.rand(len(rows), dtype=torch.float64)
            rows = torch.searchsorted(to_shares(weights, len(z)).cpu().cumsum(0), places).clamp(max=len(z) - 1)
        points = z[rows].flatten(1).double().cpu().numpy()
        centre, scale = points.mean(0), points.std(0)
        scale[scale == 0] = 1
        points = (points - centre) / scale
        seed = int(torch.randint(2**31 - 1, ()))
        kind = "diag" if self.off_diagonal is None else "full"

        def fitted_to(points: np.ndarray, added: float) -> GaussianMixture:
            return GaussianMixture(k, covariance_type=kind, reg_covar=added, random_state=seed).fit(points)

        added, rest = ADDED_VARIANCES[0], len(points) - len(points) // 5
        if len(points) < max(5, 2 * k):
            added = ADDED_VARIANCES[-1]
        elif len(points) < 10 * k * (1 if kind == "diag" else points.shape[1]):
            added = max(ADDED_VARIANCES, key=lambda added: fitted_to(points[:rest], added).score(points[rest:]))
        fitted = fitted_to(points, added)
        precisions = torch.from_numpy(fitted.precisions_ / (scale**2 if kind == "diag" else np.outer(scale, scale)))
        scales = precisions.rsqrt()
        if self.off_diagonal is not None:
            roots = torch.linalg.cholesky(precisions).mT
            scales = 1 / roots.diagonal(dim1=1, dim2=2)
            rows, columns = torch.triu_indices(*roots.shape[1:], 1)
            self.off_diagonal.copy_((roots * scales.unsqueeze(2))[:, rows, columns])
        self.means.copy_(torch.from_numpy(fitted.means_ * scale + centre).view_as(self.means))
        self.log_scales.copy_(scales.log().view_as(self.means))
        self.logits.copy_(torch.from_numpy(fitted.weights_).log())
        return self


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Return log N(z; 0, I) in nats, (B,), of points (B, *S)."""
    return _log_normal(z).flatten(1).sum(1)


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi))


def sample_categorical(logits: Tensor) -> Tensor:
    """Draw k (B,) with probabilities softmax(logits), (B, K); also for B = 0, which torch.multinomial refuses."""
    # The first of K exponential clocks with rates exp(logits) to ring is k with that probability.
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(1)


def gaussian_head(n_in: int, n_out: int, hidden: int, images: bool) -> nn.Sequential:
    """Build a network of mean and log-scale of ``n_out`` dimensions or channels, given ``n_in``; both start at 0."""
    hidden = whole_number("hidden", hidden)
    layer = partial(nn.Conv2d, kernel_size=3, padding=1) if images else nn.Linear
    network = nn.Sequential(layer(n_in, hidden), nn.SiLU(), layer(hidden, 2 * n_out))
    for parameter in network[-1].parameters():
        nn.init.zeros_(parameter)
    return network
