"""Variational inference: a flow fitted to a density that is known up to a constant."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor, nn

from anode.errors import InputError
from anode.inputs import whole_number
from cnf.flow import Flow


class ReverseKL(nn.Module):
    """The divergence KL(q | p) of a flow q from an unnormalised density p~, without the constant log Z, in nats.

        loss = E_q [log q(x) - log p~(x)] = KL(q | p) - log Z

    Samples and their log-densities come from one solve, and gradients pass through both.

    Args:
        flow: q, whose base has reparameterised samples, such as :class:`cnf.Normal`.
        log_target: log p~ of points (B, *S), (B,), differentiable.

    References:
        Rezende, Mohamed 2015, arXiv 1505.05770.

    Example:
        >>> from cnf import density_model
        >>> objective = ReverseKL(density_model((2,)), lambda x: -(x - 3).square().sum(1) / 2)
        >>> objective(256).backward()
    """

    def __init__(self, flow: Flow, log_target: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not isinstance(flow, Flow):
            raise InputError(f"flow={type(flow).__name__} is not a Flow, whose samples have a log-density: pass one")
        if not callable(log_target):
            raise InputError(f"log_target={log_target} cannot be called: pass a function of points")
        if not flow.has_rsample:
            raise InputError(f"base={flow.base} has parameters that samples carry no gradient to: use Normal")
        self.flow = flow
        self.log_target = log_target

    def forward(self, batch: int) -> Tensor:
        """Compute the loss, a scalar, from a number of samples of the flow, at least one."""
        if not isinstance(batch, Real):
            raise InputError(f"batch of type {type(batch).__name__} must be a number of samples, which the flow draws")
        batch = whole_number("batch", batch)
        x, log_q = self.flow.rsample_and_log_prob(batch)
        log_p = self.log_target(x)
        if not isinstance(log_p, Tensor):
            raise InputError(f"log_target returned a {type(log_p).__name__}: compute a tensor ({batch},) by torch")
        if log_p.shape != log_q.shape:
            raise InputError(f"log_target returned shape {tuple(log_p.shape)} for {batch} points: return ({batch},)")
        finite = torch.isfinite(log_p)
        if not finite.all():
            raise InputError(
                f"log_target is not finite at {int((~finite).sum())} of {batch} points: samples can lie anywhere, so "
                "the target needs unbounded support"
            )
        if x.requires_grad and not log_p.requires_grad:
            raise InputError("log_target returned no graph: compute it from x by differentiable operations, undetached")
        return (log_q - log_p).mean()
