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
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from anode import InputError, SolverError, storage
from train_flows.data import DENSITY_NAMES, known_labelled_data
from train_flows.experiments.results import FAILED_FILE, NOT_FINITE, Outcome, Results, read_outcome
from train_flows.run import TrainingError

PROGRAMS = {
    "density": "train_flows.density",
    "classify": "train_flows.classify",
    "reverse-kl": "train_flows.experiments.planar_flows",
}


class Scale(NamedTuple):
    """Size of an experiment (``"full"``, ``"small"`` for images, ``"quick"``), and the folder of tables and images."""

    size: Literal["full", "small", "quick"] = "full"
    data_root: str = "data"

    def source(self, data: str) -> str:
        """Return what the programs take for the name of data: a path, unless they know the name."""
        known = data in DENSITY_NAMES or known_labelled_data(data)
        return data if known else str(Path(self.data_root, data).absolute())


@dataclass(frozen=True)
class Experiment:
    """Runs, and a figure and findings of them.

    Attributes:
        about: one line for the list of experiments.
        data: names of the default data, in order.
        kind: kind of the data.
        runs: from the name of the data and the scale to command lines by label; ``{data}`` stands for the data.
        figure: draws the results.
        findings: numbers that the experiment is about, by name.
        first: labels to run first, with all seeds.
        first_seed: first of the default seeds.
    """

    about: str
    data: tuple[str, ...]
    kind: Literal["functions", "images", "densities", "targets"]
    runs: Callable[[str, Scale], Mapping[str, str]]
    figure: Callable[[Results], Figure]
    findings: Callable[[Results], Mapping[str, Any]] = lambda results: {}
    first: tuple[str, ...] = ()
    first_seed: int = 0


@dataclass(frozen=True)
class Job:
    """One run of an experiment.

    Attributes:
        label: name of the model in figures and tables.
        data: name of the data.
        seed: of the run.
        command: command line with ``{data}`` in place of the data.
        folder: of the run; what it prints goes to a file next to it.
        source: the data, for the program.
        options: further words for a new run.
    """

    label: str
    data: str
    seed: int
    command: str
    folder: Path
    source: str
    options: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        """The file of the output; its first line is the command."""
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
    experiment: Experiment, data: Mapping[str, Sequence[str]], seeds: Sequence[int], scale: Scale, folder: Path
) -> list[Job]:
    """Return the runs of an experiment in their order: the most telling first, otherwise seed by seed.

    Args:
        experiment: the experiment.
        data: from names of data to further words of new runs.
        seeds: of the repetitions.
        scale: size of the runs.
        folder: of the run folders.
    """
    runs = {name: experiment.runs(name, scale) for name in data}
    labels = dict.fromkeys(label for commands in runs.values() for label in commands)
    order = [(seed, label, name) for seed in seeds for label in labels for name in data if label in runs[name]]

    def job(seed: int, label: str, name: str) -> Job:
        run_folder = folder / re.sub(r"[^\w.+=-]+", "-", f"{name}-{label}-{seed}")
        source = name if experiment.kind == "targets" else scale.source(name)
        options = () if experiment.kind == "targets" else tuple(data[name])
        return Job(label, name, seed, runs[name][label], run_folder, source, options)

    return [job(*each) for each in sorted(order, key=lambda each: each[1] not in experiment.first)]


def prepare(jobs: Sequence[Job], overwrite: bool) -> None:
    """Remove earlier runs if they are to be overwritten; otherwise refuse those with another command line.

    Raises:
        InputError: if a run was started with another command line.
    """
    for job in jobs:
        if overwrite and (job.folder / storage.CONFIG_FILE).is_file():
            shutil.rmtree(job.folder)
        if overwrite:
            job.log.unlink(missing_ok=True)
        elif job.log.is_file() and (before := job.log.read_text().partition("\n")[0]) != job.shown:
            raise InputError(f"{job.folder} was started as {before!r}: pass another --out, or --overwrite")


def run_missing(jobs: Sequence[Job], workers: int, device: str, deadline: float = math.inf) -> Results:
    """Train the runs that are missing, and return the outcomes of all that are finished, in their order.

    Args:
        jobs: all runs.
        workers: number of runs side by side; one stays in this process.
        device: of models and data.
        deadline: ``time.time()`` at which to stop.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM; interrupted runs have saved their state.
        TrainingError: if a process dies, or the disk is full.
    """
    waiting = [job for job in jobs if job.outcome() is None]
    trained = _side_by_side if workers > 1 else _one_by_one
    with tqdm(total=len(jobs), initial=len(jobs) - len(waiting), unit="run", disable=None) as bar:
        for job in trained(waiting, workers, device, deadline):
            if (outcome := job.outcome()) is not None:
                bar.write(_describe(outcome))
                bar.update()
    return Results([outcome for job in jobs if (outcome := job.outcome()) is not None])


def _one_by_one(jobs: Sequence[Job], workers: int, device: str, deadline: float) -> Generator[Job]:
    for job in jobs:
        perform(job, device, deadline)
        yield job


def _side_by_side(jobs: Sequence[Job], workers: int, device: str, deadline: float) -> Generator[Job]:
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    processes = max(1, min(workers, len(jobs)))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _initialize) as pool:
        running = {pool.submit(perform, job, device, deadline): job for job in jobs}
        try:
            for future in as_completed(running):
                future.result()
                yield running[future]
        except BaseException as error:
            for future in running:
                future.cancel()
            for process in multiprocessing.active_children():
                process.terminate()  # a training saves its state first; the pool waits for it
            if isinstance(error, BrokenProcessPool):
                raise TrainingError("the process of a run died, perhaps of lack of memory: lower --workers") from error
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)


def _initialize() -> None:
    """Prepare a process for runs: one thread, and Ctrl-C is for the programs, which save the state of a training."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
    if job.outcome() is None and time.time() < deadline:
        raise KeyboardInterrupt  # which the program turned into a line that says how to continue


def _cause(error: BaseException | None) -> str | None:
    """Return why a training diverged; None if another error ended it, such as a full disk."""
    status = NOT_FINITE
    while error is not None:
        if isinstance(error, OSError):
            return None
        status = error.cause if isinstance(error, SolverError) else status
        error = error.__cause__
    return status


def _describe(outcome: Outcome) -> str:
    last = outcome.records[-1] if outcome.records else {}
    names = ("loss", "test_accuracy", "test_nll", "kl", "nfe_forward", "seconds")
    figures = "  ".join(f"{name} {last[name]:.4g}" for name in names if name in last)
    return f"{outcome.data} {outcome.label} seed {outcome.seed}: {outcome.status}  {figures}"
