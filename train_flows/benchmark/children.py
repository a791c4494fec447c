"""The program in processes of its own that start at once: to be killed, limited or connected with each other."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from tqdm import tqdm

from train_flows.__main__ import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train_flows.density", "train_flows.benchmark.children"])


def start(
    args: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, largest: int | None = None
) -> BaseProcess:
    """Start a command line of one thread; its exit status is that of the program.

    Args:
        args: as typed after ``train-flows``.
        log: where its output goes.
        environment: further variables.
        largest: bytes that no file may exceed, as on a disk that is full; as many as there is room for when omitted.
    """
    child = CONTEXT.Process(target=_run, args=(list(args), log, dict(environment or {}), largest))
    child.start()
    return child


def start_together(count: int, args: Sequence[str], log: Path) -> list[BaseProcess]:
    """Start a command line in several processes that ``torch.distributed`` connects, as ``torchrun`` does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    ranks = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [start(args, log.with_suffix(f".{i}.log"), ranks[i]) for i in range(count)]


def _run(args: list[str], log: Path, environment: dict[str, str], largest: int | None) -> None:
    os.environ.update(environment)
    tqdm.set_lock(threading.RLock())  # its own would outlive a kill
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    torch.set_num_threads(1)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    main(args)
