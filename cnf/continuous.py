"""An ODE as an invertible transform, with the log-determinant by the instantaneous change of variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anode import Field, InputError, Solver
from anode.runge_kutta import ComponentRoles
from anode.tableaus import Slopes
from cnf import energies
from cnf.divergence import check_probes, exact, hutchinson, probe_noise
from cnf.energies import RatesOf
from cnf.transforms import PathOptions, Transform, Transport

DIVERGENCES = ("exact", "hutchinson")
DATA, BASE = 1.0, 0.0  # times, unless :class:`~cnf.PathOptions` tell others


class Continuous(Transform):
    """The flow of dx/dt = f(t, x, c) from data at t = 1 to base at t = 0.

    The log-density along a trajectory changes by d log p / dt = -tr(df/dx), hence the map from data to base has
    log |det| = -integral_0^1 tr(df/dx) dt.

    Along the paths, energies can be integrated that training keeps small; they have no part in the choice of steps:

    - kinetic: integral of |f|^2 / 2
    - frobenius: integral of |df/dx|^2, exactly by D pull-backs, or estimated by the probes of a Hutchinson divergence,
      which then reach the whole Jacobian, where those of the divergence alone leave out what is zero on its diagonal
    - acceleration: integral of |d^2 x/dt^2|^2 + (d tr(df/dx) / dt)^2, of the state and the log-density, which is what
      adaptive steps have to resolve; of the estimated log-density, with a Hutchinson divergence, so that the variance
      of the estimate adds to it. From the slopes within each step of ``dopri5``, ``tsit5`` and ``rk4``, unless
      gradients are those of the adjoint, which is free; else by a derivative along the path.

    Args:
        field: the vector field.
        solver: the numerics; assign another to re-solve a trained flow.
        divergence: ``"exact"``, or ``"hutchinson"`` for an unbiased estimate whose noise is drawn once a solve.
        probes: number of Hutchinson probes that are averaged.
        noise: ``"rademacher"`` or ``"gaussian"`` probes.
        extra: the last so many dimensions, or channels, are augmented: the solver measures their error on its own, so
            that none dilutes that of the data.

    Raises:
        InputError: for an unknown divergence or noise, or fewer than one probe.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud 2018, arXiv 1806.07366, theorem 1; Grathwohl, Chen, Bettencourt,
        Sutskever, Duvenaud 2019, arXiv 1810.01367; Finlay, Jacobsen, Nurbekyan, Oberman 2020, arXiv 2002.02798
        (kinetic and Frobenius energy); Kelly, Bettencourt, Johnson, Duvenaud 2020, arXiv 2007.04504 (higher
        derivatives).
    """

    def __init__(
        self,
        field: Field,
        solver: Solver = Solver(),  # noqa: B008 - a frozen value
        divergence: str = "exact",
        probes: int = 1,
        noise: str = "rademacher",
        extra: int = 0,
    ) -> None:
        super().__init__()
        if divergence not in DIVERGENCES:
            raise InputError(f"divergence={divergence!r} is unknown; choose one of {', '.join(DIVERGENCES)}")
        check_probes(probes, noise)
        self.field = field
        self.solver = solver
        self.divergence = divergence
        self.probes = probes
        self.noise = noise
        self.extra = extra

    def forward(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.forward`."""
        return self._transport(x, _data_time(path), _base_time(path), c, path)

    def inverse(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.inverse`."""
        return self._transport(z, _base_time(path), _data_time(path), c, path)

    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Transform.encode`; spares the divergence."""
        return self._joined(self.solver.integrate(self._velocity(c), self._apart(x), DATA, BASE, (c,), self.field))

    def decode(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Tensor:
        """See :meth:`Transform.decode`; spares the divergence."""
        times = _base_time(path), _data_time(path)
        return self._joined(self.solver.integrate(self._velocity(c), self._apart(z), *times, (c,), self.field))

    def trajectory(self, z: Tensor, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        """The states (T, B, *S) at the given T times, of which the first belongs to ``z``."""
        paths = self.solver.trajectory(self._velocity(c), self._apart(z), times, (c,), self.field)
        return torch.cat(paths, 2)

    def _apart(self, x: Tensor) -> tuple[Tensor, ...]:
        """The components of points (B, *S): data, and what is augmented."""
        return x.split([x.shape[1] - self.extra, self.extra], 1) if self.extra else (x,)

    def _joined(self, components: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(components), 1) if self.extra else components[0]

    def _velocity(self, c: Tensor | None) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda t, state: self._apart(self.field(t, self._joined(state), c))

    def _transport(self, x: Tensor, t0: float, t1: float, c: Tensor | None, path: PathOptions | None) -> Transport:
        asked = () if path is None else path.energies
        at_steps = "acceleration" in asked and self.solver.supports_on_step
        riding = [name for name in asked if not (at_steps and name == "acceleration")]  # as components of the solve
        rates = self._rates(x, c, "frobenius" in asked)
        parts = self._apart(x)
        n = len(parts)

        def f(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            here = self._joined(state[:n])
            found = rates(t, here)
            ridden = [energies.rate(name, rates, t, here, found) for name in riding]
            return *self._apart(found.velocity), found.divergence, *ridden

        def meter(nodes: Sequence[float], slopes: Slopes, step: float) -> Tensor:
            of_state_and_log_density = [slope[: n + 1] for slope in slopes]
            return energies.acceleration_of_step(nodes, of_state_and_log_density, step)

        start = (*parts, *[x.new_zeros(len(x))] * (1 + len(riding)))
        riders = len(riding)
        end = self.solver.integrate(
            f,
            start,
            t0,
            t1,
            (c,),
            self.field,
            ComponentRoles(riders + 1, self._velocity(c), riders, meter if at_steps else None),
        )
        # The divergence has the same sign both ways: integrating it backwards in time negates its integral.
        sign = math.copysign(1, t1 - t0)
        along = {name: sign * energy for name, energy in zip(riding, end[n + 1 : n + 1 + riders], strict=True)}
        if at_steps:
            along["acceleration"] = end[-1]
        return Transport(self._joined(end[:n]), end[n], along)

    def _rates(self, x: Tensor, c: Tensor | None, frobenius: bool) -> RatesOf:
        """What is integrated, with the noise of this solve, so that the solver sees one smooth ODE."""
        if self.divergence == "exact":
            return lambda t, x: exact(self.field, t, x, c, frobenius)
        eps = probe_noise(x, self.probes, self.noise)
        if not frobenius:  # elsewhere the diagonal is zero: noise there would add to the variance alone
            inside = torch.zeros_like(x)
            inside[:, self.field.diagonal(x.shape[1])] = 1
            eps = eps * inside
        return lambda t, x: hutchinson(self.field, t, x, eps, c, frobenius)

    def extra_repr(self) -> str:
        """Solver and divergence, for ``print``."""
        return f"solver={self.solver}, divergence={self.divergence}"


def _base_time(path: PathOptions | None) -> float:
    """The time of the base, drawn anew for every solve where it is steered."""
    if path is None or path.steer == 0:
        return BASE
    return BASE + path.steer * (2 * torch.rand(()).item() - 1)


def _data_time(path: PathOptions | None) -> float:
    """The time of the data."""
    return DATA if path is None else BASE + path.until * (DATA - BASE)
