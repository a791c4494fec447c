"""The parts of an ODE-Net: a stem that makes a small map of an image, a field with normalisation, and a pooled head.

With 64 filters they come to the parameters of the public code: 208,266 with the convolutional stem, 232,970 with the
residual one.

References:
    Chen, Rubanova, Bettencourt, Duvenaud 2018, arXiv 1806.07366, section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from anode.conv_layers import TimedConv, check_images
from anode.errors import InputError
from anode.fields import Field, check_context


class NormConvField(Field):
    """Two 3x3 convolutions between group normalisations as a field of maps (B, C, H, W).

        f = norm(conv(relu(norm(conv(relu(norm(x)))))))

    Args:
        channels: number C of channels of the state.
        time: how each convolution depends on time; see :class:`~anode.ConvField`.

    Raises:
        InputError: for an unknown time conditioning, or no channel.

    Example:
        >>> NormConvField(64)(torch.tensor(0.5), torch.randn(10, 64, 6, 6)).shape
        torch.Size([10, 64, 6, 6])
    """

    def __init__(self, channels: int, time: str = "concat") -> None:
        super().__init__()
        if channels < 1:
            raise InputError(f"channels={channels} must be at least 1")
        self.channels = channels
        self.norms = nn.ModuleList(_norm(channels) for _ in range(3))
        self.convs = nn.ModuleList(TimedConv(channels, channels, 3, time) for _ in range(2))

    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Evaluate the field; see :meth:`Field.forward`."""
        check_images(x, self.channels)
        check_context(c, 0, len(x))
        h, t = x, t.to(x.dtype)
        *first, last = self.norms
        for norm, conv in zip(first, self.convs, strict=True):
            h = conv(t, torch.relu(norm(h)))
        return last(h)


class Downsample(nn.Module):
    """A residual block that halves a map: skip(h) + conv(relu(norm(conv(h)))) of h = relu(norm(x)).

    Args:
        channels: of the map, before and after.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_norm(channels) for _ in range(2))
        self.skip = nn.Conv2d(channels, channels, 1, stride=2, bias=False)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False) for stride in (2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The map (B, C, H / 2, W / 2) of x (B, C, H, W)."""
        inner, outer = self.convs
        h = torch.relu(self.norms[0](x))
        return self.skip(h) + outer(torch.relu(self.norms[1](inner(h))))


def stem(kind: str, channels: int, filters: int) -> nn.Sequential:
    """From images (B, channels, H, W) to maps (B, filters, about H / 4, about W / 4).

    Args:
        kind: ``"conv"``, three convolutions of which two halve the map, or ``"residual"``, one and two
            :class:`Downsample` blocks.
        channels: of an image.
        filters: of the map.

    Raises:
        InputError: for another kind.
    """
    first = nn.Conv2d(channels, filters, 3)
    if kind == "residual":
        return nn.Sequential(first, Downsample(filters), Downsample(filters))
    if kind != "conv":
        raise InputError(f"stem={kind!r} is unknown; choose conv or residual")
    halves = [nn.Conv2d(filters, filters, 4, stride=2, padding=1) for _ in range(2)]
    return nn.Sequential(first, _norm(filters), nn.ReLU(), halves[0], _norm(filters), nn.ReLU(), halves[1])


def pooled_head(channels: int, outputs: int) -> nn.Sequential:
    """From maps (B, C, H, W) to outputs (B, K): the mean over all pixels of relu(norm(x)), and a linear layer."""
    return nn.Sequential(
        _norm(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs)
    )


def _norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups where the channels divide so, as few as it takes otherwise."""
    return nn.GroupNorm(math.gcd(32, channels), channels)
