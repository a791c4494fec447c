"""Transforms: invertible maps from data to base and back, with the log-determinant of their Jacobian."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode import InputError
from anode.standardize import Moments

ENERGIES = ("kinetic", "frobenius", "acceleration")


@dataclass(frozen=True)
class PathOptions:
    """What is asked of the paths of ODEs.

    Attributes:
        energies: which of ``"kinetic"``, ``"frobenius"`` and ``"acceleration"`` to integrate along each path; see
            :class:`~cnf.Continuous`.
        steer: b; the base is put at a time drawn uniformly from [-b, b] rather than at 0 (STEER). The resulting
            likelihood is for training only.
        until: s; every ODE runs between the times 0 and s of its 1, so that the data are x(s). At 0 the static
            transforms alone are left.

    Raises:
        InputError: for an unknown energy, ``until`` outside [0, 1], or ``steer`` outside [0, until).

    References:
        Ghosh, Behl, Dupont, Torr, Namboodiri 2020, arXiv 2006.10711 (STEER).
    """

    energies: tuple[str, ...] = ()
    steer: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        for name in self.energies:
            if name not in ENERGIES:
                raise InputError(f"energy {name!r} is unknown; choose from {', '.join(ENERGIES)}")
        if not 0 <= self.until <= 1:
            raise InputError(f"until={self.until} must lie in [0, 1]: it is a time between base and data")
        if self.steer and not 0 <= self.steer < self.until:
            raise InputError(f"steer={self.steer} must lie in [0, {self.until:g}): the data are at time {self.until:g}")


class Transport(NamedTuple):
    """The result of a transform.

    Attributes:
        point: where the points went, (B, *S).
        log_det: log |det J| of the map just applied, (B,), in nats.
        energies: those of the paths that were asked for, by name, each (B,).
    """

    point: Tensor
    log_det: Tensor
    energies: Mapping[str, Tensor] = MappingProxyType({})


class Transform(nn.Module):
    """An invertible map z = g(x, c) from data to base.

    Subclasses implement :meth:`forward` and :meth:`inverse`, each with its own log-determinant, and override
    :meth:`encode` and :meth:`decode` where points alone are cheaper.
    """

    def forward(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """Data to base: z = g(x, c) and log |det dg/dx|.

        Args:
            x: data, (B, *S).
            c: context, (B, C), or None.
            path: what to ask of the paths of ODEs; of no meaning to other transforms.
        """
        raise NotImplementedError

    def inverse(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """Base to data: x with g(x, c) = z, and log |det dx/dz|; see :meth:`forward`."""
        raise NotImplementedError

    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Data to base, points only."""
        return self(x, c).point

    def decode(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Tensor:
        """Base to data, points only."""
        return self.inverse(z, c, path).point


class Compose(Transform):
    """Transforms one after the other, the first of them next to the data.

    Args:
        transforms: in the order from data to base.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    def _inward(self) -> list[Transform]:
        return cast("list[Transform]", list(self.transforms))

    def forward(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.forward`; energies of several ODEs add up."""
        total = Transport(x, x.new_zeros(len(x)))
        for transform in self._inward():
            total = joined(total, transform(total.point, c, path))
        return total

    def inverse(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.inverse`."""
        total = Transport(z, z.new_zeros(len(z)))
        for transform in reversed(self._inward()):
            total = joined(total, transform.inverse(total.point, c, path))
        return total

    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Transform.encode`."""
        for transform in self._inward():
            x = transform.encode(x, c)
        return x

    def decode(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Tensor:
        """See :meth:`Transform.decode`."""
        for transform in reversed(self._inward()):
            z = transform.decode(z, c, path)
        return z


def joined(before: Transport, step: Transport) -> Transport:
    """One transport after another: its points, the sum of the log-determinants, and of the energies by name."""
    energies = {**before.energies}
    for name, energy in step.energies.items():
        energies[name] = energies[name] + energy if name in energies else energy
    return Transport(step.point, before.log_det + step.log_det, energies)


class Standardize(Moments, Transform):
    """z = (x - mean) / scale, elementwise.

    Mean and scale are part of the stored model, so that a flow speaks the original units of its data.

    Args:
        shape: shape S of one sample.

    Example:
        >>> standardize = Standardize((2,)).fit(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))
        >>> standardize.encode(torch.tensor([[1.0, 20.0]]))
        tensor([[0., 0.]])
    """

    def forward(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.forward`."""
        return Transport((x - self.mean) / self.scale, -self.scale.log().sum().expand(len(x)))

    def inverse(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.inverse`."""
        return Transport(z * self.scale + self.mean, self.scale.log().sum().expand(len(z)))


class Logit(Transform):
    """z = logit(s), s = alpha + (1 - 2 alpha) x: opens the unit interval up to the real line, elementwise.

    Args:
        alpha: keeps x = 0 and x = 1 away from infinity; 1e-6 is usual for MNIST, 0.05 for natural images.

    Raises:
        InputError: when alpha is not in [0, 0.5).

    References:
        Dinh, Sohl-Dickstein, Bengio 2017, arXiv 1605.08803, section 4.1.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise InputError(f"alpha={alpha} must lie in [0, 0.5), such as 0.05")
        self.alpha = alpha

    def forward(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.forward`.

        Raises:
            InputError: for x outside [0, 1], or so near to 0 or 1 for alpha that its logit is infinite.
        """
        z = torch.logit(self.alpha + (1 - 2 * self.alpha) * x)
        if not torch.isfinite(z).all():
            if ((x >= 0) & (x <= 1)).all():
                raise InputError(f"alpha={self.alpha} makes logits infinite in {x.dtype}: pass 1e-6 or more")
            raise InputError("x must lie in [0, 1]; it does not")
        return Transport(z, -self._log_slope(z))

    def inverse(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.inverse`."""
        x = (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)
        return Transport(x, self._log_slope(z))

    def _log_slope(self, z: Tensor) -> Tensor:
        """Log |dx/dz| = log s (1 - s) / (1 - 2 alpha), summed over the dimensions of a sample."""
        log_slope = -F.softplus(z) - F.softplus(-z) - math.log(1 - 2 * self.alpha)
        return log_slope.flatten(1).sum(1)
