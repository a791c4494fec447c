"""``train-flows report RUN...``: compare runs, in a table and a figure."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anode import InputError, storage
from anode.classifiers import KIND as CLASSIFIER
from anode.errors import config
from anode.time_series.series_models import KIND as SERIES
from cnf.models import KIND as DENSITY
from train_flows import command_line, results_pages
from train_flows.run.folder import Run
from train_flows.sample import check_out

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CRITERIA = {DENSITY: "nll", CLASSIFIER: "validation_loss", SERIES: "nll"}  # figures that choose the best weights
TESTS = {DENSITY: "test NLL, nats", CLASSIFIER: "test accuracy or RMSE", SERIES: "test CRPS"}
PLACES = ("source", "data_root", "download")  # settings of the data that say where they lie
FIGURES = ("step", "loss", "nfe_forward", "nfe_backward", "seconds")  # of the last record


@config
class Settings:
    """Compare runs, all of one kind: figures, differing settings, curves.

    Attributes:
        runs: folders of the runs
        out: picture to write: loss, evaluations, and one against the other
        json: print one JSON object
        overwrite: replace an existing picture
        results: folder of measured results, such as assets/results, whose pages to write instead of comparing runs
    """

    positional: ClassVar = {"runs": "RUN"}
    runs: tuple[str, ...] = ()
    out: Path = Path("report.png")
    json: bool = False
    overwrite: bool = False
    results: Path | None = None


@dataclass(frozen=True)
class ComparedRun:
    """A run to compare.

    Attributes:
        folder: of the run.
        name: the last part of its path, or all of it if another run has the same.
        kind: of its model.
        data: name of its data.
        settings: all that its figures depend on, by name.
        records: of its training, perhaps none yet.
        result: content of ``result.json``; None for an unfinished run.
    """

    folder: str
    name: str
    kind: str
    data: str
    settings: dict[str, Any]
    records: list[dict[str, Any]]
    result: dict[str, Any] | None

    def figures(self) -> dict[str, Any]:
        """Return the last record's figures, the best validation and the test; None for a missing figure."""
        last, best, test = self.records[-1] if self.records else {}, None, None
        values = np.array([record.get(CRITERIA[self.kind]) for record in self.records], dtype=float)
        if np.isfinite(values).any():
            i = int(np.argmin(np.where(np.isfinite(values), values, math.inf)))
            best = {"value": float(values[i]), "step": self.records[i]["step"]}
        if self.result is not None:
            found = {
                "value": self.result.get("accuracy", self.result.get("rmse")),
                "kind": "accuracy" if "accuracy" in self.result else "RMSE",
                **self.result,
                **self.result.get("nll", {}),
            }
            if self.kind == SERIES:
                score = self.result["scores"]["extrapolation"]["model"]["crps"]
                found |= {"value": score, "standard_error": None, "kind": "CRPS in standard deviations"}
            test = {name: found[name] for name in ("value", "standard_error", "kind")}
        return {**{name: last.get(name) for name in FIGURES}, "best": best, "test": test}


def main(args: list[str]) -> None:
    """Run the command line ``train-flows report``."""
    settings = command_line.read(Settings, args, "report")
    if settings.results is not None:
        pages = results_pages.pages(settings.results)
        for path, text in pages.items():
            path.write_text(text, encoding="utf-8")
        print(f"wrote {', '.join(map(str, pages))}")
        return
    check_out(settings.out, (".png",), settings.overwrite)
    runs = read(settings.runs)
    said = json.dumps(as_json(runs), allow_nan=False) if settings.json else as_text(runs)
    buffer = io.BytesIO()
    draw(runs).savefig(buffer, dpi=120)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    storage.write_atomically(settings.out, buffer.getvalue())
    print(said if settings.json else f"{said}\n\nloss and evaluations are drawn in {settings.out}")


def read(folders: Sequence[str]) -> list[ComparedRun]:
    """Read runs of one kind.

    Raises:
        InputError: if there are none, one is given twice, or their kinds differ.
        CheckpointError: if a folder is not a run, or is damaged.
    """
    if not folders:
        raise InputError("no runs given: pass their folders, such as runs/*")
    paths = [os.path.realpath(folder) for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if paths.count(path) > 1:
            raise InputError(f"{folder} is given more than once: name each run once")
    runs = [Run.open(folder, *CRITERIA) for folder in folders]
    kinds = [run.config["kind"] for run in runs]
    for folder, kind in zip(folders, kinds, strict=True):
        if kind != kinds[0]:
            raise InputError(f"{folder} is a {kind}, {folders[0]} a {kinds[0]}: compare runs of one kind")
    names = short_names(folders)
    data = short_names([str(run.settings.get("data", {}).get("source") or run.config["data"]["name"]) for run in runs])
    return [
        ComparedRun(folder, name, kind, source, _settings(run), run.records(), run.result())
        for folder, name, kind, source, run in zip(folders, names, kinds, data, runs, strict=True)
    ]


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the last part of every path, or the whole paths if two that differ have the same.

    >>> short_names(["a/moons", "b/rings"]), short_names(["a/moons", "b/moons"])
    (['moons', 'rings'], ['a/moons', 'b/moons'])
    """
    names = [os.path.basename(os.path.realpath(path)) for path in paths]
    return names if len(set(names)) == len(set(paths)) else list(paths)


def differing(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the names of the settings in which runs differ."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if any(run.settings.get(name) != runs[0].settings.get(name) for run in runs)]


def as_json(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Return the figures of runs and the differing settings as plain values; None for missing or infinite numbers."""
    names = differing(runs)
    rows: list[dict[str, Any]] = [
        {"run": run.folder, "data": run.data, "settings": {n: run.settings.get(n) for n in names}, **run.figures()}
        for run in runs
    ]
    for row in rows:
        row |= {name: None for name in FIGURES if row[name] is not None and not math.isfinite(row[name])}
    return {"kind": runs[0].kind, "criterion": CRITERIA[runs[0].kind], "runs": rows}


def as_text(runs: Sequence[ComparedRun]) -> str:
    """Return the same as tables; the settings have a row for each run, or a column if there are many settings."""
    best = ("best " + CRITERIA[runs[0].kind].replace("_", " "), "at step")
    head = [
        "run",
        "data",
        "step",
        *best,
        "training loss",
        "NFE forward",
        "NFE backward",
        "seconds",
        TESTS[runs[0].kind],
    ]
    blocks = [_in_columns([head, *map(_row, runs)])]
    names = differing(runs)
    if names:
        cells = [["settings", *(name.replace("_", "-") for name in names)]]
        cells += [[run.name, *(_as_typed(run.settings.get(name)) for name in names)] for run in runs]
        blocks.append(_in_columns(cells if len(names) <= len(runs) else list(zip(*cells, strict=True))))
    return "\n\n".join(blocks)


def draw(runs: Sequence[ComparedRun]) -> Figure:
    """Draw losses and evaluations of runs during training, and the loss against the evaluations."""
    from train_flows.figures import of_runs, plots  # matplotlib takes a second, which --help need not wait for

    density, criterion = runs[0].kind == DENSITY, CRITERIA[runs[0].kind]
    loss: plots.Panels = {"loss": {criterion: "validation", "loss": "training"}, of_runs.COST: of_runs.SOLVES}
    cost = "nfe_log_prob" if density else "nfe_forward"
    drawn = {run.name: of_runs.drawn_records(run.records) for run in runs}
    panels = of_runs.likelihood_panels() if density else loss
    return plots.compare_runs(drawn, panels, (cost, criterion), log=not density)


def _settings(run: Run) -> dict[str, Any]:
    """Return all that figures depend on, by name: settings of data, model and training, and the seed."""
    sections = {name: values for name, values in run.settings.items() if name != "run"}
    sections["data"] = {name: value for name, value in sections.get("data", {}).items() if name not in PLACES}
    found = {name: value for values in (*sections.values(), run.config["model"]) for name, value in values.items()}
    found.pop("solver", None)  # of figures, in the sections
    return {**found, "seed": run.settings.get("run", {}).get("seed")}


def _row(run: ComparedRun) -> list[str]:
    figures = run.figures()
    best, test = figures["best"] or {}, figures["test"]
    kind = f" ({test['kind']})" if test and test["kind"] != "accuracy" else ""
    values = (figures["step"], best.get("value"), best.get("step"), *(figures[name] for name in FIGURES[1:]))
    formats = (".0f", ".5g", ".0f", ".5g", ".1f", ".1f", ".0f")
    shown = ["-" if value is None else format(value, form) for value, form in zip(values, formats, strict=True)]
    error = "" if not test or test["standard_error"] is None else f" +- {test['standard_error']:.4f}"
    return [run.name, run.data, *shown, f"{test['value']:.4f}{error}{kind}" if test else "-"]


def _as_typed(value: Any) -> str:
    """Return a setting as one would type it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)
