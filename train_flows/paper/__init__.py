"""``train-flows paper EXPERIMENT``: the figures of the papers, each with every run behind it."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure

from anode import InputError, SolverError, storage
from train_flows.paper import sittings, trials
from train_flows.paper.image_trials import Place
from train_flows.paper.report import AttemptAll
from train_flows.paper.scale import Scale, family
from train_flows.paper.sittings import Sittings
from train_flows.paper.trials import Trained, Trial
from train_flows.provenance import provenance
from train_flows.settings import Device, Flag, find_device

EXPERIMENTS = {
    "flow-1d": "ODE solutions on the line keep their order, ResNet steps cross (ANODE, fig. 3)",
    "resnet-vs-node": "training losses of ResNet and NODE in d = 1, 2 and on separable data (fig. 5)",
    "feature-evolution": "features while training, with their evaluations (fig. 6, 8 left)",
    "node-vs-anode": "training losses in d = 1, 2 and the flows learnt (fig. 7)",
    "nfe": "evaluations while training (fig. 8 right)",
    "generalization": "values at unseen inputs, validation loss with slices removed (fig. 9)",
    "augment-sweep": "loss, evaluations and time against the number of extra dimensions",
    "tolerance": "error, time, memory and evaluations against tolerance (Neural ODEs, fig. 3)",
}
ON_IMAGES = {
    "image-curves": "losses, evaluations and accuracy by the number of extra channels (fig. 10, 11)",
    "table1": "test accuracy of NODE and ANODE with as many parameters (table 1, fig. 12, 14)",
    "param-efficiency": "the same with fewer and fewer parameters",
    "weight-decay": "accuracy and evaluations by weight decay, with and without augmentation",
    "stability": "loss and evaluations when few images are overfitted (fig. 13)",
    "odenet": "test error of ODE-Net, residual network and perceptron (Neural ODEs, table 1)",
}
ON_ONE_GPU = 4  # runs side by side


@dataclass(frozen=True)
class Settings:
    """What to do, and how often."""

    experiment: tyro.conf.Positional[str | None] = None
    seeds: int = 5  # repetitions, with seeds from 0
    quick: Flag = False  # a minute at most, to see that it runs; its figures mean nothing
    out: Path = Path("paper")  # folder of EXPERIMENT.json and EXPERIMENT.png
    workers: int | None = None  # runs side by side, one thread each: when omitted one a core, or 4 on a GPU
    overwrite: Flag = False  # replace existing results


@dataclass(frozen=True)
class Images:
    """For the experiments on images alone."""

    data: tuple[str, ...] = ()  # mnist, cifar10, svhn, fashion, digits, or folders of images under the data root
    data_root: str = "data"  # where they are
    download: Flag = False  # fetch those of the four that are not there
    small: Flag = False  # for CPUs: half the side, 2,000 images to train on, half the filters and epochs
    budget_minutes: float | None = None  # stop after so long; --resume goes on
    resume: Flag = False  # keep the runs there are, and train what is missing
    device: Device = "auto"


@dataclass(frozen=True)
class Command:
    """Reproduce a figure of a paper; without an experiment, list them."""

    settings: Settings = field(default_factory=Settings)
    images: Images = field(default_factory=Images)


@dataclass(frozen=True)
class Files:
    """Where an experiment leaves its results."""

    results: Path
    picture: Path
    states: Path  # of unfinished runs


def main(args: list[str]) -> None:
    """Run the command line ``train-flows paper``."""
    prog = "train-flows paper"
    command = tyro.cli(Command, args=args, prog=prog, config=(tyro.conf.OmitArgPrefixes,))
    settings = command.settings
    if settings.experiment is None:
        print("\n".join(f"{name:<18} {what}" for name, what in (EXPERIMENTS | ON_IMAGES).items()))
        return
    files = _checked(command)
    torch.set_num_threads(1)  # as in the processes beside this one: more do not help networks of this size
    experiment = importlib.import_module(f"train_flows.paper.{settings.experiment.replace('-', '_')}")
    on_images = settings.experiment in ON_IMAGES
    device = find_device(command.images.device) if on_images else torch.device("cpu")
    workers = settings.workers or (ON_ONE_GPU if device.type == "cuda" else os.cpu_count() or 1)
    about = {"experiment": settings.experiment, "quick": settings.quick, "workers": workers}
    write = partial(_write, files.results, about)
    if on_images:
        train = _sittings(command, files, write, device, workers)
        scale = Scale("quick" if settings.quick else "small" if command.images.small else "full")
        report = experiment.run(train, scale, command.images.data or experiment.DATA)
        runs, missing = report.runs + train.others, train.missing
        more = {"sets": train.sets, "small": command.images.small}
        caption = "\n".join(f"{data}: {'; '.join(known['notes'])}" for data, known in train.sets.items())
    else:
        write(runs=[], complete=False, seeds=list(range(settings.seeds)))  # fails here, if anywhere
        report = experiment.run(_attempting(settings, workers, write))
        runs, missing, more, caption = report.runs, 0, {"seeds": list(range(settings.seeds))}, ""
    write(runs=runs, complete=not missing, findings=report.findings, summary=report.summary, **more)
    print(f"\n{report.table}\n\n{files.results}")
    files.picture.unlink(missing_ok=True)  # of other runs
    if report.runs:
        _draw(report.draw, files.picture, caption)
    if missing:
        print(f"{missing} runs are missing: the same command with --resume goes on with them")


def _draw(draw: Callable[[], Figure], picture: Path, caption: str) -> None:
    try:
        buffer = io.BytesIO()
        figure = draw()
        if caption:
            figure.supxlabel(caption, fontsize="small")
        figure.savefig(buffer, dpi=110, format="png")
        storage.write_atomically(picture, buffer.getvalue())
        print(picture)
    except SolverError as error:
        print(f"note: the figure is missing: {error}")


def _checked(command: Command) -> Files:
    """The files to write, once everything typed is known to be good."""
    settings, images = command.settings, command.images
    name, known = settings.experiment, EXPERIMENTS | ON_IMAGES
    if name not in known:
        raise InputError(f"experiment {name!r} is unknown: choose one of {', '.join(known)}")
    for option in ("seeds", "workers"):
        if (value := getattr(settings, option)) is not None and value < 1:
            raise InputError(f"--{option} {getattr(settings, option)} must be at least 1")
    if name in EXPERIMENTS and images != Images():
        typed = [option.name for option in dataclasses.fields(Images) if vars(images)[option.name] != option.default]
        options = ", ".join(f"--{option.replace('_', '-')}" for option in typed)
        raise InputError(f"{options} is for {', '.join(ON_IMAGES)}, not for {name}: drop it")
    for data in images.data:
        if Path(data).name != data:
            raise InputError(f"--data {data} is a path: pass the name of the folder, and where it is as --data-root")
        family(data)
    if images.budget_minutes is not None and not images.budget_minutes > 0:
        raise InputError(f"--budget-minutes {images.budget_minutes} must be a positive number")
    if images.small and settings.quick:
        raise InputError("--small and --quick are two sizes: drop one")
    if images.resume and settings.overwrite:
        raise InputError("--resume keeps what --overwrite replaces: drop one")
    if settings.out.exists() and not settings.out.is_dir():
        raise InputError(f"--out {settings.out} is a file: pass a folder")
    sized = (images.small and "small") or (settings.quick and name in ON_IMAGES and "quick")
    stem = "-".join([name, *images.data, *([sized] if sized else [])])
    files = Files(*(settings.out / f"{stem}{suffix}" for suffix in (".json", ".png", "-unfinished")))
    for path in (files.results, files.picture):
        if path.exists() and not (settings.overwrite or images.resume):
            ways = "--overwrite, or --resume" if name in ON_IMAGES else "--overwrite"
            raise InputError(f"{path} exists: pass another --out, or {ways}")
    settings.out.mkdir(parents=True, exist_ok=True)
    return files


def _attempting(settings: Settings, workers: int, write: Callable[..., None]) -> AttemptAll:
    """What experiments train with: the runs that are finished are on disk, whatever happens to the others."""
    finished: list[dict[str, Any]] = []

    def attempt_all(wanted: Sequence[Trial], seeds: Sequence[int] | None = None) -> list[Trained]:
        outcomes: dict[int, Trained] = {}
        wanted = trials.quick(wanted) if settings.quick else wanted
        for place, outcome in trials.attempt_each(wanted, seeds or range(settings.seeds), workers):
            outcomes[place] = outcome
            finished.append(outcome.result())
            write(runs=finished, complete=False, seeds=list(range(settings.seeds)))
        return [outcomes[place] for place in sorted(outcomes)]

    return attempt_all


def _sittings(
    command: Command, files: Files, write: Callable[..., None], device: torch.device, workers: int
) -> Sittings:
    """What experiments on images train with."""
    settings, images = command.settings, command.images
    earlier = sittings.read(files.results, settings.experiment or "") if images.resume else None
    minutes = math.inf if images.budget_minutes is None else images.budget_minutes
    place = Place(images.data_root, str(device), files.states, time.time() + 60 * minutes)
    return Sittings(range(settings.seeds), workers, place, write, earlier, images.download)


def _write(path: Path, about: dict[str, Any], **content: Any) -> None:
    seeds = {"seeds": sorted({run["seed"] for run in content["runs"] if "seed" in run})}
    storage.write_atomically(path, (json.dumps(_plain({**provenance(), **about, **seeds, **content})) + "\n").encode())


def _plain(value: Any) -> Any:
    """The same, with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
