"""What ``train-flows benchmark speed`` found, as lines to read and as a figure."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import NullFormatter

PACKAGES = ("torch", "torchdiffeq", "zuko", "torchdyn", "torchode", "diffrax", "jax")
OURS = "ours"


def packages() -> dict[str, str]:
    """Versions of the packages that are here."""
    return {name: version(name) for name in PACKAGES if importlib.util.find_spec(name) is not None}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows by task, with means over the seeds: seconds, how many times as long as ours, evaluations and errors."""
    blocks = []
    for key in dict.fromkeys((row["work"], row["task"], row["tolerance"]) for row in rows if row["work"] != "growth"):
        blocks.append(_block(key, [row for row in rows if (row["work"], row["task"], row["tolerance"]) == key]))
    blocks += _at_equal_error(rows)
    growing = [row for row in rows if row["work"] == "growth"]
    if growing:
        blocks.append(_growth(growing))
    return "\n\n".join(blocks)


def ratios(rows: Sequence[dict[str, Any]], work: str, task: str, tolerance: float) -> dict[str, dict[str, float]]:
    """Seconds of every contender over those of each of ours, the geometric mean over seeds, by ours and contender."""
    found: dict[str, dict[str, list[float]]] = {}
    chosen = [row for row in rows if (row["work"], row["task"], row["tolerance"]) == (work, task, tolerance)]
    for mine in (row for row in chosen if row["contender"].startswith(OURS) and row["seconds"]):
        for other in (row for row in chosen if row["seed"] == mine["seed"] and row["seconds"]):
            by = found.setdefault(mine["contender"], {}).setdefault(other["contender"], [])
            by.append(math.log(other["seconds"] / mine["seconds"]))
    return {mine: {name: math.exp(np.mean(logs)) for name, logs in others.items()} for mine, others in found.items()}


def _block(key: tuple[str, str, float], rows: Sequence[dict[str, Any]]) -> str:
    work, task, tolerance = key
    found = ratios(rows, *key)
    names = list(found)
    seeds = len({row["seed"] for row in rows})
    head = f"{work}: {task}, tolerance {tolerance:g}, {seeds} seed(s)"
    lines = [head, f"{'':<32}  seconds  " + "  ".join(f"/ {name[6:]:<18}" for name in names) + "   NFE     error"]
    for name in dict.fromkeys(row["contender"] for row in rows):
        mine = [row for row in rows if row["contender"] == name]
        if any(row["seconds"] is None for row in mine):
            lines.append(f"{name:<32}  {mine[0]['error']}")
            continue
        seconds = np.mean([row["seconds"] for row in mine])
        times = "  ".join(f"{found[other][name]:<20.2f}" for other in names)
        lines.append(f"{name:<32}  {seconds:7.4f}  {times}  {_mean(mine, 'evaluations'):>5}  {_mean(mine, 'error'):>8}")
        if "overhead" in mine[0]:
            lines[-1] += f"  overhead {mine[0]['overhead']:.2f} of the field's {mine[0]['seconds_field']:.4f}"
    return "\n".join(lines)


def _mean(rows: Sequence[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows if row[name] is not None]
    return f"{np.mean(values):.3g}" if values else "-"


def _at_equal_error(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Seconds where contenders are as exact as ours with checkpoints at 1e-5, interpolated over tolerances."""
    blocks = []
    for task in ("step, exact", "log_prob"):
        chosen = [row for row in rows if (row["work"], row["task"], row["seed"]) == ("cnf-2d", task, 0)]
        ours = [row for row in chosen if (row["contender"], row["tolerance"]) == ("ours, checkpoint", 1e-5)]
        if len({row["tolerance"] for row in chosen}) < 2 or not ours:
            continue
        lines = [f"cnf-2d: {task}, seconds at an error of {ours[0]['error']:.2g}"]
        for name in dict.fromkeys(row["contender"] for row in chosen):
            mine = sorted((row["error"], row["seconds"]) for row in chosen if row["contender"] == name)
            errors, seconds = (np.log([pair[i] for pair in mine]) for i in (0, 1))
            wanted = math.log(ours[0]["error"])
            if wanted < errors[0]:
                lines.append(f"{name:<32}  never so exact")
            else:  # beyond the largest error: at most what that takes
                bound = "" if wanted <= errors[-1] else "at most "
                lines.append(f"{name:<32}  {bound}{math.exp(np.interp(wanted, errors, seconds)):.4f}")
        blocks.append("\n".join(lines))
    return blocks


def _growth(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'growth of a training step':<32}  tolerance  batch  dim    NFE  seconds  peak MB"]
    for row in sorted(rows, key=lambda row: (row["task"], row["contender"])):
        peak = "-" if row["peak_megabytes"] is None else f"{row['peak_megabytes']:.1f}"
        size = f"{row['tolerance']:9.0e}  {row['batch']:5}  {row['dim']:3}  {row['evaluations']:5}"
        lines.append(f"{row['contender']:<32}  {size}  {row['seconds']:7.4f}  {peak:>7}")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """Seconds of every task as bars, and the growth of time and memory."""
    timed = [row for row in rows if row["work"] != "growth" and row["tolerance"] == 1e-5]
    growing = [row for row in rows if row["work"] == "growth"]
    figure = Figure(figsize=(18, 4.2 * bool(timed) + 7 * bool(growing) or 1), layout="constrained")
    heights = [height for height, there in ((4.2, timed), (7, growing)) if there]
    parts = iter(figure.subfigures(len(heights) or 1, height_ratios=heights or None, squeeze=False)[:, 0])
    if timed:
        _draw_bars(next(parts), timed)
    if growing:
        _draw_growth(next(parts), growing)
    return figure


def _draw_bars(figure: SubFigure, rows: Sequence[dict[str, Any]]) -> None:
    """Seconds of every task; contenders are named at the left, once for all tasks that have the same."""
    tasks = list(dict.fromkeys((row["work"], row["task"]) for row in rows))
    named: list[str] = []
    for axes, (work, task) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        chosen = [row for row in rows if (row["work"], row["task"]) == (work, task)]
        names = list(dict.fromkeys(row["contender"] for row in chosen if row["seconds"]))
        means = [np.mean([row["seconds"] for row in chosen if row["contender"] == name]) for name in names]
        axes.barh(names, means, color=["C1" if name.startswith(OURS) else "C0" for name in names])
        axes.invert_yaxis()
        axes.tick_params(labelleft=names != named)
        axes.set(title=f"{work}: {task}", xlabel="seconds")
        named = names


def _draw_growth(figure: SubFigure, rows: Sequence[dict[str, Any]]) -> None:
    """Seconds above, memory below, against what grows."""
    kinds = {"step, by tolerance": "evaluations", "step, by batch": "batch", "step, by dimension": "dim"}
    for column, (kind, x) in zip(figure.subplots(2, len(kinds)).T, kinds.items(), strict=True):
        chosen = [row for row in rows if row["task"] == kind]
        for axes, y in zip(column, ("seconds", "peak_megabytes"), strict=True):
            for name in dict.fromkeys(row["contender"] for row in chosen):
                points = [(row[x], row[y]) for row in chosen if row["contender"] == name and row[y]]
                axes.loglog(*zip(*points, strict=True), "o-", ms=3, label=name)
            axes.set(xlabel=x, ylabel=y.replace("_", " "), title=kind)
            axes.xaxis.set_minor_formatter(NullFormatter())
            ticks = [20, 40, 80, 160] if x == "evaluations" else sorted({row[x] for row in chosen})
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
        column[1].legend(fontsize=7)
