"""Flows of some of the numbers of a row: the others are masked, do not move, and do not influence any that do.

A mask (B, D) of ones and zeros, one for each number that is present, makes the first D features of every context. The
flow of a row is then one of its present numbers alone, exact in as many dimensions, for every pattern of presence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from anode.fields import Field, MLPField
from anode.units import to_shares
from cnf.transforms import Tails, Transform, Transport

REGRESSED, FEWEST_REGRESSED = 20_000, 20  # rows of a regression, at most and at least
ROUNDS = 4  # of leaving out outliers
GROUP_ROWS = 64  # rows whose divergences take as much time as a further group of rows with the same mask


class MaskedField(Field):
    """The field m * f(t, m * x, c) for a mask m, (B, D), that makes the first D features of c.

    Its divergence is the sum of df_i/dx_i over the numbers that are present.

    Args:
        field: f, of ``dim`` dimensions, whose context is all of c.
        dim: D.
    """

    def __init__(self, field: MLPField, dim: int) -> None:
        super().__init__()
        self.field = field
        self.dim = dim

    @override
    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        mask = _mask(c, self.dim)
        return mask * self.field(t, mask * x, c)

    @override
    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        mask = _mask(c, self.dim)
        assert c is not None, "it has the mask"
        if (mask == mask[:1]).all():
            return self.field.velocity_and_divergence(t, x, c, mask[0]) if len(mask) else None
        patterns, pattern, counts = torch.unique(mask, dim=0, return_inverse=True, return_counts=True)
        frequent = (self.dim - 1) * counts > GROUP_ROWS  # a Jacobian costs as much as D divergences
        groups = [(pattern == i).nonzero().squeeze(1) for i in frequent.nonzero().squeeze(1)]
        parts = [
            self.field.velocity_and_divergence(t[rows] if t.ndim else t, x[rows], c[rows], one)
            for rows, one in zip(groups, patterns[frequent], strict=True)
        ]
        rest = (~frequent[pattern]).nonzero().squeeze(1)
        if len(rest):
            groups.append(rest)
            parts.append(self._by_jacobian(t[rest] if t.ndim else t, x[rest], c[rest]))
        if None in parts:
            return None
        back = torch.cat(groups).argsort()
        velocity, divergence = (torch.cat(each)[back] for each in zip(*parts, strict=True))
        return velocity, divergence

    def _by_jacobian(self, t: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor] | None:
        mask = _mask(c, self.dim)
        rates = self.field.velocity_and_jacobian(t, mask * x, c)
        return rates and (mask * rates[0], (mask * rates[1].diagonal(dim1=1, dim2=2)).sum(1))


class Trend(Transform):
    """z = x - m * (A c + b): the numbers less their linear regression on the context c, at least where m is 1.

    Args:
        dim: number of dimensions D.
        context: number of context features C.
        masked: the mask m makes the first D of them; otherwise it is 1.
    """

    matrix: Tensor
    bias: Tensor

    def __init__(self, dim: int, context: int, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.register_buffer("matrix", torch.zeros(dim, context))
        self.register_buffer("bias", torch.zeros(dim))

    def fit(self, x: Tensor, mask: Tensor, c: Tensor, weights: Tensor | None = None) -> Self:
        """Regress samples x (N, D), where they are present, (N, D), on contexts c (N, C), with relative weights (N,).

        The penalty on A has the least squared error of samples that are left out, one after the other; a sample of any
        weight counts as one there, so that the penalty can differ from that of repeated samples.
        """
        from sklearn.linear_model import RidgeCV  # a second, which stored models need not wait for

        features = c.double().cpu().numpy()
        for i, (cells, present) in enumerate(zip(x.double().T, mask.T, strict=True)):
            kept = present.bool() if weights is None else present.bool() & (weights > 0)
            rows = kept.nonzero().squeeze(1).cpu()
            rows = rows[:: math.ceil(len(rows) / REGRESSED) or 1]
            if len(rows) < FEWEST_REGRESSED:
                continue
            shares = None if weights is None else weights[rows].cpu().numpy()
            found = RidgeCV(np.logspace(-1, 6, 15)).fit(features[rows], cells[rows].cpu().numpy(), shares)
            self.matrix[i] = torch.as_tensor(found.coef_)
            self.bias[i] = float(found.intercept_)
        return self

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        return Transport(x - self._shift(c), x.new_zeros(len(x)))

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        return Transport(z + self._shift(c), z.new_zeros(len(z)))

    def _shift(self, c: Tensor | None) -> Tensor:
        assert c is not None, "a trend has a context"
        shift = F.linear(c, self.matrix, self.bias)
        return _mask(c, len(self.bias)) * shift if self.masked else shift


class WhitenPresent(Transform):
    """z = V g(L^(-1/2) V' (x - mean)) for the covariance V L V' of the numbers that are present, and z = 0 for others.

    This is :class:`cnf.Whiten` for every pattern of presence, but that g, :class:`cnf.Tails`, brings outliers near the
    other samples. Mean and covariance are those of the rows without outliers, which have |z| > T + 2. Numbers are
    expected on unit scale.

    Args:
        dim: number of dimensions D.
    """

    FLOOR = 1e-6  # of eigenvalues, relative to the largest
    mean: Tensor
    covariance: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.tails = Tails()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("covariance", torch.eye(dim))

    def fit(self, x: Tensor, mask: Tensor, weights: Tensor | None = None) -> Self:
        """Take means, and the covariance of every pair, from the samples x (N, D) where both are present, (N, D).

        Samples can have relative weights (N,).
        """
        x, mask = x.double(), mask.double()
        weighted = mask if weights is None else to_shares(weights, len(x)).to(mask)[:, None] * mask
        tiny = torch.finfo(mask.dtype).tiny  # for numbers never present
        for _ in range(ROUNDS):
            mean = (weighted * x).sum(0) / weighted.sum(0).clamp_min(tiny)
            centred = x - mean
            covariance = ((weighted * centred).T @ (mask * centred)) / (weighted.T @ mask).clamp_min(tiny)
            covariance += torch.diag((covariance.diagonal() == 0).double())  # constants, and numbers never present
            self.mean.copy_(mean)
            self.covariance.copy_(covariance)
            inside = self(x.to(self.mean), mask.to(self.mean)).point.abs().amax(1) < self.tails.start + 2
            if inside.all():
                break
            x, mask, weighted = x[inside], mask[inside], weighted[inside]
        return self

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        z, log_det = torch.empty_like(x), x.new_empty(len(x))
        for rows, mask, vectors, roots in self._patterns(c):
            tailed = self.tails(mask * (x[rows] - self.mean) @ vectors / roots)
            z[rows] = mask * (tailed.point @ vectors.mT)
            log_det[rows] = tailed.log_det - roots.log().sum()
        return Transport(z, log_det)

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        x, log_det = torch.empty_like(z), z.new_empty(len(z))
        for rows, mask, vectors, roots in self._patterns(c):
            tailed = self.tails.inverse(mask * z[rows] @ vectors)
            x[rows] = self.mean + mask * (tailed.point * roots @ vectors.mT)
            log_det[rows] = tailed.log_det + roots.log().sum()
        return Transport(x, log_det)

    def _patterns(self, c: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield for each mask its rows, the mask (D,), the eigenvectors (D, D), and the roots of eigenvalues (D,)."""
        mask = _mask(c, len(self.mean))
        patterns, pattern = torch.unique(mask, dim=0, return_inverse=True)
        present = patterns.double()
        kept = present.unsqueeze(1) * self.covariance.double() * present.unsqueeze(2)
        values, vectors = torch.linalg.eigh(kept - torch.diag_embed(1 - present))  # -1 keeps absent numbers apart
        floor = self.FLOOR * values.amax(1, keepdim=True)
        roots = torch.where(values < -0.5, 1.0, values.maximum(floor).sqrt())
        for i, one in enumerate(patterns):
            yield (pattern == i).nonzero().squeeze(1), one, vectors[i].to(mask), roots[i].to(mask)


def _mask(c: Tensor | None, dim: int) -> Tensor:
    assert c is not None, "the context of a masked flow begins with its mask"
    return c[:, :dim]
