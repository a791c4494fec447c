"""Several processes that train one model: ranks, shares of the work, and agreement.

``torchrun`` and ``accelerate launch`` start them. A single process is a group of one and communicates with nobody.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn.utils import parameters_to_vector
from tqdm import tqdm

from anode import SolverError
from train_flows.data.dataset import SEED_STRIDE
from train_flows.run import TrainingError

P = TypeVar("P")
R = TypeVar("R")
SILENT: ContextVar[bool] = ContextVar("silent", default=False)
PATIENCE = timedelta(minutes=30)  # a process may take this long to arrive, for example because it compiles


def started() -> tuple[int, int]:
    """Return the rank of this process and the number of processes, as their launcher set them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def seed_noise(seed: int) -> None:
    """Seed the random numbers of this process; several processes get different streams."""
    torch.manual_seed(seed + SEED_STRIDE * rank())


def connect(device: torch.device) -> None:
    """Connect the processes that were started together; a single process does nothing."""
    if started()[1] > 1:
        from accelerate import PartialState  # takes seconds to import

        PartialState(cpu=device.type == "cpu", timeout=PATIENCE)


def rank() -> int:
    """Return the rank of this process among the connected ones; rank 0 writes and prints."""
    return distributed.get_rank() if _connected() else 0


def count() -> int:
    """Return the number of connected processes."""
    return distributed.get_world_size() if _connected() else 1


@contextmanager
def silent(on: bool = True) -> Generator[None]:
    """Show neither sentences nor progress bars within the block, if ``on``."""
    before = SILENT.set(on or SILENT.get())
    try:
        yield
    finally:
        SILENT.reset(before)


def progress_bar(name: str, total: int = 1, *, quiet: bool = False, **options: Any) -> tqdm:
    """Return a bar for work that may take a while; the first process alone shows it, and only on a terminal.

    Args:
        name: of the work.
        total: number of its parts.
        quiet: show nothing.
        options: others of tqdm.
    """
    hidden = quiet or SILENT.get() or rank() > 0 or None  # None: shown on a terminal
    return tqdm(**{"desc": name, "total": total, "leave": False, "dynamic_ncols": True, "disable": hidden} | options)


def wait() -> None:
    """Wait until all processes arrive here."""
    gathered(None)


def everywhere(ok: bool, device: torch.device) -> bool:
    """Return True if ``ok`` is True in all processes; each of them must call this."""
    if count() == 1:
        return ok
    flag = torch.tensor(int(ok), device=device)
    _together(distributed.all_reduce, flag, distributed.ReduceOp.MIN)
    return bool(flag)


def gathered(value: R) -> list[R]:
    """Return the values of all processes, by rank."""
    values: list[Any] = [value] * count()
    if count() > 1:
        _together(distributed.all_gather_object, values, value)
    return values


def from_first(f: Callable[[], R]) -> R:
    """Return in all processes the result of ``f()`` in rank 0, or raise in all of them the error it raises there."""
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = f()
        except Exception as error:  # sent to the others, which would wait for a result
            outcome[1] = error
    if count() > 1:
        _together(distributed.broadcast_object_list, outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def first_alone(f: Callable[[], R]) -> R:
    """Return ``f()``, which rank 0 calls before the others do: for files that it may have to write first."""
    if rank() > 0:
        wait()
        return f()
    try:
        return f()
    finally:
        wait()


def means(values: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each value over the processes."""
    all_values = gathered(values)
    return {name: sum(each[name] for each in all_values) / len(all_values) for name in values}


def shared_out(parts: Sequence[P], work: Callable[[P], R]) -> list[R]:
    """Return ``[work(part) for part in parts]``, for which processes share the work; a failed solve fails in all."""
    done, failure = [], None
    try:
        done = [work(part) for part in parts[rank() :: count()]]
    except SolverError as error:
        failure = error
    outcomes = gathered((done, failure))
    if failure := next((failed for _, failed in outcomes if failed), None):
        raise failure
    return [outcomes[i % count()][0][i // count()] for i in range(len(parts))]


def share_of(rows: torch.Tensor) -> torch.Tensor:
    """Return this process's share of the rows of a batch."""
    return rows[rank() :: count()]


@torch.no_grad()
def align(module: nn.Module) -> None:
    """Give all processes the weights and buffers of rank 0."""
    for tensor in (*module.parameters(), *module.buffers()) if count() > 1 else ():
        _together(distributed.broadcast, tensor.detach(), 0)


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Give all processes the mean of their gradients, the gradient of the whole batch.

    This runs after the backward pass, not in hooks during it as DistributedDataParallel does, so that a process whose
    solve fails leaves no other process waiting.
    """
    if count() == 1:
        return
    grads = [weight.grad for weight in module.parameters() if weight.grad is not None]  # the same weights everywhere
    joined = parameters_to_vector(grads) / count()
    _together(distributed.all_reduce, joined)
    for grad, mean in zip(grads, joined.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def _connected() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _together(operation: Callable[..., Any], *args: Any) -> None:
    """Run a collective operation, and say so if another process did not take part."""
    try:
        operation(*args)
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise TrainingError(f"another process exited; see its output ({reason})") from error
