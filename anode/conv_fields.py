"""A convolutional vector field of images, whose size it keeps, with its divergence in closed form."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode.activations import activation as find_activation
from anode.errors import InputError
from anode.fields import TIMES, Field, check_context, mixing_of


class ConvField(Field):
    """Three convolutions as a vector field of images (B, C, H, W): 1x1 to the filters, 3x3, 1x1 back to the channels.

    A pixel acts on itself only through the centre M of the 3x3 kernel. With the matrices W1 and W3 of the others and
    activation slopes d1, d2 at the hidden channels of a pixel, the divergence is that of a perceptron summed over
    pixels,

        tr(df/dx) = sum over pixels of d2' [M * (W1 W3)'] d1        (* elementwise),

    a third of what an evaluation of the field takes, whatever the size of the images.

    Args:
        channels: number C of channels of the state, augmented ones included.
        filters: number k of channels between the convolutions.
        activation: ``"relu"``, ``"softplus"``, ``"tanh"`` or ``"silu"``, after the first two.
        time: how the field depends on time: ``"none"``, ``"concat"`` (a further channel of the constant t in every
            convolution, zero beyond the border as the others are) or ``"bias"`` (a learned multiple of t is added
            after every convolution, which costs nothing).
        context: number of context features c; a learned multiple U c is added to all pixels after every convolution, or
            to each pixel its own where c is an image of as many channels.
        zero_init: start from the zero field.

    Raises:
        InputError: for an unknown activation or time conditioning, or numbers that are not positive.

    References:
        Dupont, Doucet, Teh 2019, arXiv 1904.01681, appendix E.

    Example:
        >>> field = ConvField(6, filters=16)
        >>> field(torch.tensor(0.5), torch.randn(10, 6, 28, 28)).shape
        torch.Size([10, 6, 28, 28])
    """

    def __init__(
        self,
        channels: int,
        filters: int = 64,
        activation: str = "relu",
        time: str = "bias",
        context: int = 0,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        if min(channels, filters) < 1 or context < 0:
            raise InputError(f"channels={channels}, filters={filters} and context={context} must be positive numbers")
        self.channels = channels
        self.context = context
        self.activation = find_activation(activation)
        self.layers = nn.ModuleList(
            [
                TimedConv(channels, filters, 1, time, context),
                TimedConv(filters, filters, 3, time, context),
                TimedConv(filters, channels, 1, time, context),
            ]
        )
        if zero_init:
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Evaluate the field; see :meth:`Field.forward`."""
        self._check(x, c)
        *first, last = self.layers
        h, t = x, t.to(x.dtype)
        for layer in first:
            h = self.activation.value(layer(t, h, c))
        return last(t, h, c)

    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Field.velocity_and_divergence`."""
        self._check(x, c)
        *first, last = layers = cast("list[TimedConv]", list(self.layers))
        h, t = x, t.to(x.dtype)
        slopes = []
        for layer in first:
            h, slope = self.activation.with_slope(layer(t, h, c))
            slopes.append(slope)
        mixing = mixing_of([layer.centre for layer in layers])
        divergence = (F.conv2d(slopes[0], mixing[..., None, None]) * slopes[1]).flatten(1).sum(1)
        return last(t, h, c), divergence

    def _check(self, x: Tensor, c: Tensor | None) -> None:
        check_images(x, self.channels)
        of_images = c is not None and c.ndim == 4 and c.shape[2:] == x.shape[2:]
        check_context(c[..., 0, 0] if of_images and c is not None else c, self.context, len(x))


class TimedConv(nn.Module):
    """W * h + b + U c and a part of time t: v t (``"bias"``), or that of a further input channel of the constant t.

    Args:
        n_in: input channels.
        n_out: output channels.
        size: odd length of the kernel's sides; the border is padded by zeros, so that the image keeps its size.
        time: ``"none"``, ``"concat"`` or ``"bias"``.
        context: number of context features; without any there is no U.

    Raises:
        InputError: for an unknown time conditioning.
    """

    def __init__(self, n_in: int, n_out: int, size: int, time: str, context: int = 0) -> None:
        super().__init__()
        if time not in TIMES:
            raise InputError(f"time={time!r} is unknown; choose one of {', '.join(TIMES)}")
        self.padding = size // 2
        bound = 1 / math.sqrt(n_in * size**2 + {"none": 0, "bias": 1, "concat": size**2}[time] + context)

        def uniform(*shape: int) -> Tensor:
            return torch.empty(shape).uniform_(-bound, bound)

        # Channels last in memory, and so is what comes out: half again as fast on a CPU, and what tensor cores want.
        self.weight = nn.Parameter(uniform(n_out, n_in, size, size).contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(uniform(n_out))
        self.register_parameter("time", None)
        if time != "none":
            self.time = nn.Parameter(uniform(n_out) if time == "bias" else uniform(n_out, 1, size, size))
        self.context = nn.Parameter(uniform(n_out, context)) if context else None

    @property
    def centre(self) -> Tensor:
        """How a pixel of the input acts on the same pixel of the output, (n_out, n_in)."""
        return self.weight[:, :, self.padding, self.padding]

    def forward(self, t: Tensor, h: Tensor, c: Tensor | None = None) -> Tensor:
        """The convolution of h (B, n_in, H, W) at times t, () or (B,), with context (B, C) or (B, C, H, W)."""
        shift, of_time = self.bias, None
        if self.time is not None and self.time.ndim == 1:
            t = t.unsqueeze(-1) if t.ndim else t  # (B, 1) with a time per sample
            shift = torch.addcmul(shift, t, self.time)
        elif self.time is not None:  # the channel of t is t times a channel of ones, convolved once for all samples
            of_time = F.conv2d(h.new_ones(1, 1, *h.shape[2:]), self.time, padding=self.padding)
        if self.context is not None and c is not None and c.ndim == 2:
            shift = shift + F.linear(c, self.context)
        plain = shift.ndim == 1
        y = F.conv2d(h, self.weight, shift if plain else None, padding=self.padding)
        if not plain:
            y = y + shift[..., None, None]
        if self.context is not None and c is not None and c.ndim == 4:
            y = y + F.conv2d(c, self.context[..., None, None])
        return y if of_time is None else y + t.view(-1, 1, 1, 1) * of_time


def check_images(x: Tensor, channels: int) -> None:
    """Raise an :class:`InputError` unless x is a batch of images with so many channels."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise InputError(f"x of shape {tuple(x.shape)} does not fit a field of channels={channels}: pass (B, C, H, W)")
