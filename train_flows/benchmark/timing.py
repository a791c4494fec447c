"""Seconds and peak memory of pieces of work, and the seconds of equal flows by two checkouts of this project.

Run as a program, this file is a child process of :func:`compare_checkouts`. The child finds ``anode`` and ``cnf``
in its checkout, so the top of this file imports nothing from the project.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

T = TypeVar("T")
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # in the messages of packages
MEMORY_SHARE = 0.8  # of the free memory, for a child process
FLOWS: dict[str, dict[str, Any]] = {  # that two checkouts build alike: arguments of density_model, and the gradient
    "2-D": {"shape": (2,), "hidden": (64, 64, 64), "gradient": "checkpoint"},
    "2-D, direct": {"shape": (2,), "hidden": (64, 64), "gradient": "direct"},
    "43-D, one probe": {"shape": (43,), "hidden": (64, 64), "gradient": "direct", "divergence": "hutchinson"},
}
TASKS = ("training step", "log_prob", "sample")
BATCH = 256
PROCESS_PAIRS = 6  # one after the other, because the layout of memory changes the speed of a process


@contextmanager
def pinned(cores: int) -> Generator[None]:
    """Keep this process and its children to a number of cores, if the system can; JAX takes all it finds."""
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
    """Return the median seconds of each piece of work; they take turns, and the first turn warms up.

    ``torch.utils.benchmark.Timer`` would warm up twice before every turn.
    """
    turns = [{name: timeit.timeit(work, number=1) for name, work in works.items()} for _ in range(repeats + 1)]
    return {name: median(turn[name] for turn in turns[1:]) for name in works}


def peak_megabytes(make: Callable[..., Callable[[], Any]], *args: Any, device: str = "cpu") -> float | None:
    """Return the peak memory of a piece of work above the memory in use before, in 10^6 bytes.

    Args:
        make: a function of a module that returns the work, called in a child process. The work reuses memory that
            ``make`` frees, and this memory is not counted.
        args: arguments of ``make``.
        device: where the work computes; memory of this device is counted.

    Returns:
        None if the system does not report memory, or there is not enough.
    """
    return in_child(_peak_here, make, args, device, torch.get_num_threads())


def in_child(work: Callable[..., T], *args: Any) -> T | None:
    """Return the result of a function of a module in a child process; None if memory does not suffice."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_with_limited_memory, partial(work, *args)).result()
        except (BrokenProcessPool, MemoryError):
            return None
        except RuntimeError as error:
            if any(words in str(error).lower() for words in OUT_OF_MEMORY):
                return None
            raise


def _with_limited_memory(work: Callable[[], Any]) -> Any:
    """Call a function that fails before the system would end other processes for lack of memory.

    The limit is on addresses. CUDA claims many of them, so only machines without a GPU have a limit.
    """
    if Path("/proc/meminfo").exists() and not torch.cuda.is_available():
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        limit = 1024 * (_kilobytes("VmSize") + int(MEMORY_SHARE * free))
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
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    clear.write_text("5")  # forget the peak before
    before = _kilobytes("VmRSS")
    work()
    return (_kilobytes("VmHWM") - before) / 1e3


def _kilobytes(name: str) -> int:
    """Return an entry of the status of this process on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# Two checkouts


def compare_checkouts(earlier: Path, minutes: float) -> list[dict[str, Any]]:
    """Time training steps, log-densities and samples of equal flows by another checkout and by this one.

    Each checkout works in a child process of one thread. In every round both do the same task on the same numbers, one
    right after the other and in alternating order; the ratio of their CPU seconds is robust against load that lasts
    longer than a task. New processes start for each part of the time.

    Args:
        earlier: folder of the other checkout, whose packages ``anode`` and ``cnf`` are imported.
        minutes: of all measurements together.

    Returns:
        A row for each flow and task: the median ``ratio`` of this checkout to the other with the 95% confidence
        interval from ``low`` to ``high``, median ``seconds`` and ``seconds_before``, ``evaluations`` and
        ``evaluations_before`` of a log-density, and all ``runs`` as pairs (before, now).

    Raises:
        RuntimeError: if a child process fails, or the checkouts compute different log-densities.
    """
    tasks = [(flow, task) for flow in FLOWS for task in TASKS]
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in tasks}
    evaluations: dict[str, list[int]] = {}
    for part in range(PROCESS_PAIRS):
        with ExitStack() as stack:
            pair = [stack.enter_context(_Child(folder)) for folder in (earlier, Path(__file__).parents[2])]
            for flow in FLOWS:
                log_p, nfe = zip(*(child.facts[flow] for child in pair), strict=True)
                evaluations[flow] = list(nfe)
                if not math.isclose(*log_p, rel_tol=1e-4):
                    raise RuntimeError(f"{earlier} and this checkout disagree about the log-density of {flow}: {log_p}")
            end, turn = time.monotonic() + 60 * minutes / PROCESS_PAIRS, 0
            while turn == 0 or turn % 2 or time.monotonic() < end:  # each order equally often
                for flow, task in tasks:
                    order = (0, 1) if turn % 2 else (1, 0)
                    taken = {which: pair[which].time(flow, task, PROCESS_PAIRS * turn + part) for which in order}
                    runs[flow, task].append((taken[0], taken[1]))
                turn += 1
    return [
        {
            "task": f"{flow}: {task}",
            **median_ratio(runs[flow, task]),
            "evaluations": evaluations[flow][1],
            "evaluations_before": evaluations[flow][0],
            "runs": runs[flow, task],
        }
        for flow, task in tasks
    ]


def median_ratio(runs: list[tuple[float, float]]) -> dict[str, float]:
    """Return the median of now / before with its 95% interval, which holds for any distribution, and median seconds."""
    ratios = sorted(now / before for before, now in runs)
    reach = 0.98 * math.sqrt(len(ratios))  # ranks to both sides of the median: 1.96 standard deviations
    low, high = max(0, math.floor(len(ratios) / 2 - reach)), min(len(ratios) - 1, math.ceil(len(ratios) / 2 + reach))
    before, now = (median(each[i] for each in runs) for i in (0, 1))
    return {
        "ratio": median(ratios),
        "low": ratios[low],
        "high": ratios[high],
        "seconds": now,
        "seconds_before": before,
    }


class _Child:
    """A process that works with one checkout.

    Attributes:
        facts: mean log-density and evaluations of every flow.
    """

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", __file__]  # -P: files beside this one do not hide packages
        self._process: subprocess.Popen[str] = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.facts: dict[str, tuple[float, int]] = self._answer()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def time(self, flow: str, task: str, seed: int) -> float:
        """Return the CPU seconds of a task."""
        print(json.dumps([flow, task, seed]), file=self._process.stdin)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the child process of {self._process.args} failed; see its error above")
        return json.loads(line)


def _serve() -> None:
    """Print facts about the flows, then answer each [flow, task, seed] on standard input with CPU seconds.

    Only names and arguments that all versions share are used.
    """
    from anode import Solver, count_evals
    from cnf import MaximumLikelihood, density_model

    torch.set_num_threads(1)
    works: dict[tuple[str, str], Callable[[], Any]] = {}
    facts = {}
    for name, arguments in FLOWS.items():
        values = dict(arguments)
        shape, solver = values.pop("shape"), Solver(rtol=1e-5, atol=1e-5, gradient=values.pop("gradient"))
        flow = density_model(shape, solver=solver, **values)
        generator = torch.Generator().manual_seed(0)
        for _, weight in sorted(flow.named_parameters()):
            bound = 1.5 / math.sqrt(weight.shape[-1])
            torch.nn.init.uniform_(weight, -bound, bound, generator)
        x = torch.randn(BATCH, *shape, generator=generator)
        objective = MaximumLikelihood(flow)

        def step(flow: torch.nn.Module = flow, objective: Any = objective, x: torch.Tensor = x) -> None:
            flow.zero_grad()
            objective(x).backward()

        works[name, TASKS[0]] = step
        works[name, TASKS[1]] = torch.no_grad()(partial(flow.log_prob, x))
        works[name, TASKS[2]] = partial(flow.sample, BATCH)
        torch.manual_seed(0)
        with count_evals(flow) as nfe:
            log_p = works[name, TASKS[1]]().mean().item()
        facts[name] = (log_p, nfe.forward)
        for _ in range(3):
            for task in TASKS:
                works[name, task]()  # warm up
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        flow_name, task, seed = json.loads(line)
        torch.manual_seed(seed)
        seconds = timeit.timeit(works[flow_name, task], timer=time.process_time, number=1)
        print(json.dumps(round(seconds, 7)), flush=True)


if __name__ == "__main__":
    _serve()
