"""``train-flows benchmark scaling``: the throughput of a training by one process and by several together.

The work: two moons, three hidden layers of 64, joined batches of 4,096, the exact trace, one thread a process, started
by ``torchrun`` as a user would. On several machines, run the command with the options of ``torchrun`` on each of them;
the first process reports.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from anode.errors import config
from train_flows import benchmark
from train_flows.command_line import read
from train_flows.run import TrainingError
from train_flows.run.folder import Run

Count = Annotated[int, Field(ge=1)]


@config
class Settings:
    """Train a continuous flow by one process, and by several together: joined samples a second.

    Attributes:
        processes: numbers of processes, in turn
        steps: number of optimiser steps
        batch_size: samples per step of all processes together
        torchrun: further options of torchrun, such as "--nnodes 2 --rdzv-endpoint host:29400"
        device: device of the processes
        out: JSON file of results
        overwrite: replace existing results
    """

    processes: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2)
    steps: Count = 40
    batch_size: Count = 4096
    torchrun: str = "--standalone"
    device: str = "cpu"
    out: Path = Path("benchmark-scaling.json")
    overwrite: bool = False


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark scaling``."""
    settings = read(Settings, args, "benchmark scaling")
    benchmark.prepare(settings.out, settings.overwrite)
    rows: list[dict[str, Any]] = []
    for count in settings.processes:
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"processes": count, "samples_a_second": throughput(settings, count, Path(folder, "run"))})
        rows[-1]["times_faster"] = rows[-1]["samples_a_second"] / rows[0]["samples_a_second"]
    benchmark.write(settings.out, __doc__, rows=rows)
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format), settings.out, sep="\n\n")


def throughput(settings: Settings, count: int, folder: Path) -> float:
    """Return the samples a second of a training by a number of processes."""
    work = ["density", "moons", "--objective", "likelihood", "--hidden", "64", "64", "64", "--device", settings.device]
    size = ["--steps", str(settings.steps), "--validate-every", str(settings.steps)]
    size += ["--batch-size", str(settings.batch_size), "--out", str(folder)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), *settings.torchrun.split()]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun leaves a single process all cores
    command = [*launch, "-m", "train_flows", *work, *size]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
    if done.returncode:
        raise TrainingError(f"{count} processes failed: {done.stderr.strip().splitlines()[-1]}")
    return settings.steps * settings.batch_size / Run.open(folder).records()[-1]["seconds_training"]
