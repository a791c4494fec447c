"""Images at several scales: half of the channels leave for the base wherever the image becomes smaller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode import InputError
from cnf.transforms import Compose, PathOptions, Transform, Transport, joined

SMALLEST = 4  # pixels a side below which an image is not made smaller


class Squeeze(Transform):
    """Each square of 2x2 pixels becomes four channels of one: (C, 2H, 2W) to (4C, H, W), a permutation.

    References:
        Dinh, Sohl-Dickstein, Bengio 2017, arXiv 1605.08803, section 3.6.

    Example:
        >>> Squeeze().encode(torch.arange(4.0).view(1, 1, 2, 2)).flatten()
        tensor([0., 1., 2., 3.])
    """

    def forward(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.forward`.

        Raises:
            InputError: for images of an odd number of pixels a side.
        """
        if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise InputError(f"x of shape {tuple(x.shape)} is no batch of images of even size: pad or crop them")
        return Transport(F.pixel_unshuffle(x, 2), x.new_zeros(len(x)))

    def inverse(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.inverse`."""
        return Transport(F.pixel_shuffle(z, 2), z.new_zeros(len(z)))


class Multiscale(Transform):
    """Transforms of images, one a scale; half of the channels that each leaves are done, and the next has the others.

    What is done joins into one tensor of the shape of x, so that the base needs to know nothing of scales.

    Args:
        scales: from the largest image on; all but the last :class:`Squeeze` their images once.

    Raises:
        InputError: when there is none.

    References:
        Dinh, Sohl-Dickstein, Bengio 2017, arXiv 1605.08803, section 3.6; Grathwohl, Chen, Bettencourt, Sutskever,
        Duvenaud 2019, arXiv 1810.01367.
    """

    def __init__(self, scales: Sequence[Transform]) -> None:
        super().__init__()
        if not scales:
            raise InputError("scales must hold at least one transform")
        self.scales = nn.ModuleList(scales)

    def forward(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.forward`; energies of all scales add up."""
        done, total = [], Transport(x, x.new_zeros(len(x)))
        *larger, last = self._inward()
        for scale in larger:
            total = joined(total, scale(total.point, c, path))
            finished, rest = total.point.chunk(2, 1)
            done.append(finished.flatten(1))
            total = total._replace(point=rest)
        total = joined(total, last(total.point, c, path))
        return total._replace(point=torch.cat([*done, total.point.flatten(1)], 1).view_as(x))

    def inverse(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.inverse`."""
        *done, rest = self._parts(z)
        *larger, last = self._inward()
        total = last.inverse(rest, c, path)
        for scale, finished in zip(reversed(larger), reversed(done), strict=True):
            whole = torch.cat([finished, total.point], 1)
            total = joined(total, scale.inverse(whole, c, path))
        return total

    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Transform.encode`."""
        done, rest = [], x
        *larger, last = self._inward()
        for scale in larger:
            finished, rest = scale.encode(rest, c).chunk(2, 1)
            done.append(finished.flatten(1))
        return torch.cat([*done, last.encode(rest, c).flatten(1)], 1).view_as(x)

    def decode(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Tensor:
        """See :meth:`Transform.decode`."""
        *done, rest = self._parts(z)
        *larger, last = self._inward()
        x = last.decode(rest, c, path)
        for scale, finished in zip(reversed(larger), reversed(done), strict=True):
            x = scale.decode(torch.cat([finished, x], 1), c, path)
        return x

    def _parts(self, z: Tensor) -> list[Tensor]:
        """What each of the scales left to the base, from the largest image on."""
        shapes = halves(z.shape[1:], len(self.scales) - 1)
        shapes.append(shapes[-1] if shapes else torch.Size(z.shape[1:]))
        parts = z.flatten(1).split([shape.numel() for shape in shapes], 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    def _inward(self) -> list[Transform]:
        return cast("list[Transform]", list(self.scales))


def halves(shape: Sequence[int], squeezes: int) -> list[torch.Size]:
    """The shape of the half of the channels that each of so many scales leaves to the base, and to the next scale."""
    channels, height, width = shape
    return [torch.Size((2**i * channels, height // 2**i, width // 2**i)) for i in range(1, squeezes + 1)]


def multiscale(shape: Sequence[int], block: Callable[[int], Transform], blocks: int = 2) -> Multiscale:
    """Blocks before and after a squeeze at every scale, down to images of no less than 4 pixels a side.

    Args:
        shape: (C, H, W) of the images.
        block: makes a transform of images with so many channels.
        blocks: how many before, and how many after each squeeze.

    Raises:
        InputError: for images of an odd number of pixels a side.
    """
    channels, height, width = shape
    if height % 2 or width % 2:
        raise InputError(
            f"images of {height}x{width} have no scales, being of odd size: pad or crop them, or take one scale"
        )
    scales: list[Transform] = []
    while height % 2 == width % 2 == 0 and min(height, width) // 2 >= SMALLEST:
        before, after = ([block(n) for _ in range(blocks)] for n in (channels, 4 * channels))
        scales.append(Compose([*before, Squeeze(), *after]))
        channels, height, width = 2 * channels, height // 2, width // 2
    return Multiscale([*scales, Compose([block(channels) for _ in range(blocks)])])
