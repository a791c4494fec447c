"""Units of samples: layers that standardise them, and warnings of units that a network learns little from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from anode.errors import InputError
from anode.inputs import check_finite, to_tensor


class MeanScale(nn.Module):
    """Mean and scale of every element of a sample, as buffers.

    Args:
        shape: shape S of one sample.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("scale", torch.ones(*shape))

    def fit(self, x: Tensor, weights: Any = None) -> Self:
        """Take mean and standard deviation from the samples ``x`` (N, *S); a constant element gets the scale 1.

        Args:
            x: samples.
            weights: relative weights (N,) of the samples; equal if omitted.
        """
        mean, std = moments(samples_to_fit("x", x, self.mean.shape).double(), weights)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 0, std, 1.0))
        return self

    @property
    def fitted(self) -> bool:
        """True if a mean or scale differs from 0 and 1."""
        return bool(self.mean.any() or (self.scale != 1).any())


def samples_to_fit(name: str, x: Any, shape: Sequence[int]) -> Tensor:
    """Return samples (N, *S), at least one and all finite, as a tensor without a graph; ``name`` is for messages."""
    x = to_tensor(name, x).detach()
    if x.shape[1:] != torch.Size(shape) or x.numel() == 0:
        raise InputError(f"samples of shape {tuple(x.shape)} do not fit: pass one or more of shape {tuple(shape)}")
    if not torch.isfinite(x).all():
        raise InputError("the samples are not all finite: remove rows with NaN or infinity")
    return x


def moments(x: Tensor, weights: Any = None) -> tuple[Tensor, Tensor]:
    """Return mean sum_i p_i x_i and standard deviation of samples x (N, *S), (*S,), by their shares p of the weights.

    Args:
        x: samples, at least one.
        weights: relative weights (N,); equal if None. A weight of 2 counts as two equal samples.
    """
    if weights is None:
        return x.mean(0), x.std(0, correction=0)
    shares = to_shares(weights, len(x)).to(x).view(-1, *[1] * (x.ndim - 1))
    mean = (shares * x).sum(0)
    return mean, (shares * (x - mean).square()).sum(0).sqrt()


def to_shares(weights: Any, n: int) -> Tensor:
    """Return relative weights of n samples as shares that sum to 1, (n,), float64.

    Raises:
        InputError: unless they are n finite numbers, at least 0 and not all 0.
    """
    weights = to_tensor("weights", weights).detach().double()
    if weights.shape != (n,) or not (weights.isfinite() & (weights >= 0)).all() or not weights.any():
        raise InputError(
            f"weights of shape {tuple(weights.shape)} do not fit {n} samples: pass one finite weight for each, at "
            "least 0 and not all 0"
        )
    weights = weights / weights.max()  # the sum stays finite
    return weights / weights.sum()


def magnitude(x: Tensor) -> float:
    """Return the largest mean of |x| over a batch (B, *S), of the elements of a sample: near 1 if standardised.

    It is 1 where values cannot be seen: within ``torch.func.vmap`` and on the device "meta".
    """
    try:
        return x.abs().flatten(1).mean(0, dtype=torch.promote_types(x.dtype, torch.float32)).max().item()
    except RuntimeError:
        return 1.0


def has_unit_scale(magnitude: float) -> bool:
    """Return True for a magnitude near 1, from which a network learns, or for zeros."""
    return magnitude == 0 or 0.01 < magnitude < 30


class Normalize(MeanScale):
    """A layer that standardises its input, (x - mean) / scale elementwise; the identity until it is fitted.

    Example:
        >>> Normalize((2,)).fit(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))(torch.tensor([[2.0, 20.0]]))
        tensor([[1., 0.]])
    """

    @override
    def forward(self, x: Tensor) -> Tensor:
        return (to_tensor("x", x, self.mean) - self.mean) / self.scale


class Denormalize(MeanScale):
    """A layer that gives standardised outputs the units of a target, mean + scale y elementwise.

    Example:
        >>> Denormalize((1,)).fit(torch.tensor([[0.0], [2.0]]))(torch.tensor([[1.0]]))
        tensor([[2.]])
    """

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.mean + self.scale * x


class ScalePixels(nn.Module):
    """A layer that maps whole numbers 0 ... levels - 1 to [0, 1], so that data sets of images can stay in bytes.

    Args:
        levels: number of values of a pixel: 256 for 8 bits.

    Example:
        >>> ScalePixels(256)(torch.tensor([[0, 51, 255]], dtype=torch.uint8))
        tensor([[0.0000, 0.2000, 1.0000]])
    """

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        if levels < 2:
            raise InputError(f"levels={levels} must be at least 2")
        self.levels = levels

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = to_tensor("x", x, torch.empty(0))
        return (x if x.is_floating_point() else x.to(torch.get_default_dtype())) / (self.levels - 1)


def check_units(x: Tensor, scaling: nn.Module) -> None:
    """Raise an :class:`InputError` unless samples (B, *S) are finite; warn of units that are not as expected.

    Args:
        x: the samples.
        scaling: the layer that scales them, :class:`Normalize` or :class:`ScalePixels`.
    """
    size = magnitude(scaling(x))
    if not math.isfinite(size):
        check_finite("x", x)
    if has_unit_scale(size):
        return
    if isinstance(scaling, ScalePixels):
        warnings.warn("x is far from the range of pixels: pass whole numbers from 0 to levels - 1", stacklevel=2)
    elif not scaling.fitted:
        remedy = "pass data=x to classifier_model, which stores its mean and scale to standardise inputs"
        warnings.warn(f"x is far from unit scale, so the network learns little of it: {remedy}", stacklevel=2)
    elif size > 1:
        warnings.warn("x is far from the data that the model is fitted to: check its units", stacklevel=2)
