"""``train-flows paper EXPERIMENT``: the figures of the papers, each with every run behind it."""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

from anode import SolverError, storage
from train_flows.paper import sittings
from train_flows.paper.command import EXPERIMENTS, ON_DENSITIES, ON_FUNCTIONS, ON_IMAGES, Command, Files, files
from train_flows.paper.image_trials import ImageTrial, attempt
from train_flows.paper.look import look
from train_flows.paper.memory import side_by_side
from train_flows.paper.outcomes import Place
from train_flows.paper.report import Report
from train_flows.paper.sittings import How, Sittings
from train_flows.paper.trials import Attempts
from train_flows.provenance import provenance
from train_flows.settings import find_device

__all__ = ["EXPERIMENTS", "ON_DENSITIES", "ON_FUNCTIONS", "ON_IMAGES", "main"]


def main(args: list[str]) -> None:
    """Run the command line ``train-flows paper``."""
    command = tyro.cli(Command, args=args, prog="train-flows paper", config=(tyro.conf.OmitArgPrefixes,))
    settings = command.settings
    if settings.experiment is None:
        print("\n".join(f"{name:<18} {what}" for name, what in EXPERIMENTS.items()))
        return
    into = files(command)
    torch.set_num_threads(1)  # as in the processes beside this one: more do not help networks of this size
    device = find_device(command.sets.device or ("auto" if settings.experiment in ON_IMAGES else "cpu"))
    workers = settings.workers or (None if device.type == "cuda" else os.cpu_count() or 1)
    sizes = {"quick": settings.quick, "small": command.images.small}
    write = partial(_write, into.results, {"experiment": settings.experiment, **sizes, "workers": workers})
    experiment = command.module
    trained: Attempts | Sittings
    if settings.experiment in ON_IMAGES:
        of_images = partial(look, seed=0, data_root=command.sets.data_root, download=command.images.download)
        how = How(attempt, of_images, partial(_fitting, device))
        trained = _sittings(command, into, write, str(device), workers, how)
        report = experiment.run(trained, command.scale, command.data)
    elif settings.experiment in ON_DENSITIES:
        trained = _sittings(command, into, write, str(device), workers or 1, How(experiment.attempt))
        report = experiment.run(trained, settings.quick, command.data)
    else:
        trained = Attempts(settings.all_seeds, workers or 1, settings.quick, write)
        report = experiment.run(trained)
    _conclude(report, trained, into, write)


def _sittings(
    command: Command, into: Files, write: Callable[..., None], device: str, workers: int | None, how: How
) -> Sittings:
    """What experiments on images and densities train with."""
    settings, sets = command.settings, command.sets
    earlier = sittings.read(into.results, settings.experiment or "") if sets.resume else None
    minutes = math.inf if sets.budget_minutes is None else sets.budget_minutes
    place = Place(command.sets.data_root, device, into.states, time.time() + 60 * minutes)
    return Sittings(settings.all_seeds, workers, place, write, how, earlier)


def _fitting(device: torch.device, wanted: Sequence[ImageTrial]) -> int:
    """How many of some trials run side by side on a GPU."""
    return side_by_side(wanted, torch.cuda.mem_get_info(device)[0])


def _conclude(report: Report, trained: Attempts | Sittings, into: Files, write: Callable[..., None]) -> None:
    """Write what came out, print the table, and draw the figure."""
    runs = [*report.runs, *trained.others]
    write(runs, trained.about, complete=not trained.missing, findings=report.findings, summary=report.summary)
    print(f"\n{report.table}\n\n{into.results}")
    into.picture.unlink(missing_ok=True)  # of other runs
    if report.runs:
        _draw(report, trained.caption, into.picture)
    if trained.missing:
        print(f"{trained.missing} runs are missing: the same command with --resume goes on with them")


def _draw(report: Report, caption: str, picture: Path) -> None:
    try:
        figure = report.draw()
    except SolverError as error:
        print(f"note: the figure is missing: {error}")
        return
    if caption:
        figure.supxlabel(caption, fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    storage.write_atomically(picture, buffer.getvalue())
    print(picture)


def _write(path: Path, general: dict[str, Any], runs: list[dict[str, Any]], about: dict[str, Any], **more: Any) -> None:
    content = _plain({**provenance(), **general, **about, **more, "runs": runs})
    storage.write_atomically(path, (json.dumps(content) + "\n").encode())


def _plain(value: Any) -> Any:
    """The same, with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
