"""Seconds and memory of pieces of work, measured so that they compare."""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
NO_MEMORY = ("out of memory", "can't allocate memory")  # how packages say so
SHARE = 0.8  # of the memory that is free, for a process of its own


@contextmanager
def pinned(cores: int) -> Generator[None]:
    """Keep this process, and those it starts, to so many cores: JAX, for one, takes all that it finds.

    Nothing happens where the system cannot do that.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def medians(works: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The median seconds of each piece of work; they take turns, and the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_megabytes(make: Callable[..., Callable[[], Any]], *args: Any, device: str = "cpu") -> float | None:
    """Megabytes at most held during a piece of work beyond those held before; None where the system does not say.

    Args:
        make: a function of a module that makes the work; it is called in a process of its own. Memory it frees is used
            again, and not counted, so let it make little.
        args: of it.
        device: where the work computes; what is held there counts.
    """
    return apart(_peak_here, make, args, device, torch.get_num_threads())


def apart(work: Callable[..., T], *args: Any) -> T | None:
    """What a function of a module returns in a process of its own; None where memory does not suffice."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_limited, partial(work, *args)).result()
        except (BrokenProcessPool, MemoryError):
            return None
        except RuntimeError as error:
            if any(words in str(error).lower() for words in NO_MEMORY):
                return None
            raise


def _limited(work: Callable[[], Any]) -> Any:
    """Do the work without taking so much memory that the system would kill others.

    The limit is one of addresses, of which CUDA claims many: beside a GPU there is none.
    """
    if Path("/proc/meminfo").exists() and not torch.cuda.is_available():
        free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
        mapped = 1024 * status("VmSize")
        limit = mapped + int(SHARE * 1024 * int(free.split()[1]))
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return work()


def _peak_here(make: Callable[..., Callable[[], Any]], args: Any, device: str, threads: int) -> float | None:
    torch.set_num_threads(threads)
    work = make(*args)
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    forget = Path("/proc/self/clear_refs")
    if not forget.exists():
        return None
    forget.write_text("5")  # the peak so far
    before = status("VmRSS")
    work()
    return (status("VmHWM") - before) / 1e3


def resident_megabytes() -> float:
    """Megabytes of this process that are in memory, as Linux tells."""
    return status("VmRSS") / 1e3


def status(name: str) -> int:
    """Kilobytes of this process, as Linux tells."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
