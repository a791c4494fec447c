"""The training loop: steps, validation, best weights, records and resuming, for any task and any run."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from anode import CheckpointError, SolverError
from train_flows.run import TrainingError, distributed
from train_flows.run.folder import Run
from train_flows.run.session import compile_fields, handling, how_to_continue, tell
from train_flows.run.step import StepFailed, averaged_weights, learning_rate, moving_average, training_step

if TYPE_CHECKING:
    from train_flows.settings import RunSettings, Training

SHOWN = 20  # records on the terminal, about
WORDS = {  # of figures of records, those that tell most first
    "nll": "validation NLL",
    "validation_loss": "validation loss",
    "validation_accuracy": "accuracy",
    "validation_rmse": "RMSE",
    "crps": "CRPS",
    "kl": "divergence",
    "bits_per_dim": "bits/dim",
    "matching_loss": "flow-matching loss",
    "loss": "training loss",
    "drift": "drift",
    "nfe_forward": "evaluations",
}


class Task(Protocol):
    """A model to train: its batches, its objective, and its validation."""

    @property
    def model(self) -> nn.Module:
        """Module whose parameters are trained; it shares them with the model that is stored."""

    @property
    def training(self) -> Training:
        """Settings of the optimiser."""

    @property
    def criterion(self) -> str | None:
        """Name of the validated figure to minimise; None to keep the weights of the last validation."""

    @property
    def batch(self) -> Callable[[int], Any]:
        """Return the batch of a step, or in several processes the share of this one."""

    @property
    def objective(self) -> Callable[[Any, int], Tensor]:
        """Return the scalar loss of a batch at a step."""

    @property
    def loss_name(self) -> Callable[[int], str]:
        """Return the name of the loss of a step in records: another one for a loss in another unit."""

    @property
    def validate(self) -> Callable[[], dict[str, float]]:
        """Return figures of the current weights."""


def fit(
    task: Task, run: Run, settings: RunSettings, command: str | None, started: float, *others: nn.Module
) -> list[str]:
    """Compile if asked to, and train within the budget of time since the program, ``command``, was started.

    Other models that share weights with the task's are compiled as well. A model without parameters to train is
    validated once. Without a program the run cannot be continued.

    Returns:
        A note if training ended before the last step.
    """
    if settings.compile:
        tell(f"compiled in {compile_fields(task, *others):.0f} s")
    if not any(parameter.requires_grad for parameter in task.model.parameters()):
        tell("the model is fitted already: no steps to take")
        trainer = Trainer(task, run)
        if trainer.is_record_due():
            trainer.record()
        return []
    if run.step == task.training.steps:
        tell(f"training is complete at step {run.step}; a larger --steps (--epochs of a classifier) trains longer")
    if not train(task, run, deadline=settings.deadline(started)):
        note = f"training is at step {run.step} of {task.training.steps}, its time was up"
        tell(f"{note}; {how_to_continue(run, command)}" if command else note)
        return [note]
    records, criterion = run.records(), task.criterion
    if criterion is None or records[-1]["step"] == task.training.steps:
        return []
    best = min(records, key=lambda record: record[criterion])
    note = (
        f"stopped at step {records[-1]['step']} of {task.training.steps}, after {task.training.patience} validations "
        f"without progress: best weights are those of step {best['step']}"
    )
    tell(note)
    return [note]


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
        True if training is complete: all steps are taken, or patience is at its end. False at the deadline.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with the state saved.
        TrainingError: if a validation or too many steps fail, or the disk is full; the message says what the run keeps.
    """
    quiet = quiet or distributed.SILENT.get()
    if distributed.rank():  # weights are drawn alike in all processes, noise differently in each
        distributed.seed_noise(torch.initial_seed())
    trainer, stop = Trainer(task, run), threading.Event()
    progress, steps, device = trainer.progress, task.training.steps, trainer.device
    bar = distributed.progress_bar("training", steps, quiet=quiet, initial=progress.step, unit="step", leave=True)
    signals = handling((signal.SIGINT, signal.SIGTERM), lambda *_: stop.set())  # the current step can end
    with _explain_failures(run), signals, bar:
        while True:
            if trainer.is_record_due():
                record = trainer.record()
                if not quiet and is_shown(record["step"], steps, task.training.validate_every):
                    bar.write(line(record, steps))
            if progress.step == steps or trainer.is_out_of_patience():
                return True
            if not distributed.everywhere(not stop.is_set() and time.monotonic() <= deadline, device):
                trainer.save()
                if distributed.everywhere(time.monotonic() <= deadline, device):
                    raise KeyboardInterrupt
                return False
            if figures := trainer.step():
                loss = figures[task.loss_name(progress.step - 1)]
                bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            bar.update(progress.step - bar.n)


@dataclass
class Progress:
    """Position of a training: the part of its state besides weights, optimiser, schedule and average."""

    step: int = 0
    recorded: int = -1  # step of the last record
    best: float = math.inf  # smallest value of the criterion
    waited: int = 0  # validations in a row without progress
    seconds: float = 0.0
    seconds_validating: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # of figures of successful steps since the last record
    skipped: int = 0  # failed steps since the last record
    failed_in_a_row: int = 0


class Trainer:
    """A training in progress: optimiser, schedule, moving average and position, saved in a run and restored from it."""

    def __init__(self, task: Task, run: Run) -> None:
        self.task, self.run, self.training = task, run, task.training
        self.device = next(task.model.parameters()).device
        distributed.align(task.model)
        self.optimizer = torch.optim.Adam(
            task.model.parameters(),
            lr=self.training.lr,
            weight_decay=self.training.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),  # saves a fifth of the time on small models
        )
        plateau = self.training.schedule == "plateau"  # which halves the rate after three validations without progress
        self.plateau = ReduceLROnPlateau(self.optimizer, factor=0.5, patience=3) if plateau else None
        self.average = moving_average(task.model, self.training.ema)
        self.progress = self._restore()
        self._started = time.monotonic() - self.progress.seconds
        self._set_learning_rate()

    def step(self) -> dict[str, float]:
        """Take one step and return its figures, which are empty if it failed.

        Raises:
            TrainingError: if a solve failed and ``on_stiff`` is "stop", or more than ``max_skipped`` steps in a row.
        """
        progress, figures = self.progress, {}
        try:
            figures = training_step(self.task, progress.step, self.optimizer)
        except StepFailed as failure:
            progress.skipped += 1
            progress.failed_in_a_row += 1
            stop = failure.stiff and self.training.on_stiff == "stop"
            if stop or progress.failed_in_a_row > self.training.max_skipped:
                row = "" if stop else f"{progress.failed_in_a_row} steps in a row failed; "
                reason = f"{row}step {progress.step} failed: {failure}"
                raise TrainingError(self._with_remedy(reason, failure.cause), failure.stiff) from failure.cause
        else:
            progress.failed_in_a_row = 0
            progress.sums = {name: progress.sums.get(name, 0.0) + value for name, value in figures.items()}
            if self.average is not None:
                self.average.update_parameters(self.task.model)
        progress.step += 1
        self._set_learning_rate()
        return figures

    def _set_learning_rate(self) -> None:
        for group in self.optimizer.param_groups if self.plateau is None else ():
            group["lr"] = self.training.lr * learning_rate(self.training, self.progress.step)

    def is_record_due(self) -> bool:
        """Return True if the current step is to be recorded, and is not yet."""
        step = self.progress.step
        due = step % self.training.validate_every == 0 or step in (self.training.likelihood_from, self.training.steps)
        return due and step > self.progress.recorded

    def is_out_of_patience(self) -> bool:
        """Return True if as many validations in a row as ``patience`` were without progress."""
        return 0 < self.training.patience <= self.progress.waited

    def record(self) -> dict[str, Any]:
        """Validate the averaged weights, keep them if they are the best, and save record and state in the run."""
        progress, criterion = self.progress, self.task.criterion
        progress.seconds = time.monotonic() - self._started
        taken = progress.step - max(progress.recorded, 0) - progress.skipped
        record: dict[str, Any] = {"step": progress.step}
        record |= distributed.means({name: total / taken for name, total in progress.sums.items()})
        times = {"seconds": progress.seconds, "seconds_training": progress.seconds - progress.seconds_validating}
        with averaged_weights(self.task.model, self.average):
            record |= self._validate()
            value = -progress.step if criterion is None else record[criterion]
            progress.waited += 1
            if value < progress.best:
                progress.best, progress.waited = value, 0
                self.run.keep_best(self.task.model)
        record |= {"skipped": progress.skipped, "lr": self.optimizer.param_groups[0]["lr"]}
        record |= {name: round(seconds, 2) for name, seconds in times.items()}
        if self.plateau is not None:
            self.plateau.step(value)
        if self.is_out_of_patience() and progress.step < (self.training.likelihood_from or 0):
            self._begin_likelihood()
        progress.sums, progress.skipped, progress.recorded = {}, 0, progress.step
        self.run.log(record)
        self.save()
        return record

    def _begin_likelihood(self) -> None:
        """Leave out the other steps before likelihood, which begins with the best weights."""
        self.run.load_best(self.task.model)
        self.average = moving_average(self.task.model, self.training.ema)
        self.progress.step, self.progress.waited = self.training.likelihood_from or 0, 0
        self._set_learning_rate()

    def save(self) -> None:
        """Save the state in the run."""
        self.progress.seconds = time.monotonic() - self._started
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if on_gpu else None}
        state = {
            "progress": asdict(self.progress) | {"sums": distributed.means(self.progress.sums)},
            "steps": self.training.steps,
            "random": distributed.gathered(random),
            **{name: part.state_dict() for name, part in self._parts().items()},
        }
        self.run.save_state(self.progress.step, state)
        distributed.wait()  # until all processes can read it

    def _parts(self) -> dict[str, Any]:
        """Return the objects whose state dicts are saved."""
        optional = {"plateau": self.plateau, "average": self.average}
        parts = {name: part for name, part in optional.items() if part is not None}
        return {"model": self.task.model, "optimizer": self.optimizer, **parts}

    def _restore(self) -> Progress:
        """Load the state of the run, if it has one; raise a CheckpointError for the state of another training."""
        state, rank = distributed.from_first(self.run.load_state), distributed.rank()
        if state is None:
            return Progress()
        try:
            progress = Progress(**state["progress"])
            if progress.step > self.training.steps:
                raise ValueError(f"it is at step {progress.step} of {self.training.steps}")
            if self.training.steps != state["steps"]:
                progress.waited = 0  # a longer training has its patience again
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            if rank < len(state["random"]):  # an additional process keeps its stream of random numbers
                torch.set_rng_state(state["random"][rank]["cpu"])
                if state["random"][rank]["cuda"] is not None and torch.cuda.is_available():
                    torch.cuda.set_rng_state(state["random"][rank]["cuda"])
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.run.folder} has the state of another training, or of another version of torch ({error}): "
                "restore it, use the versions in config.json, or train again"
            ) from error
        return progress

    def _with_remedy(self, reason: str, error: SolverError | None) -> str:
        """Add to the reason of a failure what to change; first the learning rate if the last record is not the best."""
        records, criterion = self.run.records(), self.task.criterion
        learnt = len(records) > 1 and (criterion is None or records[-1][criterion] == self.progress.best)
        lower = f"lower --lr, which is {self.training.lr:g}"
        if error is None:
            return f"{reason}: {lower}"
        if learnt or self.progress.step == 0:
            return reason
        return f"{reason.removesuffix(error.remedy)}{lower}; if that does not help, {error.remedy}"

    def _validate(self) -> dict[str, float]:
        started = time.monotonic()
        try:
            return self.task.validate()
        except SolverError as error:
            reason = f"the validation at step {self.progress.step} failed: {error}"
            raise TrainingError(self._with_remedy(reason, error), solving=True) from error
        finally:
            self.progress.seconds_validating += time.monotonic() - started


@contextmanager
def _explain_failures(run: Run) -> Generator[None]:
    """Add to the message of a failure what the run keeps."""
    try:
        yield
    except TrainingError as error:
        kept = "the last state and the best weights are" if run.records() else "nothing was learnt yet"
        raise TrainingError(f"{error}; {kept} in {run.folder}", error.solving) from error
    except BrokenPipeError:  # of the output, which nobody reads any more
        raise
    except OSError as error:
        raise TrainingError(
            f"{error.filename or run.folder} could not be written ({error.strerror or error}); the last state is"
            f" whole: make room and continue with --resume {run.folder}"
        ) from error


def is_shown(step: int, steps: int, every: int) -> bool:
    """Return True for the first and the last of the records, taken ``every`` steps, and for about 20 between them."""
    stride = max(1, math.ceil(steps / every / SHOWN))
    return step % (stride * every) == 0 or step == steps


def line(record: Mapping[str, float], steps: int) -> str:
    """Return a record as the line that is printed: up to four figures in words, and failed steps."""
    shown = {name: words for name, words in WORDS.items() if name in record and (record[name] or name != "nfe_forward")}
    figures = [f"{words} {record[name]:.4g}" for name, words in shown.items()][:4]
    figures += [f"skipped {record['skipped']:.0f}"] if record["skipped"] else []
    return "  ".join([f"step {record['step']:>{len(str(steps))}}/{steps}", *figures, f"{record['seconds']:.0f} s"])
