"""Begin, compile, interrupt and continue a training program."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from anode import Field, InputError
from anode.storage import check_device
from train_flows.run import distributed
from train_flows.run.folder import Run, free_folder, summary_writer

LENGTHS = {"training": "steps", "epochs": "epochs", "objective": "likelihood_steps"}  # settings that --resume changes

if TYPE_CHECKING:
    from train_flows.data import Dataset
    from train_flows.forecasting.series_data import SeriesData
    from train_flows.run.loop import Task
    from train_flows.settings import Data, RunSettings


def begin(settings: RunSettings) -> torch.device:
    """Choose the device, connect the processes, and seed the random numbers that weights are drawn with."""
    device = find_device(settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    torch.use_deterministic_algorithms(settings.deterministic)
    distributed.connect(device)
    torch.manual_seed(settings.seed)
    return device


def tell(*sentences: str) -> None:
    """Print sentences, each filled at the width of the terminal if there is one."""
    if distributed.SILENT.get():
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for sentence in sentences:
        print(textwrap.fill(sentence, width, subsequent_indent="  ", break_on_hyphens=False), flush=True)


def find_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` prefers a CUDA GPU. Each process takes one GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = check_device(name)
    if device != torch.device("cuda"):
        return device
    if distributed.started()[1] == 1:
        return torch.device("cuda", torch.cuda.current_device())
    number, available = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= available:
        raise InputError(f"{available} GPUs are too few: start {available} processes, or pass --device cpu")
    return torch.device("cuda", number)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Generator[None]:
    """Create real numbers in a precision within the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fitting_batch(batch_size: int, samples: int, what: str = "training samples") -> int:
    """Return the batch size, which processes share equally, or the number of training samples if it is smaller."""
    n = distributed.count()
    if batch_size % n:
        raise InputError(f"--batch-size {batch_size} is shared by {n} processes: pass a multiple of {n}")
    if samples >= batch_size:
        return batch_size
    fitting = samples - samples % n
    tell(f"note: the batch shrinks from {batch_size} to the {fitting} {what}")
    return fitting


def open_run(
    run_settings: RunSettings,
    settings: Mapping[str, Any],
    kind: str,
    arguments: Mapping[str, Any] | None,
    dataset: Dataset | SeriesData,
) -> Run:
    """Open the run to resume, which must have begun with the same data, or create a new one.

    Args:
        run_settings: name the folder, and say whether to resume.
        settings: all settings of the program, by section.
        kind: kind of the model.
        arguments: plain values that rebuild the model.
        dataset: the data.
    """
    data = {**dataset.describe(), "notes": list(dataset.notes)}
    if run_settings.tensorboard:
        summary_writer()  # raises an error before anything is written
    if run_settings.resume is not None:
        run = Run.open(run_settings.resume, kind)
        if run.config["data"].get("sha256") != data["sha256"]:
            raise InputError(f"{dataset.name} has changed since {run.folder} began: restore it, or train again")
        lengths = {section: {name: settings[section][name]} for section, name in LENGTHS.items() if section in settings}
        if any(run.settings[section] != {**run.settings[section], **values} for section, values in lengths.items()):
            run.lengthen(lengths)
    else:
        folder = run_settings.out or _default_folder(dataset, run_settings.overwrite)
        run = Run.create(folder, kind, settings, arguments, data, run_settings.overwrite)
    run.tensorboard = run_settings.tensorboard
    return run


def _default_folder(dataset: Dataset | SeriesData, overwrite: bool) -> Path:
    """Return the run folder of a data set, with a number if another run has it and is not to be replaced."""
    usual = Path("runs") / dataset.name.strip(".").split(".")[0]
    folder = usual if overwrite else distributed.from_first(lambda: free_folder(usual))
    if folder != usual:
        print(f"run: {folder}, since {usual} exists (replace that with --overwrite, continue it with --resume {usual})")
    return folder


def load_data(load: Callable[..., Dataset], data: Data, settings: RunSettings, **options: Any) -> Dataset:
    """Load the data of a run, with columns and classes in the order of the run that ``--init`` names, if any.

    Args:
        load: reads data, from the settings ``data`` and the ``options``.
        data: the settings of the data.
        settings: seed and precision.
        options: other arguments of ``load``.
    """
    options |= {**dataclasses.asdict(data), "seed": settings.seed, "dtype": getattr(torch, settings.dtype)}
    with distributed.progress_bar("reading"):
        dataset = distributed.first_alone(lambda: load(**options))  # may download
    if settings.init is None:
        return dataset
    folder = settings.resume or os.path.relpath(settings.init)
    return dataset.match(Run.open(folder).config["data"], folder)


def take_initial_weights(settings: RunSettings, model: nn.Module) -> None:
    """Give the model the weights of the run that ``--init`` names, if any; a training that has begun has its own."""
    if settings.init is None or (settings.resume is not None and Run.open(settings.resume).step > 0):
        return
    run = Run.open(os.path.relpath(settings.init))
    if (outputs := run.config["model"].get("outputs")) != getattr(model, "outputs", None):
        raise InputError(f"--init {run.folder} has {outputs} outputs, these data need {model.outputs}: omit it")
    if not run.load_best(model):
        raise InputError(f"--init {run.folder} does not have weights yet: continue that run first")


def compile_fields(task: Task, *models: nn.Module) -> float:
    """Compile the vector fields in place, and use each once so that training does not wait for it later.

    Weights, buffers and random generators stay as they are. Further models share the weights of the task's, for example
    with another solver for validation.

    Returns:
        Seconds spent.
    """
    started = time.monotonic()
    parts = dict.fromkeys(part for model in (task.model, *models) for part in model.modules())
    fields = [part for part in parts if isinstance(part, Field)]
    if not fields:
        raise InputError("--compile finds no vector field in this model: omit --compile")
    for field in fields:
        field.compile()
    before = copy.deepcopy(task.model.state_dict())
    with torch.random.fork_rng():
        for step in {0, task.training.likelihood_from or 0}:  # each kind of batch
            task.objective(task.batch(step), step).backward()
        task.validate()
    task.model.zero_grad()
    task.model.load_state_dict(before)
    return time.monotonic() - started


@contextmanager
def resumable(run: Run, command: str) -> Generator[None]:
    """Say how to continue after Ctrl-C or SIGTERM within the block, in the message of the KeyboardInterrupt."""
    try:
        with handling((signal.SIGTERM,), signal.default_int_handler):
            yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {how_to_continue(run, command)}") from None


def how_to_continue(run: Run, command: str) -> str:
    """Return the command that continues a run."""
    return f"continue with: train-flows {command} --resume {run.folder}"


@contextmanager
def handling(signals: tuple[signal.Signals, ...], handler: Callable[..., Any]) -> Generator[None]:
    """Handle signals within the block, in the main thread: Python allows no other."""
    main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, handler) for number in (signals if main else ())}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
