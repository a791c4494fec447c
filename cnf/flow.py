"""Densities: the interface of every model, and the flow, made of a transform and a base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from typing_extensions import override

from anode.errors import InputError
from anode.fields import Field
from anode.gradients import explain_vmap
from anode.inputs import check_batch, check_finite, to_tensor, whole_number
from anode.solver import Solver, solvers_in, with_solver
from anode.units import Normalize
from cnf.bases import Base
from cnf.batches import check_contexts, warn_of_units
from cnf.continuous import Continuous, path_times, split_at_paths
from cnf.distribution import FlowDistribution
from cnf.residual_steps import ResidualSteps
from cnf.transforms import Compose, SolveOptions, Transform

if TYPE_CHECKING:
    from cnf.models import DensityConfig

HALF = (torch.float16, torch.bfloat16)

D = TypeVar("D", bound="Density")
P = ParamSpec("P")
Result = TypeVar("Result")


def without_autocast(method: Callable[Concatenate[D, P], Result]) -> Callable[Concatenate[D, P], Result]:
    """Run a method of a density in the precision of the model, also under ``torch.autocast``."""

    @wraps(method)
    def call(self: D, *args: P.args, **kwargs: P.kwargs) -> Result:
        with torch.autocast(self.like.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return call


class Elbo(NamedTuple):
    """A lower bound of a log-density, with its parts."""

    value: Tensor  # the bound in nats, (B,)
    energies: Mapping[str, Tensor]  # the requested path energies by name, each (B,)
    kl: Tensor | None = None  # part of the value, (B,); see cnf.lifts.LiftResult


class MatchingPair(NamedTuple):
    """Both ends of the paths that flow matching learns."""

    field: Field  # learns the velocity of the paths
    x: Tensor  # data in the space of the ODE, (B, *S)
    z: Tensor  # base points, drawn
    c: Tensor | None  # context of the field
    kl: Tensor | None = None  # see Elbo


def field_of(flow: Transform) -> Field:
    """Return the field whose paths an ODE or residual steps follow."""
    if not isinstance(flow, Continuous | ResidualSteps):
        raise InputError(f"{type(flow).__name__} does not have a field to train by flow matching: use Continuous")
    return flow.field


class Density(nn.Module):
    """A probability density p(x given c) to evaluate, to sample, and to train.

    Calling it returns a distribution: ``density(c)`` is a :class:`torch.distributions.Distribution`.

    Samples and contexts may be tensors, NumPy arrays, data frames or lists, of any real type and on any device. They
    become tensors of the type and on the device of the model, with their gradients. Results are tensors.

    Attributes:
        context_scale: layer that standardises contexts, for all methods; None to use contexts as they are.
        event_shape: shape S of one sample.
        support: constraint on samples x.
        stochastic: True if :meth:`elbo` draws auxiliary variables; it is then a bound that more draws tighten.
        couples_base: True if base points of :meth:`matching_pair` belong to components, which its context tells.
        has_rsample: True if samples can carry gradients, by :meth:`rsample`.
        description: the configuration from which :func:`cnf.density_model` built it; None if composed by hand.
        context: number of context features; None if composed by hand.
        levels: number of values of each element of discrete data; None for real numbers.
    """

    description: DensityConfig | None = None
    context: int | None = None
    levels: int | None = None
    event_shape: torch.Size
    support: constraints.Constraint
    stochastic: bool = False
    couples_base: bool = False
    has_rsample: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.context_scale: Normalize | None = None

    @property
    def config(self) -> DensityConfig | None:
        """The configuration that rebuilds the model as it is solved now; None if composed by hand."""
        solvers = solvers_in(self)
        return replace(self.description, solver=solvers[0]) if self.description and solvers else self.description

    @property
    def arguments(self) -> dict[str, Any] | None:
        """The plain values from which :func:`cnf.density_model` rebuilds the model; None if composed by hand."""
        config = self.config
        of_data = {"shape": tuple(self.event_shape), "context": self.context, "levels": self.levels}
        return None if config is None else {**of_data, **asdict(config)}

    @property
    def kind(self) -> str:
        """``"exact"``, ``"estimate"`` (unbiased) or ``"bound"`` (a lower bound): the nature of :meth:`log_prob`."""
        raise NotImplementedError

    @property
    def like(self) -> Tensor:
        """An empty tensor with the device and floating-point type of the model."""
        raise NotImplementedError

    @property
    def sample_dtype(self) -> torch.dtype:
        """The floating-point type in which samples x and contexts c keep all their digits."""
        return self.like.dtype

    @override
    def forward(self, c: Tensor | None = None) -> Distribution:
        """Return p(x given c) as a distribution, with batch shape ``c.shape[:-1]`` for contexts c (*batch, C)."""
        return FlowDistribution(self, c)

    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Return log p(x given c) in nats, (B,); :attr:`kind` states exact, estimate or bound.

        The tolerance of the solver is for the root mean square of the errors in the batch. A row that is harder than
        the others is less accurate among them than alone: pass it alone, or lower the tolerance by :meth:`with_solver`.
        ``torch.autocast`` has no effect here nor on samples; it lowers the precision of :meth:`elbo` and of objectives.

        Args:
            x: (B, *S), in the units of the data.
            c: context, (B, C), or None.

        Raises:
            InputError: if x has another shape, or values that are not finite.
            SolverError: if an ODE cannot be solved.
        """
        raise NotImplementedError

    def elbo(self, x: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Elbo:
        """Return a lower bound of log p(x given c) from one draw of every auxiliary variable, for training.

        Only shapes and types are checked, so that no step of training waits for the device.
        """
        raise NotImplementedError

    def prepare(self, name: str, x: Any, c: Any, finite: bool = True) -> tuple[Tensor, Tensor | None]:
        """Convert samples x (B, *S) and contexts c (B, C) to the type and device of the model, and check them.

        ``finite`` also checks the values, which waits for the device. Messages call the samples ``name``. Contexts are
        returned standardised.
        """
        x = (x if isinstance(x, Tensor) and x.dtype == self.like.dtype else to_tensor(name, x)).to(self.like)
        check_batch(name, x, self.event_shape, "flow")
        c = self.prepare_context(c, len(x), finite)
        if finite:
            with explain_vmap():
                check_finite(name, x)
        return x, c

    def prepare_context(self, c: Any, n: int, finite: bool = True) -> Tensor | None:
        """Convert, check and standardise the contexts (n, C) of n samples; see :meth:`prepare`."""
        if self.like.dtype in HALF:
            raise InputError(f"the model is in {self.like.dtype}, too coarse for a density: call its float() first")
        c = None if c is None else to_tensor("c", c)
        check_contexts(c, n, self.context)
        if c is None:
            return None
        c = c.to(self.like.device)
        if self.context_scale is not None:
            c = self.context_scale(c)  # before the cast: differences of large numbers need all digits
        c = c.to(self.like)
        if finite:
            check_finite("c", c)
            warn_of_units(c, self.context_scale)
        return c

    def prepare_draws(self, n: Any, c: Any) -> tuple[int, Tensor | None]:
        """Check a number n of draws, and prepare one context (C,) for all of them, or (n, C); see :meth:`prepare`."""
        n = whole_number("n", n, 0)
        c = None if c is None else to_tensor("c", c)
        return n, self.prepare_context(c.expand(n, -1) if c is not None and c.ndim == 1 else c, n)

    def check_num_samples(self, samples: int) -> None:
        """Raise an :class:`anode.InputError` unless a number of draws can tighten the bound."""
        if whole_number("samples", samples) != 1 and not self.stochastic:
            raise InputError(f"samples={samples} must be 1: {type(self).__name__} does not have a bound to tighten")

    def matching_pair(self, x: Tensor, c: Tensor | None = None) -> MatchingPair:
        """Return data in the space of the ODE and base points, for flow matching."""
        raise NotImplementedError

    def split(self) -> tuple[Compose, Transform]:
        """Return the static transforms next to the data, and the one with paths, such as an ODE, next to the base.

        Raises:
            InputError: for any other composition.
        """
        raise NotImplementedError

    def sample(self, n: int, c: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Draw n samples (n, *S), without a graph.

        Args:
            n: number of samples; (n,) and 1e3 are understood. For more axes, use ``density(c).sample((2, 3))``.
            c: one context (C,) for all samples, or one for each (n, C), or None.
            temperature: factor of the normal noise of the base. Samples at a temperature other than 1 do not follow
                :meth:`log_prob`; below 1 they are less varied and more typical.

        References:
            Kingma, Dhariwal 2018, arXiv 1807.03039, section 5 (temperature).
        """
        raise NotImplementedError

    def rsample(self, n: int, c: Tensor | None = None) -> Tensor:
        """Draw n samples (n, *S) with gradients to parameters and contexts, if ``has_rsample`` is True."""
        return self.rsample_and_log_prob(n, c)[0]

    def rsample_and_log_prob(self, n: int, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw n samples (n, *S) and their log-densities (n,) in one solve, with gradients; see :meth:`rsample`."""
        raise InputError(
            f"samples of {type(self).__name__} have no gradient: a lift or the choice of a component is in the way; "
            "use sample, or a Flow with a Normal base"
        )

    def sample_paths(self, n: int, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        """Draw n samples with their paths (T, n, *S) from base to data; see :meth:`sample`, :meth:`Flow.trajectory`."""
        raise NotImplementedError

    def round_trip(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Encode and decode points in the space of the flow; the result differs from x by the error of the solver."""
        raise NotImplementedError

    def with_solver(self, solver: Solver) -> Self:
        """Return the model with another solver; parameters and buffers are shared, so cast or move it first."""
        return with_solver(self, solver)


class Flow(Density):
    """A normalizing flow: the density of x if z = g(x, c) has the density of the base.

        log p(x given c) = log p_base(g(x, c)) + log |det dg/dx|

    Args:
        transform: the map g from data to base.
        base: the distribution of z, such as :class:`cnf.Normal`.

    Example:
        >>> from anode import MLPField
        >>> from cnf import Continuous, Normal
        >>> flow = Flow(Continuous(MLPField(2)), Normal((2,)))
        >>> flow.log_prob(torch.randn(5, 2)).shape, flow.sample(7).shape
        (torch.Size([5]), torch.Size([7, 2]))

    References:
        Papamakarios et al. 2021, arXiv 1912.02762.
    """

    def __init__(self, transform: Transform, base: Base) -> None:
        super().__init__()
        if not (isinstance(transform, Transform) and isinstance(base, Base)):
            kinds = f"{type(transform).__name__}, {type(base).__name__}"
            raise InputError(f"Flow({kinds}) needs a Transform, such as Continuous(field), and a Base, such as Normal")
        self.transform = transform
        self.base = base
        self.event_shape = base.shape
        self.support = constraints.independent(transform.domain, len(base.shape))
        self.has_rsample = base.has_rsample

    @property
    @override
    def kind(self) -> str:
        odes = (part for part in self.modules() if isinstance(part, Continuous))
        return "exact" if all(ode.divergence == "exact" for ode in odes) else "estimate"

    @property
    @override
    def like(self) -> Tensor:
        return self.base.like

    @override
    @without_autocast
    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        x, c = self.prepare("x", x, c)
        z, log_det, _ = self.transform(x, c)
        return self.base.log_prob(z) + log_det

    @override
    def elbo(self, x: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Elbo:
        x, c = self.prepare("x", x, c, finite=False)
        z, log_det, energies = self.transform(x, c, **self.transform.keywords(options))
        return Elbo(self.base.log_prob(z) + log_det, energies)

    @override
    def matching_pair(self, x: Tensor, c: Tensor | None = None) -> MatchingPair:
        x, c = self.prepare("x", x, c, finite=False)
        static, flow = self.split()
        return MatchingPair(field_of(flow), static.encode(x, c), self.base.sample(len(x)), c)

    @override
    def split(self) -> tuple[Compose, Transform]:
        parts = split_at_paths(self.transform)
        if parts is None:
            raise InputError("transform must end with one Continuous or ResidualSteps, after static transforms only")
        return parts

    @override
    @without_autocast
    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        n, c = self.prepare_draws(n, c)
        return self.transform.decode(self.base.sample(n, temperature), c)

    @override
    @without_autocast
    def rsample(self, n: int, c: Tensor | None = None) -> Tensor:
        if not self.has_rsample:
            return super().rsample(n, c)
        n, c = self.prepare_draws(n, c)
        return self.transform.decode(self.base.sample(n), c)

    @override
    @without_autocast
    def rsample_and_log_prob(self, n: int, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.has_rsample:
            return super().rsample_and_log_prob(n, c)
        n, c = self.prepare_draws(n, c)
        z = self.base.sample(n)
        x, log_det, _ = self.transform.inverse(z, c)
        return x, self.base.log_prob(z) - log_det

    @without_autocast
    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Map data x (B, *S) to base points z, without the log-determinant."""
        return self.transform.encode(*self.prepare("x", x, c))

    @without_autocast
    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Map base points z to data x (B, *S), without the log-determinant."""
        return self.transform.decode(*self.prepare("z", z, c))

    @without_autocast
    @torch.no_grad()
    def trajectory(self, z: Tensor, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        """Return the paths of base points to data, in the units of the data at every time.

        The point at time s is the image of z if every ODE runs from 0 to s only. Static transforms with one ODE next
        to the base take one solve; other compositions, such as several scales, take one for each time.

        Args:
            z: base points (B, *S).
            times: T times from 0 (base) to at most 1 (data), strictly increasing, at least two.
            c: context, (B, C), or None.

        Returns:
            (T, B, *S).
        """
        return self._paths(*self.prepare("z", z, c), path_times(times))

    @override
    @without_autocast
    @torch.no_grad()
    def sample_paths(self, n: int, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        n, c = self.prepare_draws(n, c)
        return self._paths(self.base.sample(n), c, path_times(times))

    def _paths(self, z: Tensor, c: Tensor | None, times: Sequence[float]) -> Tensor:
        parts = split_at_paths(self.transform)
        if parts is None:
            until = [self.transform.keywords(SolveOptions(t_data=time)) for time in times]
            return torch.stack([self.transform.decode(z, c, **options) for options in until])
        static, last = parts
        return torch.stack([static.decode(x, c) for x in last.trajectory(z, times, c)])

    @override
    def round_trip(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(x, c), c)
