"""A flow of a few invertible residual steps, whose likelihood is exact without a solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from anode.errors import InputError, SolverError
from anode.evaluations import open_counters
from anode.fields import Field, MLPField
from anode.inputs import whole_number
from anode.layers import ACTIVATIONS
from cnf.continuous import path_times
from cnf.divergence import exact_jacobian
from cnf.transforms import Transform, Transport

MAX_DIM = 64  # a step takes D tangents and a determinant of D^3 operations for each sample
LIPSCHITZ = 0.97  # of the certified displacement of a step; the rest is for rounding
FOLDED = 1e-6
SILU_SLOPE = 1.1  # largest slope of silu is 1.0998; of tanh, softplus and relu 1
ITERATIONS, ATTEMPTS = 40, 60  # of Newton's method

# The lists that collect determinants at the moment; see :func:`watch_determinants`.
WATCHERS: ContextVar[tuple[list[Tensor], ...]] = ContextVar("watchers", default=())


class ResidualSteps(Transform):
    r"""n explicit steps of a residual network from data to base, with exact determinants.

        x_{i+1} = x_i - h f(t_i, x_i, c),    h = 1 / n,  t_i = 1 - i h,  i = 0, ..., n - 1
        log |det dz/dx| = sum_i log |det (I - h J_i)|,    J_i = df/dx at (t_i, x_i)

    These are Euler's steps of the ODE dx/dt = f from data at t = 1 to base at t = 0, taken as the definition of the
    map: what a solver would call its error does not exist here, and a density takes n evaluations.

    If f is bounded, as a perceptron whose first activation is tanh, then x - h f is proper and of degree one. Where
    every determinant is positive, each step is therefore a diffeomorphism, and the density is exact. Otherwise the map
    folds. There :meth:`forward` puts a number near -28 in the place of the logarithm: a fold lowers the likelihood, so
    that training undoes it. Of degree one, the density with the signs of the determinants integrates to 1; with 0 in
    place of the negative ones, it integrates to 1 + m, where m is the mass with a negative determinant. That is the
    only possible fault. :func:`watch_determinants` collects the determinants of calls. ``certify`` makes them positive
    everywhere: it bounds the Lipschitz constant of h f by 0.97.

    The inverse solves every step by Newton's method from several starts: of degree one, the map reaches every point,
    though a map that folds reaches some from three. Gradients pass through it by the implicit function theorem.

    Args:
        field: the field f, bounded (only perceptrons are checked); its time says which step it is.
        steps: n.
        certify: divide the weights of an :class:`anode.MLPField` by their spectral norms where that is needed.
        tol: tolerance of the inverse, relative to 1 + |y|; 6e-6 in single and 2e-12 in double precision if omitted.

    Raises:
        InputError: for more than 64 dimensions, where determinants cost too much, or a field that is not certifiable.

    References:
        Behrmann et al. 2019, arXiv 1811.00995 (with estimated determinants); He et al. 2016, arXiv 1512.03385.

    Example:
        >>> from anode import MLPField
        >>> from cnf import Flow, Normal
        >>> flow = Flow(ResidualSteps(MLPField(2, activation=("tanh", "silu"))), Normal((2,)))
        >>> flow.log_prob(torch.randn(5, 2)).shape, flow.sample(7).shape
        (torch.Size([5]), torch.Size([7, 2]))
    """

    has_paths = True

    def __init__(
        self, field: Field | Callable[..., Tensor], steps: int = 4, certify: bool = False, tol: float | None = None
    ) -> None:
        super().__init__()
        self.field = Field.wrap(field)
        self.steps = whole_number("steps", steps)
        self.certify = certify
        self.tol = tol
        if certify:
            bound_lipschitz(self.field, LIPSCHITZ * self.steps)
        elif not is_bounded(self.field):
            raise InputError(
                "residual steps need a bounded field: pass activation=('tanh', 'silu') to MLPField, or certify=True"
            )

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        check_dim(math.prod(x.shape[1:]))
        log_det, found = x.new_zeros(len(x)), []
        self._count(x, 1, self.steps)
        with parametrize.cached():  # of certified weights, for all steps
            for i in range(self.steps):
                velocity, slopes = self._slopes(i, x, c)
                x = x - velocity / self.steps
                determinant, log_abs = log_determinant(slopes)
                log_det = log_det + log_abs
                found.append(determinant.detach())
        for watcher in WATCHERS.get():
            watcher.append(torch.stack(found, 1))
        return Transport(x, log_det)

    @override
    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        self._count(x, 1, self.steps)
        with parametrize.cached():
            for i in range(self.steps):
                x = x - self._move(i, x, c)
        return x

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        x = self.decode(z, c)
        return Transport(x, -self(x, c).log_det)

    @override
    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return self._states(z, c)[-1]

    @override
    def trajectory(self, z: Tensor, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        states, found = self._states(z, c), []
        for time in path_times(times):
            i = min(math.floor(time * self.steps), self.steps - 1)
            found.append(torch.lerp(states[i], states[i + 1], time * self.steps - i))
        return torch.stack(found)

    def _time(self, i: int, x: Tensor) -> Tensor:
        return x.new_full((), 1 - i / self.steps)

    def _move(self, i: int, x: Tensor, c: Tensor | None) -> Tensor:
        """Return h f(t_i, x, c)."""
        return self.field(self._time(i, x), x, c) / self.steps

    def _slopes(self, i: int, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return f and the Jacobian I - h df/dx of step i, (B, D, D)."""
        velocity, jacobian = exact_jacobian(self.field, self._time(i, x), x, c)
        return velocity, torch.eye(jacobian.shape[1], dtype=x.dtype, device=x.device) - jacobian / self.steps

    def _count(self, x: Tensor, solves: int, evaluations: int) -> None:
        for counter in open_counters(self.field):
            counter.solves += solves
            counter.forward += evaluations
            counter.points += evaluations * len(x)

    def _states(self, z: Tensor, c: Tensor | None) -> list[Tensor]:
        """Return the n + 1 states from base to data."""
        self._count(z, 1, 0)
        states = [z]
        for i in reversed(range(self.steps)):
            states.append(self._undo(i, states[-1], c))
        return states

    @torch.no_grad()
    def try_decode(self, z: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map base to data without a graph, and return True for the points (B,) whose inverse is found."""
        self._count(z, 1, 0)
        found = torch.ones(len(z), dtype=torch.bool, device=z.device)
        with parametrize.cached():
            for i in reversed(range(self.steps)):
                z, excess = self._solve(i, z, c)
                found &= excess <= 1
        return z, found

    def _undo(self, i: int, y: Tensor, c: Tensor | None) -> Tensor:
        """Return x with x - h f(t_i, x, c) = y; its gradient is that of one more Newton step."""
        with torch.no_grad(), parametrize.cached():
            x, excess = self._solve(i, y.detach(), c)
        if not (excess <= 1).all():
            worst = self._tol(y) * excess.nan_to_num(math.inf).max().item()
            method = f"Newton's method for step {i + 1} of {self.steps}, whose relative residual stays at {worst:.2g}"
            raise SolverError("inverse not found", 1 - i / self.steps, ATTEMPTS * ITERATIONS, method)
        if not torch.is_grad_enabled():
            return x
        with parametrize.cached():
            residual = (x - self._move(i, x, c) - y).flatten(1)
            slopes = self._slopes(i, x, c)[1].detach()
        return x - torch.linalg.solve(slopes, residual).view(x.shape)

    def _tol(self, y: Tensor) -> float:
        return torch.finfo(y.dtype).eps ** 0.75 if self.tol is None else self.tol

    def _solve(self, i: int, y: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Solve step i for x, (B, *S), by Newton's method from the explicit step, from y, and from points around y.

        Returns:
            The points, and their residuals in units of the allowed ones, (B,).
        """
        allowed = self._tol(y) * (1 + y.flatten(1).norm(dim=1))
        x, size, rows = y.clone(), torch.zeros_like(allowed), torch.arange(len(y), device=y.device)
        noise = torch.Generator(y.device).manual_seed(0)
        for attempt in range(ATTEMPTS):
            goal, context = y[rows], None if c is None else c[rows]
            if attempt == 0:
                self._count(goal, 0, 1)
                start = goal + self._move(i, goal, context)
            elif attempt == 1:
                start = goal
            else:
                start = goal + 2.0 ** (attempt % 4 - 2) * torch.empty_like(goal).normal_(generator=noise)
            x[rows], size[rows] = self._newton(i, start, goal, context, allowed[rows])
            rows = rows[~(size[rows] <= allowed[rows])]
            if len(rows) == 0:
                break
        return x, size / allowed

    def _newton(self, i: int, x: Tensor, y: Tensor, c: Tensor | None, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Solve x - h f(t_i, x, c) = y from x, and return the points with the norms of their residuals, (B,).

        A Jacobian is kept while it divides the residual by eight; a move that does not lessen the residual is halved.
        """
        shape = (-1, *x.shape[1:])

        def residual_of(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            self._count(x, 0, 1)
            found = (x - self._move(i, x, None if c is None else c[rows]) - y[rows]).flatten(1)
            return found, found.norm(dim=1)

        rows = torch.arange(len(x), device=x.device)
        residual, size = residual_of(x, rows)
        inverse = residual.new_empty(*residual.shape, residual.shape[1])  # of the Jacobian
        share = torch.ones_like(size)
        old, moved = torch.ones_like(size, dtype=torch.bool), torch.ones_like(size, dtype=torch.bool)
        for _ in range(ITERATIONS):
            rows = (~(size <= allowed)).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            renewed = rows[old[rows] & moved[rows]]
            if len(renewed):
                self._count(renewed, 0, 1)
                slopes = self._slopes(i, x[renewed], None if c is None else c[renewed])[1]
                inverse[renewed] = torch.linalg.inv_ex(slopes).inverse
            old[renewed], moved[renewed] = False, False
            move = (inverse[rows] @ residual[rows].unsqueeze(2)).squeeze(2)
            tried = x[rows] - (share[rows].unsqueeze(1) * move).view(shape)
            residual_tried, size_tried = residual_of(tried, rows)
            better = size_tried < (1 - share[rows] / 10) * size[rows]
            good, bad = rows[better], rows[~better]
            old[good], moved[good] = size_tried[better] > size[good] / 8, True
            x[good], residual[good], size[good] = tried[better], residual_tried[better], size_tried[better]
            share[good] = (2 * share[good]).clamp(max=1)
            share[bad] = torch.where(moved[bad], share[bad], share[bad] / 2)
            old[bad] = True
        return x, size

    @override
    def extra_repr(self) -> str:
        return f"steps={self.steps}, certify={self.certify}"


@contextmanager
def watch_determinants() -> Generator[list[Tensor]]:
    """Collect the determinants of I - h J, with their signs, in every call of residual steps inside the block.

    Yields:
        A list that gets one tensor (B, n) from each call of B points, without a graph.

    Example:
        >>> from anode import MLPField
        >>> from cnf import Flow, Normal
        >>> flow = Flow(ResidualSteps(MLPField(2), certify=True), Normal((2,)))
        >>> with watch_determinants() as determinants:
        ...     _ = flow.log_prob(torch.randn(5, 2))
        >>> bool((torch.cat(determinants) > 0).all())
        True
    """
    found: list[Tensor] = []
    token = WATCHERS.set((*WATCHERS.get(), found))
    try:
        yield found
    finally:
        WATCHERS.reset(token)


def log_determinant(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return det A and log det A of matrices A (B, D, D), each (B,); in closed form for D = 1 and 2.

    The logarithm of a negative determinant is replaced by 2 log e - log(e + |det A|), e = 1e-6, which rises as the
    determinant does.
    """
    dim = matrices.shape[1]
    if dim <= 2:
        determinant = matrices[:, 0, 0]
        if dim == 2:
            determinant = determinant * matrices[:, 1, 1] - matrices[:, 0, 1] * matrices[:, 1, 0]
        sign, log_abs = determinant, determinant.where(determinant > 0, 1.0).log()  # 0 would have an infinite gradient
    else:
        sign, log_abs = torch.linalg.slogdet(matrices)
        determinant = sign * log_abs.exp()  # may underflow, unlike its logarithm
    return determinant, torch.where(sign > 0, log_abs, 2 * math.log(FOLDED) - (FOLDED + determinant.abs()).log())


def check_dim(dim: int) -> None:
    """Raise an :class:`anode.InputError` for more dimensions than exact determinants can be had for."""
    if dim > MAX_DIM:
        raise InputError(
            f"residual steps in {dim} dimensions would need a determinant of {dim} x {dim} for each sample and step: "
            f"at most {MAX_DIM} are supported; use a Continuous"
        )


def is_bounded(field: Field) -> bool:
    """Return False for a perceptron whose first activation is not tanh; an affine one, which cannot fold, passes."""
    return not isinstance(field, MLPField) or field.activations[:1] in ([], [ACTIVATIONS["tanh"]])


def bound_lipschitz(field: Field, bound: float) -> None:
    """Bound the Lipschitz constant of a perceptron in x, by equal bounds on the spectral norms of its weights."""
    if not isinstance(field, MLPField):
        raise InputError(f"certify=True needs the spectral norms of an MLPField, not of a {type(field).__name__}")
    for activation in field.activations:
        bound /= SILU_SLOPE if activation is ACTIVATIONS["silu"] else 1
    for layer in field.layers:
        parametrize.register_parametrization(layer, "weight", _Shrink(bound ** (1 / len(field.layers))))


class _Shrink(nn.Module):
    """W / max(1, |W| / limit) with the spectral norm |W|."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    @override
    def forward(self, weight: Tensor) -> Tensor:
        return weight / (torch.linalg.matrix_norm(weight, 2) / self.limit).clamp(min=1)
