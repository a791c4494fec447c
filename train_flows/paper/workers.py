"""Independent jobs side by side, in processes of one thread."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from train_flows.errors import TrainingError

T = TypeVar("T")
GRACE = 30.0  # seconds for jobs to end after they were asked to: a step may take long, and its state is saved


def each(work: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int) -> Generator[tuple[int, T]]:
    """The place and result of every job, as they finish.

    Where a job fails, or a signal asks to stop, the other processes are asked to stop too, and killed if they have not
    done so within ``GRACE`` seconds.

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
    except torch.OutOfMemoryError as error:
        raise _died(str(error).splitlines()[0]) from error


def _died(reason: str) -> TrainingError:
    return TrainingError(f"a run ended for want of memory, perhaps ({reason}): lower --workers")


def _one_by_one(work: Callable[..., T], jobs: Sequence[tuple[Any, ...]]) -> Generator[tuple[int, T]]:
    for place, job in enumerate(jobs):
        yield place, work(*job)


def _side_by_side(work: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int) -> Generator[tuple[int, T]]:
    waiting, running = deque(enumerate(jobs)), {}
    with _stoppable(), _processes(work, min(workers, len(jobs))) as idle:
        while waiting or running:
            while waiting and idle:
                line, (place, job) = idle.pop(), waiting.popleft()
                with contextlib.suppress(ConnectionError):  # a process that died answers nothing below
                    line.send(job)
                running[line] = place
            ready = connection.wait(list(running))
            answers = [(line, _received(line)) for line in running if line in ready]
            for line, (result, error) in sorted(answers, key=lambda answer: answer[1][1] is not None):
                if error is not None:
                    raise error
                yield running.pop(line), result
                idle.append(line)


@contextmanager
def _processes(work: Callable[..., Any], count: int) -> Generator[list[Connection]]:
    """Lines to as many processes that wait for jobs; in the end none of the processes is left."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads in the middle of their work
    processes, lines, idle = [], [], []
    try:
        for _ in range(count):
            line, theirs = context.Pipe()
            processes.append(context.Process(target=_serve, args=(work, theirs), daemon=True))
            processes[-1].start()
            theirs.close()  # the line ends with the process
            lines.append(line)
        idle.extend(lines)
        yield idle
    finally:
        busy = len(idle) < len(processes)
        for line in lines:
            line.close()  # which ends those that wait for a job
        _end(processes, busy)


def _end(processes: Sequence[BaseProcess], busy: bool) -> None:
    """Await the end of processes, ask for it where some are busy, and kill those that go on."""
    for process in processes if busy else ():
        process.terminate()
    until = time.monotonic() + GRACE
    try:
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
    finally:  # also when a second signal comes
        for process in processes:
            process.kill()
            process.join()


def _serve(work: Callable[..., Any], line: Connection) -> None:
    """Do the jobs that come along a line, until it ends or one fails."""
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):  # no one is there any more
        error = None
        while error is None:
            job, result = line.recv(), None
            try:
                result = work(*job)
            except BaseException as raised:
                raised.add_note(traceback.format_exc())  # which does not travel otherwise
                error = raised
            line.send_bytes(_packed((result, error)))


def _packed(answer: Any) -> bytes:
    """An answer as bytes: tensors as such would hold a file descriptor each."""
    buffer = io.BytesIO()
    torch.save(answer, buffer)
    return buffer.getvalue()


def _received(line: Connection) -> tuple[Any, BaseException | None]:
    try:
        packed = line.recv_bytes()
    except (EOFError, OSError):
        return None, _died("its process died")
    return torch.load(io.BytesIO(packed), weights_only=False)  # our own bytes


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
