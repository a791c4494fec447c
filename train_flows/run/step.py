"""One optimiser step: its batch, mixed precision, clipping, failed solves; learning rate and moving average."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from anode import SolverError, count_evals
from train_flows.data.dataset import SEED_STRIDE
from train_flows.run import distributed

if TYPE_CHECKING:
    from train_flows.run.loop import Task
    from train_flows.settings import Training

NOT_FINITE = "non-finite state"  # the cause of a failed solve that a smaller learning rate may cure


X = TypeVar("X", bound=Tensor | tuple[Tensor, Tensor])


def shuffled_batches(x: X, batch_size: int, seed: int) -> Callable[[int], X]:
    """Shuffle each epoch, and return batches as a function of the step alone, so that resuming needs no state.

    Args:
        x: samples (N, *S), or a pair of such tensors, such as inputs and targets. N is at least the batch size; the
            remainder of an epoch is left out.
        batch_size: B.
        seed: of the shuffles.

    Returns:
        A function from the step to its batch (B, *S), or to a pair of batches; each of several processes gets its
        share of the batch.
    """
    tensors: tuple[Tensor, ...] = x if isinstance(x, tuple) else (x,)
    per_epoch = len(tensors[0]) // batch_size

    @lru_cache(maxsize=1)
    def order(epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(SEED_STRIDE * seed + epoch)
        return torch.randperm(len(tensors[0]), generator=generator).to(tensors[0].device)

    def batch(step: int) -> Any:
        epoch, position = divmod(step, per_epoch)
        rows = distributed.share_of(order(epoch)[position * batch_size : (position + 1) * batch_size])
        parts = tuple(tensor[rows] for tensor in tensors)
        return parts if isinstance(x, tuple) else parts[0]

    return batch


def weighted_batches(x: X, weights: Tensor, batch_size: int, seed: int) -> Callable[[int], X]:
    """Draw the rows of each batch with replacement, with probabilities w_i / sum w; see :func:`shuffled_batches`.

    Args:
        x: samples (N, *S), or a pair of such tensors.
        weights: w, (N,), not negative.
        batch_size: B.
        seed: of the draws.
    """
    tensors: tuple[Tensor, ...] = x if isinstance(x, tuple) else (x,)
    ends = weights.double().cpu().cumsum(0)
    possible = int((ends < ends[-1]).sum())  # the last row with a weight

    def batch(step: int) -> Any:
        generator = torch.Generator().manual_seed(SEED_STRIDE * seed + step)
        places = ends[-1] * torch.rand(batch_size, generator=generator, dtype=ends.dtype)
        rows = torch.searchsorted(ends, places, right=True).clamp(max=possible)
        parts = tuple(tensor[distributed.share_of(rows).to(tensor.device)] for tensor in tensors)
        return parts if isinstance(x, tuple) else parts[0]

    return batch


class StepFailed(Exception):
    """A step that left the weights unchanged, in all processes.

    Attributes:
        cause: the solver's error, if a solve failed.
        stiff: True if a solve was too hard, rather than a number not finite.
    """

    def __init__(self, reason: str, cause: SolverError | None = None) -> None:
        super().__init__(reason)
        self.cause = cause
        self.stiff = cause is not None and cause.cause != NOT_FINITE


def training_step(task: Task, step: int, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Take one optimiser step in all processes, or in none of them; the batch follows from the number of the step.

    Returns:
        The loss by its name in the task, ``grad_norm``, ``nfe_forward`` and ``nfe_backward`` of this process.
    """
    device, loss, failure = next(task.model.parameters()).device, math.nan, None
    batch = task.batch(step)
    optimizer.zero_grad()
    with count_evals(task.model) as nfe:
        try:
            # fields multiply and convolve in bfloat16; ODE states, log-densities and losses keep all bits
            with torch.autocast(device.type, torch.bfloat16, enabled=task.training.precision == "bfloat16"):
                result = task.objective(batch, step)
            result.backward()
            loss = float(result.detach())
        except SolverError as error:
            failure = error
    if not distributed.everywhere(failure is None, device):
        failure = next(filter(None, distributed.gathered(failure)))
        raise StepFailed(f"its solve failed: {failure}", failure)
    distributed.average_gradients(task.model)
    norm = float(nn.utils.clip_grad_norm_(task.model.parameters(), task.training.clip))
    if not distributed.everywhere(math.isfinite(loss) and math.isfinite(norm), device):
        raise StepFailed(f"it has loss {loss} and gradient norm {norm}")
    optimizer.step()
    return {task.loss_name(step): loss, "grad_norm": norm, "nfe_forward": nfe.forward, "nfe_backward": nfe.backward}


def learning_rate(training: Training, step: int) -> float:
    """Return the learning rate of a step as a multiple of ``lr``.

    The warm-up min(1, (n + 1) / lr_warm_up), n steps after the start, times half a cosine, (1 + cos(pi n / N)) / 2 of
    N steps. Both start again at ``likelihood_from``, from ``restart_lr``. Torch's schedulers in sequence would begin
    the cosine after the warm-up instead, and its recursive form adds up rounding errors.
    """
    start, end, height = 0, training.steps, 1.0
    if training.likelihood_from and step < training.likelihood_from:
        end = training.likelihood_from
    elif training.likelihood_from:
        start = training.likelihood_from
        height = (training.restart_lr or training.lr) / training.lr
    n = step - start
    rate = min(1.0, (n + 1) / training.lr_warm_up) if training.lr_warm_up else 1.0
    if training.schedule == "cosine":
        rate *= height * (1 + math.cos(math.pi * (n / (end - start)))) / 2
    return rate


def moving_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """Return the moving average v <- d v + (1 - d) w of the parameters w; None for decay 0.

    After n steps d = min(decay, (1 + n) / (10 + n)), so that the random initial weights are soon forgotten.
    """
    if not decay:
        return None

    def average(values: Sequence[Tensor], weights: Sequence[Tensor], n: Tensor | int) -> None:
        d = min(decay, (1 + int(n)) / (10 + int(n)))
        for value, weight in zip(values, weights, strict=True):
            value.lerp_(weight, 1 - d)

    averaged = AveragedModel(model, multi_avg_fn=average)
    averaged.n_averaged += 1  # the initial weights, which torch would replace by those after the first step
    return averaged


@contextmanager
def averaged_weights(model: nn.Module, average: AveragedModel | None) -> Generator[None]:
    """Give a model its averaged weights within the block."""
    own = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    try:
        if average is not None:
            model.load_state_dict(dict(average.module.named_parameters()), strict=False)
        yield
    finally:
        model.load_state_dict(own, strict=False)
