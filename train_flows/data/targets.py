"""Unnormalised log-densities to fit by variational inference: four energies of the plane, a funnel, a posterior."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torch.nn import functional as F

from anode import InputError
from cnf.reverse_kl import LogDensity

WALL = 4.0  # where the published pictures of u2, u3 and u4 end, along z1
LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Target:
    """A distribution known up to a constant.

    Attributes:
        name: what to call it.
        dim: number of dimensions D.
        log_density: points (B, D) to the unnormalised log-density (B,), in nats, differentiable, in the type and on
            the device of the points.
        log_normalizer: log of the integral of exp(log_density), in nats; None where it is not known.
        half: half the width of the square around 0 worth drawing, in two dimensions; None in more.
    """

    name: str
    dim: int
    log_density: LogDensity
    log_normalizer: float | None
    half: float | None = None


def load(name: str) -> Target:
    """Make a target by name.

    ``u1`` to ``u4`` have the log-density -U(z), z in R^2, of the published energies U. With bell(d, s) =
    exp(-(d / s)^2 / 2), w1 = sin(2 pi z1 / 4), w2 = 3 bell(z1 - 1, 0.6) and w3 = 3 sigmoid((z1 - 1) / 0.3),

        exp(-U1) = bell(|z| - 2, 0.4) (bell(z1 - 2, 0.6) + bell(z1 + 2, 0.6))
        exp(-U2) = bell(z2 - w1, 0.4)
        exp(-U3) = bell(z2 - w1, 0.35) + bell(z2 - w1 + w2, 0.35)
        exp(-U4) = bell(z2 - w1, 0.4) + bell(z2 - w1 + w3, 0.35).

    The last three have infinite mass along z1, and the published pictures cut them at |z1| = 4. Here they are
    multiplied by bell(max(|z1| - 4, 0), 0.4), a smooth wall, which makes them normalisable and changes nothing
    between -4 and 4.

    ``funnel`` is x1 ~ N(0, 9) and x2, ..., x10 ~ N(0, exp(x1)) given x1. ``logistic`` is the posterior of a logistic
    regression of scikit-learn's breast cancer set: 30 weights of standardised features, then the intercept, all
    N(0, 1) a priori; prior and likelihood keep their constants, so that the normaliser is the evidence.

    Raises:
        InputError: for an unknown name.

    References:
        Rezende, Mohamed 2015, arXiv 1505.05770, table 1; Neal 2003, "Slice sampling", Annals of Statistics 31(3),
        section 8.

    Example:
        >>> target = load("u2")
        >>> target.log_density(torch.tensor([[1.0, 0.2], [0.0, 0.4]]))
        tensor([-2.0000, -0.5000])
        >>> print(f"{target.log_normalizer:.4f}")
        2.2002
    """
    if name not in TARGETS:
        raise InputError(f"target {name!r} is unknown; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]()


def _planar(name: str, log_density: LogDensity, half: float) -> Target:
    return Target(name, 2, log_density, _log_integral(log_density), half)


def _log_integral(log_density: LogDensity, half: float = 8.0, n: int = 320) -> float:
    """Log of the integral over the plane, by the midpoint rule in float64 on a square outside of which nothing is.

    The rule converges faster than any power of the cell where all is smooth. The wall is smooth on either side of its
    kink, which must lie between two cells: 4 is a multiple of their width 2 half / n.
    """
    width = 2 * half / n
    middle = (torch.arange(n, dtype=torch.float64) + 0.5) * width - half
    log_p = log_density(torch.cartesian_prod(middle, middle))
    return log_p.logsumexp(0).item() + 2 * math.log(width)


def _u1(z: Tensor) -> Tensor:
    z1, _ = z.unbind(1)
    radius = torch.linalg.vector_norm(z, dim=1)  # its slope at 0 is 0, not nan
    return _bell(radius - 2, 0.4) + torch.logaddexp(_bell(z1 - 2, 0.6), _bell(z1 + 2, 0.6))


def _u2(z: Tensor) -> Tensor:
    z1, z2 = z.unbind(1)
    return _bell(z2 - _wave(z1), 0.4) + _wall(z1)


def _u3(z: Tensor) -> Tensor:
    z1, z2 = z.unbind(1)
    above, drop = z2 - _wave(z1), 3 * _bell(z1 - 1, 0.6).exp()
    return torch.logaddexp(_bell(above, 0.35), _bell(above + drop, 0.35)) + _wall(z1)


def _u4(z: Tensor) -> Tensor:
    z1, z2 = z.unbind(1)
    above, drop = z2 - _wave(z1), 3 * torch.sigmoid((z1 - 1) / 0.3)
    return torch.logaddexp(_bell(above, 0.4), _bell(above + drop, 0.35)) + _wall(z1)


def _bell(d: Tensor, width: float) -> Tensor:
    """Log of a Gaussian without its constant."""
    return -0.5 * (d / width).square()


def _wave(z1: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * z1 / 4)


def _wall(z1: Tensor) -> Tensor:
    return _bell((z1.abs() - WALL).clamp(min=0), 0.4)


def _funnel(x: Tensor) -> Tensor:
    x1, others = x[:, 0], x[:, 1:]
    log_p1 = -0.5 * ((x1 / 3).square() + LOG_2PI) - math.log(3)
    scaled = others * torch.exp(-x1 / 2).unsqueeze(1)  # squared last: exp(-x1) would overflow sooner
    return log_p1 - 0.5 * (scaled.square() + x1.unsqueeze(1) + LOG_2PI).sum(1)


def _logistic() -> Target:
    bunch = load_breast_cancer()
    features, labels = torch.from_numpy(bunch.data), torch.from_numpy(bunch.target)
    features = (features - features.mean(0)) / features.std(0, correction=0)
    sign = 2 * labels.unsqueeze(1) - 1  # p(label | w) = sigmoid(sign w'a)
    signed = sign * torch.cat([features, torch.ones_like(features[:, :1])], 1)  # (N, D)

    def log_density(w: Tensor) -> Tensor:
        log_prior = -0.5 * (w.square() + LOG_2PI).sum(1)
        return log_prior + F.logsigmoid(w @ signed.to(w).T).sum(1)

    return Target("logistic", signed.shape[1], log_density, log_normalizer=None)


TARGETS: dict[str, Callable[[], Target]] = {
    "u1": lambda: _planar("u1", _u1, half=4.0),
    "u2": lambda: _planar("u2", _u2, half=5.0),
    "u3": lambda: _planar("u3", _u3, half=5.0),
    "u4": lambda: _planar("u4", _u4, half=5.0),
    "funnel": lambda: Target("funnel", 10, _funnel, log_normalizer=0.0),
    "logistic": _logistic,
}
