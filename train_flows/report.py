"""``train-flows report RUN...``: compare runs, in a table and a figure."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from anode import storage
from cnf.models import KIND as DENSITY
from train_flows import comparison, curves
from train_flows.comparison import Compared
from train_flows.settings import Flag, check_out
from train_flows.text import in_columns

SUFFIXES = (".png",)
Runs = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...", help="folders of the runs")]


@dataclass(frozen=True)
class Settings:
    """Compare runs, all of densities or all of classifiers: their figures, the settings that differ, their curves."""

    runs: Runs = ()
    out: Path = Path("report.png")  # the figure: loss, evaluations, and one against the other
    json: Flag = False  # print one JSON object
    overwrite: Flag = False  # replace an existing figure


def main(args: list[str]) -> None:
    """Run the command line ``train-flows report``."""
    settings = tyro.cli(Settings, args=args, prog="train-flows report")
    check_out(settings.out, SUFFIXES, settings.overwrite)
    runs = comparison.read(settings.runs)
    said = json.dumps(as_json(runs), allow_nan=False) if settings.json else as_text(runs)
    buffer = io.BytesIO()
    draw(runs).savefig(buffer, dpi=120)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    storage.write_atomically(settings.out, buffer.getvalue())
    print(said if settings.json else f"{said}\n\nloss and evaluations are drawn in {settings.out}")


def as_json(runs: Sequence[Compared]) -> dict[str, Any]:
    """The figures of runs and the settings that differ as plain values; None for what is missing or not finite."""
    names = comparison.differing(runs)
    rows = [
        {
            "run": run.folder,
            "data": run.data,
            "settings": {name: run.settings.get(name) for name in names},
            **run.figures(),
        }
        for run in runs
    ]
    return {"kind": runs[0].kind, "criterion": runs[0].criterion, "runs": _finite(rows)}


def as_text(runs: Sequence[Compared]) -> str:
    """The same as tables to read; that of the settings has a row for each run, or where they are many, a column."""
    test = "test NLL, nats" if runs[0].kind == DENSITY else "test accuracy"
    best = ("best " + runs[0].criterion.replace("_", " "), "at step")
    head = ["run", "data", "step", *best, "training loss", "NFE forward", "NFE backward", "seconds", test]
    blocks = [in_columns([head, *map(_row, runs)])]
    names = comparison.differing(runs)
    if names:
        cells = [[run.name, *(_setting(run.settings.get(name)) for name in names)] for run in runs]
        cells = [["settings", *(name.replace("_", "-") for name in names)], *cells]
        blocks.append(in_columns(cells if len(names) <= len(runs) else list(zip(*cells, strict=True))))
    return "\n\n".join(blocks)


def draw(runs: Sequence[Compared]) -> Figure:
    """Loss and evaluations of runs while training, and the loss against the evaluations."""
    criterion, density = runs[0].criterion, runs[0].kind == DENSITY
    what = "NLL" if density else "loss"
    evaluations = {"nfe_forward": "forward", "nfe_backward": "backward"}
    if density:
        evaluations = {"nfe_log_prob": "log_prob"} | evaluations
    panels = {
        "loss": {criterion: f"validation {what}", "loss": "training loss"},
        "evaluations a step or solve": evaluations,
    }
    figures = {}
    for run in runs:
        figures[run.name] = {name: run.curve(name) for name in ("step", criterion, "loss", *evaluations)}
        for name in evaluations:  # without any, as backwards with direct gradients, there is nothing to see
            figures[run.name][name][figures[run.name][name] == 0] = np.nan
    return curves.of_runs(figures, panels, (next(iter(evaluations)), criterion), log=not density)


def _row(run: Compared) -> list[str]:
    figures = run.figures()
    best, test = figures["best"] or {}, figures["test"]
    kind = f" ({test['kind']})" if test and run.kind == DENSITY else ""
    return [
        run.name,
        run.data,
        _shown(figures["step"], ".0f"),
        _shown(best.get("value"), ".5g"),
        _shown(best.get("step"), ".0f"),
        _shown(figures["loss"], ".5g"),
        _shown(figures["nfe_forward"], ".1f"),
        _shown(figures["nfe_backward"], ".1f"),
        _shown(figures["seconds"], ".0f"),
        f"{test['value']:.4f} +- {test['standard_error']:.4f}{kind}" if test else "-",
    ]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _setting(value: Any) -> str:
    """A setting as one would type it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _finite(values: Any) -> Any:
    """Plain values, None in place of numbers that JSON does not know."""
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
