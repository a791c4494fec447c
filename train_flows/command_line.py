"""From a command line to settings: defaults, then the recipe of the data set, then what was typed; or a run's own."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tyro

from anode import InputError
from train_flows.checkpoint import Run
from train_flows.sections import SECTIONS, made
from train_flows.settings import RunSettings

S = TypeVar("S")


def parse(
    default: S,
    args: list[str],
    command: str,
    kind: str,
    recipe: Callable[[Any], dict[str, Any]],
    known: Callable[[str], bool],
) -> S:
    """The settings of a training program: a dataclass of sections, among them ``data`` and ``run``.

    Args:
        default: the settings without a data set.
        args: what was typed.
        command: name of the program.
        kind: of the models it trains.
        recipe: for the settings typed, the values that differ from the defaults.
        known: whether a data set is one by name, not a file.

    Raises:
        InputError: when there is no data set, or other options beside ``--resume``.
    """

    def typed(args: list[str], default: S) -> S:
        prog = f"train-flows {command}"
        return tyro.cli(type(default), args=args, default=default, prog=prog, config=(tyro.conf.OmitArgPrefixes,))

    asking = [arg for arg in args if arg in ("-h", "--help")]
    first: Any = typed([arg for arg in args if arg not in asking], default)
    source = first.data.source
    if asking and source is None:
        return typed(args, default)  # prints the help and exits; with a data set, below, its recipe is the default
    if first.run.resume is not None:
        return _resumed(first, default, kind)
    if source is None:
        raise InputError("no data set given: pass the name of one (see --help), or the path of a table")
    settings: Any = typed(args, cooked(default, recipe(first)))
    if not known(source) and Path(source).exists():
        source = os.path.realpath(source)  # found again from any working directory
    found: dict[str, Any] = {"source": source}
    if hasattr(settings.data, "data_root"):
        found["data_root"] = os.path.realpath(settings.data.data_root)
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, **found))


def cooked(default: Any, recipe: Mapping[str, Any]) -> Any:
    """Settings of several sections with other values, whatever section has them."""
    sections = {}
    for section in dataclasses.fields(default):
        values = getattr(default, section.name)
        sections[section.name] = dataclasses.replace(values, **{k: v for k, v in recipe.items() if hasattr(values, k)})
    return dataclasses.replace(default, **sections)


def _resumed(settings: Any, default: Any, kind: str) -> Any:
    """The settings a run was started with, but for those of a sitting: its device and its budget of time."""
    folder, device, minutes = settings.run.resume, settings.run.device, settings.run.budget_minutes
    if settings != dataclasses.replace(default, run=RunSettings(resume=folder, device=device, budget_minutes=minutes)):
        raise InputError(
            f"--resume {folder} takes every setting but --device and --budget-minutes from the run: "
            "drop the other options"
        )
    return stored(
        folder, default, kind, {"budget_minutes": minutes, **({} if device == "auto" else {"device": device})}
    )


def stored(folder: str, default: S, kind: str, differing: Mapping[str, Any]) -> S:
    """The settings to continue a run with.

    Args:
        folder: of the run.
        default: the settings of its program.
        kind: of its model.
        differing: what of its section ``run`` is to differ from what it was started with.

    Raises:
        CheckpointError: when the run is damaged, or of another program.
    """
    sections = Run(folder).config(kind)["settings"]
    sections["run"] |= {"resume": folder, "out": folder, **differing}
    known: Any = default
    return dataclasses.replace(known, **{name: made(SECTIONS[kind][name], values) for name, values in sections.items()})
