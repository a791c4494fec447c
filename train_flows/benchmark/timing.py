"""Seconds and peak memory of pieces of work, and the seconds of equal flows by two checkouts of this project.

Run as a program, this file is a child process of :func:`compare_checkouts`. The child finds ``anode`` and ``cnf``
in its checkout, so the top of this file imports nothing from the project.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

T = TypeVar("T")
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # in the messages of packages
FLOWS: dict[str, dict[str, Any]] = {  # that two checkouts build alike: arguments of density_model, and the gradient
    "2-D": {"shape": (2,), "hidden": (64, 64, 64), "gradient": "checkpoint"},
    "2-D, direct": {"shape": (2,), "hidden": (64, 64), "gradient": "direct"},
    "43-D, one probe": {"shape": (43,), "hidden": (64, 64), "gradient": "direct", "divergence": "hutchinson"},
}
BATCH = 256
TURNS = 10  # of all tasks in a child process


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


def medians(
    works: Mapping[str, Callable[[], Any]], repeats: int, timer: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the median seconds of each piece of work; they take turns, and the first turn warms up.

    ``torch.utils.benchmark.Timer`` would warm up twice before every turn.
    """
    turns = [
        {name: timeit.timeit(work, timer=timer, number=1) for name, work in works.items()} for _ in range(repeats + 1)
    ]
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
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, *args).result()
        except (BrokenProcessPool, MemoryError):
            return None
        except RuntimeError as error:
            if any(words in str(error).lower() for words in OUT_OF_MEMORY):
                return None
            raise


def _peak_here(make: Callable[..., Callable[[], Any]], args: Any, device: str, threads: int) -> float | None:
    torch.set_num_threads(threads)
    work = make(*args)
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if not Path("/proc/self/clear_refs").exists():
        return None
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak before
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

    Child processes of one thread measure all tasks in CPU seconds, one checkout after the other, until the time is up:
    the layout of memory changes the speed of a process, so there are many pairs of them.

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
    end, pairs, folders = time.monotonic() + 60 * minutes, [], (earlier, Path(__file__).parents[2])
    while len(pairs) % 2 or not pairs or time.monotonic() < end:  # each order equally often
        order = (1, 0) if len(pairs) % 2 else (0, 1)
        found = {which: _measured_by(folders[which]) for which in order}
        pairs.append((found[0], found[1]))
    before, now = pairs[0]
    for flow, (log_p, _) in now["facts"].items():
        if not math.isclose(log_p, before["facts"][flow][0], rel_tol=1e-4):
            raise RuntimeError(f"{earlier} and this checkout compute different log-densities of {flow}: {pairs[0]}")
    rows = []
    for task in now["seconds"]:
        runs = [(a["seconds"][task], b["seconds"][task]) for a, b in pairs]
        evaluations, evaluations_before = (each["facts"][task.partition(": ")[0]][1] for each in (now, before))
        rows.append({"task": task, **median_ratio(runs), "evaluations": evaluations, "runs": runs})
        rows[-1]["evaluations_before"] = evaluations_before
    return rows


def median_ratio(runs: list[tuple[float, float]]) -> dict[str, float]:
    """Return the median of now / before with its 95% interval, which holds for any distribution, and median seconds."""
    ratios = sorted(now / before for before, now in runs)
    reach = 0.98 * math.sqrt(len(ratios))  # ranks to both sides of the median: 1.96 standard deviations
    low, high = max(0, math.floor(len(ratios) / 2 - reach)), min(len(ratios) - 1, math.ceil(len(ratios) / 2 + reach))
    before, now = (median(each[i] for each in runs) for i in (0, 1))
    interval = {"ratio": median(ratios), "low": ratios[low], "high": ratios[high]}
    return {**interval, "seconds": now, "seconds_before": before}


def _measured_by(checkout: Path) -> dict[str, Any]:
    """Return the output of this file, run with the packages of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", __file__]  # -P: files next to this one do not hide packages
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the child process of {checkout} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def _measure() -> None:
    """Print the CPU seconds of every task, and the mean log-density and its evaluations of every flow, as JSON.

    Only names and arguments that all versions share are used.
    """
    from anode import Solver, count_evals
    from cnf import MaximumLikelihood, density_model

    torch.set_num_threads(1)
    works, facts = {}, {}
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

        works[f"{name}: training step"] = step
        works[f"{name}: log_prob"] = torch.no_grad()(partial(flow.log_prob, x))
        works[f"{name}: sample"] = partial(flow.sample, BATCH)
        torch.manual_seed(0)
        with torch.no_grad(), count_evals(flow) as nfe:
            facts[name] = (flow.log_prob(x).mean().item(), nfe.forward)
    print(json.dumps({"seconds": medians(works, TURNS, time.process_time), "facts": facts}))


if __name__ == "__main__":
    _measure()
