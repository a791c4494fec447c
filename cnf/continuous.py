"""An ODE as an invertible transform, with the log-determinant by the instantaneous change of variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from anode import Field, InputError, Solver
from cnf.divergence import Rates, check_probes, exact, hutchinson, probe_noise
from cnf.transforms import Transform, Transport

DIVERGENCES = ("exact", "hutchinson")
DATA, BASE = 1.0, 0.0  # times


class Continuous(Transform):
    """The flow of dx/dt = f(t, x, c) from data at t = 1 to base at t = 0.

    The log-density along a trajectory changes by d log p / dt = -tr(df/dx), hence the map from data to base has
    log |det| = -integral_0^1 tr(df/dx) dt.

    Args:
        field: the vector field.
        solver: the numerics; assign another to re-solve a trained flow.
        divergence: ``"exact"``, or ``"hutchinson"`` for an unbiased estimate whose noise is drawn once a solve.
        probes: number of Hutchinson probes that are averaged.
        noise: ``"rademacher"`` or ``"gaussian"`` probes.

    Raises:
        InputError: for an unknown divergence or noise, or fewer than one probe.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud 2018, arXiv 1806.07366, theorem 1; Grathwohl, Chen, Bettencourt,
        Sutskever, Duvenaud 2019, arXiv 1810.01367.
    """

    def __init__(
        self,
        field: Field,
        solver: Solver = Solver(),  # noqa: B008 - a frozen value
        divergence: str = "exact",
        probes: int = 1,
        noise: str = "rademacher",
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

    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        """See :meth:`Transform.forward`."""
        return self._transport(x, DATA, BASE, c)

    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        """See :meth:`Transform.inverse`."""
        return self._transport(z, BASE, DATA, c)

    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Transform.encode`; spares the divergence."""
        return self.solver.integrate(partial(self.field, c=c), x, DATA, BASE, (c,), self.field)

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Transform.decode`; spares the divergence."""
        return self.solver.integrate(partial(self.field, c=c), z, BASE, DATA, (c,), self.field)

    def trajectory(self, z: Tensor, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        """The states (T, B, *S) at the given T times, of which the first belongs to ``z``."""
        return self.solver.trajectory(partial(self.field, c=c), z, times, (c,), self.field)

    def _transport(self, x: Tensor, t0: float, t1: float, c: Tensor | None) -> Transport:
        rates = self._rates(x, c)
        start = (x, x.new_zeros(len(x)))
        # The divergence has the same sign both ways: integrating it backwards in time negates its integral.
        end = self.solver.integrate(lambda t, state: rates(t, state[0]), start, t0, t1, (c,), self.field)
        return Transport(*end)

    def _rates(self, x: Tensor, c: Tensor | None) -> Callable[[Tensor, Tensor], Rates]:
        """The right-hand side, with the noise of this solve, so that the solver sees one smooth ODE."""
        if self.divergence == "exact":
            return lambda t, x: exact(self.field, t, x, c)
        eps = probe_noise(x, self.probes, self.noise)
        return lambda t, x: hutchinson(self.field, t, x, eps, c)

    def extra_repr(self) -> str:
        """Solver and divergence, for ``print``."""
        return f"solver={self.solver}, divergence={self.divergence}"
