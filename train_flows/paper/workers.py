"""Independent jobs side by side, in processes of one thread."""

from __future__ import annotations

import io
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from train_flows.errors import TrainingError

T = TypeVar("T")


def each(work: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int) -> Generator[tuple[int, T]]:
    """The place and result of every job, as they finish.

    Args:
        work: called with the arguments of a job; a function of a module, so that other processes find it.
        jobs: arguments, in the order in which to begin.
        workers: processes of one thread; one stays in this process.

    Raises:
        TrainingError: when a process dies, or the memory of a GPU does not suffice.
        KeyboardInterrupt: when a signal asks to stop.
    """
    try:
        yield from _one_by_one(work, jobs) if workers == 1 else _side_by_side(work, jobs, workers)
    except (BrokenProcessPool, torch.OutOfMemoryError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"a run ended for want of memory, perhaps ({reason}): lower --workers") from error


def _one_by_one(work: Callable[..., T], jobs: Sequence[tuple[Any, ...]]) -> Generator[tuple[int, T]]:
    for place, job in enumerate(jobs):
        yield place, work(*job)


def _side_by_side(work: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int) -> Generator[tuple[int, T]]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads in the middle of their work
    waiting, running = deque(enumerate(jobs)), {}
    with _stoppable(), ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < workers:  # no more, so that a stop finds none queued
                    place, job = waiting.popleft()
                    running[pool.submit(_packed, work, job)] = place
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=lambda future: future.exception() is not None):
                    packed = future.result()
                    yield running.pop(future), torch.load(io.BytesIO(packed), weights_only=False)  # our own bytes
        finally:
            for future in running:
                future.cancel()
            for process in multiprocessing.active_children() if running else ():
                process.terminate()


def _packed(work: Callable[..., Any], job: tuple[Any, ...]) -> bytes:
    """A result as bytes: tensors as such would hold a file descriptor each."""
    buffer = io.BytesIO()
    torch.save(work(*job), buffer)
    return buffer.getvalue()


@contextmanager
def _stoppable() -> Generator[None]:
    """Turn SIGTERM into a KeyboardInterrupt, so that a stop leaves no process behind."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
