"""What training programs do around the loop: the run folder, the best weights, the result."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from anode import InputError, storage
from train_flows import processes
from train_flows.checkpoint import RESULT, Run
from train_flows.compiling import compile_fields
from train_flows.errors import TrainingError
from train_flows.guards import Guards
from train_flows.journal import Journal, Memory
from train_flows.loop import train
from train_flows.provenance import provenance
from train_flows.settings import Numerics, RunSettings, find_device
from train_flows.signals import interrupting
from train_flows.task import Task
from train_flows.tensorboard import WithTensorBoard, check_installed
from train_flows.training import Precision

STREAMS = 1_000_003  # between the seeds of noise of several processes


def start(where: RunSettings) -> torch.device:
    """The device of a run, connected with those of other processes, and the random numbers of weights begun."""
    where.check()
    device = find_device(where.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if where.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which cuBLAS refuses
    torch.use_deterministic_algorithms(where.deterministic)
    processes.connect(device)
    torch.manual_seed(where.seed)
    return device


def begin_noise(where: RunSettings) -> None:
    """Begin the random numbers of training, once the weights are drawn."""
    if where.noise_seed is not None or processes.rank():
        seed_noise(where.seed if where.noise_seed is None else where.noise_seed)


def seed_noise(seed: int) -> None:
    """Begin the random numbers of this process: another stream in each of several."""
    torch.manual_seed(seed + STREAMS * processes.rank())


def check_precision(precision: Precision, numerics: Numerics, where: RunSettings) -> None:
    """Raise an :class:`~anode.InputError` for a precision that excludes other choices."""
    if precision == "float32":
        return
    if numerics.gradient == "adjoint":
        raise InputError(f"--precision {precision} is no precision of the adjoint: take --gradient direct with it")
    if where.dtype != "float32":
        raise InputError(f"--precision {precision} and --dtype {where.dtype} contradict each other: drop one")


@contextmanager
def resumable(run: Run, command: str) -> Generator[None]:
    """Turn Ctrl-C and SIGTERM, whenever they come, into a line that says how to go on."""
    try:
        with interrupting():
            yield
    except KeyboardInterrupt:
        print(f"stopped; {how_to_go_on(run, command)}")


def how_to_go_on(run: Run, command: str) -> str:
    """What to type to continue a run that is not at its end."""
    return f"continue with: train-flows {command} --resume {run.folder}"


def fitting_batch(batch_size: int, samples: int) -> int:
    """The batch size, or the number of training samples where there are fewer.

    Raises:
        InputError: when several processes cannot share it alike.
    """
    n = processes.count()
    if batch_size % n:
        raise InputError(f"--batch-size {batch_size} is shared by {n} processes: pass a multiple of {n}")
    if samples >= batch_size:
        return batch_size
    fitting = samples - samples % n
    print(f"note: the batch shrinks from {batch_size} to the {fitting} training samples")
    return fitting


def open_run(settings: Any, kind: str, dataset: Any, model: Any, **about: Any) -> Run:
    """The run to continue, or a new folder with its configuration.

    Args:
        settings: of the program; stored.
        kind: of the model.
        dataset: has a ``name``, ``notes``, ``columns`` and a ``digest()``.
        model: has the ``config`` that rebuilds it.
        about: further plain values to store.

    Raises:
        InputError: when the data have changed since the run began, a new folder is not empty, or TensorBoard is wanted
            and not installed.
    """
    data = {"name": dataset.name, "sha256": dataset.digest(), "notes": dataset.notes}
    where: RunSettings = settings.run
    if where.tensorboard:
        check_installed()
    if where.resume is not None:
        run = Run(where.resume)
        if run.config(kind)["data"]["sha256"] != data["sha256"]:
            raise InputError(f"{dataset.name} has changed since {run.folder} began: restore it, or train anew")
        return run
    folder = where.out or f"runs/{dataset.name.strip('.').split('.')[0]}"
    if processes.rank() == 0:
        run = Run.create(folder, where.overwrite)
        stored = {"model": model.config, "settings": dataclasses.asdict(settings), "data": data}
        storage.write_config(run.folder, kind, {**stored, "columns": dataset.columns, **about, **provenance()})
    processes.wait()
    return Run(folder)


def fit(
    run: Run,
    model: nn.Module,
    task: Task,
    criterion: str,
    guards: Guards,
    where: RunSettings,
    deadline: float = math.inf,
) -> tuple[str, ...]:
    """Train, keeping the weights of the best validation in the run folder.

    Args:
        run: the folder.
        model: what is stored; it holds the best weights at the end.
        task: trains the weights of the model.
        criterion: the validated figure to minimise.
        guards: what to do when a step goes wrong.
        where: whether fields are compiled before training, and records also go to TensorBoard's files.
        deadline: of ``time.monotonic()``, after which to stop; the first of several processes to reach it stops all.

    Returns:
        Sentences worth keeping with the figures: where training stands, if the deadline came before its end.

    Raises:
        KeyboardInterrupt: when a signal asks to stop.
        TrainingError: when training cannot go on; the message says what is left in the folder.
    """

    def keep_best() -> None:
        if processes.rank() == 0:
            keep(run, model)

    if where.compile:
        kinds = {0, task.training.restart or 0, *task.growth.double_at}  # steps at which other batches begin
        batches = [task.batch(step) for step in sorted(kinds)]
        print(f"compiled in {compile_fields(model, task.objective, batches, task.validate):.0f} s")
    device = next(model.parameters()).device
    try:
        with _journal(run, where) as journal:
            finished = train(
                task.objective,
                task.training,
                task.batch,
                task.validate,
                keep_best,
                journal,
                device,
                criterion,
                deadline=deadline,
                guards=guards,
                growth=task.growth,
            )
    except TrainingError as error:
        kept = (run.folder / storage.WEIGHTS).exists()
        what = "the last checkpoint and the best weights so far are" if kept else "nothing was learnt yet"
        raise TrainingError(f"{error}; {what} in {run.folder}", error.solving) from error
    except OSError as error:  # such as a full disk
        raise TrainingError(
            f"{error.filename or run.folder} could not be written ({error.strerror or error}); the last checkpoint is "
            f"whole: make room and continue with --resume {run.folder}"
        ) from error
    if not finished and processes.everywhere(time.monotonic() <= deadline, device):
        raise KeyboardInterrupt
    load_best(run, model)
    return () if finished else (f"training is at step {run.step} of {task.training.steps}, its time was up",)


def _journal(run: Run, where: RunSettings) -> AbstractContextManager[Journal]:
    """Where records and states go: the first of several processes writes them."""
    if processes.rank():
        return nullcontext(Memory())
    return WithTensorBoard(run) if where.tensorboard else nullcontext(run)


def keep(run: Run, model: nn.Module) -> None:
    """Store the weights of a model as the best so far."""
    storage.write_weights(run.folder, model.state_dict())


def load_best(run: Run, model: nn.Module) -> bool:
    """Give a model the best weights so far; False where there are none."""

    def found() -> bool:
        if not (run.folder / storage.WEIGHTS).exists():
            return False
        storage.load_weights(run.folder, model)
        return True

    loaded = processes.from_first(found)
    processes.align(model)
    return loaded


def write_result(run: Run, kind: str, seed: int, seconds: float, figures: dict[str, Any], notes: Any = ()) -> None:
    """Write ``result.json``: the figures of a run, and where they come from."""
    config = run.config(kind)
    settings = {name: section for name, section in config["settings"].items() if name not in ("data", "run")}
    about = {"command": config.get("command"), "settings": settings, "seed": seed, "seconds": round(seconds, 1)}
    result = provenance() | about | figures
    if notes:
        result["notes"] = notes  # such as jitter, without which the figures would mislead
    storage.write_atomically(run.folder / RESULT, (json.dumps(result, indent=2) + "\n").encode())
