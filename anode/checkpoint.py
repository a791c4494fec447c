"""Gradients of a discrete solve in the memory of one step: each accepted step is taken again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anode.graph import gradients
from anode.runge_kutta import Solution
from anode.steps import Step, Stepper, added
from anode.tableaus import Components

Solve = Callable[[Components, Callable[[Step], None]], Solution]


def solve_checkpointed(solve: Solve, stepper: Stepper, y0: Components, params: Sequence[Tensor]) -> Solution:
    """Solve without a graph, and differentiate step by step.

    The gradients are those of the steps taken, as of backpropagation through them. What is kept is the state at the
    beginning of each; its stages are evaluated once more in the backward pass, and forgotten with it.

    Args:
        solve: from the initial components to the solution, handing over every accepted step.
        stepper: takes them again.
        y0: initial components.
        params: what else the right-hand side depends on, and is to have gradients.

    References:
        Zhuang, Dvornek, Li, Tatikonda, Papademetris, Duncan 2020, arXiv 2006.02493 (adaptive checkpoint adjoint).
    """
    wanted = [tensor for tensor in params if tensor.requires_grad]
    n = len(y0)
    flat = _Checkpointed.apply(solve, stepper, n, *y0, *wanted)
    *states, metered = flat if stepper.meter is not None else (*flat, None)
    return Solution([tuple(states[i : i + n]) for i in range(0, len(states), n)], metered)


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, solve: Solve, stepper: Stepper, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        steps: list[Step] = []
        solution = solve(tensors[:n], steps.append)
        ctx.stepper, ctx.n = stepper, n
        kind = tensors[0].device.type
        ctx.autocast = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
        }
        ctx.steps = [step._replace(y=()) for step in steps]
        ctx.save_for_backward(*tensors[n:], *[part for step in steps for part in step.y])
        return _flat(solution.states, solution.metered)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, n = ctx.saved_tensors, ctx.n
        starts = len(saved) - n * len(ctx.steps)
        params, states = saved[:starts], [saved[i : i + n] for i in range(starts, len(saved), n)]
        with torch.autocast(**ctx.autocast):
            if torch.is_grad_enabled():  # for gradients of gradients
                return None, None, None, *_at_once(ctx, states[0], params, grads)
            return None, None, None, *_step_by_step(ctx, states, params, grads)


def _step_by_step(
    ctx: Any, states: Sequence[Components], params: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients of y0 and params, from those of the solution."""
    n, stepper = ctx.n, ctx.stepper
    of_asked, of_meter = (grads[:-1], grads[-1:]) if stepper.meter is not None else (grads, ())
    total: list[Tensor | None] = [None] * len(params)
    later = [torch.zeros_like(part) for part in states[-1]]  # of the end of a step, by what follows from it
    for state, step in zip(reversed(states), reversed(ctx.steps), strict=True):
        y = tuple(part.detach().requires_grad_() for part in state)
        with torch.enable_grad():
            taken = stepper.again(step._replace(y=y))
        asked = len(of_asked) - n * len(taken.asked)
        outputs = _flat([taken.after, *taken.asked], taken.metered)
        found = gradients(outputs, (*y, *params), (*later, *of_asked[asked:], *of_meter))
        later = [torch.zeros_like(part) if g is None else g for part, g in zip(y, found, strict=False)]
        total = [added(sums, g) for sums, g in zip(total, found[n:], strict=True)]
        of_asked = of_asked[:asked]
    return [*later, *total]


def _at_once(ctx: Any, y0: Components, params: Sequence[Tensor], grads: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The same gradients with a graph, which keeps all steps."""
    y, metered = y0, None
    states: list[Components] = []
    for step in ctx.steps:
        taken = ctx.stepper.again(step._replace(y=y))
        states += taken.asked
        y, metered = taken.after, added(metered, taken.metered)
    return gradients(_flat(states, metered), (*y0, *params), grads, create_graph=True)


def _flat(states: Sequence[Components], metered: Tensor | None) -> tuple[Tensor, ...]:
    return *(part for state in states for part in state), *(() if metered is None else (metered,))
