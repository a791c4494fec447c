"""One optimiser step: mixed precision, clipping, failed solves; learning rate and moving average."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from anode import SolverError, count_evals
from train_flows.run import TrainingError, distributed

if TYPE_CHECKING:
    from train_flows.run.loop import Task
    from train_flows.settings import Training

NOT_FINITE = "non-finite state"  # the cause of a failed solve that a smaller learning rate may cure


@dataclass(frozen=True)
class StepResult:
    """Result of one step, the same in all processes except for the figures.

    Attributes:
        figures: ``loss``, ``grad_norm``, ``nfe_forward`` and ``nfe_backward``; empty if the step failed.
        failure: reason why the step left the weights unchanged; None if it succeeded.
        cause: the solver's error, if a solve failed.
    """

    figures: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    cause: SolverError | None = None

    @property
    def stiff(self) -> bool:
        """True if a solve was too hard, rather than a number not finite."""
        return self.cause is not None and self.cause.cause != NOT_FINITE


def training_step(task: Task, step: int, optimizer: torch.optim.Optimizer) -> StepResult:
    """Take one optimiser step in all processes, or in none of them; the batch follows from the number of the step."""
    device = next(task.model.parameters()).device
    optimizer.zero_grad()
    with count_evals(task.model) as nfe:
        loss, failure = _backward(task, step, device)
    if failure is not None:
        return _unchanged(optimizer, StepResult(failure=f"its solve failed: {failure}", cause=failure))
    distributed.average_gradients(task.model)
    norm = float(nn.utils.clip_grad_norm_(task.model.parameters(), task.training.clip))
    if not distributed.everywhere(math.isfinite(loss) and math.isfinite(norm), device):
        return _unchanged(optimizer, StepResult(failure=f"it has loss {loss} and gradient norm {norm}"))
    optimizer.step()
    return StepResult({"loss": loss, "grad_norm": norm, "nfe_forward": nfe.forward, "nfe_backward": nfe.backward})


def check_failure(result: StepResult, step: int, failed_in_a_row: int, training: Training) -> None:
    """Decide whether training continues after a failed step.

    Raises:
        TrainingError: if a solve failed and ``on_stiff`` is "stop", or more than ``max_skipped`` steps failed in a row.
    """
    stop = result.stiff and training.on_stiff == "stop"
    if stop or failed_in_a_row > training.max_skipped:
        row = "" if stop else f"{failed_in_a_row} steps in a row failed; "
        remedy = "" if result.stiff else ": lower --lr"
        raise TrainingError(f"{row}step {step} failed: {result.failure}{remedy}", result.stiff) from result.cause


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


def learning_rate_schedule(optimizer: torch.optim.Optimizer, training: Training) -> LRScheduler:
    """Return the schedule of the learning rate, which ``plateau`` halves after three validations without progress."""
    if training.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, factor=0.5, patience=3)
    return LambdaLR(optimizer, lambda step: learning_rate(training, step))


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


def _backward(task: Task, step: int, device: torch.device) -> tuple[float, SolverError | None]:
    """Return the loss, with its gradient in the weights; and the error if a solve failed in any process."""
    loss, failure = math.nan, None
    batch = task.batch(step)
    try:
        # fields multiply and convolve in bfloat16; ODE states, log-densities and losses keep all bits
        with torch.autocast(device.type, torch.bfloat16, enabled=task.training.precision == "bfloat16"):
            result = task.objective(batch, step)
        result.backward()
        loss = float(result.detach())
    except SolverError as error:
        failure = error
    if distributed.everywhere(failure is None, device):
        return loss, None
    return loss, next(filter(None, distributed.gathered(failure)))


def _unchanged(optimizer: torch.optim.Optimizer, result: StepResult) -> StepResult:
    """Take an empty optimiser step, without gradients, which the learning-rate schedule expects before its own."""
    optimizer.zero_grad()
    optimizer.step()
    return result
