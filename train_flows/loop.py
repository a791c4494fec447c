"""The training loop: steps, validation, the best weights, records and resuming; it knows no model and no disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from anode import CheckpointError, SolverError, count_evals
from anode.plain import check_arguments
from train_flows.average import Average
from train_flows.errors import TrainingError
from train_flows.journal import Journal
from train_flows.signals import stop_signals
from train_flows.training import Training


@dataclass
class Progress:
    """Where training stands: everything in the checkpoint besides weights, optimiser and schedule."""

    step: int = 0
    recorded: int = -1  # step of the last record
    best: float = math.inf  # of the criterion
    seconds: float = 0.0
    validating: float = 0.0  # of these seconds
    sums: dict[str, float] = field(default_factory=dict)  # since the last record


def shuffled_batches(x: Tensor | tuple[Tensor, ...], batch_size: int, seed: int) -> Callable[[int], Any]:
    """Epochs of shuffled batches as a function of the step alone, so that resuming needs no state.

    Args:
        x: samples (N, *S), or a tuple of such tensors, such as inputs and targets. N is at least the batch size; the
            remainder of an epoch is left out.
        batch_size: B.
        seed: of the shuffles.

    Returns:
        A function from the step to its batch (B, *S), or to the tuple of theirs.
    """
    tensors = (x,) if isinstance(x, Tensor) else tuple(x)
    per_epoch = len(tensors[0]) // batch_size
    order: dict[int, Tensor] = {}  # of the current epoch

    def batch(step: int) -> Any:
        epoch, position = divmod(step, per_epoch)
        if epoch not in order:
            generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
            order.clear()
            order[epoch] = torch.randperm(len(tensors[0]), generator=generator).to(tensors[0].device)
        rows = order[epoch][position * batch_size : (position + 1) * batch_size]
        parts = tuple(tensor[rows] for tensor in tensors)
        return parts[0] if isinstance(x, Tensor) else parts

    return batch


def train(
    objective: nn.Module,
    training: Training,
    batch: Callable[[int], Any],
    validate: Callable[[], dict[str, float]],
    keep_best: Callable[[], None],
    journal: Journal,
    accelerator: Accelerator,
    criterion: str = "nll",
    quiet: bool = False,
    deadline: float = math.inf,
) -> bool:
    """Minimise an objective, from the state in the journal if it has one.

    Args:
        objective: a module whose ``forward(batch)`` returns the scalar loss.
        training: how to optimise.
        batch: the batch of a step.
        validate: figures of the current weights for the record.
        keep_best: called whenever the criterion improves.
        journal: where records and states go.
        accelerator: carries the device.
        criterion: the validated figure to minimise.
        quiet: show neither records nor a progress bar.
        deadline: of ``time.monotonic()``, after which to stop.

    Returns:
        Whether all steps were taken; False when a signal or the deadline asked to stop, with the state saved.

    Raises:
        TrainingError: when a solve fails or the loss is no longer finite.
    """
    fused = accelerator.device.type in ("cpu", "cuda")  # a fifth of the time on small models
    decay = training.weight_decay
    optimizer = torch.optim.Adam(objective.parameters(), lr=training.lr, weight_decay=decay, fused=fused)
    objective, optimizer = accelerator.prepare(objective, optimizer)
    schedule = _schedule(optimizer, training)
    average = Average(objective.parameters(), training.ema)
    parts = {"objective": accelerator.unwrap_model(objective), "optimizer": optimizer, "schedule": schedule}
    parts["average"] = average
    progress = _restore(journal, parts, accelerator.device)

    started = time.monotonic() - progress.seconds
    hidden = quiet or None  # None: where there is no terminal
    bar = tqdm(total=training.steps, initial=progress.step, unit="step", dynamic_ncols=True, disable=hidden)
    with stop_signals() as stop_requested, bar:
        while True:
            due = progress.step % training.validate_every == 0 or progress.step == training.steps
            if due and progress.step > progress.recorded:
                progress.seconds = time.monotonic() - started
                with average.in_place():
                    figures = _validated(progress, validate, optimizer.param_groups[0]["lr"])
                    if figures[criterion] < progress.best:
                        progress.best = figures[criterion]
                        keep_best()
                if isinstance(schedule, ReduceLROnPlateau):
                    schedule.step(figures[criterion])
                journal.log(figures)
                journal.save_state(progress.step, _state(progress, parts))
                if not quiet:
                    tqdm.write(_line(figures, training.steps))
            if progress.step == training.steps:
                return True
            if stop_requested() or time.monotonic() > deadline:
                progress.seconds = time.monotonic() - started
                journal.save_state(progress.step, _state(progress, parts))
                return False
            taken = _step(objective, optimizer, batch, training.clip, progress.step, accelerator)
            if not isinstance(schedule, ReduceLROnPlateau):
                schedule.step()
            for name, value in taken.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress.step += 1
            average.update(progress.step)
            bar.update()
            bar.set_postfix(loss=f"{taken['loss']:.3f}", nfe=int(taken["nfe_forward"] + taken["nfe_backward"]))


def _step(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Callable[[int], Any],
    clip: float,
    step: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    try:
        with count_evals(objective) as nfe:
            loss = objective(batch(step))
            accelerator.backward(loss)
    except SolverError as error:
        raise TrainingError(f"the solve of step {step} failed: {error}", solving=True) from error
    norm = accelerator.clip_grad_norm_(objective.parameters(), clip)
    taken = {"loss": float(loss.detach()), "grad_norm": float(norm)}
    if not all(math.isfinite(value) for value in taken.values()):
        raise TrainingError(f"step {step} has loss {taken['loss']} and gradient norm {taken['grad_norm']}: lower --lr")
    optimizer.step()
    optimizer.zero_grad()
    return {**taken, "nfe_forward": nfe.forward, "nfe_backward": nfe.backward}


def _validated(progress: Progress, validate: Callable[[], dict[str, float]], lr: float) -> dict[str, float]:
    """The record of this step: means since the last one, and the figures of the current weights."""
    taken = progress.step - max(progress.recorded, 0)
    means = {name: total / taken for name, total in progress.sums.items()}
    progress.sums, progress.recorded = {}, progress.step
    training, started = progress.seconds - progress.validating, time.monotonic()
    try:
        figures = validate()
    except SolverError as error:
        raise TrainingError(f"the validation at step {progress.step} failed: {error}", solving=True) from error
    progress.validating += time.monotonic() - started
    seconds = {"seconds": round(progress.seconds, 2), "seconds_training": round(training, 2)}
    return {"step": progress.step, **means, **figures, "lr": lr, **seconds}


def _line(figures: dict[str, float], steps: int) -> str:
    shown = [f"step {figures['step']:>{len(str(steps))}}/{steps}"]
    hidden = ("step", "seconds", "seconds_training", "lr")
    shown += [f"{name} {value:.4g}" for name, value in figures.items() if name not in hidden]
    return "  ".join([*shown, f"{figures['seconds']:.0f} s"])


def _schedule(optimizer: torch.optim.Optimizer, training: Training) -> LRScheduler:
    if training.schedule == "cosine":
        return LambdaLR(optimizer, partial(_cosine, training))
    if training.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, factor=0.5, patience=3)
    return LambdaLR(optimizer, lambda _: 1.0)


def _cosine(training: Training, step: int) -> float:
    """The share of the learning rate at a step: half a cosine, and another one from the restart on."""
    restart, height = training.restart, 1.0
    if restart is None or step < restart:
        share = step / (restart or training.steps)
    else:
        share = (step - restart) / (training.steps - restart)
        height = (training.restart_lr or training.lr) / training.lr
    return height * (1 + math.cos(math.pi * share)) / 2


def _state(progress: Progress, parts: dict[str, Any]) -> dict[str, Any]:
    return {
        **vars(progress),
        **{name: part.state_dict() for name, part in parts.items()},
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore(journal: Journal, parts: dict[str, Any], device: torch.device) -> Progress:
    state = journal.load_state(device)
    if state is None:
        return Progress()
    try:
        progress = {name: state[name] for name in vars(Progress())}
        check_arguments(Progress, progress)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        for parameter, kept in parts["optimizer"].state.items():
            if not all(value.shape in (parameter.shape, ()) for value in kept.values()):
                raise ValueError("the optimizer kept other shapes than the parameters have")
        torch.set_rng_state(state["random"].cpu())
        if torch.cuda.is_available():
            states = state["random_cuda"][: torch.cuda.device_count()]  # perhaps of another machine
            torch.cuda.set_rng_state_all([random.cpu() for random in states])
        return Progress(**progress)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"the state to resume from is that of another training: {error}") from error
