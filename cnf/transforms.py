"""Transforms: invertible maps from data to base and back, with the log-determinant of their Jacobian."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F
from typing_extensions import override

from anode.errors import InputError, check_choice, config
from anode.inputs import to_shape
from anode.units import MeanScale, moments, samples_to_fit, to_shares

ENERGIES = ("kinetic", "frobenius", "acceleration")
MANY, WORTH = 100, 0.01  # samples a dimension, or the gain in nats a sample, that spare the shrinking of a covariance


@config
class SolveOptions:
    """Options of ODE solves for training and for paths.

    Attributes:
        energies: path energies to integrate; see :class:`cnf.Continuous`.
        steer: b; the time of the base is drawn uniformly from [-b, b] instead of 0 (STEER). Use the resulting
            likelihood for training only.
        t_data: s; every ODE runs between the times 0 and s instead of 0 and 1, so that the data are x(s). At 0 only
            the static transforms are left.

    References:
        Ghosh et al. 2020, arXiv 2006.10711 (STEER).
    """

    energies: tuple[str, ...] = ()
    steer: Annotated[float, Field(ge=0)] = 0.0
    t_data: Annotated[float, Field(ge=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        for name in self.energies:
            check_choice("energies", name, ENERGIES)
        if self.steer and self.steer >= self.t_data:
            raise InputError(f"steer={self.steer} must be less than t_data={self.t_data:g}, the time of the data")


class Transport(NamedTuple):
    """Result of a transform."""

    point: Tensor  # the images of the points, (B, *S)
    log_det: Tensor  # log |det J| of the map just applied, (B,), in nats
    energies: Mapping[str, Tensor] = MappingProxyType({})  # the requested path energies by name, each (B,)

    def then(self, step: Transport) -> Transport:
        """Append the next transport: its points, and the sums of the log-determinants and of each energy."""
        energies = {**self.energies}
        for name, energy in step.energies.items():
            energies[name] = energies[name] + energy if name in energies else energy
        return Transport(step.point, self.log_det + step.log_det, energies)


class Transform(nn.Module):
    """An invertible map z = g(x, c) from data to base.

    Subclasses implement :meth:`forward` and :meth:`inverse`, each with its own log-determinant, and override
    :meth:`encode` and :meth:`decode` if points alone are cheaper. A transform that contains ODEs sets
    ``takes_options``, and its four methods accept the keyword ``options``, a :class:`SolveOptions`.

    Attributes:
        takes_options: True if the methods accept ``options``.
        has_paths: True if a point moves to its image along a path, which :meth:`trajectory` returns.
        domain: constraint on the elements of x.
    """

    takes_options: ClassVar[bool] = False
    has_paths: ClassVar[bool] = False
    domain: constraints.Constraint = constraints.real

    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        """Map data to base: z = g(x, c) and log |det dg/dx|.

        Args:
            x: data, (B, *S).
            c: context, (B, C), or None.
        """
        raise NotImplementedError

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        """Map base to data: x with g(x, c) = z, and log |det dx/dz|; see :meth:`forward`."""
        raise NotImplementedError

    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Map data to base, points only."""
        return self(x, c).point

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Map base to data, points only."""
        return self.inverse(z, c).point

    def trajectory(self, z: Tensor, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        """Return the states (T, B, *S) of base points z at T times, strictly increasing from 0 (base) to at most 1."""
        raise NotImplementedError

    def keywords(self, options: SolveOptions | None) -> dict[str, Any]:
        """Return the keyword arguments that pass solve options to this transform: none for a static one."""
        return {"options": options} if self.takes_options and options is not None else {}


class Compose(Transform):
    """A chain of transforms, in the order from data to base."""

    takes_options = True

    def __init__(self, transforms: Sequence[Transform]) -> None:
        super().__init__()
        if not all(isinstance(transform, Transform) for transform in transforms):
            kinds = ", ".join(type(transform).__name__ for transform in transforms)
            raise InputError(f"Compose takes transforms, such as Continuous(field), in a list; got {kinds}")
        self.transforms: Sequence[Transform] = nn.ModuleList(transforms)  # ty: ignore[invalid-assignment]
        if transforms:
            self.domain = transforms[0].domain

    @override
    def forward(self, x: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Transport:
        total = Transport(x, x.new_zeros(len(x)))
        for transform in self.transforms:
            total = total.then(transform(total.point, c, **transform.keywords(options)))
        return total

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Transport:
        total = Transport(z, z.new_zeros(len(z)))
        for transform in reversed(self.transforms):
            total = total.then(transform.inverse(total.point, c, **transform.keywords(options)))
        return total

    @override
    def encode(self, x: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Tensor:
        for transform in self.transforms:
            x = transform.encode(x, c, **transform.keywords(options))
        return x

    @override
    def decode(self, z: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Tensor:
        for transform in reversed(self.transforms):
            z = transform.decode(z, c, **transform.keywords(options))
        return z


class Standardize(MeanScale, Transform):
    """z = (x - mean) / scale, elementwise.

    Mean and scale are stored with the model, so that a flow takes and returns data in their original units.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(to_shape(shape))

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        return Transport((x - self.mean) / self.scale, -self.scale.log().sum().expand(len(x)))

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        return Transport(z * self.scale + self.mean, self.scale.log().sum().expand(len(z)))


class Whiten(Transform):
    """z = C^(-1/2) (x - m) for mean m and covariance C: the symmetric whitening, which keeps z nearest to x.

    A flow after it starts as the Gaussian of full covariance, so that its ODE need not undo linear correlations.
    :meth:`fit` takes the sample covariance; with few samples for D, it shrinks the correlations as far as that raises
    the likelihood of samples left out. Eigenvalues of C below 1e-8 of the largest are raised to that bound, since
    single precision cannot resolve them.

    Args:
        shape: shape S of one sample, with D elements.

    References:
        Kessy et al. 2018, Optimal whitening and decorrelation, arXiv 1512.00809 ("ZCA"); Hoffbeck, Landgrebe 1996,
        Covariance matrix estimation and classification with limited training data, IEEE PAMI 18(7) (shrinking).

    Example:
        >>> x = torch.randn(1000, 3) @ torch.randn(3, 3)
        >>> z = Whiten((3,)).fit(x).encode(x)
        >>> torch.allclose(z.T @ z / 1000, torch.eye(3), atol=1e-3)
        True
    """

    FLOOR = 1e-8  # of eigenvalues, relative to the largest
    mean: Tensor
    root: Tensor
    unroot: Tensor
    log_det: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size(to_shape(shape))
        dim = self.shape.numel()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("root", torch.eye(dim))  # C^(1/2)
        self.register_buffer("unroot", torch.eye(dim))  # C^(-1/2)
        self.register_buffer("log_det", torch.zeros(()))  # log |det C^(-1/2)|

    def fit(self, x: Tensor, weights: Any = None) -> Self:
        """Take mean and covariance from the samples ``x`` (N, *S), with relative weights (N,)."""
        x = samples_to_fit("x", x, self.shape).flatten(1).double()
        mean, scale = moments(x, weights)
        scale = torch.where(scale > 0, scale, 1.0)
        covariance = shrunk_correlation((x - mean) / scale, weights) * scale * scale[:, None]
        values, vectors = torch.linalg.eigh(covariance)
        largest = values[-1] if values[-1] > 0 else torch.ones_like(values[-1])
        roots = values.clamp_min(self.FLOOR * largest).sqrt()
        self.mean.copy_(mean)
        self.root.copy_(vectors * roots @ vectors.T)
        self.unroot.copy_(vectors / roots @ vectors.T)
        self.log_det.copy_(torch.linalg.slogdet(self.unroot.double()).logabsdet)  # of the rounded matrix
        return self

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        z = (x.flatten(1) - self.mean) @ self.unroot
        return Transport(z.view(x.shape), self.log_det.expand(len(x)))

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        x = z.flatten(1) @ self.root + self.mean
        return Transport(x.view(z.shape), -self.log_det.expand(len(z)))


def shrunk_correlation(x: Tensor, weights: Any = None) -> Tensor:
    """Return the correlations of standardised samples x (N, D), shrunk if N is small for D.

        R = (1 - lambda) S + lambda I,    S = sum_i p_i x_i x_i'

    p are the shares of the weights (N,), 1 / N if they are equal. lambda maximises the mean log-density of each sample
    under the Gaussian of the others, in closed form. It is 0 for 100 D samples and more, and if it gains less than 0.01
    nats a sample, or less than the standard error of the gain. Samples of unequal weights count as 1 / sum_i p_i^2.

    References:
        Kish 1965, Survey sampling (the effective number of samples).
    """
    shares = to_shares(torch.ones(len(x)) if weights is None else weights, len(x)).to(x)
    n, dim = (len(x) if weights is None else 1 / shares.square().sum().item()), x.shape[1]
    sample, identity = x.T @ (shares[:, None] * x), torch.eye(dim, dtype=x.dtype, device=x.device)
    if n < 1 + 1e-9 or n >= MANY * dim:
        return identity if n < 1 + 1e-9 else sample
    values, vectors = torch.linalg.eigh(sample)
    mixed = torch.cat([torch.zeros(1), torch.logspace(-4, 0, 33)]).to(x)  # lambda
    kept = (1 - mixed) * n / (n - 1)
    # Without sample i, R is A - kept / (n - 1) x_i x_i', and x_i is n / (n - 1) times as far from the mean.
    eigenvalues = values.clamp_min(0)[:, None] * kept + mixed  # of A, (D, L)
    eigenvalues = eigenvalues.clamp_min(Whiten.FLOOR * eigenvalues.amax(0))
    leverages = (x @ vectors).square() @ (1 / eigenvalues)  # x_i' A^(-1) x_i, (N, L)
    left = (1 - kept / (n - 1) * leverages).clamp_min(1e-12)
    distances = (n / (n - 1)) ** 2 * leverages / left
    nll = (eigenvalues.log().sum(0) + left.log() + distances) / 2
    best = (shares @ nll).argmin()
    gain, spread = moments(nll[:, 0] - nll[:, best], shares)
    worth = gain > max(WORTH, float(spread / math.sqrt(n - 1)))
    mix = mixed[best] if worth else mixed[0]
    return (1 - mix) * sample + mix * identity


class Logit(Transform):
    """z = logit(s), s = alpha + (1 - 2 alpha) x, elementwise: maps the unit interval to the real line.

    Args:
        alpha: keeps x = 0 and x = 1 away from infinity; 1e-6 is usual for MNIST, 0.05 for natural images.

    References:
        Dinh et al. 2017, arXiv 1605.08803, section 4.1.
    """

    domain = constraints.unit_interval

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not (isinstance(alpha, Real) and 0 <= alpha < 0.5):
            raise InputError(f"alpha={alpha!r} must lie in [0, 0.5), such as 0.05")
        self.alpha = float(alpha)

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        z = torch.logit(self.alpha + (1 - 2 * self.alpha) * x)
        if not torch.isfinite(z).all():
            if ((x >= 0) & (x <= 1)).all():
                raise InputError(f"alpha={self.alpha} makes logits infinite in {x.dtype}: pass 1e-6 or more")
            raise InputError(f"x must lie in [0, 1]; it ranges from {x.min():g} to {x.max():g}")
        return Transport(z, -self._log_slope(z))

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        x = (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)
        return Transport(x, self._log_slope(z))

    def _log_slope(self, z: Tensor) -> Tensor:
        """Return log |dx/dz| = log s (1 - s) / (1 - 2 alpha), summed over the dimensions of a sample."""
        return (log_sigmoid_slope(z) - math.log(1 - 2 * self.alpha)).flatten(1).sum(1)


class Tails(Transform):
    """z = x for |x| <= T, z = sign(x) (T + log(1 + |x| - T)) beyond: normal z have x with log-normal tails.

    A flow sees outliers near the other samples, and the log-density of a sample far out falls with the square of the
    logarithm of its distance.

    Args:
        start: T, in units of x.
    """

    def __init__(self, start: float = 4.0) -> None:
        super().__init__()
        if not (isinstance(start, Real) and start > 0):
            raise InputError(f"start={start!r} must be above 0, such as 4")
        self.start = float(start)

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        beyond = (x.abs() - self.start).clamp_min(0).log1p()
        return Transport(x.clamp(-self.start, self.start) + x.sign() * beyond, -beyond.flatten(1).sum(1))

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        beyond = (z.abs() - self.start).clamp_min(0)
        x = z.clamp(-self.start, self.start) + z.sign() * beyond.expm1()
        return Transport(x, beyond.flatten(1).sum(1))


def log_sigmoid_slope(v: Tensor) -> Tensor:
    """Return the logarithm of the derivative of the sigmoid, log s(v) (1 - s(v)), elementwise."""
    return -F.softplus(v) - F.softplus(-v)
