"""Results of an experiment: run folders as outcomes, compared over seeds, and the JSON file they are written to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from anode import Classifier, load, storage
from train_flows.run.folder import Run, provenance

FAILED_FILE = "failed.json"
SUCCESS = "success"
METRICS = (  # of the table, in order
    "loss",
    "mse",
    "accuracy",
    "validation_loss",
    "test_loss",
    "test_accuracy",
    "validation_nll",
    "test_nll",
    "kl",
    "nfe_log_prob",
    "nfe_sample",
    "nfe_forward",
    "nfe_backward",
    "seconds",
)
LEVELS = 9  # values of the NLL at which two trainings are compared


@dataclass(frozen=True)
class Outcome:
    """Result of one run.

    Attributes:
        label: name of the model in figures and tables.
        data: name of the data.
        seed: of data, weights and batches.
        command: command line, without folders.
        folder: of the run.
        status: ``"success"``, or what ended the training: ``"too many steps"``, ``"step underflow"``,
            ``"non-finite state"`` or ``"non-finite loss"``.
        records: one for each validation, from step 0 on; the last one of a successful run also has figures of
            ``result.json``.
        notes: what the run says about its data.
    """

    label: str
    data: str
    seed: int
    command: str
    folder: Path
    status: str
    records: Sequence[Mapping[str, float]]
    notes: Sequence[str] = ()

    @property
    def succeeded(self) -> bool:
        """True if the training came to its end with finite figures."""
        return self.status == SUCCESS

    @cached_property
    def model(self) -> Classifier:
        """The stored classifier."""
        return load(self.folder)

    def result(self) -> dict[str, Any]:
        """Return plain values; the history has a list for each figure, rounded to 5 digits."""
        names = dict.fromkeys(name for record in self.records for name in record)
        history = {name: [_short(record.get(name)) for record in self.records] for name in names}
        about = {"name": self.label, "data": self.data, "seed": self.seed, "status": self.status}
        return {**about, "command": self.command, "history": history}


def read_outcome(label: str, data: str, seed: int, command: str, folder: Path) -> Outcome | None:
    """Read the run in a folder; None if it is missing or not finished."""
    if not (folder / storage.CONFIG_FILE).is_file():
        return None
    run = Run.open(folder)
    records, result, failed = run.records(), run.result(), folder / FAILED_FILE
    for record in records:
        record["seconds"] = record.get("seconds_training", record.get("seconds"))
    if failed.is_file():
        return Outcome(label, data, seed, command, folder, storage.read_json(failed)["status"], records)
    if result is None:
        return None
    records[-1] |= _tested(records, result)
    finite = all(math.isfinite(value) for value in records[-1].values())
    status = SUCCESS if finite else "non-finite loss"
    return Outcome(label, data, seed, command, folder, status, records, result.get("notes", ()))


def _tested(records: Sequence[Mapping[str, float]], result: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of the best weights of a density, on validation and test samples."""
    if "nll" not in result:
        return {}
    best = min(records, key=lambda record: record["nll"])
    return {
        "validation_nll": best["nll"],
        "nfe_validation": best["nfe_log_prob"],
        "test_nll": result["nll"]["value"],
        "standard_error": result["nll"]["standard_error"],
        "nfe_log_prob": result["nfe_log_prob"],
        "nfe_sample": result["nfe_sample"],
    }


@dataclass(frozen=True)
class Results:
    """The outcomes of an experiment, by label and data; figures are those of the last record if not said otherwise."""

    outcomes: Sequence[Outcome]

    @property
    def data(self) -> list[str]:
        """Names of the data, in order."""
        return list(dict.fromkeys(o.data for o in self.outcomes))

    def labels(self, data: str | None = None) -> list[str]:
        """Return the labels of the runs on some data, or on any, in order."""
        return list(dict.fromkeys(o.label for o in self.of(data=data)))

    def of(self, label: str | None = None, data: str | None = None) -> list[Outcome]:
        """Return the outcomes with a label and on some data."""
        return [o for o in self.outcomes if label in (None, o.label) and data in (None, o.data)]

    def on(self, data: str) -> Results:
        """Return the outcomes on some data."""
        return Results(self.of(data=data))

    def succeeded(self, label: str, data: str | None = None) -> list[Outcome]:
        """Return the successful outcomes with a label."""
        return [o for o in self.of(label, data) if o.succeeded]

    def exemplar(self, label: str, data: str | None = None) -> Outcome | None:
        """Return the successful outcome with the lowest seed, to draw; None if all failed."""
        return min(self.succeeded(label, data), key=lambda o: o.seed, default=None)

    def shared(self, *labels: str, data: str | None = None) -> list[list[Outcome]]:
        """Return the outcomes of each label for the seeds that succeeded with all labels, in the order of seeds."""
        groups = [{o.seed: o for o in self.succeeded(label, data)} for label in labels]
        seeds = sorted(set.intersection(*(set(group) for group in groups)))
        return [[group[seed] for seed in seeds] for group in groups]

    def curves(self, label: str, metric: str, data: str | None = None) -> np.ndarray:
        """Return a figure by seed and record (S, E + 1); NaN where it is missing, as after a failure."""
        return curves(self.of(label, data), metric)

    def mean(self, label: str, metric: str, data: str | None = None, at: int = -1) -> float:
        """Return the mean of a figure over the successful outcomes; NaN if there are none."""
        return mean(self.of(label, data), metric, at)

    def ratio(self, above: str, below: str, metric: str, data: str | None = None) -> float:
        """Return the mean of a figure over that of another label, for the seeds that succeeded with both."""
        over, under = (mean(group, metric) for group in self.shared(above, below, data=data))
        return over / under if under else math.nan

    def difference(self, label: str, other: str, metric: str, data: str | None = None) -> float:
        """Return the mean of a figure minus that of another label, for the seeds that succeeded with both."""
        first, second = (mean(group, metric) for group in self.shared(label, other, data=data))
        return first - second

    def spread(self, label: str, metric: str, data: str | None = None, unit: float = 1.0) -> str:
        """Return mean and standard deviation over seeds in words."""
        values = unit * last(self.of(label, data), metric)
        if len(values) == 0:
            return "-"
        return f"{values.mean():.2f}" + (f" +- {values.std(ddof=1):.2f}" if len(values) > 1 else "")

    def equal_nll(self, label: str, other: str, metric: str, data: str | None = None) -> EqualNLL | None:
        """Return what a label costs relative to another at equal test NLL; None if no seed succeeded with both."""
        pairs = list(zip(*self.shared(label, other, data=data), strict=True))
        return equal_nll([(a.records, b.records) for a, b in pairs], metric) if pairs else None

    def summary(self) -> list[dict[str, Any]]:
        """Return for each label and data the number of runs, and mean and standard deviation of the successful ones."""
        rows = []
        for data, label in dict.fromkeys((o.data, o.label) for o in self.outcomes):
            runs = self.of(label, data)
            row: dict[str, Any] = {"data": data, "model": label, "runs": len(runs)}
            row["succeeded"] = sum(run.succeeded for run in runs)
            for metric in METRICS:
                values = last(runs, metric)
                if len(values):
                    sd = float(values.std(ddof=1)) if len(values) > 1 else None
                    row[metric] = {"mean": float(values.mean()), "sd": sd}
            rows.append(row)
        return rows


def curves(outcomes: Sequence[Outcome], metric: str) -> np.ndarray:
    """Return a figure by outcome and record; see :meth:`Results.curves`."""
    longest = max((len(o.records) for o in outcomes), default=0)
    rows = [[record.get(metric, math.nan) for record in o.records] for o in outcomes]
    padded = [[*row, *[math.nan] * (longest - len(row))] for row in rows]
    return np.array(padded, dtype=float).reshape(len(outcomes), longest)


def last(outcomes: Iterable[Outcome], metric: str, at: int = -1) -> np.ndarray:
    """Return a figure of one record, by default the last, of the successful outcomes that have it."""
    return np.array([o.records[at][metric] for o in outcomes if o.succeeded and metric in o.records[at]])


def mean(outcomes: Iterable[Outcome], metric: str, at: int = -1) -> float:
    """Return the mean of :func:`last`; NaN if there are no values."""
    values = last(outcomes, metric, at)
    return float(values.mean()) if len(values) else math.nan


class EqualNLL(NamedTuple):
    """Cost of one training relative to another at equal test NLL.

    Attributes:
        ratio: geometric mean over the pairs.
        low: lower end of its 95% interval, by Student's t of the logarithms; NaN for one pair.
        high: upper end.
        pairs: number of pairs.
        apart: number of pairs that are compared at one value of the NLL only.
        cost: mean cost of the first trainings at the lowest common NLL.
        cost_below: mean cost of the second ones.
        nll: mean of the lowest common NLL.
    """

    ratio: float
    low: float
    high: float
    pairs: int
    apart: int
    cost: float
    cost_below: float
    nll: float


Records = Sequence[Mapping[str, float]]


def equal_nll(pairs: Sequence[tuple[Records, Records]], metric: str) -> EqualNLL:
    """Compare the costs of pairs of trainings where their test NLL is equal.

    The first record, of an untrained model, is left out. A pair is compared at 9 values of the NLL, from the lowest
    that both reach half the way up to the highest that both come down to; at the lowest alone if one training is better
    from its first record on than the other ever is. The ratio of a pair is the geometric mean over these values.

    Args:
        pairs: records with ``nll_test`` and the metric.
        metric: such as ``"nfe_sample_1e-07"``.
    """
    ratios, costs, lowest, apart = [], [], [], 0
    for pair in pairs:
        records = [each[1:] for each in pair]
        levels = _levels(records)
        found = np.array([[cost_at(each, level, metric) for each in records] for level in levels])
        ratios.append(np.log(found[:, 0] / found[:, 1]).mean())
        costs.append(found[0])
        lowest.append(levels[0])
        apart += len(levels) == 1
    n, center = len(ratios), float(np.mean(ratios))
    half = float(stats.t.ppf(0.975, n - 1) * np.std(ratios, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    cost, below = np.mean(costs, axis=0)
    interval = (math.exp(center), math.exp(center - half), math.exp(center + half))
    return EqualNLL(*interval, n, apart, float(cost), float(below), float(np.mean(lowest)))


def _levels(both: Sequence[Records]) -> np.ndarray:
    """Return the values of the NLL at which two trainings are compared, the lowest first."""
    lowest = max(min(record["nll_test"] for record in records) for records in both)
    highest = min(records[0]["nll_test"] for records in both)
    return np.linspace(lowest, (lowest + highest) / 2, LEVELS) if highest > lowest else np.array([lowest])


def cost_at(records: Records, level: float, metric: str) -> float:
    """Return a cost where the test NLL first comes down to a level, interpolated linearly between records.

    Raises:
        ValueError: if it never does.
    """
    reached = next((i for i, record in enumerate(records) if record["nll_test"] <= level), None)
    if reached is None:
        raise ValueError(f"no record has an NLL of {level} or less")
    if reached == 0:
        return records[0][metric]
    before, after = records[reached - 1 : reached + 1]
    return float(np.interp(-level, [-before["nll_test"], -after["nll_test"]], [before[metric], after[metric]]))


def table(summary: Sequence[Mapping[str, Any]], findings: Mapping[str, Any]) -> str:
    """Return a summary and findings as lines to read: mean +- standard deviation over seeds."""
    shown = [metric for metric in METRICS if any(metric in row and row[metric]["mean"] for row in summary)]
    cells = [["data", "model", "runs", *shown]]
    for row in summary:
        values = [_in_words(row[metric]) if metric in row else "-" for metric in shown]
        cells.append([row["data"], row["model"], f"{row['succeeded']}/{row['runs']}", *values])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return "\n".join([*lines, "", *(f"{name}: {_in_words(value)}" for name, value in findings.items())])


def write_results(path: Path, about: Mapping[str, Any], results: Results, findings: Mapping[str, Any]) -> None:
    """Write the JSON file of an experiment: provenance, every run, the summary over seeds, and the findings."""
    runs = [outcome.result() for outcome in results.outcomes]
    content = {**provenance(), **about, "findings": findings, "summary": results.summary(), "runs": runs}
    storage.write_atomically(path, (json.dumps(_plain(content), allow_nan=False) + "\n").encode())


def _plain(value: Any) -> Any:
    """Return a value with None in place of the numbers that JSON does not know."""
    if isinstance(value, EqualNLL):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _in_words(value: Any) -> str:
    if isinstance(value, EqualNLL):
        value = value._asdict()
    if isinstance(value, Mapping) and set(value) == {"mean", "sd"}:
        return f"{value['mean']:.4g}" + ("" if value["sd"] is None else f" +- {value['sd']:.2g}")
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_in_words(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
