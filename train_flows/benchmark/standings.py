"""Contests as lines to read: means over the seeds, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

COLUMNS = f"{'NFE':>9} {'training, s':>12} {'steps':>9} {'parameters':>11} {'sampling, s':>12}"


def line(result: dict[str, Any]) -> str:
    """One line about a contest."""
    rows = result["rows"]
    values = "  ".join(f"{row['contender']} {_number(row['value'])}" for row in rows)
    failures = [f"{row['contender']}: {row['status']}" for row in rows if row.get("status", "success") != "success"]
    return "; ".join([f"{result['data']} seed {result['seed']}: {values} ({result['unit']})", *failures])


def table(results: Sequence[dict[str, Any]]) -> str:
    """All contests, by data set.

    NFE is that of log_prob / sampling, and sampling draws 10,000. After +- stands the standard error over the test
    samples, and behind differences their range over the seeds.
    """
    names = dict.fromkeys(result["data"] for result in results)
    return "\n\n".join(_block([result for result in results if result["data"] == name]) for name in names)


def mean(figures: Sequence[dict[str, Any]]) -> tuple[float | None, float | None]:
    """The mean over seeds of a figure, and its standard error over the test samples; None where one is missing."""
    values = [figure["value"] for figure in figures if figure.get("value") is not None]
    errors = [figure["standard_error"] for figure in figures if figure.get("standard_error") is not None]
    n = len(figures)
    return (
        math.fsum(values) / n if len(values) == n else None,
        math.hypot(*errors) / n if len(errors) == n else None,
    )


def _block(results: list[dict[str, Any]]) -> str:
    first = results[0]
    about = f"{first['samples']['test']:,} test samples, {len(results)} seed(s), {first['minutes']:g} minute(s)"
    lines = [f"{first['data']}: {about}", f"{first['unit']:<32} {COLUMNS}"]
    for rows in zip(*(result["rows"] for result in results), strict=True):
        lines.append(f"{rows[0]['contender']:<10} {_figure(rows)} {_costs(rows)}".rstrip())
    for figures in zip(*(result["differences"] for result in results), strict=True):
        lines.append(f"{figures[0]['of']:<10} {_figure(figures)} {_range(figures)}".rstrip())
    return "\n".join(lines)


def _costs(rows: Sequence[dict[str, Any]]) -> str:
    """What training and sampling took, where there was any."""
    if "steps" not in rows[0]:
        return ""
    solving = rows[0]["nfe_log_prob"] is not None
    nfe = f"{_mean(rows, 'nfe_log_prob'):.0f} / {_mean(rows, 'nfe_sample'):.0f}" if solving else "-"
    training, steps, sampling = (_mean(rows, name) for name in ("seconds_training", "steps", "seconds_sampling"))
    return f"{nfe:>9} {training:>12.1f} {steps:>9,.0f} {rows[0]['parameters']:>11,} {sampling:>12.2f}"


def _range(figures: Sequence[dict[str, Any]]) -> str:
    values = [figure["value"] for figure in figures]
    if len(values) == 1 or None in values:
        return ""
    return f"from {_number(min(values))} to {_number(max(values))}"


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return math.fsum(row[name] for row in rows) / len(rows)


def _figure(figures: Sequence[dict[str, Any]]) -> str:
    value, error = mean(figures)
    return f"{_number(value):>10} {'' if error is None else f'+- {error:.4f}':<10}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
