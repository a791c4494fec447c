"""Variational inference: fitting a flow to a density that is known up to a constant."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from anode import InputError
from cnf.bases import Normal
from cnf.flow import Flow

LogDensity = Callable[[Tensor], Tensor]


class ReverseKL(nn.Module):
    """The divergence KL(q | p) of a flow q from an unnormalised density p~, without the constant log Z, in nats.

        loss = E_q [log q(x) - log p~(x)] = KL(q | p) - log Z

    Samples and their log-densities come from one solve, and gradients go through both. The path gradient leaves out
    the score of q, whose mean is zero, so that its variance vanishes where q = p; it takes a second solve.

    Args:
        flow: q, on the standard normal base.
        log_target: log p~ of points (B, *S), (B,), differentiable.
        path_gradient: use that estimator of the gradient.

    Raises:
        InputError: for anything but a :class:`Flow`, a base whose samples carry no gradient to its own parameters, or a
            target that is no function.

    References:
        Rezende, Mohamed 2015, arXiv 1505.05770; Roeder, Wu, Duvenaud 2017, arXiv 1703.09194; Vaitl, Nicoli, Nakajima,
        Kessel 2022, arXiv 2207.08219 (path gradients of continuous flows).

    Example:
        >>> from cnf import density_model
        >>> objective = ReverseKL(density_model((2,)), lambda x: -(x - 3).square().sum(1) / 2)
        >>> objective(256).backward()
    """

    def __init__(self, flow: Flow, log_target: LogDensity, path_gradient: bool = False) -> None:
        super().__init__()
        if not isinstance(flow, Flow):
            raise InputError(f"flow={type(flow).__name__} is no Flow, whose samples have a log-density: pass one")
        if not callable(log_target):
            raise InputError(f"log_target={log_target} cannot be called: pass a function of points")
        if not isinstance(flow.base, Normal):
            raise InputError(f"base={flow.base} has parameters that samples do not reach: use Normal")
        self.flow = flow
        self.log_target = log_target
        self.path_gradient = path_gradient

    def forward(self, batch: int) -> Tensor:
        """The loss, a scalar.

        Args:
            batch: how many samples to estimate it from, at least one.

        Raises:
            InputError: when ``log_target`` does not return a finite log-density for each sample, or one without a
                gradient.
        """
        if not isinstance(batch, int) or batch < 1:
            raise InputError(f"batch={batch} must be a number of samples, at least 1: they are drawn from the flow")
        x, log_q = self._along_the_path(batch) if self.path_gradient else self.flow.sample_with_log_prob(batch)
        log_p = self.log_target(x)
        if log_p.shape != log_q.shape:
            raise InputError(f"log_target returned shape {tuple(log_p.shape)} for {batch} points: return ({batch},)")
        finite = torch.isfinite(log_p)
        if not finite.all():
            raise InputError(
                f"log_target is not finite at {int((~finite).sum())} of {batch} points: samples fall anywhere, so it "
                "needs a support without bounds"
            )
        if x.requires_grad and not log_p.requires_grad:
            raise InputError("log_target returned no graph: compute it from x by differentiable operations, undetached")
        return (log_q - log_p).mean()

    def _along_the_path(self, n: int) -> tuple[Tensor, Tensor]:
        """Samples, and their log-densities under the same weights as constants."""
        x = self.flow.decode(self.flow.base.sample(n))
        with _constant([parameter for parameter in self.flow.parameters() if parameter.requires_grad]):
            return x, self.flow.log_prob(x)


@contextmanager
def _constant(parameters: Sequence[nn.Parameter]) -> Generator[None]:
    """Take parameters as constants for a while."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
