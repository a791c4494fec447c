"""The divergence of a vector field beside its velocity: exactly, or by Hutchinson's estimator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from anode import Field, InputError

NOISES = ("rademacher", "gaussian")


class Rates(NamedTuple):
    """What a flow integrates.

    Attributes:
        velocity: dx/dt, (B, *S).
        divergence: tr(df/dx), or an estimate of it, (B,).
        frobenius: the squared Frobenius norm of df/dx, or an estimate of it, (B,), where it was asked for.
    """

    velocity: Tensor
    divergence: Tensor
    frobenius: Tensor | None = None


def exact(field: Field, t: Tensor, x: Tensor, c: Tensor | None = None, frobenius: bool = False) -> Rates:
    """The velocity f(t, x, c) and the exact divergence tr(df/dx).

    By the closed form of the field where it has one; else by one forward pass and D pull-backs e_i' df/dx, where D is
    the number of dimensions of a sample that act on their own rates (:meth:`anode.Field.diagonal`). Samples must not
    influence each other within a batch.

    Args:
        field: the vector field.
        t: time, ``()`` or ``(B,)``.
        x: state, (B, *S).
        c: context, (B, C), or None.
        frobenius: also the squared Frobenius norm of df/dx, which takes a pull-back for every dimension in any case.

    Returns:
        The :class:`Rates`.
    """
    closed_form = field.velocity_and_divergence(t, x, c)
    if closed_form is None:
        return exact_by_pullbacks(field, t, x, c, frobenius)
    return Rates(*closed_form, exact_by_pullbacks(field, t, x, c, frobenius).frobenius if frobenius else None)


def exact_by_pullbacks(field: Field, t: Tensor, x: Tensor, c: Tensor | None = None, frobenius: bool = False) -> Rates:
    """The generic rule of :func:`exact`, for any field: D pull-backs."""
    velocity, pull = vjp(lambda x: field(t, x, c), x)[:2]
    places = torch.arange(x[0].numel(), device=x.device).view(x.shape[1:])
    divergence = norm = x.new_zeros(len(x))
    for i in (places if frobenius else places[field.diagonal(x.shape[1])]).flatten().tolist():
        row = pull((places == i).to(x.dtype).expand_as(x))[0].flatten(1)  # e_i' df/dx
        divergence = divergence + row[:, i]
        norm = norm + row.square().sum(1) if frobenius else norm
    return Rates(velocity, divergence, norm if frobenius else None)


def hutchinson(
    field: Field, t: Tensor, x: Tensor, eps: Tensor, c: Tensor | None = None, frobenius: bool = False
) -> Rates:
    """The velocity f(t, x, c) and an unbiased estimate of its divergence, the mean over probes of eps' (df/dx) eps.

    Args:
        field: the vector field.
        t: time, ``()`` or ``(B,)``.
        x: state, (B, *S).
        eps: noise of K probes with zero mean and unit covariance, (K, B, *S); see :func:`probe_noise`.
        c: context, (B, C), or None.
        frobenius: also an unbiased estimate of the squared Frobenius norm, the mean of |eps' df/dx|^2.

    Returns:
        The :class:`Rates`, from one forward pass and K pull-backs.

    References:
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud 2019, arXiv 1810.01367, equation 7; Finlay, Jacobsen,
        Nurbekyan, Oberman 2020, arXiv 2002.02798, section 3.2 (the norm).
    """
    velocity, pull = vjp(lambda x: field(t, x, c), x)[:2]
    rows = [pull(probe)[0].flatten(1) for probe in eps]  # eps' df/dx
    estimates = [(row * probe.flatten(1)).sum(1) for row, probe in zip(rows, eps, strict=True)]
    norms = torch.stack([row.square().sum(1) for row in rows]).mean(0) if frobenius else None
    return Rates(velocity, torch.stack(estimates).mean(0), norms)


def probe_noise(x: Tensor, probes: int = 1, noise: str = "rademacher") -> Tensor:
    """Draw the noise (K, B, *S) of K Hutchinson probes for a batch x (B, *S).

    Args:
        x: the batch whose shape, dtype and device count.
        probes: K.
        noise: ``"rademacher"`` (signs, the smaller variance) or ``"gaussian"``.

    Raises:
        InputError: for another noise, or fewer than one probe.
    """
    check_probes(probes, noise)
    eps = torch.empty(probes, *x.shape, dtype=x.dtype, device=x.device)
    return eps.normal_() if noise == "gaussian" else eps.bernoulli_().mul_(2).sub_(1)


def check_probes(probes: int, noise: str) -> None:
    """Raise an :class:`~anode.InputError` unless :func:`probe_noise` can draw such probes."""
    if noise not in NOISES:
        raise InputError(f"noise={noise!r} is unknown; choose one of {', '.join(NOISES)}")
    if probes < 1:
        raise InputError(f"probes={probes} must be at least 1")
