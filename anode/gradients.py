"""Gradients of ODE solves: from checkpoints, by the adjoint, of times; and how torch transforms a solve."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from anode.errors import InputError
from anode.evaluations import Function, RightHandSide, check_slopes
from anode.runge_kutta import AcceptedStep, ComponentRoles, RungeKutta, Solution, add_optional, even_grid
from anode.tableaus import Components, State

ADAMS_MAX_ORDER = 5  # torchdiffeq's default of 12 amplifies rounding errors until they dominate

P = ParamSpec("P")
R = TypeVar("R")


def solve_with_checkpoints(
    solve: Callable[..., Solution], method: RungeKutta, y0: Components, params: Sequence[Tensor]
) -> Solution:
    """Solve without a graph; the backward pass replays each accepted step and differentiates it.

    The gradients equal those of backpropagation through the steps. Only the state at the beginning of each step is
    kept; its stages are evaluated again in the backward pass, one step at a time.

    Args:
        solve: solves from the initial state, and passes every accepted step to its argument ``on_accept``.
        method: takes the steps again.
        y0: initial state.
        params: other tensors that the right-hand side depends on and that need gradients.

    References:
        Zhuang et al. 2020, arXiv 2006.02493 (adaptive checkpoint adjoint).
    """
    n = len(y0)
    tensors = _Checkpoints.apply(solve, method, n, *y0, *[tensor for tensor in params if tensor.requires_grad])
    *states, step_total = tensors if method.roles.on_step is not None else (*tensors, None)
    solution = Solution([tuple(states[i : i + n]) for i in range(0, len(states), n)], step_total)
    for state in solution.states:
        method.f.mark_backward(state)
    return solution


class _Checkpoints(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, solve: Callable[..., Solution], method: RungeKutta, n: int, *tensors: Tensor) -> Any:
        steps: list[AcceptedStep] = []
        solution = solve(y0=tensors[:n], on_accept=steps.append)
        device = tensors[0].device.type
        ctx.autocast = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }
        ctx.method, ctx.n = method, n
        ctx.steps = [step._replace(y=()) for step in steps]
        ctx.save_for_backward(*tensors[n:], *[part for step in steps for part in step.y])
        return _flatten(solution)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, n = ctx.saved_tensors, ctx.n
        split = len(saved) - n * len(ctx.steps)
        params, states = saved[:split], [saved[i : i + n] for i in range(split, len(saved), n)]
        with torch.autocast(**ctx.autocast):
            if torch.is_grad_enabled():  # for gradients of gradients
                return None, None, None, *_backward_with_graph(ctx, states[0], params, grads)
            return None, None, None, *_backward_by_steps(ctx, states, params, grads)


def _backward_by_steps(
    ctx: Any, states: Sequence[Components], params: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of y0 and params, replaying one step at a time from the last to the first."""
    n = ctx.n
    state_grads, total_grad = (grads, ()) if ctx.method.roles.on_step is None else (grads[:-1], grads[-1:])
    param_grads: list[Tensor | None] = [None] * len(params)
    y1_grads = [torch.zeros_like(part) for part in states[-1]]  # through all later steps
    for state, step in zip(reversed(states), reversed(ctx.steps), strict=True):
        y = tuple(part.detach().requires_grad_() for part in state)
        with torch.enable_grad():
            part, y1 = ctx.method.replay(step._replace(y=y))
        first = len(state_grads) - n * len(part.states)
        found = gradients((*y1, *_flatten(part)), (*y, *params), (*y1_grads, *state_grads[first:], *total_grad))
        y1_grads = [torch.zeros_like(part) if g is None else g for part, g in zip(y, found, strict=False)]
        param_grads = [add_optional(total, g) for total, g in zip(param_grads, found[n:], strict=True)]
        state_grads = state_grads[:first]
    return [*y1_grads, *param_grads]


def _backward_with_graph(
    ctx: Any, y0: Components, params: Sequence[Tensor], grads: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Return the same gradients with a graph, which keeps all steps."""
    shut = [True]
    start = _Gate.apply(shut, *y0)
    y, solution = start, Solution([], None)
    for step in ctx.steps:
        part, y = ctx.method.replay(step._replace(y=y))
        solution = solution.extended(part)
    found = gradients(_flatten(solution), (*start, *params), grads, create_graph=True)
    shut.clear()
    return found


class _Gate(torch.autograd.Function):
    """The identity, through which no gradient passes while it is shut.

    Params that y0 was computed from would otherwise get the gradient through y0 as well, which autograd adds itself.
    """

    @staticmethod
    def forward(ctx: Any, shut: list[bool], *tensors: Tensor) -> Any:
        ctx.shut = shut
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *([None] * len(grads) if ctx.shut else grads)


def _flatten(solution: Solution) -> tuple[Tensor, ...]:
    total = () if solution.step_total is None else (solution.step_total,)
    return *(part for state in solution.states for part in state), *total


def solve_with_torchdiffeq(
    f: RightHandSide, y0: State, times: Sequence[float], params: Sequence[Tensor], exclude_from_error: int
) -> Solution:
    """Solve by a method of torchdiffeq, or by any with its adjoint gradients; see :func:`solve_with_checkpoints`."""
    from torchdiffeq import odeint, odeint_adjoint  # here, since it imports scipy.integrate, which takes 0.3 s

    solver, t = f.solver, f.time.new_tensor(times)
    settings: dict[str, Any] = {"rtol": solver.rtol, "atol": solver.atol, "method": solver.method}
    settings["options"] = _torchdiffeq_options(f, t[-1:], exclude_from_error)
    if solver.gradient == "direct":
        path = odeint(f, y0, t, **settings)
    else:
        backward = {**_torchdiffeq_options(f, t[:-1]), "norm": "seminorm"}
        path = odeint_adjoint(f, y0, t, **settings, adjoint_options=backward, adjoint_params=tuple(params))
        f.mark_backward(path)
    components = (path,) if isinstance(path, Tensor) else path
    return Solution([tuple(state) for state in zip(*(part[1:] for part in components), strict=True)], None)


def _torchdiffeq_options(f: RightHandSide, land_on: Tensor, exclude_from_error: int = 0) -> dict[str, Any]:
    solver = f.solver
    if solver.adaptive:
        norm = partial(_error_norm, exclude=exclude_from_error)
        first_step = {} if solver.first_step is None else {"first_step": solver.first_step}
        return {"step_t": land_on, "dtype": land_on.dtype, "norm": norm, **first_step}

    def grid(f: Any, y0: Any, times: Tensor) -> Tensor:
        assert solver.step_size is not None
        grids = [even_grid(*interval, solver.step_size)[1:] for interval in pairwise(times.tolist())]
        return torch.cat([times[:1], times.new_tensor([t for points in grids for t in points])])

    return {"grid_constructor": grid, **({"max_order": ADAMS_MAX_ORDER} if solver.method.endswith("adams") else {})}


@torch.no_grad()
def _error_norm(state: State, exclude: int = 0) -> Tensor:
    """Return the largest root mean square of the components; gradients treat the steps as constants."""
    components = (state,) if isinstance(state, Tensor) else state[: len(state) - exclude]
    norms = [component.square().mean().sqrt() for component in components if component.numel()]
    return torch.stack(norms).max() if norms else components[0].new_zeros(())


def gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor], create_graph: bool = False
) -> list[Tensor | None]:
    """Return the gradients of inputs from the gradients of outputs; None if nothing depends on an input."""
    pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    outputs, grads = zip(*pairs, strict=True)
    needed = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(torch.autograd.grad(outputs, needed, grads, create_graph=create_graph, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


def never_compiled(f: Callable[P, R]) -> Callable[P, R]:
    """Exclude a function and all that it calls from ``torch.compile``, as ``torch.compiler.disable`` does.

    The compiler takes seconds to import. Until something else imports it there is nothing to exclude.
    """
    excluded = None

    @wraps(f)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal excluded
        if "torch._dynamo" not in sys.modules:
            return f(*args, **kwargs)
        if excluded is None:
            excluded = torch.compiler.disable(f)
        return excluded(*args, **kwargs)

    return call


def is_transformed() -> bool:
    """Detect an active transform of ``torch.func``, as ``autograd.Function`` does; torch does not offer it publicly."""
    return torch._C._are_functorch_transforms_active()


@contextmanager
def explain_vmap() -> Generator[None]:
    """Turn torch's error on ``torch.func.vmap`` of numbers that a solve depends on into an :class:`InputError`."""
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith("vmap: It looks like"):
            raise InputError(
                "torch.func.vmap cannot run over a solve, whose steps depend on all rows: a solve takes a batch, so "
                "call it on all rows"
            ) from error
        raise


def is_differentiable(t: object) -> bool:
    """Return True for a time that needs a gradient."""
    if not isinstance(t, Tensor) or not torch.is_grad_enabled():
        return False
    return t.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(t)


def as_number(t: float | Tensor) -> float:
    """Return a time as a number; raise an :class:`InputError` for anything else."""
    if not isinstance(t, Tensor):
        try:
            return float(t)
        except (TypeError, ValueError):
            raise InputError(f"the time {t!r} is not a number: pass one, such as 0.5") from None
    if t.numel() != 1:
        raise InputError(f"a time of shape {tuple(t.shape)} is not one number: all samples of a solve share their time")
    with explain_vmap():
        return float(t.item())


def make_times_states(
    f: Function, y0: State, t0: float | Tensor, t1: float | Tensor, roles: ComponentRoles
) -> tuple[Function, Components, ComponentRoles]:
    """Prepend a shift of t0 and a shift of t1 to the state, through which gradients reach the times.

    The shifts e0 = e1 = 0 are constant. In the time s, which runs from t0 to t1 as if these were numbers,

        dy/ds = (1 + (e1 - e0) / (t1 - t0)) f(s + e0 + (e1 - e0) (s - t0) / (t1 - t0), y),

    so that values and steps stay as they are and every gradient mode differentiates the times, any number of times.

    Returns:
        The right-hand side, the initial state (e0, e1, *y0), and the roles of its components.
    """
    parts = (y0,) if isinstance(y0, Tensor) else y0
    start, end = as_number(t0), as_number(t1)
    if start == end or roles.on_step is not None:
        raise InputError(f"t0={start:g} and t1={end:g} have no gradients here: pass distinct times, without on_step")
    shifts = [
        (t - as_number(t)).reshape(()).to(parts[0]) if isinstance(t, Tensor) else parts[0].new_zeros(())
        for t in (t0, t1)
    ]

    def shifted(f: Function, is_tensor: bool) -> Function:
        def g(s: Tensor, state: Components) -> Components:
            e0, e1, *y = state
            here = y[0] if is_tensor else tuple(y)
            slopes = f(s + e0 + (e1 - e0) * ((s - start) / (end - start)), here)
            check_slopes(slopes, here)
            rate = 1 + (e1 - e0) / (end - start)
            still = torch.zeros_like(e0)
            return still, still, *[rate * slope for slope in ((slopes,) if is_tensor else slopes)]

        return g

    f_state = None if roles.f_state is None else shifted(roles.f_state, False)
    return shifted(f, isinstance(y0, Tensor)), (*shifts, *parts), roles._replace(f_state=f_state)


def check_all_leaves_declared(slopes: Components, y0: Components, params: Sequence[Tensor]) -> None:
    """Raise an :class:`InputError` if slopes depend on a leaf tensor that is neither in y0 nor in params.

    It would silently get no gradient.
    """
    declared = (*y0, *params)
    known = {id(tensor) for tensor in declared}
    for node in _graph_nodes(slopes, declared):
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise InputError(
                f"f depends on a tensor of shape {tuple(leaf.shape)} that is neither in y0 nor in params, so that it "
                "would get no gradient: list it in params, pass the module that holds it as field (or to Field.wrap), "
                'or pass gradient="direct"'
            )


def check_no_derived_params(params: Sequence[Tensor]) -> None:
    """Raise an :class:`InputError` if one of the params is computed from another, whose gradient would count twice."""
    leaves = {id(tensor) for tensor in params if tensor.grad_fn is None}
    derived = [tensor for tensor in params if tensor.grad_fn is not None]
    inner = {tensor.grad_fn for tensor in derived}
    for tensor in derived:
        for node in _graph_nodes([tensor], []):
            if id(getattr(node, "variable", None)) in leaves or node in inner - {tensor.grad_fn}:
                raise InputError(
                    f"a tensor of shape {tuple(tensor.shape)} among params is computed from another one, or from "
                    'weights of the field: list the other one alone, or pass gradient="direct"'
                )


def _graph_nodes(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> Iterator[Any]:
    """Iterate over the nodes of the graph that computes outputs, as far back as the inputs."""
    stops = {(tensor.grad_fn, tensor.output_nr) for tensor in inputs if tensor.grad_fn is not None}
    waiting, seen = [(tensor.grad_fn, tensor.output_nr) for tensor in outputs], set()
    while waiting:
        node, nr = waiting.pop()
        if node is None or node in seen or (node, nr) in stops:
            continue
        seen.add(node)
        yield node
        waiting.extend(node.next_functions)
