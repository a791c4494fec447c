"""Images at several scales: at every scale but the last, half of the channels leave for the base."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from anode.errors import InputError
from anode.inputs import whole_number
from cnf.transforms import Compose, SolveOptions, Transform, Transport

SMALLEST = 4  # pixels a side of the smallest scale


class Squeeze(Transform):
    """A permutation that turns each square of 2x2 pixels into four channels: (C, 2H, 2W) to (4C, H, W).

    Example:
        >>> Squeeze().encode(torch.arange(4.0).view(1, 1, 2, 2)).flatten()
        tensor([0., 1., 2., 3.])
    """

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise InputError(f"x of shape {tuple(x.shape)} is not a batch of images of even size: pad or crop them")
        return Transport(F.pixel_unshuffle(x, 2), x.new_zeros(len(x)))

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        return Transport(F.pixel_shuffle(z, 2), z.new_zeros(len(z)))


class Multiscale(Transform):
    """One transform of images per scale; half of its channels are finished, and the next scale takes the other half.

    The finished parts are concatenated to one tensor of the shape of x, so that the base is independent of the scales.

    Args:
        scales: from the largest image to the smallest; all but the last :class:`Squeeze` their images once.

    References:
        Dinh et al. 2017, arXiv 1605.08803, section 3.6; Grathwohl et al. 2019, arXiv 1810.01367.
    """

    takes_options = True

    def __init__(self, scales: Sequence[Transform]) -> None:
        super().__init__()
        if not scales or not all(isinstance(scale, Transform) for scale in scales):
            raise InputError("scales must hold at least one Transform, and nothing else")
        self.scales: Sequence[Transform] = nn.ModuleList(scales)  # ty: ignore[invalid-assignment]

    @classmethod
    def of_blocks(cls, shape: Sequence[int], block: Callable[[int], Transform], blocks: int = 2) -> Self:
        """Build blocks before and after a squeeze at every scale, down to images of at least 4 pixels a side.

        Args:
            shape: (C, H, W) of the images.
            block: makes a transform of images with the given number of channels.
            blocks: number of blocks before, and number after each squeeze.
        """
        channels, height, width = shape
        blocks = whole_number("blocks", blocks)
        if height % 2 or width % 2:
            raise InputError(f"images of {height}x{width} cannot be halved: pad or crop them, or use a single scale")
        scales: list[Transform] = []
        while height % 2 == width % 2 == 0 and min(height, width) // 2 >= SMALLEST:
            before, after = ([block(n) for _ in range(blocks)] for n in (channels, 4 * channels))
            scales.append(Compose([*before, Squeeze(), *after]))
            channels, height, width = 2 * channels, height // 2, width // 2
        return cls([*scales, Compose([block(channels) for _ in range(blocks)])])

    @override
    def forward(self, x: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Transport:
        total = Transport(x, x.new_zeros(len(x)))

        def transport(scale: Transform, x: Tensor) -> Tensor:
            nonlocal total
            total = total.then(scale(x, c, **scale.keywords(options)))
            return total.point

        point = self._finish(x, transport)
        return total._replace(point=point)

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Transport:
        total = Transport(z, z.new_zeros(len(z)))

        def transport(scale: Transform, z: Tensor) -> Tensor:
            nonlocal total
            total = total.then(scale.inverse(z, c, **scale.keywords(options)))
            return total.point

        self._resume(z, transport)
        return total

    @override
    def encode(self, x: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Tensor:
        return self._finish(x, lambda scale, x: scale.encode(x, c, **scale.keywords(options)))

    @override
    def decode(self, z: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Tensor:
        return self._resume(z, lambda scale, z: scale.decode(z, c, **scale.keywords(options)))

    def _finish(self, x: Tensor, apply: Callable[[Transform, Tensor], Tensor]) -> Tensor:
        """Apply the scales from data to base, and concatenate the halves that they finish."""
        finished, rest = [], x
        *larger, last = self.scales
        for scale in larger:
            half, rest = apply(scale, rest).chunk(2, 1)
            finished.append(half.flatten(1))
        return torch.cat([*finished, apply(last, rest).flatten(1)], 1).view_as(x)

    def _resume(self, z: Tensor, apply: Callable[[Transform, Tensor], Tensor]) -> Tensor:
        """Apply the scales from base to data, joining the finished half of each to the points that return."""
        *finished, rest = self._split(z)
        *larger, last = self.scales
        x = apply(last, rest)
        for scale, half in zip(reversed(larger), reversed(finished), strict=True):
            x = apply(scale, torch.cat([half, x], 1))
        return x

    def _split(self, z: Tensor) -> list[Tensor]:
        """Split base points (B, C, H, W) into the finished half of each scale, from the largest image on."""
        channels, height, width = z.shape[1:]
        steps = range(1, len(self.scales))
        shapes = [(2**i * channels, height // 2**i, width // 2**i) for i in steps]
        shapes.append(shapes[-1] if shapes else (channels, height, width))
        parts = z.flatten(1).split([math.prod(shape) for shape in shapes], 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
