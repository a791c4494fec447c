"""Velocity and divergence of a vector field: the exact trace of the Jacobian, or Hutchinson's estimator."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from anode.errors import InputError
from anode.fields import Field


class Rates(NamedTuple):
    """Rates of change of a flow."""

    velocity: Tensor  # dx/dt, (B, *S)
    divergence: Tensor  # tr(df/dx), or an estimate of it, (B,)
    frobenius: Tensor | None = None  # squared Frobenius norm of df/dx, or an estimate of it, (B,), if requested


def exact_divergence(field: Field, t: Tensor, x: Tensor, c: Tensor | None = None, frobenius: bool = False) -> Rates:
    """Evaluate the velocity f(t, x, c) and the exact divergence tr(df/dx).

    Uses the closed form of the field if it has one, otherwise :func:`exact_by_pullbacks`. Samples must not influence
    each other within a batch.

    Args:
        field: the vector field.
        t: time, ``()`` or ``(B,)``.
        x: state, (B, *S).
        c: context, (B, C), or None.
        frobenius: also compute the squared Frobenius norm of df/dx, which always takes D pull-backs.
    """
    closed_form = field.velocity_and_divergence(t, x, c)
    if closed_form is None:
        return exact_by_pullbacks(field, t, x, c, frobenius)
    return Rates(*closed_form, exact_by_pullbacks(field, t, x, c, frobenius).frobenius if frobenius else None)


def exact_by_pullbacks(field: Field, t: Tensor, x: Tensor, c: Tensor | None = None, frobenius: bool = False) -> Rates:
    """Evaluate :func:`exact_divergence` of any field by one forward pass and D pull-backs e_i' df/dx."""
    velocity, pull = _vjp(field, t, x, c)
    divergence = norm = x.new_zeros(len(x))
    for i, row in enumerate(_rows(pull, x)):
        divergence = divergence + row[:, i]
        norm = norm + row.square().sum(1) if frobenius else norm
    return Rates(velocity, divergence, norm if frobenius else None)


def exact_jacobian(field: Field, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Evaluate the velocity f(t, x, c), (B, *S), and the Jacobian df_i/dx_j of the D elements of a sample, (B, D, D).

    Uses the closed form of the field if it has one, otherwise one forward pass and D pull-backs; the arguments are
    those of :func:`exact_divergence`.
    """
    closed_form = field.velocity_and_jacobian(t, x, c)
    if closed_form is not None:
        return closed_form
    velocity, pull = _vjp(field, t, x, c)
    return velocity, torch.stack([*_rows(pull, x)], 1)


def hutchinson_divergence(
    field: Field, t: Tensor, x: Tensor, eps: Tensor, c: Tensor | None = None, frobenius: bool = False
) -> Rates:
    """Evaluate the velocity f(t, x, c) and estimate its divergence without bias: the mean of eps' (df/dx) eps.

    It takes one forward pass and K pull-backs.

    Args:
        field: the vector field.
        t: time, ``()`` or ``(B,)``.
        x: state, (B, *S).
        eps: noise of K probes with zero mean and unit covariance, (K, B, *S); see :func:`probe_noise`.
        c: context, (B, C), or None.
        frobenius: also estimate the squared Frobenius norm without bias: the mean of |eps' df/dx|^2.

    References:
        Grathwohl et al. 2019, arXiv 1810.01367, equation 7; Finlay et al. 2020, arXiv 2002.02798, section 3.2 (the
        norm).
    """
    velocity, pull = _vjp(field, t, x, c)
    rows = [pull(probe)[0].flatten(1) for probe in eps]  # eps' df/dx
    estimates = [(row * probe.flatten(1)).sum(1) for row, probe in zip(rows, eps, strict=True)]
    norms = torch.stack([row.square().sum(1) for row in rows]).mean(0) if frobenius else None
    return Rates(velocity, torch.stack(estimates).mean(0), norms)


def _vjp(field: Field, t: Tensor, x: Tensor, c: Tensor | None) -> tuple[Tensor, Callable[..., tuple[Tensor]]]:
    """Return f(t, x, c) and the map from v to v' df/dx."""

    def checked(x: Tensor) -> Tensor:
        velocity = field(t, x, c)
        if not isinstance(velocity, Tensor) or velocity.shape != x.shape:
            got = tuple(velocity.shape) if isinstance(velocity, Tensor) else type(velocity).__name__
            raise InputError(f"the field returns {got} for x of shape {tuple(x.shape)}: make them alike")
        return velocity

    velocity, pull, *_ = vjp(checked, x)
    return velocity, pull


def _rows(pull: Callable[..., tuple[Tensor]], x: Tensor) -> Generator[Tensor]:
    """Yield the rows e_i' df/dx of the Jacobian, each (B, D)."""
    positions = torch.arange(math.prod(x.shape[1:]), device=x.device).view(x.shape[1:])
    for i in range(positions.numel()):
        yield pull((positions == i).to(x.dtype).expand_as(x))[0].flatten(1)


def probe_noise(x: Tensor, probes: int = 1, noise: str = "rademacher") -> Tensor:
    """Draw the noise (K, B, *S) of K Hutchinson probes for a batch x (B, *S).

    ``noise`` is ``"rademacher"``, signs with the smaller variance, or ``"gaussian"``.
    """
    eps = torch.empty(probes, *x.shape, dtype=x.dtype, device=x.device)
    return eps.normal_() if noise == "gaussian" else eps.bernoulli_().mul_(2).sub_(1)
