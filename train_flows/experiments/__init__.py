"""``train-flows paper EXPERIMENT``: the figures of the papers, each with every run behind it.

A run is a folder, ``OUT/EXPERIMENT/DATA-LABEL-SEED``. Finished runs are kept, interrupted ones are continued, and
missing ones are trained, so that a command can be repeated until all runs are there; ``--overwrite`` begins again.
"""

from __future__ import annotations

import math
import os
import textwrap
import time
from pathlib import Path
from typing import ClassVar

import torch

from anode import InputError, SolverError
from anode.errors import check_choice, config
from anode.storage import written_atomically
from train_flows.command_line import read
from train_flows.experiments import (
    anode_on_functions,
    anode_on_images,
    augmented_density,
    couplings,
    forecasting,
    planar_flows,
    solver_cost,
)
from train_flows.experiments import training_densities as densities
from train_flows.experiments.grid import Experiment, Scale, jobs_of, prepare, run_missing
from train_flows.experiments.results import Results, table, write_results
from train_flows.run.session import find_device
from train_flows.settings import Count, Positive, Seed

MODULES = (
    anode_on_functions,
    solver_cost,
    anode_on_images,
    densities,
    couplings,
    augmented_density,
    planar_flows,
    forecasting,
)
CHARACTERS = 14  # of the notes below a figure, by inch
EXPERIMENTS: dict[str, Experiment] = {name: each for module in MODULES for name, each in module.EXPERIMENTS.items()}


@config
class Settings:
    """Reproduce a figure of a paper; without an experiment, list them.

    Attributes:
        experiment: name of the experiment
        seeds: number of repetitions; 5 if omitted, 1 with --quick
        first_seed: first seed; 0 if omitted, 100 for augmented-tuning
        quick: a minute at most, to see that it runs; its figures mean nothing
        small: for images on CPUs: fewer and smaller images, half the filters and epochs
        data: names of images, densities or targets, or of folders and tables under the data root
        models: names of the models to train and report, as printed; all if omitted
        data_root: folder of images and tables
        download: download missing images to the data root
        out: folder of the results
        workers: number of runs side by side; if omitted, one for each core, or one on a GPU
        device: cpu or cuda; if omitted, a GPU if there is one for images, else the CPU
        budget_minutes: stop after this time; the same command continues
        overwrite: replace the runs of earlier commands
    """

    positional: ClassVar = {"experiment": "EXPERIMENT"}
    experiment: str | None = None
    seeds: Count | None = None
    first_seed: Seed | None = None
    quick: bool = False
    small: bool = False
    data: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    data_root: str = "data"
    download: bool = False
    out: Path = Path("paper")
    workers: Count | None = None
    device: str | None = None
    budget_minutes: Positive | None = None
    overwrite: bool = False

    def check(self, experiment: Experiment) -> None:
        """Refuse options that have no effect."""
        if experiment.kind != "images" and (self.small or self.download):
            raise InputError(f"--small and --download are for images, not for {self.experiment}: drop them")
        if experiment.kind == "functions" and self.data:
            raise InputError(f"--data {' '.join(self.data)} is for images and densities: omit it")
        if self.small and self.quick:
            raise InputError("--small and --quick are two sizes: drop one")
        for name in self.data:
            if Path(name).name != name or self.data.count(name) > 1:
                raise InputError(f"--data {name} is a path or is named twice: pass names, and their --data-root")
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out} is a file: pass a folder")


def main(args: list[str]) -> None:
    """Run the command line ``train-flows paper``."""
    settings = read(Settings, args, "paper")
    if settings.experiment is None:
        print("\n".join(f"{name:<18} {experiment.about}" for name, experiment in EXPERIMENTS.items()))
        return
    check_choice("EXPERIMENT", settings.experiment, EXPERIMENTS)
    experiment = EXPERIMENTS[settings.experiment]
    settings.check(experiment)
    deadline = time.time() + 60 * (settings.budget_minutes or math.inf)
    torch.set_num_threads(1)  # as in the other processes; more do not help networks of this size
    device = find_device(settings.device or ("auto" if experiment.kind == "images" else "cpu"))
    workers = settings.workers or (1 if device.type == "cuda" else os.cpu_count() or 1)

    size = "quick" if settings.quick else "small" if settings.small else "full"
    suffix = [] if size == "full" else [size]
    chosen = sorted(settings.data, key=lambda name: (name not in experiment.data, name))
    usual = experiment.data[:1] if settings.quick and experiment.kind != "functions" else experiment.data
    first = experiment.first_seed if settings.first_seed is None else settings.first_seed
    seeds = range(first, first + (settings.seeds or (1 if settings.quick else 5)))
    folder = settings.out / "-".join([settings.experiment, *suffix])
    jobs = jobs_of(experiment, chosen or usual, seeds, Scale(size, settings.data_root, settings.download), folder)
    for name in settings.models:
        check_choice("--models", name, dict.fromkeys(job.label for job in jobs))
    jobs = [job for job in jobs if not settings.models or job.label in settings.models]
    folder.mkdir(parents=True, exist_ok=True)
    prepare(jobs, settings.overwrite)
    results = run_missing(jobs, workers, str(device), deadline)

    path = settings.out / f"{'-'.join([settings.experiment, *chosen, *suffix])}.json"
    about = {"experiment": settings.experiment, "size": size, "seeds": list(seeds), "workers": workers}
    findings = dict(experiment.findings(results)) if results else {}
    write_results(path, {**about, "complete": len(results) == len(jobs)}, results, findings)
    print(f"\n{table(results.summary(), findings)}\n\n{path}")
    if results:
        draw(experiment, results, path.with_suffix(".png"))
    if len(results) < len(jobs):
        print(f"{len(jobs) - len(results)} runs are missing: the same command continues with them")


def draw(experiment: Experiment, results: Results, path: Path) -> None:
    """Write the figure of an experiment, with what its runs say about their data; a failed solve leaves a note."""
    try:
        figure = experiment.figure(results)
    except SolverError as error:
        print(f"note: the figure is missing: {error}")
        return
    notes = dict.fromkeys(f"{o.data}: {'; '.join(o.notes)}" for o in results if o.notes)
    width = int(CHARACTERS * figure.get_figwidth())
    figure.supxlabel("\n".join(textwrap.fill(note, width) for note in notes), fontsize="small")
    with written_atomically(path) as file:
        figure.savefig(file, dpi=110, format="png")
    print(path)
