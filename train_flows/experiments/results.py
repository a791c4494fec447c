"""Results of an experiment: run folders as outcomes, compared over seeds, and the JSON file they are written to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from anode import load, storage
from train_flows.forecasting import comparison
from train_flows.run.folder import Run, provenance

FAILED_FILE = "failed.json"
SUCCESS, NOT_FINITE = "success", "non-finite loss"
CAUSES = ("too many steps", "step underflow", "non-finite state")  # of a failed solve
METRICS = ("loss", "train_mse", "train_accuracy", "validation_loss", "test_loss", "test_accuracy", "validation_nll")
METRICS += (
    "test_nll",
    "importance_samples",
    "kl",
    "extrapolation rmse_truth",
    "extrapolation mse",
    "interpolation mse",
)
METRICS += ("extrapolation crps", "extrapolation coverage_90", "nfe_forecast", "nfe_log_prob", "nfe_sample")
METRICS += ("nfe_forward", "seconds")
SCORES = ("mse", "rmse", "crps", "coverage_50", "coverage_90")  # of forecasts
LEVELS = 9  # values of the NLL at which two trainings are compared
Record = Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """Result of one run: how it ended, and its records, the last of which also has the figures of ``result.json``."""

    label: str  # name of the model in figures and tables
    data: str
    seed: int
    command: str  # without folders
    folder: Path
    status: str  # "success", a cause of a failed solve, or "non-finite loss"
    records: Sequence[Record]  # one for each validation, from step 0 on
    notes: Sequence[str] = ()

    @cached_property
    def model(self) -> Any:
        """The stored classifier, or model of series."""
        return load(self.folder)

    def plain(self) -> dict[str, Any]:
        """Return plain values; the history has a list for each figure, rounded to 5 digits."""
        names = dict.fromkeys(name for record in self.records for name in record)
        history = {name: [_rounded(record.get(name)) for record in self.records] for name in names}
        about = {"name": self.label, "data": self.data, "seed": self.seed, "status": self.status}
        return {**about, "command": self.command, "history": history}


def read_outcome(label: str, data: str, seed: int, command: str, folder: Path) -> Outcome | None:
    """Read the run in a folder; None if it is missing, or has neither taken all steps nor failed."""
    if not (folder / storage.CONFIG_FILE).is_file():
        return None
    run = Run.open(folder)
    records, result, failed = run.records(), run.result(), folder / FAILED_FILE
    notes = [] if result is None else result.get("notes", [])
    for record in records:
        record["seconds"] = record["seconds_training"]
    early = next((note for note in notes if note.startswith("training ended early")), None)
    if failed.is_file():
        status = storage.read_json(failed)["status"]
    elif early is not None:
        status = next((cause for cause in CAUSES if cause in early), NOT_FINITE)
    elif result is None or records[-1]["step"] < run.settings["training"]["steps"]:
        return None
    else:
        status = SUCCESS if all(map(math.isfinite, records[-1].values())) else NOT_FINITE
        records[-1] |= _tested(records, result)
    return Outcome(label, data, seed, command, folder, status, records, notes)


def _tested(records: Sequence[Record], result: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of the best weights: of a density, a bound of whose test NLL has ``importance_samples``.

    Of forecasts, ``PART SCORE`` of the model and ``PART SCORE of NAME`` of a baseline, in the unit of a single feature,
    otherwise in standard deviations.
    """
    figures = {name: result[name] for name in ("kl", "standard_error", "nfe_log_prob", "nfe_sample") if name in result}
    if "nll" in result:
        nll, best = result["nll"], min(records, key=lambda record: record["nll"])
        figures |= {"test_nll": nll["value"], "standard_error": nll["standard_error"]}
        figures |= {"validation_nll": best["nll"], "nfe_validation": best["nfe_log_prob"]}
        figures |= {"importance_samples": nll["samples"]} if nll.get("samples") else {}
    if "scores" in result:
        figures["nfe_forecast"] = result["nfe"]
    for part, found in result.get("scores", {}).items():
        for name, scores in comparison.scores_by_name(found).items():
            figures |= {f"{part} {score}{'' if name == 'model' else f' of {name}'}": scores[score] for score in SCORES}
        if "rmse_truth" in found["model"]:
            figures[f"{part} rmse_truth"] = found["model"]["rmse_truth"]
    return figures


class Results(tuple[Outcome, ...]):
    """Outcomes of an experiment. Means are over those that succeeded; NaN if there are none."""

    def of(self, label: str | None = None, data: str | None = None) -> Results:
        """Return the outcomes with a label and on some data."""
        return Results(o for o in self if label in (None, o.label) and data in (None, o.data))

    @property
    def succeeded(self) -> Results:
        """The successful outcomes."""
        return Results(o for o in self if o.status == SUCCESS)

    @property
    def labels(self) -> list[str]:
        """Labels in order."""
        return list(dict.fromkeys(o.label for o in self))

    @property
    def data(self) -> list[str]:
        """Names of the data in order."""
        return list(dict.fromkeys(o.data for o in self))

    @property
    def exemplar(self) -> Outcome | None:
        """The successful outcome with the lowest seed, to draw; None if all failed."""
        return min(self.succeeded, key=lambda o: o.seed, default=None)

    def curves(self, metric: str) -> np.ndarray:
        """Return a figure by outcome and record (S, E + 1); NaN where it is missing, as after a failure."""
        longest = max((len(o.records) for o in self), default=0)
        rows = [[record.get(metric, math.nan) for record in o.records] for o in self]
        return np.array([[*row, *[math.nan] * (longest - len(row))] for row in rows]).reshape(len(self), longest)

    def last(self, metric: str, at: int = -1) -> np.ndarray:
        """Return a figure of one record, by default the last, of the successful outcomes that have it."""
        return np.array([o.records[at][metric] for o in self.succeeded if metric in o.records[at]])

    def mean(self, metric: str, at: int = -1) -> float:
        """Return the mean of :meth:`last`."""
        values = self.last(metric, at)
        return float(values.mean()) if len(values) else math.nan

    def shared(self, *labels: str) -> list[Results]:
        """Return the outcomes of each label for the seeds that succeeded with all labels, in the order of seeds."""
        groups = [{o.seed: o for o in self.of(label).succeeded} for label in labels]
        seeds = sorted(set.intersection(*(set(group) for group in groups)))
        return [Results(group[seed] for seed in seeds) for group in groups]

    def ratio(self, above: str, below: str, metric: str) -> float:
        """Return the mean of a figure over that of another label, for the seeds that succeeded with both."""
        over, under = (group.mean(metric) for group in self.shared(above, below))
        return over / under if under else math.nan

    def difference(self, label: str, other: str, metric: str) -> float:
        """Return the mean of a figure minus that of another label, for the seeds that succeeded with both."""
        first, second = (group.mean(metric) for group in self.shared(label, other))
        return first - second

    def ratios(self, label: str, other: str, metrics: Mapping[str, str], words: str = "") -> dict[str, float]:
        """Return a ratio for each metric, by the name of the metric and words about the two labels."""
        return {f"{name}, {words or f'{label} / {other}'}": self.ratio(label, other, x) for name, x in metrics.items()}

    def equal_nll(self, label: str, other: str, metric: str) -> dict[str, float] | None:
        """Compare the costs of two labels at equal test NLL; None if no seed succeeded with both."""
        pairs = [(a.records, b.records) for a, b in zip(*self.shared(label, other), strict=True)]
        return equal_nll(pairs, metric) if pairs else None

    def at_best(self, label: str, other: str, metrics: Sequence[str]) -> dict[str, float] | None:
        """Compare two labels where each has its lowest test NLL; None if no seed succeeded with both.

        Returns:
            ``nll`` and ``nll_below``, means of the two in nats, and for each metric the geometric mean of its ratio.
        """
        groups = self.shared(label, other)
        found = np.array([[[_best(o.records)[x] for x in ("nll_test", *metrics)] for o in each] for each in groups])
        if not found.size:
            return None
        nll, below = found[:, :, 0].mean(1).tolist()
        ratios = np.exp(np.log(found[0, :, 1:] / found[1, :, 1:]).mean(0)).tolist()
        return {"nll": nll, "nll_below": below, **dict(zip(metrics, ratios, strict=True))}

    def parameters(self) -> int | None:
        """Return the number of parameters of a network; None if all runs failed."""
        return None if self.exemplar is None else sum(weight.numel() for weight in self.exemplar.model.parameters())

    def summary(self) -> list[dict[str, Any]]:
        """Return for each label and data the number of runs, and mean and standard deviation of the successful ones."""
        rows = []
        for data, label in dict.fromkeys((o.data, o.label) for o in self):
            group = self.of(label, data)
            row: dict[str, Any] = {"data": data, "model": label, "runs": len(group), "succeeded": len(group.succeeded)}
            row |= {metric: spread(values) for metric in METRICS if len(values := group.last(metric))}
            rows.append(row)
        return rows


def spread(values: np.ndarray) -> dict[str, float | None]:
    """Return mean and standard deviation; None for the deviation of a single value."""
    return {"mean": float(values.mean()), "sd": float(values.std(ddof=1)) if len(values) > 1 else None}


def by_data(results: Results, findings: Callable[[Results, str], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the findings of each data set, with its name before theirs."""
    found = {data: findings(results.of(data=data), data) for data in results.data}
    return {f"{data}: {name}": value for data, values in found.items() for name, value in values.items()}


def equal_nll(pairs: Sequence[tuple[Sequence[Record], Sequence[Record]]], metric: str) -> dict[str, float]:
    """Compare the costs of pairs of trainings where their test NLL is equal.

    The first record, of an untrained model, is left out. A pair is compared at 9 values of the NLL, from the lowest
    that both reach half the way up to the highest that both come down to; at the lowest alone if one training is better
    from its first record on than the other ever is. The ratio of a pair is the geometric mean over these values.

    Args:
        pairs: records with ``nll_test`` and the metric, such as ``nfe_sample_1e-07``.
        metric: name of the cost.

    Returns:
        ``ratio``, the geometric mean over the pairs; ``low`` and ``high``, its 95% interval by Student's t of the
        logarithms (NaN for one pair); the number of ``pairs``; ``apart``, the number of pairs compared at one value;
        ``cost`` and ``cost_below``, means over pairs at the lowest common NLL; and ``nll``, the mean of that.
    """
    ratios, costs, lowest, apart = [], [], [], 0
    for pair in pairs:
        records = [each[1:] for each in pair]
        low = max(min(record["nll_test"] for record in each) for each in records)
        high = min(each[0]["nll_test"] for each in records)
        levels = np.linspace(low, (low + high) / 2, LEVELS) if high > low else np.array([low])
        found = np.array([[cost_at(each, level, metric) for each in records] for level in levels])
        ratios.append(np.log(found[:, 0] / found[:, 1]).mean())
        costs.append(found[0])
        lowest.append(low)
        apart += len(levels) == 1
    n, center = len(ratios), float(np.mean(ratios))
    half = float(stats.t.ppf(0.975, n - 1) * np.std(ratios, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    interval = {"ratio": math.exp(center), "low": math.exp(center - half), "high": math.exp(center + half)}
    cost, below = (float(each) for each in np.mean(costs, axis=0))
    return {**interval, "pairs": n, "apart": apart, "cost": cost, "cost_below": below, "nll": float(np.mean(lowest))}


def _best(records: Sequence[Record]) -> Record:
    """Return the record with the lowest test NLL after the first step."""
    return min(records[1:], key=lambda record: record["nll_test"])


def cost_at(records: Sequence[Record], level: float, metric: str) -> float:
    """Return a cost where the test NLL first comes down to a level, interpolated linearly between records.

    Raises:
        ValueError: if it never does.
    """
    reached = next((i for i, record in enumerate(records) if record["nll_test"] <= level), None)
    if reached is None:
        raise ValueError(f"no record has an NLL of {level} or less")
    before, after = records[max(reached - 1, 0)], records[reached]
    return float(np.interp(-level, [-before["nll_test"], -after["nll_test"]], [before[metric], after[metric]]))


def table(summary: Sequence[Mapping[str, Any]], findings: Mapping[str, Any]) -> str:
    """Return a summary and findings as lines to read: mean +- standard deviation over seeds."""
    shown = [metric for metric in METRICS if any(metric in row and row[metric]["mean"] for row in summary)]
    rows = [
        {"data": row["data"], "model": row["model"], "runs": f"{row['succeeded']}/{row['runs']}"}
        | {metric: in_words(row[metric]) if metric in row else "-" for metric in shown}
        for row in summary
    ]
    lines = [pd.DataFrame(rows).to_string(index=False), ""] if rows else []
    return "\n".join([*lines, *(f"{name}: {in_words(value)}" for name, value in findings.items())])


def write_results(path: Path, about: Mapping[str, Any], results: Results, findings: Mapping[str, Any]) -> None:
    """Write the JSON file of an experiment: provenance, findings, the summary over seeds, and every run."""
    content = {**provenance(), **about, "findings": findings, "summary": results.summary()}
    content["runs"] = [outcome.plain() for outcome in results]
    strict = json.loads(json.dumps(content), parse_constant=lambda _: None)  # JSON knows no NaN
    storage.write_atomically(path, (json.dumps(strict) + "\n").encode())


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def in_words(value: Any) -> str:
    """Return a number, or mean and deviation, or several figures, as a text."""
    if isinstance(value, Mapping) and "sd" in value:
        return f"{value['mean']:.4g}" + ("" if value["sd"] is None else f" +- {value['sd']:.2g}")
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {in_words(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
