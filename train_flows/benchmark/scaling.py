"""``train-flows benchmark scaling``: the throughput of a training by one process and by several together.

The work: two moons, three hidden layers of 64, joined batches of 4,096, the exact trace, one thread a process, started
by ``torchrun`` as a user would. On several machines, run the command with the options of ``torchrun`` on each of them;
that of the first process reports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from anode import InputError, storage
from train_flows.checkpoint import Run
from train_flows.errors import TrainingError
from train_flows.provenance import provenance
from train_flows.settings import Flag, check_out
from train_flows.text import in_columns


@dataclass(frozen=True)
class Settings:
    """Train a continuous flow by one process, and by several together: joined samples a second."""

    processes: tuple[int, ...] = (1, 2)  # how many, in turn
    steps: int = 40
    batch_size: int = 4096  # samples a step, of all processes together
    torchrun: str = "--standalone"  # further options of torchrun, such as "--nnodes 2 --rdzv-endpoint host:29400"
    device: str = "cpu"
    out: Path = Path("benchmark-scaling.json")
    overwrite: Flag = False  # replace existing results


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark scaling``."""
    settings = tyro.cli(Settings, args=args, prog="train-flows benchmark scaling")
    check_out(settings.out, (".json",), settings.overwrite)
    for name in ("steps", "batch_size"):
        if getattr(settings, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(settings, name)} must be at least 1")
    if not settings.processes or min(settings.processes) < 1:
        raise InputError(f"--processes {settings.processes} must be numbers of processes from 1")
    rows = throughputs(settings)
    result = {**provenance(), "work": __doc__, "rows": rows}
    storage.write_atomically(settings.out, (json.dumps(result, indent=2) + "\n").encode())
    print(in_columns([("processes", "samples a second", "times faster"), *(_cells(row) for row in rows)]))
    print(f"\n{settings.out}")


def throughputs(settings: Settings) -> list[dict[str, Any]]:
    """Samples a second for each number of processes, and how many times those of the first number."""
    rows: list[dict[str, Any]] = []
    for count in settings.processes:
        with tempfile.TemporaryDirectory() as folder:
            found = _throughput(settings, count, Path(folder, "run"))
        rows.append({"processes": count, "samples_a_second": found})
        rows[-1]["times_faster"] = found / rows[0]["samples_a_second"]
    return rows


def _throughput(settings: Settings, count: int, run: Path) -> float:
    work = ["density", "moons", "--objective", "likelihood", "--hidden", "64", "64", "64", "--device", settings.device]
    size = ["--steps", str(settings.steps), "--validate-every", str(settings.steps)]
    size += ["--batch-size", str(settings.batch_size), "--out", str(run)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), *settings.torchrun.split()]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # torchrun leaves a single process all cores
    done = subprocess.run(
        [*launch, "-m", "train_flows", *work, *size], capture_output=True, text=True, check=False, env=one_thread
    )
    if done.returncode:
        raise TrainingError(f"{count} processes failed: {done.stderr.strip().splitlines()[-1]}")
    record = Run(run).records()[-1]
    return settings.steps * settings.batch_size / record["seconds_training"]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return str(row["processes"]), f"{row['samples_a_second']:.0f}", f"{row['times_faster']:.2f}"
