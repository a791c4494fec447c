"""Densities as modules with the verbs of a distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from anode import InputError, Solver, with_solver
from anode.stages import config_of
from cnf.continuous import Continuous
from cnf.transforms import Compose, PathOptions, Transform

POINTS, NUMBERS = 2**14, 2**20  # in one solve, where a density needs many points for each sample


class Bound(NamedTuple):
    """A lower bound of a log-density, and what it took.

    Attributes:
        value: in nats, (B,).
        energies: those of the paths that were asked for, by name, each (B,).
        kl: see :class:`cnf.lifts.Lifted`; part of the value.
    """

    value: Tensor
    energies: Mapping[str, Tensor]
    kl: Tensor | None = None


class Ends(NamedTuple):
    """Both ends of the paths that flow matching learns.

    Attributes:
        ode: whose field learns them.
        x: at the data, (B, *S) of the state.
        z: at the base, a draw.
        c: the context of the field, or None.
        kl: see :class:`Bound`.
    """

    ode: Continuous
    x: Tensor
    z: Tensor
    c: Tensor | None
    kl: Tensor | None = None


class Density(nn.Module):
    """A probability density p(x given c) to evaluate, to sample, and to train.

    Attributes:
        arguments: of :func:`cnf.density_model`, where it made the model; else None.
    """

    arguments: dict[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any] | None:
        """The plain values that rebuild the model as it is solved now; None for a model composed by hand."""
        return config_of(self, self.arguments)

    @property
    def kind(self) -> str:
        """What :meth:`log_prob` returns: ``"exact"``, ``"estimate"`` (unbiased) or ``"bound"`` (a lower bound)."""
        raise NotImplementedError

    @property
    def draws(self) -> bool:
        """Whether :meth:`elbo` draws auxiliary variables, and is a bound then that more draws tighten."""
        return False

    @property
    def paired(self) -> bool:
        """Whether :meth:`ends` draws base points for their own data, so that they are no others'."""
        return False

    @property
    def like(self) -> Tensor:
        """An empty tensor of the device and floating-point type of the model."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Log p(x given c) in nats, (B,), of the :attr:`kind` named there."""
        raise NotImplementedError

    def elbo(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """A lower bound of log p(x given c) from one draw of every auxiliary variable, (B,); what training raises."""
        return self.elbo_on_path(x, c).value

    def elbo_on_path(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Bound:
        """The same, with what is asked of the paths of ODEs on the way."""
        raise NotImplementedError

    def check_draws(self, samples: int) -> None:
        """Raise an :class:`~anode.InputError` for a number of draws that does not tighten a bound."""
        if samples != 1 and not self.draws:
            raise InputError(f"samples={samples}: the model has no bound that more draws would tighten")
        if samples < 1:
            raise InputError(f"samples={samples} must be at least 1")

    def ends(self, x: Tensor, c: Tensor | None = None) -> Ends:
        """Where data begin and where they could end, for flow matching."""
        raise NotImplementedError

    def parts(self) -> tuple[Compose, Continuous]:
        """The static transforms next to the data, and the ODE next to the base.

        Raises:
            InputError: when the density is not made of some static transforms followed by one :class:`Continuous`.
        """
        raise NotImplementedError

    def sample(self, n: int, c: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Draw n samples (n, *S), without a graph.

        Args:
            n: how many.
            c: one context (C,) for all, or one for each (n, C), or None.
            temperature: factor of the normal noise of the base. Other than at 1 they are samples of another density
                than :meth:`log_prob` is of: below, of fewer and more usual samples.

        Raises:
            InputError: for a temperature that is not positive and finite.

        References:
            Kingma, Dhariwal 2018, arXiv 1807.03039, section 5 (temperature).
        """
        raise NotImplementedError

    def sample_paths(self, n: int, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        """Draw n samples with their paths from the base, without a graph.

        Args:
            n: how many.
            times: T times from 0 (base) to 1 (data), strictly increasing; see :meth:`cnf.Flow.trajectory`.
            c: one context (C,) for all, or one for each (n, C), or None.

        Returns:
            (T, n, *S), in the units of the data.
        """
        raise NotImplementedError

    def returned(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Points of the space the ODE is in, carried to the base and back: where they were, but for its errors."""
        raise NotImplementedError

    def with_solver(self, solver: Solver) -> Self:
        """The model with another solver for its ODEs; parameters and buffers are shared, so cast or move it first."""
        return with_solver(self, solver)


def parts_of(transform: Transform) -> tuple[Compose, Continuous]:
    """See :meth:`Density.parts`."""
    parts = single_path(transform)
    if parts is None:
        raise InputError(
            "the flow has no single path from base to data: it needs one Continuous, the last transform on the way "
            "to the base"
        )
    return parts


def single_path(transform: Transform) -> tuple[Compose, Continuous] | None:
    """The same, None for a transform of another composition."""
    *others, ode = transform.transforms if isinstance(transform, Compose) else [transform]
    static = Compose(others)  # ty: ignore[invalid-argument-type]
    if not isinstance(ode, Continuous) or any(isinstance(part, Continuous) for part in static.modules()):
        return None
    return static, ode


def check_samples(name: str, x: Tensor, c: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> None:
    """Raise an :class:`~anode.InputError` for samples or contexts of another shape or type, or not finite."""
    if x.shape[1:] != shape or x.ndim == 0:
        size = ", ".join(map(str, ("B", *shape)))
        raise InputError(f"{name} of shape {tuple(x.shape)} does not fit the flow: pass ({size})")
    _check_values(name, x, dtype)
    if c is not None:
        if c.ndim != 2:
            raise InputError(f"c of shape {tuple(c.shape)} does not fit the flow: pass (B, C)")
        _check_values("c", c, dtype)


def _check_values(name: str, x: Tensor, dtype: torch.dtype) -> None:
    if x.dtype != dtype:
        raise InputError(f"{name} has dtype {x.dtype}, the flow {dtype}: pass {name}.to({dtype})")
    finite = torch.isfinite(x).reshape(len(x), math.prod(x.shape[1:])).all(1)
    if not finite.all():
        raise InputError(f"{name} is not finite in {int((~finite).sum())} of {len(x)} samples: remove those")


def for_each(c: Tensor | None, n: int) -> Tensor | None:
    """One context (C,) or (n, C) for n samples."""
    return c.expand(n, -1) if c is not None and c.ndim == 1 else c


def copies_together(x: Tensor) -> int:
    """How many copies of samples are solved at once: 16,384 points of a million numbers at most, which bounds memory.

    Only without gradients, whose graphs all stay.
    """
    return max(1, min(POINTS // max(1, len(x)), NUMBERS // max(1, x.numel())))


def repeated(k: int, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Samples (B, *S) and their contexts k times over, (k B, ...)."""
    if k == 1:
        return x, c
    return x.repeat(k, *[1] * (x.ndim - 1)), None if c is None else c.repeat(k, 1)
