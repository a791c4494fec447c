"""The training loop: steps, validation, best weights, records and resuming, for any task and any run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from anode import CheckpointError, SolverError
from train_flows.run import TrainingError, distributed
from train_flows.run.folder import Run
from train_flows.run.session import SEED_STRIDE, seed_noise, stop_requests
from train_flows.run.step import StepResult, averaged_weights, check_failure, moving_average, training_step

if TYPE_CHECKING:
    from train_flows.settings import Training


class Task(Protocol):
    """A model to train: its batches, its objective, and its validation.

    Attributes:
        model: has the parameters that are trained, and shares them with the model that is stored.
        training: how to optimise.
        criterion: name of the validated figure to minimise; None to keep the weights of the last validation.
    """

    @property
    def model(self) -> nn.Module: ...  # noqa: D102

    @property
    def training(self) -> Training: ...  # noqa: D102

    @property
    def criterion(self) -> str | None: ...  # noqa: D102

    def batch(self, step: int) -> Any:
        """Return the batch of a step, or in several processes the share of this one."""

    def objective(self, batch: Any, step: int) -> Tensor:
        """Return the scalar loss of a batch at a step."""
        ...

    def validate(self) -> dict[str, float]:
        """Return figures of the current weights."""
        ...


@dataclass
class Progress:
    """Position of a training: the state to resume from, besides weights, optimiser, schedule and average."""

    step: int = 0
    recorded: int = -1  # step of the last record
    best: float = math.inf  # smallest value of the criterion
    seconds: float = 0.0
    seconds_validating: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # of figures of successful steps since the last record
    skipped: int = 0  # failed steps since the last record
    failed_in_a_row: int = 0


def shuffled_batches(
    x: Tensor | tuple[Tensor, Tensor], batch_size: int, seed: int
) -> Callable[[int], Tensor | tuple[Tensor, Tensor]]:
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
    tensors = x if isinstance(x, tuple) else (x,)
    per_epoch = len(tensors[0]) // batch_size
    order: dict[int, Tensor] = {}  # of the current epoch

    def batch(step: int) -> Any:
        epoch, position = divmod(step, per_epoch)
        if epoch not in order:
            generator = torch.Generator().manual_seed(SEED_STRIDE * seed + epoch)
            order.clear()
            order[epoch] = torch.randperm(len(tensors[0]), generator=generator).to(tensors[0].device)
        rows = distributed.share_of(order[epoch][position * batch_size : (position + 1) * batch_size])
        parts = tuple(tensor[rows] for tensor in tensors)
        return parts if isinstance(x, tuple) else parts[0]

    return batch


def train(task: Task, run: Run, *, deadline: float = math.inf, quiet: bool = False) -> bool:
    """Minimise the objective of a task by Adam, from the state of the run if it has one.

    Every validation is recorded in the run, with the means of the steps since the last one; the weights with the
    smallest criterion are kept as the best. The state is saved with every record and when training stops.

    Args:
        task: model, batches, objective and validation.
        run: keeps records, states and the best weights.
        deadline: ``time.monotonic()`` at which to stop; of several processes the first to reach it stops all.
        quiet: show neither records nor a progress bar.

    Returns:
        True if all steps were taken, False at the deadline.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with the state saved.
        TrainingError: if a validation or too many steps fail, or the disk is full; the message says what the run keeps.
    """
    training, device = task.training, next(task.model.parameters()).device
    if distributed.rank():  # weights are drawn alike in all processes, noise differently in each
        seed_noise(torch.initial_seed())
    distributed.align(task.model)
    optimizer = torch.optim.Adam(
        task.model.parameters(),
        lr=training.lr,
        weight_decay=training.weight_decay,
        fused=device.type in ("cpu", "cuda"),  # saves a fifth of the time on small models
    )
    schedule = _schedule(optimizer, training)
    average = moving_average(task.model, training.ema)
    parts: dict[str, Any] = {"model": task.model, "optimizer": optimizer, "schedule": schedule, "average": average}
    parts = {name: part for name, part in parts.items() if part is not None}
    progress = _restore(run, parts, training)

    started = time.monotonic() - progress.seconds
    hidden = quiet or distributed.rank() > 0 or None  # None: shown on a terminal only
    bar = tqdm(total=training.steps, initial=progress.step, unit="step", dynamic_ncols=True, disable=hidden)
    with _explained(run), stop_requests() as stopped, bar:
        while True:
            due = progress.step % training.validate_every == 0 or progress.step == training.steps
            if due and progress.step > progress.recorded:
                progress.seconds = time.monotonic() - started
                with averaged_weights(task.model, average):
                    record = _validate(task, progress, optimizer.param_groups[0]["lr"])
                    value = -progress.step if task.criterion is None else record[task.criterion]
                    if value < progress.best:
                        progress.best = value
                        run.keep_best(task.model)
                if isinstance(schedule, ReduceLROnPlateau):
                    schedule.step(value)
                run.log(record)
                run.save_state(progress.step, _state(progress, parts))
                if not quiet:
                    tqdm.write(_line(record, training.steps))
            if progress.step == training.steps:
                return True
            if not distributed.everywhere(not stopped() and time.monotonic() <= deadline, device):
                progress.seconds = time.monotonic() - started
                run.save_state(progress.step, _state(progress, parts))
                if distributed.everywhere(time.monotonic() <= deadline, device):
                    raise KeyboardInterrupt
                return False
            result = training_step(task, progress.step, optimizer)
            _count(progress, result, training)
            if not isinstance(schedule, ReduceLROnPlateau):
                schedule.step()
            progress.step += 1
            if average is not None and result.failure is None:
                average.update_parameters(task.model)
            bar.update()
            bar.set_postfix(_shown(progress, result))


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


def _schedule(optimizer: torch.optim.Optimizer, training: Training) -> LRScheduler:
    if training.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, factor=0.5, patience=3)
    return LambdaLR(optimizer, lambda step: learning_rate(training, step))


@contextmanager
def _explained(run: Run) -> Generator[None]:
    """Add to the message of a failure what the run keeps."""
    try:
        yield
    except TrainingError as error:
        kept = "the last state and the best weights are" if run.records() else "nothing was learnt yet"
        raise TrainingError(f"{error}; {kept} in {run.folder}", error.solving) from error
    except OSError as error:
        raise TrainingError(
            f"{error.filename or run.folder} could not be written ({error.strerror or error}); the last state is"
            f" whole: make room and continue with --resume {run.folder}"
        ) from error


def _count(progress: Progress, result: StepResult, training: Training) -> None:
    """Add a step to the progress since the last record.

    Raises:
        TrainingError: if it is one failure too many.
    """
    if result.failure is None:
        progress.failed_in_a_row = 0
        for name, value in result.figures.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value
    else:
        progress.skipped += 1
        progress.failed_in_a_row += 1
        check_failure(result, progress.step, progress.failed_in_a_row, training)


def _validate(task: Task, progress: Progress, lr: float) -> dict[str, Any]:
    """Return the record of this step: means since the last record, and figures of the current weights."""
    taken = progress.step - max(progress.recorded, 0) - progress.skipped
    means = distributed.means({name: total / taken for name, total in progress.sums.items()})
    seconds_training, started = progress.seconds - progress.seconds_validating, time.monotonic()
    try:
        figures = task.validate()
    except SolverError as error:
        raise TrainingError(f"the validation at step {progress.step} failed: {error}", solving=True) from error
    progress.seconds_validating += time.monotonic() - started
    seconds = {"seconds": round(progress.seconds, 2), "seconds_training": round(seconds_training, 2)}
    record = {"step": progress.step, **means, **figures, "skipped": progress.skipped, "lr": lr, **seconds}
    progress.sums, progress.skipped, progress.recorded = {}, 0, progress.step
    return record


def _line(record: dict[str, Any], steps: int) -> str:
    """Return a record as the line that is printed."""
    hidden = ("step", "seconds", "seconds_training", "lr", *(() if record["skipped"] else ("skipped",)))
    figures = [f"{name} {value:.4g}" for name, value in record.items() if name not in hidden]
    return "  ".join([f"step {record['step']:>{len(str(steps))}}/{steps}", *figures, f"{record['seconds']:.0f} s"])


def _shown(progress: Progress, result: StepResult) -> dict[str, Any]:
    """Return the figures of a step for the progress bar."""
    skipped = {"skipped": progress.skipped} if progress.skipped else {}
    if result.failure is not None:
        return skipped
    figures = result.figures
    evaluations = f"{figures['nfe_forward']:.0f}+{figures['nfe_backward']:.0f}"
    return {"loss": f"{figures['loss']:.3f}", "nfe": evaluations, **skipped}


def _state(progress: Progress, parts: dict[str, Any]) -> dict[str, Any]:
    """Return everything to resume from; random generators and sums are those of all processes."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if on_gpu else None}
    return {
        "progress": asdict(progress) | {"sums": distributed.gathered(progress.sums)},
        "random": distributed.gathered(random),
        **{name: part.state_dict() for name, part in parts.items()},
    }


def _restore(run: Run, parts: dict[str, Any], training: Training) -> Progress:
    """Load the state of a run into the parts of a training.

    Raises:
        CheckpointError: if it is the state of another training.
    """
    state = distributed.from_first(run.load_state)
    if state is None:
        return Progress()
    try:
        sums, rank = state["progress"]["sums"], distributed.rank()
        if len(sums) == distributed.count():
            sums = sums[rank]
        else:  # other processes than before continue from the mean
            sums = {name: sum(each[name] for each in sums) / len(sums) for name in sums[0]}
        progress = Progress(**state["progress"] | {"sums": sums})
        if progress.step > training.steps:
            raise ValueError(f"it is at step {progress.step} of {training.steps}")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        if rank < len(state["random"]):  # an additional process keeps its stream of random numbers
            torch.set_rng_state(state["random"][rank]["cpu"])
            if state["random"][rank]["cuda"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(state["random"][rank]["cuda"])
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{run.folder} has the state of another training, or of another version of torch ({error}): restore it, "
            "use the versions in config.json, or train again"
        ) from error
    return progress
