"""Several processes that train one model together: which one this is, what they share out, and what they agree on.

``torchrun`` and ``accelerate launch`` start them; one process alone is a group of one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import distributed, nn

from anode import SolverError
from train_flows.errors import TrainingError

P = TypeVar("P")
R = TypeVar("R")
PATIENCE = timedelta(minutes=30)  # for the slowest process to arrive, such as one that compiles


def connect(device: torch.device) -> None:
    """Connect this process with the others that were started, if there are any."""
    if started()[1] > 1:
        PartialState(cpu=device.type == "cpu", timeout=PATIENCE)


def started() -> tuple[int, int]:
    """The number of this process and how many there are, according to what started them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def rank() -> int:
    """The number of this process among those connected; 0 for the first, which writes and prints."""
    return distributed.get_rank() if _connected() else 0


def count() -> int:
    """How many processes are connected."""
    return distributed.get_world_size() if _connected() else 1


def _connected() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def _others() -> Generator[None]:
    """Explain what is raised where another process does not answer."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise TrainingError(f"another process is gone, see what it says ({reason})") from error


def everywhere(here: bool, device: torch.device) -> bool:
    """Whether it is so in all processes, which all of them have to ask."""
    if count() == 1:
        return here
    flag = torch.tensor(int(here), device=device)
    with _others():
        distributed.all_reduce(flag, distributed.ReduceOp.MIN)
    return bool(flag)


def gathered(value: R) -> list[R]:
    """The values of all processes, in order."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    with _others():
        distributed.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], R]) -> R:
    """What a function returns in the first process, in all of them."""
    if count() == 1:
        return make()
    values: list[Any] = [make() if rank() == 0 else None]
    with _others():
        distributed.broadcast_object_list(values)
    return values[0]


def first_alone(make: Callable[[], R]) -> R:
    """What a function returns, which the first process calls before the others do: for files that it may write."""
    if rank() == 0:
        made = make()
        wait()
        return made
    wait()
    return make()


def means(values: Mapping[str, float]) -> dict[str, float]:
    """The mean of every value over the processes."""
    everyones = gathered(dict(values))
    return {name: sum(each[name] for each in everyones) / len(everyones) for name in values}


def shared_out(parts: Sequence[P], work: Callable[[P], R]) -> list[R]:
    """What a function makes of every part, in their order: each is done by one process, and known to all.

    Raises:
        SolverError: in all of them, when a solve of one failed.
    """
    done, failure = [], None
    try:
        done = [work(part) for part in parts[rank() :: count()]]
    except SolverError as error:
        failure = error
    everyones = gathered((done, failure))
    for _, failed in everyones:
        if failed is not None:
            raise failed
    return [everyones[i % count()][0][i // count()] for i in range(len(parts))]


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        with _others():
            distributed.barrier()


def share_of(rows: torch.Tensor) -> torch.Tensor:
    """The rows of a joined batch that are for this process."""
    return rows[rank() :: count()]


@torch.no_grad()
def align(module: nn.Module) -> None:
    """Give all processes the weights and buffers of the first."""
    if count() > 1:
        with _others():
            for tensor in (*module.parameters(), *module.buffers()):
                distributed.broadcast(tensor.detach(), 0)


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Give all processes the mean of their gradients: that of the joined batch.

    Nothing is exchanged before a backward pass has ended, so that one that fails leaves no other waiting.
    """
    if count() == 1:
        return
    grads = [weight.grad for weight in module.parameters() if weight.grad is not None]  # of the same ones everywhere
    joined = torch.cat([grad.reshape(-1) for grad in grads]) / count()
    with _others():
        distributed.all_reduce(joined)
    for grad, mean in zip(grads, joined.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))
