"""Lifts: random maps of x into a larger or continuous space, where a flow models it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from typing_extensions import override

from anode.errors import InputError, check_choice
from anode.inputs import to_shape, whole_number
from cnf.bases import gaussian_head, standard_normal_log_prob
from cnf.transforms import Transform, log_sigmoid_slope

POSTERIORS = ("normal", "learned")
DEQUANTIZATIONS = ("uniform", "learned")


class LiftResult(NamedTuple):
    """Result of a lift.

    For a learned q, ``kl`` is one draw of its divergence from the fixed default: log q(a given x) - log N(a; 0, I) of
    augmented variables, log q(u given x) of dequantisation noise.
    """

    point: Tensor  # y
    log_q: Tensor  # log q(y given x), (B,), in nats
    kl: Tensor | None = None  # (B,)


class Lift(nn.Module):
    """A random map y ~ q(y given x) from whose result x is recovered: x = project(y).

    For such a lift log p(x) >= E_q [log p(y) - log q(y given x)].

    Attributes:
        domain: constraint on the elements of x.
    """

    domain: constraints.Constraint = constraints.real

    def forward(self, x: Tensor, c: Tensor | None = None) -> LiftResult:
        """Draw y given x.

        Args:
            x: (B, *S).
            c: context, (B, C), or None.
        """
        raise NotImplementedError

    def project(self, y: Tensor) -> Tensor:
        """Recover x (B, *S) from y."""
        raise NotImplementedError

    def check_values(self, x: Tensor) -> None:
        """Raise an :class:`anode.InputError` for values that cannot be lifted; it reads x, so that a GPU waits."""
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        if bad:
            raise InputError(f"x is not finite in {bad} of {len(x)} samples: remove those")


class ComposeLifts(Lift):
    """One or more lifts in sequence; the first is next to the data."""

    def __init__(self, lifts: Sequence[Lift]) -> None:
        super().__init__()
        if not lifts or not all(isinstance(lift, Lift) for lift in lifts):
            raise InputError("lifts must hold at least one Lift, and nothing else")
        self.lifts: Sequence[Lift] = nn.ModuleList(lifts)  # ty: ignore[invalid-assignment]
        self.domain = lifts[0].domain

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> LiftResult:
        steps: list[LiftResult] = []
        for lift in self.lifts:
            steps.append(lift(steps[-1].point if steps else x, c))
        log_q = torch.stack([step.log_q for step in steps]).sum(0)
        kl = [step.kl for step in steps if step.kl is not None]
        return LiftResult(steps[-1].point, log_q, torch.stack(kl).sum(0) if kl else None)

    @override
    def project(self, y: Tensor) -> Tensor:
        for lift in reversed(self.lifts):
            y = lift.project(y)
        return y

    @override
    def check_values(self, x: Tensor) -> None:
        self.lifts[0].check_values(x)


class TransformLift(Lift):
    """An invertible transform as a lift: y = g(x) with log q(y given x) = -log |det dg/dx|.

    It lets the next lift see standardised data.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform
        self.domain = transform.domain

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> LiftResult:
        y, log_det, _ = self.transform(x)
        return LiftResult(y, -log_det)

    @override
    def project(self, y: Tensor) -> Tensor:
        return self.transform.decode(y)


class VariationalAugment(Lift):
    """y = (x, a), joined along dimension 1, with augmented variables a ~ q(a given x) that are drawn, not zeros.

    The density of x is the marginal log p(x) = log integral p(x, a) da, and E_q [log p(x, a) - log q(a given x)] is a
    lower bound.

    Args:
        extra: number of dimensions of a, or of channels with the size of the image.
        posterior: ``"normal"``: q = N(0, I) for every x. ``"learned"``: a Gaussian whose mean and log-scale
            :func:`cnf.bases.gaussian_head` computes from x, which should be standardised; it starts at N(0, I).
        shape: shape S of one sample, for ``"learned"``.
        hidden: width of the network.

    References:
        Huang et al. 2020, arXiv 2002.07101; Chen et al. 2020, arXiv 2002.09741.

    Example:
        >>> y, log_q, _ = VariationalAugment(3)(torch.randn(5, 2))
        >>> y.shape, log_q.shape
        (torch.Size([5, 5]), torch.Size([5]))
    """

    def __init__(
        self, extra: int, posterior: str = "normal", shape: Sequence[int] | None = None, hidden: int = 64
    ) -> None:
        super().__init__()
        check_choice("posterior", posterior, POSTERIORS)
        self.extra = whole_number("extra", extra)
        self.head: nn.Module | None = None
        if posterior == "learned":
            if shape is None:
                raise InputError("posterior='learned' is a network of x: pass the shape of one sample")
            shape = to_shape(shape)
            self.head = gaussian_head(shape[0], self.extra, hidden, images=len(shape) == 3)

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> LiftResult:
        if x.ndim < 2:
            raise InputError(f"x of shape {tuple(x.shape)} cannot be augmented: pass (B, D) or (B, C, H, W)")
        eps = torch.randn(len(x), self.extra, *x.shape[2:], dtype=x.dtype, device=x.device)
        if self.head is None:
            return LiftResult(torch.cat([x, eps], 1), standard_normal_log_prob(eps))
        mean, log_scale = self.head(x).chunk(2, 1)
        a = mean + log_scale.exp() * eps
        log_q = standard_normal_log_prob(eps) - log_scale.flatten(1).sum(1)
        return LiftResult(torch.cat([x, a], 1), log_q, log_q - standard_normal_log_prob(a))

    @override
    def project(self, y: Tensor) -> Tensor:
        return y[:, : -self.extra]


class Dequantize(Lift):
    """Dequantisation of x in {0, ..., levels - 1}: y = (x + u) / levels with noise u ~ q(u given x) in [0, 1).

    y lies in [0, 1) with log q(y given x) = log q(u given x) + D log(levels), for D dimensions.

    - ``"uniform"``: u ~ U[0, 1) for every x.
    - ``"learned"``: u = sigmoid(m(x) + s(x) logit(w)), w ~ U[0, 1), where :func:`cnf.bases.gaussian_head` computes m
      and log s from x. It starts as uniform noise, and raises the bound by noise that suits the density of y.

    Args:
        levels: number of values of each element, 256 for 8-bit images.
        noise: q.
        shape: shape S of one sample, for ``"learned"``.
        hidden: width of the network.

    References:
        Theis et al. 2016, arXiv 1511.01844, section 3.1 (uniform); Ho et al. 2019, arXiv 1902.00275, section 3.1
        (variational).
    """

    def __init__(
        self, levels: int = 256, noise: str = "uniform", shape: Sequence[int] | None = None, hidden: int = 32
    ) -> None:
        super().__init__()
        check_choice("noise", noise, DEQUANTIZATIONS)
        self.levels = levels = whole_number("levels", levels, 2)
        self.noise = noise
        self.domain = constraints.integer_interval(0, levels - 1)
        self.head: nn.Module | None = None
        if noise == "learned":
            if shape is None:
                raise InputError("noise='learned' is a network of x: pass the shape of one sample")
            shape = to_shape(shape)
            self.head = gaussian_head(shape[0], shape[0], hidden, images=len(shape) == 3)

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> LiftResult:
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        u, log_q = self._draw_noise(x)
        y = (x + u) / self.levels
        log_scale = math.log(self.levels) * math.prod(x.shape[1:])
        return LiftResult(_below_one(y), log_q + log_scale, None if self.head is None else log_q)

    @override
    def project(self, y: Tensor) -> Tensor:
        return (y * self.levels).floor().clamp(0, self.levels - 1)  # values outside belong to the nearest level

    @override
    def check_values(self, x: Tensor) -> None:
        wrong = x[~((x >= 0) & (x <= self.levels - 1) & (x == x.floor()))]
        if len(wrong):
            raise InputError(f"x must hold whole numbers from 0 to {self.levels - 1}; it holds {wrong[0]:g}")

    def _draw_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Draw u (B, *S) and compute log q(u given x) (B,)."""
        w = torch.rand_like(x)
        if self.head is None:
            return w, x.new_zeros(len(x))
        v = torch.logit(w.clamp(min=torch.finfo(w.dtype).tiny))  # w = 0 has an infinite logit
        mean, log_scale = self.head(2 * (x + 0.5) / self.levels - 1).chunk(2, 1)
        logit = mean + log_scale.exp() * v
        log_q = log_sigmoid_slope(v) - log_scale - log_sigmoid_slope(logit)  # w is uniform, so q is |dw/du|
        return _below_one(torch.sigmoid(logit)), log_q.flatten(1).sum(1)


def _below_one(u: Tensor) -> Tensor:
    """Keep rounding from reaching 1."""
    return u.clamp(max=1 - torch.finfo(u.dtype).eps / 2)
