"""Experiments as lists of command lines: the missing runs are trained side by side, interrupted ones are continued."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from anode import InputError, SolverError, storage
from train_flows.experiments.results import FAILED_FILE, Outcome, Results, read_outcome
from train_flows.run import TrainingError

PROGRAMS = {
    "density": "train_flows.density",
    "classify": "train_flows.classify",
    "reverse-kl": "train_flows.experiments.planar_flows",
}


class Scale(NamedTuple):
    """Size of an experiment: as in the paper, small enough for a CPU, or only to see that it runs.

    Attributes:
        size: ``"full"``, ``"small"`` (for images) or ``"quick"``.
        data_root: folder of tables and images.
    """

    size: Literal["full", "small", "quick"] = "full"
    data_root: str = "data"


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
        folder: of the run; what it prints goes to a file beside it.
    """

    label: str
    data: str
    seed: int
    command: str
    folder: Path

    @property
    def log(self) -> Path:
        """The file of the output; its first line is the command."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def shown(self) -> str:
        """The command line without folders and the settings of a sitting."""
        return f"train-flows {self.command.format(data=self.data)} --seed {self.seed}"

    def outcome(self) -> Outcome | None:
        """Return the finished run; None if it is missing or interrupted."""
        return read_outcome(self.label, self.data, self.seed, self.shown, self.folder)

    def words(self, source: str, options: Sequence[str]) -> list[str]:
        """Return the command line that starts or continues the run, with the name of its program first."""
        program, *words = shlex.split(self.command)
        if (self.folder / storage.CONFIG_FILE).is_file():
            return [program, "--resume", str(self.folder)]
        words = [source if word == "{data}" else word for word in words]
        return [program, *words, "--seed", str(self.seed), "--out", str(self.folder), *options]


@dataclass(frozen=True)
class Sitting:
    """Where and until when runs are trained.

    Attributes:
        device: of model and data.
        workers: number of runs side by side.
        deadline: of ``time.time()``.
        sources: from the name of the data to what the programs take.
        options: further words for new runs.
    """

    device: str
    workers: int
    deadline: float
    sources: Mapping[str, str]
    options: Sequence[str] = ()


def jobs_of(
    experiment: Experiment, data: Sequence[str], seeds: Sequence[int], scale: Scale, folder: Path
) -> list[Job]:
    """Return the runs of an experiment in their order: the most telling first, otherwise seed by seed."""
    runs = {name: experiment.runs(name, scale) for name in data}
    labels = list(dict.fromkeys(label for commands in runs.values() for label in commands))
    order = [label for label in labels if label in experiment.first], [x for x in labels if x not in experiment.first]
    return [
        Job(label, name, seed, runs[name][label], folder / slug(f"{name}-{label}-{seed}"))
        for part in order
        for seed in seeds
        for label in part
        for name in data
        if label in runs[name]
    ]


def slug(text: str) -> str:
    """Return a text as a file name."""
    return re.sub(r"[^\w.+=-]+", "-", text)


def check_commands(jobs: Sequence[Job], overwrite: bool) -> None:
    """Forget earlier runs if they are to be overwritten; otherwise refuse those with another command line.

    Raises:
        InputError: if a run folder was started with another command line.
    """
    for job in jobs:
        if overwrite:
            if (job.folder / storage.CONFIG_FILE).is_file():
                shutil.rmtree(job.folder)
            job.log.unlink(missing_ok=True)
        elif job.log.is_file():
            with job.log.open() as file:
                if (before := file.readline().strip()) != job.shown:
                    raise InputError(f"{job.folder} was started as {before!r}: pass another --out, or --overwrite")


def run_missing(jobs: Sequence[Job], sitting: Sitting) -> Results:
    """Train the runs that are missing, and return the outcomes of all that are finished, in their order.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM; interrupted runs have saved their state.
        TrainingError: if a process dies, or the disk is full.
    """
    waiting = [job for job in jobs if job.outcome() is None]
    with tqdm(total=len(jobs), initial=len(jobs) - len(waiting), unit="run", disable=None) as bar:
        for job in _finished(waiting, sitting):
            if (outcome := job.outcome()) is not None:
                bar.write(_describe(outcome))
                bar.update()
    return Results([outcome for job in jobs if (outcome := job.outcome()) is not None])


def _finished(jobs: Sequence[Job], sitting: Sitting) -> Generator[Job]:
    """Yield every job after its run, some at the same time."""
    if sitting.workers == 1:
        for job in jobs:
            perform(job, sitting)
            yield job
        return
    workers, context = min(sitting.workers, len(jobs) or 1), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _initialize) as pool, _stop_children():
        running = {pool.submit(perform, job, sitting): job for job in jobs}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    yield running.pop(future)
        except BrokenProcessPool as error:
            raise TrainingError("the process of a run died, perhaps for want of memory: lower --workers") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _initialize() -> None:
    """Prepare a process for runs: one thread, and Ctrl-C is for the programs, which save the state of a training."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _stop_children() -> Generator[None]:
    """Ask the processes of runs to save their state and end, if a signal or an error stops this one."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def perform(job: Job, sitting: Sitting) -> None:
    """Train a run until its end or the deadline; a training that diverges leaves its cause in the folder.

    Raises:
        KeyboardInterrupt: if a signal stopped the training.
    """
    left = (sitting.deadline - time.time()) / 60
    if left <= 0:
        return
    program, *words = job.words(sitting.sources[job.data], sitting.options)
    words += ["--device", sitting.device] + ([] if left == float("inf") else ["--budget-minutes", f"{left:.4f}"])
    job.log.parent.mkdir(parents=True, exist_ok=True)
    new = not job.log.is_file()
    with job.log.open("a") as log, redirect_stdout(log), redirect_stderr(log):
        if new:
            print(job.shown, flush=True)
        try:
            importlib.import_module(PROGRAMS[program]).main(words)
        except (TrainingError, SolverError) as error:
            print(f"error: {error}")
            if not job.folder.is_dir() or (status := _cause(error)) is None:
                raise
            storage.write_json(job.folder / FAILED_FILE, {"status": status, "message": str(error)})
    if job.outcome() is None and time.time() < sitting.deadline:
        raise KeyboardInterrupt  # which the program turned into a line that says how to continue


def _cause(error: BaseException | None) -> str | None:
    """Return why a training diverged; None if it did not, as with a full disk."""
    status = "non-finite loss"
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
