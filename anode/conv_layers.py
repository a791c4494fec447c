"""Convolutions of an image, a time and a context: what convolutional vector fields are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode.errors import InputError
from anode.fields import TIMES


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
