"""The training loop: steps, validation, the best weights, records and resuming; it knows no model and no disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from anode import CheckpointError, SolverError
from anode.plain import check_arguments
from train_flows import processes
from train_flows.average import Average
from train_flows.errors import TrainingError
from train_flows.growth import Growth
from train_flows.guards import Guards, Step, take
from train_flows.journal import Journal
from train_flows.restoring import check_parts, check_progress
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
    sums: dict[str, float] = field(default_factory=dict)  # of the steps since the last record that changed the weights
    skipped: int = 0  # steps since the last record that did not
    loosened: int = 0  # steps since then for which tolerances were loosened
    in_a_row: int = 0  # steps that did not, without one between them that did


def shuffled_batches(x: Tensor | tuple[Tensor, ...], batch_size: int, seed: int) -> Callable[[int], Any]:
    """Epochs of shuffled batches as a function of the step alone, so that resuming needs no state.

    Args:
        x: samples (N, *S), or a tuple of such tensors, such as inputs and targets. N is at least the batch size; the
            remainder of an epoch is left out.
        batch_size: B.
        seed: of the shuffles.

    Returns:
        A function from the step to its batch (B, *S), or to the tuple of theirs; of several processes, each has its
        share of the batch.
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
        rows = processes.share_of(order[epoch][position * batch_size : (position + 1) * batch_size])
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
    device: torch.device,
    criterion: str = "nll",
    quiet: bool = False,
    deadline: float = math.inf,
    guards: Guards = Guards(),  # noqa: B008 - a value
    growth: Growth = Growth(),  # noqa: B008 - a value
) -> bool:
    """Minimise an objective, from the state in the journal if it has one.

    Args:
        objective: a module whose ``forward(batch)`` returns the scalar loss.
        training: how to optimise.
        batch: the batch of a step.
        validate: figures of the current weights for the record.
        keep_best: called whenever the criterion improves.
        journal: where records and states go.
        device: of the objective.
        criterion: the validated figure to minimise.
        quiet: show neither records nor a progress bar.
        deadline: of ``time.monotonic()``, after which to stop.
        guards: what to do when a step goes wrong.
        growth: of the learning rate.

    Returns:
        Whether all steps were taken; False when a signal or the deadline asked to stop, with the state saved.

    Raises:
        TrainingError: when a validation or too many steps fail.
    """
    processes.align(objective)
    fused = device.type in ("cpu", "cuda")  # a fifth of the time on small models
    decay = training.weight_decay
    optimizer = torch.optim.Adam(objective.parameters(), lr=training.lr, weight_decay=decay, fused=fused)
    schedule = _schedule(optimizer, training, growth)
    average = Average(objective.parameters(), training.ema)
    parts = {"objective": objective, "optimizer": optimizer, "schedule": schedule, "average": average}
    progress = _restore(journal, parts, device, training)

    started = time.monotonic() - progress.seconds
    hidden = quiet or processes.rank() > 0 or None  # None: where there is no terminal
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
            go_on = not stop_requested() and time.monotonic() <= deadline
            if not processes.everywhere(go_on, device):
                progress.seconds = time.monotonic() - started
                journal.save_state(progress.step, _state(progress, parts))
                return False
            loosen = guards.on_stiff == "loosen"
            taken = take(objective, optimizer, batch(progress.step), training.clip, device, loosen)
            _count(progress, taken, guards)
            if not isinstance(schedule, ReduceLROnPlateau):
                schedule.step()
            progress.step += 1
            if taken.failure is None:
                average.update(progress.step)
            bar.update()
            bar.set_postfix(_shown(progress, taken))


def _count(progress: Progress, taken: Step, guards: Guards) -> None:
    """Add a step to what there is since the last record.

    Raises:
        TrainingError: when it is one failure too many.
    """
    progress.loosened += taken.loosened
    if taken.failure is None:
        progress.in_a_row = 0
        for name, value in taken.figures.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value
        return
    progress.skipped += 1
    progress.in_a_row += 1
    stop = taken.stiff and guards.on_stiff == "stop"
    if stop or progress.in_a_row > guards.max_skipped:
        row = "" if stop else f"{progress.in_a_row} steps in a row came to nothing; "
        remedy = "" if taken.stiff else ": lower --lr"
        raise TrainingError(f"{row}step {progress.step} failed: {taken.failure}{remedy}", taken.stiff) from taken.cause


def _shown(progress: Progress, taken: Step) -> dict[str, Any]:
    """What the bar shows of a step."""
    if taken.failure is not None:
        return {"skipped": progress.skipped}
    figures = taken.figures
    evaluations = f"{figures['nfe_forward']:.0f}+{figures['nfe_backward']:.0f}"
    skipped = {"skipped": progress.skipped} if progress.skipped else {}
    return {"loss": f"{figures['loss']:.3f}", "nfe": evaluations, **skipped}


def _validated(progress: Progress, validate: Callable[[], dict[str, float]], lr: float) -> dict[str, float]:
    """The record of this step: means since the last one, and the figures of the current weights."""
    taken = progress.step - max(progress.recorded, 0) - progress.skipped
    means = processes.means({name: total / taken for name, total in progress.sums.items()})
    counts = {"skipped": progress.skipped, "loosened": progress.loosened}
    progress.sums, progress.skipped, progress.loosened, progress.recorded = {}, 0, 0, progress.step
    training, started = progress.seconds - progress.validating, time.monotonic()
    try:
        figures = validate()
    except SolverError as error:
        raise TrainingError(f"the validation at step {progress.step} failed: {error}", solving=True) from error
    progress.validating += time.monotonic() - started
    seconds = {"seconds": round(progress.seconds, 2), "seconds_training": round(training, 2)}
    return {"step": progress.step, **means, **figures, **counts, "lr": lr, **seconds}


def _line(figures: dict[str, float], steps: int) -> str:
    shown = [f"step {figures['step']:>{len(str(steps))}}/{steps}"]
    hidden = ("step", "seconds", "seconds_training", "lr", *(x for x in ("skipped", "loosened") if not figures[x]))
    shown += [f"{name} {value:.4g}" for name, value in figures.items() if name not in hidden]
    return "  ".join([*shown, f"{figures['seconds']:.0f} s"])


def _schedule(optimizer: torch.optim.Optimizer, training: Training, growth: Growth) -> LRScheduler:
    if training.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, factor=0.5, patience=3)
    return LambdaLR(optimizer, partial(_share, training, growth))


def _share(training: Training, growth: Growth, step: int) -> float:
    """The share of the learning rate at a step."""
    restarted = training.restart is not None and step >= training.restart
    begun = training.restart if restarted else 0
    return growth.share(step - begun) * (_cosine(training, step) if training.schedule == "cosine" else 1.0)


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
        "sums": processes.gathered(progress.sums),
        "random": processes.gathered(_random()),
    }


def _random() -> dict[str, Any]:
    """The state of the random generators of this process."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if on_gpu else None}


def _set_random(cpu: Tensor, cuda: Tensor | None) -> None:
    torch.set_rng_state(cpu.cpu())
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda.cpu())


def _own_sums(sums: list[dict[str, float]]) -> dict[str, float]:
    """Those of this process; of their mean, where there were more processes or fewer."""
    if len(sums) == processes.count():
        return sums[processes.rank()]
    return {name: sum(each[name] for each in sums) / len(sums) for name in sums[0]}


def _restore(journal: Journal, parts: dict[str, Any], device: torch.device, training: Training) -> Progress:
    state = processes.from_first(lambda: journal.load_state(device))
    if state is None:
        return Progress()
    try:
        progress: dict[str, Any] = {name: state[name] for name in vars(Progress())}
        progress["sums"] = _own_sums(state["sums"])
        check_arguments(Progress, progress)
        check_progress(progress, training.steps)
        check_parts(state, parts, progress["step"])
        for name, part in parts.items():
            part.load_state_dict(state[name])
        if processes.rank() < len(state["random"]):  # else one process more than before, with a stream of its own
            _set_random(**state["random"][processes.rank()])
        return Progress(**progress)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"the state to resume from is that of another training, or of another torch: {error}; restore it, "
            "continue with the versions in config.json, or train again"
        ) from error
