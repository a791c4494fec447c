"""What an experiment hands over: every run, their summary over seeds, a table, and the figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from matplotlib.figure import Figure

from train_flows.paper.outcomes import Outcome, Place, Tried
from train_flows.paper.trials import Trained, Trial
from train_flows.text import in_columns

Some = TypeVar("Some", bound=Outcome)
METRICS = (
    "loss",
    "mse",
    "accuracy",
    "validation_loss",
    "test_loss",
    "test_accuracy",
    "validation_nll",
    "test_nll",
    "kl",
    "kinetic",
    "acceleration",
    "nfe_log_prob",
    "nfe_sample",
    "nfe_forward",
    "nfe_backward",
    "seconds",
)


class AttemptAll(Protocol):
    """What an experiment is handed to train with."""

    def __call__(self, wanted: Sequence[Trial], seeds: Sequence[int] | None = None) -> list[Trained]:
        """Every trial with every seed, by default those that were asked for."""
        ...


class AttemptInSittings(Protocol):
    """What an experiment on images or densities is handed to train with."""

    @property
    def place(self) -> Place:
        """Where it trains."""
        ...

    def __call__(self, wanted: Sequence[Tried], telling: Callable[[Tried], bool] = ...) -> list[Outcome]:
        """Every trial with every seed, as far as there is time; those of the telling ones first."""
        ...


@dataclass(frozen=True)
class Report:
    """The result of an experiment.

    Attributes:
        runs: plain values of every run.
        summary: plain values over seeds; see :func:`summarize`.
        table: what to print.
        draw: makes what to look at, once the rest is safe.
        findings: numbers the experiment is about, by name.
    """

    runs: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    table: str
    draw: Callable[[], Figure]
    findings: dict[str, Any]


def report(outcomes: Sequence[Outcome], draw: Callable[[], Figure], findings: Mapping[str, Any]) -> Report:
    """The report of trained outcomes."""
    summary = summarize(outcomes)
    lines = [table(summary), "", *(f"{name}: {_number(value)}" for name, value in findings.items())]
    return Report([outcome.result() for outcome in outcomes], summary, "\n".join(lines), draw, dict(findings))


def of(outcomes: Sequence[Some], name: str | None = None, data: str | None = None) -> list[Some]:
    """The outcomes of a model by name, on a function by name."""
    return [o for o in outcomes if name in (None, o.trial.name) and data in (None, o.trial.data)]


def curves(outcomes: Sequence[Outcome], metric: str) -> np.ndarray:
    """A metric by seed and epoch (S, E + 1); NaN before the first epoch and after a failure."""
    epochs = max(outcome.trial.epochs for outcome in outcomes)
    values = np.full((len(outcomes), epochs + 1), np.nan)
    for row, outcome in zip(values, outcomes, strict=True):
        for i, record in enumerate(outcome.records):
            row[i] = record.get(metric, np.nan)
    return values


def at_epoch(outcomes: Sequence[Outcome], metric: str, epoch: int = -1) -> np.ndarray:
    """A metric of an epoch, by default the last, of the successful outcomes that have it, (S,)."""
    return np.array(
        [o.records[epoch][metric] for o in outcomes if o.status == "success" and metric in o.records[epoch]]
    )


def mean(outcomes: Sequence[Outcome], metric: str, epoch: int = -1) -> float:
    """The mean of :func:`at_epoch`; NaN where no outcome succeeded."""
    values = at_epoch(outcomes, metric, epoch)
    return float(values.mean()) if len(values) else math.nan


def shared(*groups: Sequence[Some]) -> list[list[Some]]:
    """The successful outcomes of every group, of the seeds that succeeded in all of them, so that they compare."""
    seeds = set.intersection(*({o.seed for o in group if o.status == "success"} for group in groups))
    return [[o for o in group if o.seed in seeds and o.status == "success"] for group in groups]


def ratio(above: Sequence[Outcome], below: Sequence[Outcome], metric: str) -> float:
    """The mean of a metric over that of others in the last epoch, for the seeds that succeeded in both.

    NaN where nothing can be compared, such as seconds that round to none.
    """
    over, under = (mean(group, metric) for group in shared(above, below))
    return over / under if under else math.nan


def spread(outcomes: Sequence[Outcome], metric: str, unit: float = 1.0) -> str:
    """Mean and standard deviation over seeds of the last epoch, in words."""
    values = unit * at_epoch(outcomes, metric)
    if len(values) == 0:
        return "-"
    return f"{values.mean():.2f}" + (f" +- {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def exemplar(outcomes: Sequence[Some]) -> Some | None:
    """The successful outcome of the lowest seed, to draw; None where all failed."""
    return min((o for o in outcomes if o.status == "success"), key=lambda o: o.seed, default=None)


def summarize(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """For each function and model: how many runs succeeded, and mean and standard deviation over those."""
    groups = dict.fromkeys((o.trial.data, o.trial.name) for o in outcomes)
    rows = []
    for data, name in groups:
        runs = of(outcomes, name, data)
        row: dict[str, Any] = {"data": data, "model": name, "runs": len(runs)}
        row["succeeded"] = sum(run.status == "success" for run in runs)
        if row["succeeded"]:
            row["nfe_forward_first"] = mean(runs, "nfe_forward", epoch=1)
            for metric in METRICS:
                values = at_epoch(runs, metric)
                if len(values):
                    sd = float(values.std(ddof=1)) if len(values) > 1 else None
                    row[metric] = {"mean": float(values.mean()), "sd": sd}
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A summary as lines to read: mean +- standard deviation over seeds of the last epoch."""
    shown = [metric for metric in METRICS if any(metric in row and row[metric]["mean"] for row in rows)]
    cells = [["data", "model", "runs", *shown]]
    for row in rows:
        values = [_spread(row[metric]) if metric in row else "-" for metric in shown]
        cells.append([row["data"], row["model"], f"{row['succeeded']}/{row['runs']}", *values])
    return in_columns(cells)


def _spread(value: Mapping[str, float | None]) -> str:
    spread = "" if value["sd"] is None else f" +- {value['sd']:.2g}"
    return f"{value['mean']:.4g}{spread}"


def _number(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_number(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
