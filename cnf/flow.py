"""Densities as modules with the verbs of a distribution; the flow, an exact density from a transform and a base."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from anode import InputError, Solver, with_solver
from anode.resolving import config_of
from cnf.bases import Base
from cnf.continuous import Continuous
from cnf.transforms import Compose, Path, Transform


class Bound(NamedTuple):
    """A lower bound of a log-density, and what it took.

    Attributes:
        value: in nats, (B,).
        energies: those of the paths that were asked for, by name, each (B,).
    """

    value: Tensor
    energies: Mapping[str, Tensor]


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

    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Log p(x given c) in nats, (B,), of the :attr:`kind` named there."""
        raise NotImplementedError

    def elbo(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """A lower bound of log p(x given c) from one draw of every auxiliary variable, (B,); what training raises."""
        return self.elbo_on_path(x, c).value

    def elbo_on_path(self, x: Tensor, c: Tensor | None = None, path: Path | None = None) -> Bound:
        """The same, with what is asked of the paths of ODEs on the way."""
        raise NotImplementedError

    def sample(self, n: int, c: Tensor | None = None) -> Tensor:
        """Draw n samples (n, *S), without a graph.

        Args:
            n: how many.
            c: one context (C,) for all, or one for each (n, C), or None.
        """
        raise NotImplementedError

    def with_solver(self, solver: Solver) -> Self:
        """The model with another solver for its ODEs; parameters and buffers are shared, so cast or move it first."""
        return with_solver(self, solver)


class Flow(Density):
    """A normalizing flow: the density of x when z = g(x, c) has the density of the base.

        log p(x given c) = log p_base(g(x, c)) + log |det dg/dx|

    Args:
        transform: the map g from data to base.
        base: the distribution of z, such as :class:`~cnf.Normal`.

    Example:
        >>> from anode import MLPField
        >>> from cnf import Continuous, Normal
        >>> flow = Flow(Continuous(MLPField(2)), Normal((2,)))
        >>> flow.log_prob(torch.randn(5, 2)).shape, flow.sample(7).shape
        (torch.Size([5]), torch.Size([7, 2]))

    References:
        Papamakarios, Nalisnick, Rezende, Mohamed, Lakshminarayanan 2021, arXiv 1912.02762.
    """

    def __init__(self, transform: Transform, base: Base) -> None:
        super().__init__()
        self.transform = transform
        self.base = base

    @property
    def kind(self) -> str:
        """See :attr:`Density.kind`: ``"estimate"`` when a divergence is estimated, else ``"exact"``."""
        odes = (part for part in self.modules() if isinstance(part, Continuous))
        return "exact" if all(ode.divergence == "exact" for ode in odes) else "estimate"

    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Log p(x given c) in nats.

        Args:
            x: (B, *S), in the units of the data and the floating-point type of the model.
            c: context, (B, C), or None.

        Returns:
            (B,), of the :attr:`kind` named there.

        Raises:
            InputError: when x has another shape or type, or values that are not finite.
            SolverError: when an ODE cannot be solved.
        """
        self.check_data(x, c)
        z, log_det, _ = self.transform(x, c)
        return self.base.log_prob(z) + log_det

    def elbo_on_path(self, x: Tensor, c: Tensor | None = None, path: Path | None = None) -> Bound:
        """See :meth:`Density.elbo_on_path`; the bound is tight."""
        self.check_data(x, c)
        z, log_det, energies = self.transform(x, c, path)
        return Bound(self.base.log_prob(z) + log_det, energies)

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None) -> Tensor:
        """See :meth:`Density.sample`."""
        return self.decode(self.base.sample(n), _each(c, n))

    def sample_with_log_prob(self, n: int, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw n samples and their log-densities in one solve; gradients flow through both.

        Args:
            n: how many.
            c: one context (C,) for all, or one for each (n, C), or None.

        Returns:
            Samples (n, *S) and log p(x given c) (n,).
        """
        z, c = self.base.sample(n), _each(c, n)
        self._check("z", z, c)
        x, log_det, _ = self.transform.inverse(z, c)
        return x, self.base.log_prob(z) - log_det

    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Data x (B, *S) to base points z, without the log-determinant."""
        self.check_data(x, c)
        return self.transform.encode(x, c)

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Base points z to data x (B, *S), without the log-determinant."""
        self._check("z", z, c)
        return self.transform.decode(z, c)

    @torch.no_grad()
    def trajectory(self, z: Tensor, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        """The path of base points to data, in the units of the data at every time.

        Args:
            z: base points (B, *S).
            times: T times from 0 (base) to 1 (data), strictly increasing.
            c: context, (B, C), or None.

        Returns:
            (T, B, *S).

        Raises:
            InputError: see :meth:`parts`.
        """
        self._check("z", z, c)
        static, ode = self.parts()
        return torch.stack([static.decode(x, c) for x in ode.trajectory(z, times, c)])

    def parts(self) -> tuple[Compose, Continuous]:
        """The static transforms next to the data, and the ODE next to the base.

        Raises:
            InputError: when the flow is not some static transforms followed by one :class:`Continuous`.
        """
        *static, ode = self.transform.transforms if isinstance(self.transform, Compose) else [self.transform]
        if not isinstance(ode, Continuous) or any(isinstance(part, Continuous) for part in static):
            raise InputError(
                "the flow has no single path from base to data: it needs one Continuous, the last transform on the way "
                "to the base"
            )
        return Compose(static), ode  # ty: ignore[invalid-argument-type]

    def check_data(self, x: Tensor, c: Tensor | None = None) -> None:
        """Raise an :class:`~anode.InputError` for data or contexts that do not fit the flow or are not finite."""
        self._check("x", x, c)

    def _check(self, name: str, x: Tensor, c: Tensor | None) -> None:
        shape, dtype = self.base.shape, self.base.like.dtype
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


def _each(c: Tensor | None, n: int) -> Tensor | None:
    return c.expand(n, -1) if c is not None and c.ndim == 1 else c
