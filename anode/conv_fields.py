"""Convolutional vector fields of images, whose size they keep."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode.activations import activation as find_activation
from anode.errors import InputError
from anode.fields import TIMES, Field, check_context


class ConvField(Field):
    """Three convolutions as a vector field of images (B, C, H, W): 1x1 to the filters, 3x3, 1x1 back to the channels.

    Args:
        channels: number C of channels of the state, augmented ones included.
        filters: number k of channels between the convolutions.
        activation: ``"relu"``, ``"softplus"``, ``"tanh"`` or ``"silu"``, after the first two.
        time: how the field depends on time: ``"none"``, ``"concat"`` (a further channel of the constant t in every
            convolution, zero beyond the border as the others are) or ``"bias"`` (a learned multiple of t is added
            after every convolution, which costs nothing).

    Raises:
        InputError: for an unknown activation or time conditioning, or numbers that are not positive.

    References:
        Dupont, Doucet, Teh 2019, arXiv 1904.01681, appendix E.

    Example:
        >>> field = ConvField(6, filters=16)
        >>> field(torch.tensor(0.5), torch.randn(10, 6, 28, 28)).shape
        torch.Size([10, 6, 28, 28])
    """

    def __init__(self, channels: int, filters: int = 64, activation: str = "relu", time: str = "bias") -> None:
        super().__init__()
        if min(channels, filters) < 1:
            raise InputError(f"channels={channels} and filters={filters} must be at least 1")
        self.channels = channels
        self.time = time
        self.activation = find_activation(activation)
        self.layers = nn.ModuleList(
            [
                TimedConv(channels, filters, 1, time),
                TimedConv(filters, filters, 3, time),
                TimedConv(filters, channels, 1, time),
            ]
        )

    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Evaluate the field; see :meth:`Field.forward`."""
        check_images(x, self.channels)
        check_context(c, 0, len(x))
        *first, last = self.layers
        h, t = x, t.to(x.dtype)
        for layer in first:
            h = self.activation.value(layer(t, h))
        return last(t, h)


class TimedConv(nn.Module):
    """W * h + b and a part of time t: v t (``"bias"``), or that of a further input channel of the constant t.

    Args:
        n_in: input channels.
        n_out: output channels.
        size: odd length of the kernel's sides; the border is padded by zeros, so that the image keeps its size.
        time: ``"none"``, ``"concat"`` or ``"bias"``.

    Raises:
        InputError: for an unknown time conditioning.
    """

    def __init__(self, n_in: int, n_out: int, size: int, time: str) -> None:
        super().__init__()
        if time not in TIMES:
            raise InputError(f"time={time!r} is unknown; choose one of {', '.join(TIMES)}")
        self.padding = size // 2
        bound = 1 / math.sqrt(n_in * size**2 + {"none": 0, "bias": 1, "concat": size**2}[time])

        def uniform(*shape: int) -> Tensor:
            return torch.empty(shape).uniform_(-bound, bound)

        # Channels last in memory, and so is what comes out: half again as fast on a CPU, and what tensor cores want.
        self.weight = nn.Parameter(uniform(n_out, n_in, size, size).contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(uniform(n_out))
        self.register_parameter("time", None)
        if time != "none":
            self.time = nn.Parameter(uniform(n_out) if time == "bias" else uniform(n_out, 1, size, size))

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        """The convolution of h (B, n_in, H, W) at times t, () or (B,)."""
        shift, of_time = self.bias, None
        if self.time is not None and self.time.ndim == 1:
            t = t.unsqueeze(-1) if t.ndim else t  # (B, 1) with a time per sample
            shift = torch.addcmul(shift, t, self.time)
        elif self.time is not None:  # the channel of t is t times a channel of ones, convolved once for all samples
            of_time = F.conv2d(h.new_ones(1, 1, *h.shape[2:]), self.time, padding=self.padding)
        plain = shift.ndim == 1
        y = F.conv2d(h, self.weight, shift if plain else None, padding=self.padding)
        if not plain:
            y = y + shift[..., None, None]
        return y if of_time is None else y + t.view(-1, 1, 1, 1) * of_time


def check_images(x: Tensor, channels: int) -> None:
    """Raise an :class:`InputError` unless x is a batch of images with so many channels."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise InputError(f"x of shape {tuple(x.shape)} does not fit a field of channels={channels}: pass (B, C, H, W)")
