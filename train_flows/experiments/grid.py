"""Experiments as lists of command lines: missing runs are trained side by side, and interrupted ones are continued."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from anode import InputError, SolverError, storage
from train_flows.command_line import OF_A_SITTING
from train_flows.data import DENSITY_NAMES, known_labelled_data
from train_flows.data.images import PUBLISHED
from train_flows.experiments.results import FAILED_FILE, NOT_FINITE, Outcome, Results, read_outcome
from train_flows.forecasting.forecast_settings import GENERATED
from train_flows.run import TrainingError, session
from train_flows.run.folder import Run
from train_flows.run.loop import train
from train_flows.settings import RunSettings

PROGRAMS = {
    "density": "train_flows.density",
    "classify": "train_flows.classify",
    "forecast": "train_flows.forecasting.forecast",
    "reverse-kl": "train_flows.experiments.planar_flows",
    "transport": "train_flows.experiments.couplings",
}
TUNING_SEEDS = (100, 101)  # never reported, so that a choice among settings favours none of them


@dataclass(frozen=True)
class Scale:
    """Size of an experiment (``"full"``, ``"small"`` for images, ``"quick"``), and where its data come from."""

    size: Literal["full", "small", "quick"] = "full"
    data_root: str = "data"
    download: bool = False

    def source(self, data: str) -> str:
        """Return the argument of the programs for data: a path, unless they know the name."""
        known = data in (*DENSITY_NAMES, *GENERATED) or known_labelled_data(data)
        return data if known else str(Path(self.data_root, data).absolute())


@dataclass(frozen=True)
class Experiment:
    """Runs, and a figure and findings of them."""

    about: str  # one line for the list of experiments
    data: tuple[str, ...]  # names of the default data, in order
    kind: Literal["functions", "images", "densities", "series", "targets"]  # of the data
    runs: Callable[[str, Scale], Mapping[str, str]]  # command lines by label; {data} stands for the data
    figure: Callable[[Results], Figure]
    findings: Callable[[Results], Mapping[str, Any]] = lambda results: {}  # by name
    first: tuple[str, ...] = ()  # labels to run first, with all seeds
    tuning: tuple[str, ...] = ()  # labels to run with TUNING_SEEDS instead
    first_seed: int = 0  # of the default seeds
    source: Callable[[str, Scale, Path], str] = lambda data, scale, folder: scale.source(data)  # the programs' argument


@dataclass(frozen=True)
class Job:
    """One run of an experiment: a model, by its label, on some data with a seed."""

    label: str
    data: str
    seed: int
    command: str  # with {data} in place of the data
    folder: Path
    source: str  # the data, for the program
    options: tuple[str, ...] = ()  # further words for a new run

    @property
    def log(self) -> Path:
        """The file of the printed output, next to the folder; its first line is the command."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def shown(self) -> str:
        """The command line without folders, device and time."""
        return f"train-flows {self.command.format(data=self.data)} --seed {self.seed}"

    def outcome(self) -> Outcome | None:
        """Return the finished run; None if it is missing or interrupted."""
        return read_outcome(self.label, self.data, self.seed, self.shown, self.folder)

    def words(self) -> list[str]:
        """Return the command line that starts or continues the run, with the name of its program first."""
        program, *words = shlex.split(self.command)
        if (self.folder / storage.CONFIG_FILE).is_file():
            return [program, "--resume", str(self.folder)]
        words = [self.source if word == "{data}" else word for word in words]
        return [program, *words, "--seed", str(self.seed), "--out", str(self.folder), *self.options]


def words(command: str, options: Mapping[str, Any]) -> str:
    """Return a command line with options, such as ``{"hidden": (8, 8), "whiten": False}``."""
    parts = [command]
    for name, value in options.items():
        typed = name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(f"--{typed}" if value else f"--no-{typed}")
        else:
            parts.append(f"--{typed} {' '.join(map(str, value)) if isinstance(value, tuple) else value}")
    return " ".join(parts)


def jobs_of(
    experiment: Experiment, names: Sequence[str], seeds: Sequence[int], scale: Scale, folder: Path
) -> list[Job]:
    """Return the runs of an experiment on data, in order: the most telling first, then by seed."""
    jobs = []
    for name in names:
        source, options = name, ()
        if experiment.kind != "targets":
            source = experiment.source(name, scale, folder)
        if experiment.kind not in ("series", "targets"):
            options = ("--data-root", scale.data_root)
            options += ("--download",) if scale.download and name in PUBLISHED else ()
        for label, command in experiment.runs(name, scale).items():
            for seed in TUNING_SEEDS if label in experiment.tuning else seeds:
                path = folder / re.sub(r"[^\w.+=-]+", "-", f"{name}-{label}-{seed}")
                jobs.append(Job(label, name, seed, command, path, source, options))
    labels = list(dict.fromkeys(job.label for job in jobs))
    return sorted(jobs, key=lambda job: (job.label not in experiment.first, job.seed, labels.index(job.label)))


def prepare(jobs: Sequence[Job], overwrite: bool) -> None:
    """Remove earlier runs if they are to be overwritten; otherwise refuse those with another command line.

    Raises:
        InputError: if a run was started with another command line.
    """
    for job in jobs:
        if overwrite:
            if (job.folder / storage.CONFIG_FILE).is_file():
                shutil.rmtree(job.folder)
            job.log.unlink(missing_ok=True)
        elif job.log.is_file() and (before := job.log.read_text().partition("\n")[0]) != job.shown:
            raise InputError(f"{job.folder} was started as {before!r}: pass another --out, or --overwrite")


def run_missing(jobs: Sequence[Job], workers: int, device: str, deadline: float = math.inf) -> Results:
    """Train the missing runs until ``time.time()`` is the deadline, and return the outcomes of all finished ones.

    Of several workers, each is a process; one stays in this process.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM; interrupted runs have saved their state.
        TrainingError: if a process dies, or the disk is full.
    """
    waiting = [job for job in jobs if job.outcome() is None]
    with tqdm(total=len(jobs), initial=len(jobs) - len(waiting), unit="run", disable=None) as bar:

        def show(job: Job) -> None:
            if (outcome := job.outcome()) is not None:
                bar.write(f"{outcome.data} {outcome.label} seed {outcome.seed}: {outcome.status}")
                bar.update()

        if workers == 1 or not waiting:
            for job in waiting:
                perform(job, device, deadline)
                show(job)
        else:
            with _processes(min(workers, len(waiting))) as pool:
                running = {pool.submit(_perform_in_pool, job, device, deadline): job for job in waiting}
                for future in as_completed(running):
                    future.result()
                    show(running[future])
    return Results(outcome for job in jobs if (outcome := job.outcome()) is not None)


@contextmanager
def _processes(count: int) -> Generator[ProcessPoolExecutor]:
    """Start processes; on an error or a signal, their trainings save their state and end before the block does."""
    context = multiprocessing.get_context("spawn")
    stop, before = context.Event(), _on_signals(signal.default_int_handler)
    pool = ProcessPoolExecutor(count, context, _initialize, (stop,))
    try:
        yield pool
    except BaseException as error:
        _on_signals(signal.SIG_IGN)  # another signal must not cut the wait short
        stop.set()
        for process in multiprocessing.active_children():
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise TrainingError("the process of a run died, perhaps of lack of memory: lower --workers") from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        _on_signals(*before)


def _on_signals(interrupt: Any, terminate: Any = None) -> tuple[Any, Any]:
    """Set the handlers of Ctrl-C and SIGTERM, which are the same if one is given, and return those before."""
    return signal.signal(signal.SIGINT, interrupt), signal.signal(signal.SIGTERM, terminate or interrupt)


_stopping: list[Event] = []  # in a process of the pool: set when no more runs may begin


def _initialize(stop: Event) -> None:
    """Prepare a process of the pool: one thread, and no signals between runs."""
    _stopping.append(stop)
    torch.set_num_threads(1)
    _on_signals(signal.SIG_IGN)


def _perform_in_pool(job: Job, device: str, deadline: float) -> None:
    try:
        _on_signals(signal.default_int_handler)
        if not _stopping[0].is_set():
            perform(job, device, deadline)
    finally:
        _on_signals(signal.SIG_IGN)


def perform(job: Job, device: str, deadline: float) -> None:
    """Train a run until its end or the deadline; a training that diverges leaves its cause in the folder.

    Raises:
        KeyboardInterrupt: if a signal stopped the training.
    """
    minutes = (deadline - time.time()) / 60
    if minutes < 0.001:
        return
    program, *line = job.words()
    line += ["--device", device, *([] if minutes == math.inf else ["--budget-minutes", f"{minutes:.4f}"])]
    with job.log.open("a") as log, redirect_stdout(log), redirect_stderr(log):
        if log.tell() == 0:
            print(job.shown, flush=True)
        try:
            importlib.import_module(PROGRAMS[program]).main(line)
        except (TrainingError, SolverError) as error:
            if (status := _cause(error)) is None:
                raise
            storage.write_json(job.folder / FAILED_FILE, {"status": status, "message": str(error)})


def train_as_run(
    kind: str,
    settings: Any,
    build: Callable[[Any, torch.device], Any],
    figures: Callable[[Any, Run], Mapping[str, Any]],
) -> None:
    """Train the task of a program that only experiments have as a run of its kind, or continue one.

    Args:
        kind: name of the program.
        settings: a dataclass with ``steps``, ``seed``, ``out``, ``device``, ``budget_minutes`` and ``resume``.
        build: from settings and device to the task, see :class:`train_flows.run.loop.Task`.
        figures: from the task and its run to the figures of a training that is complete.
    """
    started = time.monotonic()
    if settings.resume is not None:
        run = Run.open(settings.resume, kind)
        settings = replace(settings, **run.config["model"])
    task = build(settings, session.begin(RunSettings(seed=settings.seed, device=settings.device)))
    if settings.resume is None:
        chosen = {name: value for name, value in asdict(settings).items() if name not in (*OF_A_SITTING, "out")}
        run = Run.create(settings.out, kind, {"training": asdict(task.training)}, chosen, {})
    with session.resumable(run, kind):
        if train(task, run, deadline=started + 60 * (settings.budget_minutes or math.inf)):
            run.write_result(figures(task, run))


def _cause(error: BaseException | None) -> str | None:
    """Return why a training diverged; None if another error ended it, such as a full disk."""
    status = NOT_FINITE
    while error is not None:
        if isinstance(error, OSError):
            return None
        status = error.cause if isinstance(error, SolverError) else status
        error = error.__cause__
    return status
