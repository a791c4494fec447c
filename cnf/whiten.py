"""Whitening: a linear first transform that takes the correlations of the data out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from cnf.transforms import PathOptions, Transform, Transport


class Whiten(Transform):
    """z = C^(-1/2) (x - m), of mean m and covariance C: the symmetric whitening, which keeps z nearest to x.

    A flow after it starts as the Gaussian of full covariance, and its ODE need not squeeze what is correlated.

    Eigenvalues of C below a hundred-millionth of the largest are raised to that: beyond it, single precision cannot
    tell data from rounding.

    Args:
        shape: shape S of one sample, of D elements.

    References:
        Kessy, Lewin, Strimmer 2018, Optimal whitening and decorrelation, arXiv 1512.00809 ("ZCA").

    Example:
        >>> x = torch.randn(1000, 3) @ torch.randn(3, 3)
        >>> z = Whiten((3,)).fit(x).encode(x)
        >>> torch.allclose(z.T @ z / 1000, torch.eye(3), atol=1e-3)
        True
    """

    FLOOR = 1e-8  # of eigenvalues, in units of the largest
    mean: Tensor
    root: Tensor
    unroot: Tensor
    log_det: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        dim = math.prod(shape)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("root", torch.eye(dim))  # C^(1/2)
        self.register_buffer("unroot", torch.eye(dim))  # C^(-1/2)
        self.register_buffer("log_det", torch.zeros(()))  # log |det C^(-1/2)|

    def fit(self, x: Tensor) -> Self:
        """Take mean and covariance from the samples ``x`` (N, *S)."""
        x = x.flatten(1).double()
        centred = x - x.mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
        largest = values[-1] if values[-1] > 0 else torch.ones_like(values[-1])
        roots = values.clamp_min(self.FLOOR * largest).sqrt()
        self.mean.copy_(x.mean(0))
        self.root.copy_(vectors * roots @ vectors.T)
        self.unroot.copy_(vectors / roots @ vectors.T)
        self.log_det.copy_(torch.linalg.slogdet(self.unroot.double()).logabsdet)  # of the matrix as it was rounded
        return self

    def forward(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.forward`."""
        z = (x.flatten(1) - self.mean) @ self.unroot
        return Transport(z.view(x.shape), self.log_det.expand(len(x)))

    def inverse(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.inverse`."""
        x = z.flatten(1) @ self.root + self.mean
        return Transport(x.view(z.shape), -self.log_det.expand(len(z)))
