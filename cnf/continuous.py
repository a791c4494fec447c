"""An ODE as an invertible transform, with the log-determinant by the instantaneous change of variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.func import jvp
from typing_extensions import override

from anode.errors import InputError, check_choice
from anode.fields import Field
from anode.inputs import to_tensor, whole_number
from anode.runge_kutta import ComponentRoles
from anode.solver import Solver, check_solver
from anode.tableaus import Slopes
from cnf.divergence import Rates, exact_divergence, hutchinson_divergence, probe_noise
from cnf.transforms import Compose, SolveOptions, Transform, Transport

DIVERGENCES = ("exact", "hutchinson")
NOISES = ("rademacher", "gaussian")
BASE, DATA = 0.0, 1.0  # times, unless :class:`cnf.SolveOptions` set others

RatesAt = Callable[[Tensor, Tensor], Rates]


class Continuous(Transform):
    """The flow of dx/dt = f(t, x, c) from data at t = 1 to base at t = 0.

    The log-density along a trajectory changes by d log p / dt = -tr(df/dx), hence the map from data to base has
    log |det| = -integral_0^1 tr(df/dx) dt.

    :class:`cnf.SolveOptions` can request path energies, for training to keep small. They do not influence the steps.

    - kinetic: integral of |f|^2 / 2
    - frobenius: integral of |df/dx|^2, exactly by D pull-backs, or estimated by the probes of a Hutchinson divergence
    - acceleration: integral of |d^2 x/dt^2|^2 + (d tr(df/dx) / dt)^2, of state and log-density, which adaptive steps
      have to resolve. With a Hutchinson divergence the log-density is the estimated one, and its variance adds to the
      energy. Solvers with ``supports_on_step`` compute it without evaluations from the slopes within each step; others
      need a derivative along the path.

    Args:
        field: the vector field, or any network that :meth:`anode.Field.wrap` makes a field of.
        solver: the numerics; assign another to re-solve a trained flow.
        divergence: ``"exact"``, or ``"hutchinson"`` for an unbiased estimate with one draw of noise per solve.
        probes: number of Hutchinson probes to average.
        noise: ``"rademacher"`` or ``"gaussian"`` probes.
        extra: number of augmented dimensions, or channels, at the end of dimension 1. The solver measures their error
            separately, so that it does not dilute the error of the data.

    References:
        Chen et al. 2018, arXiv 1806.07366, theorem 1; Grathwohl et al. 2019, arXiv 1810.01367; Finlay et al. 2020,
        arXiv 2002.02798 (kinetic and Frobenius energy); Kelly et al. 2020, arXiv 2007.04504 (higher derivatives).
    """

    takes_options = True
    has_paths = True

    def __init__(
        self,
        field: Field | Callable[..., Tensor],
        solver: Solver = Solver(),  # noqa: B008 - a frozen value
        divergence: str = "exact",
        probes: int = 1,
        noise: str = "rademacher",
        extra: int = 0,
    ) -> None:
        super().__init__()
        check_choice("divergence", divergence, DIVERGENCES)
        check_choice("noise", noise, NOISES)
        self.field = Field.wrap(field)
        self.solver = check_solver(solver)
        self.divergence = divergence
        self.probes = whole_number("probes", probes)
        self.noise = noise
        self.extra = whole_number("extra", extra, 0)

    @override
    def forward(self, x: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Transport:
        base, data = _times(options)
        return self._transport(x, data, base, c, () if options is None else options.energies)

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Transport:
        return self._transport(z, *_times(options), c, () if options is None else options.energies)

    @override
    def encode(self, x: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Tensor:
        base, data = _times(options)
        return self._join(self.solver.integrate(self._velocity(c), self._split(x), data, base, (c,), self.field))

    @override
    def decode(self, z: Tensor, c: Tensor | None = None, options: SolveOptions | None = None) -> Tensor:
        base, data = _times(options)
        return self._join(self.solver.integrate(self._velocity(c), self._split(z), base, data, (c,), self.field))

    @override
    def trajectory(self, z: Tensor, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        times = path_times(times)
        return torch.cat(self.solver.trajectory(self._velocity(c), self._split(z), times, (c,), self.field), 2)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split points (B, *S) into the components of the solve: data and augmented dimensions."""
        return x.split([x.shape[1] - self.extra, self.extra], 1) if self.extra else (x,)

    def _join(self, components: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(components), 1) if self.extra else components[0]

    def _velocity(self, c: Tensor | None) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda t, state: self._split(self.field(t, self._join(state), c))

    def _transport(self, x: Tensor, t0: float, t1: float, c: Tensor | None, energies: Sequence[str]) -> Transport:
        by_steps = "acceleration" in energies and self.solver.supports_on_step
        integrated = [name for name in energies if not (by_steps and name == "acceleration")]
        closed_form, frobenius = None, "frobenius" in energies
        rates_at: RatesAt
        if self.divergence == "exact":
            rates_at = partial(exact_divergence, self.field, c=c, frobenius=frobenius)
            # A closed form is called from here, without the frames of `exact_divergence` in between.
            closed_form = None if frobenius else self.field.velocity_and_divergence
        else:
            eps = probe_noise(x, self.probes, self.noise)  # one draw for the solve: the ODE must be smooth
            rates_at = partial(hutchinson_divergence, self.field, eps=eps, c=c, frobenius=frobenius)
        parts = self._split(x)
        n = len(parts)

        def f(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            here = self._join(state[:n])
            rates = (closed_form and closed_form(t, here, c)) or rates_at(t, here)
            growth = [_energy_rate(name, rates_at, t, here, Rates(*rates)) for name in integrated]
            return *self._split(rates[0]), rates[1], *growth

        def on_step(nodes: Sequence[float], slopes: Slopes, step: float) -> Tensor:
            return _acceleration_of_step(nodes, [slope[: n + 1] for slope in slopes], step)

        start = (*parts, *[x.new_zeros(len(x))] * (1 + len(integrated)))
        roles = ComponentRoles(
            quadratures=1 + len(integrated),
            f_state=self._velocity(c),
            exclude_from_error=len(integrated),
            on_step=on_step if by_steps else None,
        )
        end = self.solver.integrate(f, start, t0, t1, (c,), self.field, roles)
        # The divergence has the same sign in both directions: integrating it backwards in time negates its integral.
        sign = math.copysign(1, t1 - t0)
        found = {name: sign * end[n + 1 + i] for i, name in enumerate(integrated)}
        if by_steps:
            found["acceleration"] = end[-1]
        return Transport(self._join(end[:n]), end[n], found)

    @override
    def extra_repr(self) -> str:
        return f"solver={self.solver}, divergence={self.divergence}"


def split_at_paths(transform: Transform) -> tuple[Compose, Transform] | None:
    """Split a transform into static ones and one with paths next to the base; None for any other composition."""
    *others, last = transform.transforms if isinstance(transform, Compose) else [transform]
    static = Compose(others)
    if not last.has_paths or any(isinstance(part, Transform) and part.has_paths for part in static.modules()):
        return None
    return static, last


def path_times(times: Sequence[float] | Tensor) -> list[float]:
    """Return the times of a path: two or more strictly increasing numbers from 0, the base, up to 1, the data."""
    if isinstance(times, Tensor) and times.requires_grad:
        raise InputError("times do not get a gradient from a path: pass times.detach()")
    found = to_tensor("times", times)
    numbers = found.tolist()
    rising = found.ndim == 1 and all(before < after for before, after in pairwise(numbers))
    if not rising or len(numbers) < 2 or numbers[0] != BASE or numbers[-1] > DATA:
        raise InputError(
            f"times={numbers} must be two or more strictly increasing numbers that begin at 0, the time of the base, "
            "and do not pass 1, the time of the data"
        )
    return numbers


def _times(options: SolveOptions | None) -> tuple[float, float]:
    """Return the times of base and data; a steered base time is drawn for each solve."""
    if options is None:
        return BASE, DATA
    base = BASE + options.steer * (2 * torch.rand(()).item() - 1) if options.steer else BASE
    return base, BASE + options.t_data * (DATA - BASE)


def _energy_rate(name: str, rates_at: RatesAt, t: Tensor, x: Tensor, rates: Rates) -> Tensor:
    """Return the growth of an energy per unit of time, (B,), at a point of the path with the given rates."""
    if name == "kinetic":
        return 0.5 * _square(rates.velocity)
    if name == "frobenius":
        assert rates.frobenius is not None
        return rates.frobenius
    change: Rates = jvp(lambda t, x: rates_at(t, x)[:2], (t, x), (torch.ones_like(t), rates.velocity))[1]
    return _square(change[0]) + change[1].square()


def _acceleration_of_step(nodes: Sequence[float], slopes: Slopes, step: float) -> Tensor:
    """Return the acceleration energy of one step, (B,), from slopes v of state and log-density at nodes c of the step.

        sum over neighbouring nodes of |v(t + c' h) - v(t + c h)|^2 / ((c' - c) h)

    The mean acceleration between nodes replaces the acceleration: no evaluation, and a relative error of order h^2.
    """
    pieces = []
    for (c, before), (later, after) in pairwise(zip(nodes, slopes, strict=True)):
        changes = [_square(new - old) for old, new in zip(before, after, strict=True)]
        pieces.append(torch.stack(changes).sum(0) / math.fabs((later - c) * step))
    return torch.stack(pieces).sum(0)


def _square(x: Tensor) -> Tensor:
    return x.square().reshape(len(x), -1).sum(1)
