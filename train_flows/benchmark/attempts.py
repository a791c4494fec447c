"""Reading damaged files over and over, in a process of bounded time and memory, and counting what comes of it."""

from __future__ import annotations

import faulthandler
import multiprocessing
import resource
import signal
import tempfile
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from train_flows.benchmark.timing import status

SECONDS = 20  # for one attempt, which takes milliseconds
MEGABYTES = 500  # by which the peak of memory may grow in one attempt
ADDRESSES = 2**33  # bytes that a process may claim beyond what it has mapped
LAST = "last-attempt"


class Subject(Protocol):
    """Files that are mutated and read."""

    def mutate(self, rng: np.random.Generator) -> str:
        """Write the files anew with a mutation drawn at random, and say which."""
        ...

    def read(self) -> str:
        """Read them: the name of an outcome that is as it should be.

        Raises:
            Exception: for any other outcome.
        """
        ...


@dataclass
class Tally:
    """How often each outcome came, and what should not have happened.

    Attributes:
        outcomes: counts by name.
        failures: which mutation it was and what happened.
    """

    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def tally(make: Callable[[Path], Subject], count: int, seed: int) -> Tally:
    """Mutate and read so many times.

    Args:
        make: what is to be mutated in an empty folder; a function of a module, so that another process finds it.
        count: how many mutations.
        seed: of the mutations; each can be drawn without those before it.
    """
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_attempts, make, Path(folder), count, seed).result()
        except BrokenProcessPool:
            last = Path(folder) / LAST
            where = last.read_text() if last.exists() else "before the first mutation"
            return Tally(failures=[f"{where}: the process hung, or died"])


def _attempts(make: Callable[[Path], Subject], folder: Path, count: int, seed: int) -> Tally:
    torch.set_num_threads(1)
    (folder / "files").mkdir()
    subject, found = make(folder / "files"), Tally()
    _bound_memory()
    for i in range(count):
        what = f"mutation {i} of seed {seed}, {subject.mutate(np.random.default_rng((seed, i)))}"
        (folder / LAST).write_text(what)
        try:
            with _in_time(), _in_memory():
                outcome = subject.read()
        except (Exception, _TooLong) as error:
            found.failures.append(f"{what}: {''.join(traceback.format_exception_only(error)).strip()}")
        else:
            found.outcomes[outcome] = found.outcomes.get(outcome, 0) + 1
    return found


class _TooLong(BaseException):
    """An attempt takes too long; no Exception, so that nothing takes it for a damaged file."""


@contextmanager
def _in_time() -> Generator[None]:
    """End what takes too long: by an error, or with the process where no Python code is run any more."""

    def late(*_: Any) -> None:
        raise _TooLong(f"more than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def _in_memory() -> Generator[None]:
    """Raise a MemoryError after what has taken far more memory than its files."""
    before = _peak()
    yield
    if _peak() - before > MEGABYTES:
        raise MemoryError(f"{_peak() - before:.0f} MB were taken")


def _peak() -> float:
    """Megabytes held at most, as Linux tells; elsewhere 0."""
    return status("VmHWM") / 1e3 if Path("/proc/self/status").exists() else 0.0


def _bound_memory() -> None:
    """Fail allocations that could harm other processes; beside a GPU, which claims many addresses, no bound is set."""
    if Path("/proc/self/status").exists() and not torch.cuda.is_available():
        limit = 1024 * status("VmSize") + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
