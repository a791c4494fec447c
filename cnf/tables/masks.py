"""Flows of some of the numbers of a row: the others are masked, do not move, and do not influence any that do.

A mask (B, D) of ones and zeros, one for each number that is present, makes the first D features of every context. The
flow of a row is then one of its present numbers alone, exact in as many dimensions, for every pattern of presence.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from typing_extensions import override

from anode.fields import Field
from anode.units import to_shares
from cnf.transforms import Transform, Transport


class MaskedField(Field):
    """The field m * f(t, m * x, c) for a mask m, (B, D), that makes the first D features of c.

    Its divergence is the sum of df_i/dx_i over the numbers that are present.

    Args:
        field: f, of ``dim`` dimensions, whose context is all of c.
        dim: D.
    """

    def __init__(self, field: Field, dim: int) -> None:
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
        x = mask * x
        rates = self.field.velocity_and_divergence(t, x, c)
        rows = (mask == 0).any(1).nonzero().squeeze(1)  # with numbers that are absent
        if rates is None or len(rows) == 0:
            return rates
        velocity, divergence = rates
        assert c is not None, "it has the mask"
        jacobian = self.field.velocity_and_jacobian(t[rows] if t.ndim else t, x[rows], c[rows])
        if jacobian is None:
            return None
        absent = ((1 - mask[rows]) * jacobian[1].diagonal(dim1=1, dim2=2)).sum(1)
        return mask * velocity, divergence.index_add(0, rows, -absent)


class WhitenPresent(Transform):
    """z = C^(-1/2) (x - mean) for the covariance C of the numbers that are present; z = 0 for those that are absent.

    This is :class:`cnf.Whiten` for every pattern of presence. Numbers are expected on unit scale.

    Args:
        dim: number of dimensions D.
    """

    FLOOR = 1e-6  # of eigenvalues, relative to the largest
    mean: Tensor
    covariance: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("covariance", torch.eye(dim))

    def fit(self, x: Tensor, mask: Tensor, weights: Tensor | None = None) -> Self:
        """Take means, and the covariance of every pair, from the samples x (N, D) where both are present, (N, D).

        Samples can have relative weights (N,).
        """
        mask = mask.double()
        weighted = mask if weights is None else to_shares(weights, len(x)).to(mask)[:, None] * mask
        tiny = torch.finfo(mask.dtype).tiny  # for numbers never present
        mean = (weighted * x).sum(0) / weighted.sum(0).clamp_min(tiny)
        centred = x - mean
        covariance = ((weighted * centred).T @ (mask * centred)) / (weighted.T @ mask).clamp_min(tiny)
        covariance += torch.diag((covariance.diagonal() == 0).double())  # constants, and numbers never present
        self.mean.copy_(mean)
        self.covariance.copy_(covariance)
        return self

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        mask, (vectors, values), pattern = self._roots(c)
        whitened = vectors / values.unsqueeze(1) @ vectors.mT
        z = mask * ((mask * (x - self.mean)).unsqueeze(1) @ whitened[pattern]).squeeze(1)
        return Transport(z, -values.log().sum(1)[pattern])

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        mask, (vectors, values), pattern = self._roots(c)
        coloured = vectors * values.unsqueeze(1) @ vectors.mT
        x = self.mean + mask * ((mask * z).unsqueeze(1) @ coloured[pattern]).squeeze(1)
        return Transport(x, values.log().sum(1)[pattern])

    def _roots(self, c: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """Return the mask, the eigenvectors and roots of eigenvalues for each pattern, and the pattern of each row."""
        mask = _mask(c, len(self.mean))
        patterns, pattern = torch.unique(mask, dim=0, return_inverse=True)
        present = patterns.double()
        kept = present.unsqueeze(1) * self.covariance.double() * present.unsqueeze(2)
        values, vectors = torch.linalg.eigh(kept + torch.diag_embed(1 - present))
        floor = self.FLOOR * values.amax(1, keepdim=True)
        return mask, (vectors.to(mask), values.maximum(floor).sqrt().to(mask)), pattern


def _mask(c: Tensor | None, dim: int) -> Tensor:
    assert c is not None, "the context of a masked flow begins with its mask"
    return c[:, :dim]
