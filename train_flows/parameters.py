"""Parameters of the estimator as options of ``train-flows density``, and back."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anode import InputError
from train_flows.command_line import options_of, with_options
from train_flows.settings import DensityData, DensitySettings, RunSettings

if TYPE_CHECKING:
    from train_flows.estimator import TableDensityEstimator

NAME = "X"  # of the table, in messages
FREE = ("jitter", "device", "dtype", "compile")  # options besides those of model and training
IN_PYTHON = (
    (r"--kind (\S+?)=(\w+)", r'kinds={"\1": "\2"}'),
    (r"--bounds (\S+?)=LOW:HIGH", r'bounds={"\1": (low, high)}'),
    (r"--(kind|bound)s? (\S+)", r'\1s={"\2": ...}'),
    (r"--missing (\w+)", r'missing="\1"'),
    (r"--given (\S+)", r'given=["\1"]'),
    (r"--(kind)\b", r"\1"),
    (r"--given\b", "given"),
    (r"\bbudget_minutes=", "minutes="),
    (r"--no-jitter", 'options={"jitter": False}'),
    (r"--dtype (\w+)", r'options={"dtype": "\1"}'),
)


def to_options(model: TableDensityEstimator, seed: int) -> dict[str, Any]:
    """Return the parameters of an estimator as options by name, as if they were typed.

    Raises:
        InputError: for parameters that are not options, or have wrong types.
    """
    options = dict(model.options or {})
    elsewhere = {field.name for kind in (DensityData, RunSettings) for field in dataclasses.fields(kind)} - {*FREE}
    known = {option.name for option in options_of(DensitySettings())} - elsewhere
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "see train-flows density --help-all"
            raise InputError(f"options={{{name!r}: ...}} is not an option of an estimator; {hint}")
    if isinstance(model.given, str):
        raise InputError(f"given={model.given!r} must be a list of columns, such as [{model.given!r}]")
    bounds = {name: [*ends] for name, ends in (model.bounds or {}).items()}
    if wrong := [name for name, ends in bounds.items() if len(ends) != 2]:
        raise InputError(f"bounds[{wrong[0]!r}]={bounds[wrong[0]]} must be a pair (low, high), None for no bound")
    texts = {name: ["" if end is None else repr(float(end)) for end in ends] for name, ends in bounds.items()}
    found = {
        "given": tuple(map(str, model.given)),
        "kind": tuple(f"{name}={kind}" for name, kind in (model.kinds or {}).items()),
        "bounds": tuple(f"{name}={low}:{high}" for name, (low, high) in texts.items()),
        "missing": model.missing,
        "budget_minutes": model.minutes,
    }
    default = {option.name: option.default for option in options_of(DensitySettings())}
    options |= {name: value for name, value in found.items() if value != default[name]} | {"seed": seed}
    with_options(DensitySettings(), options)  # checks types, which a recipe relies on
    return options


def from_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of an estimator from the settings of a run, by section, but for ``options``."""
    data, run = settings["data"], settings["run"]
    kinds, bounds = (dict(text.rsplit("=", 1) for text in data[name]) for name in ("kind", "bounds"))
    ends = {name: tuple(float(end) if end else None for end in text.split(":")) for name, text in bounds.items()}
    return {
        "given": data["given"],
        "minutes": run["budget_minutes"],
        "kinds": kinds or None,
        "bounds": ends or None,
        "missing": data["missing"],
        "random_state": run["seed"],
    }


@contextmanager
def in_python() -> Generator[None]:
    """Name parameters instead of options of the program in input errors."""
    try:
        yield
    except InputError as error:
        raise InputError(name_parameters(str(error))) from error


def name_parameters(text: str) -> str:
    """Return a message about options of the program as one about parameters of the estimator."""
    for option, parameter in IN_PYTHON:
        text = re.sub(option, parameter, text)
    return text
