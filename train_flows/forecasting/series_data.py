"""Time series ready for training: what to learn from, and what to forecast from which history."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from train_flows.forecasting.time_axis import TimeAxis


@dataclass(frozen=True, eq=False)
class TimeSeries:
    """Observations of D features at T increasing times.

    Attributes:
        name: of the series.
        times: (T,), float64.
        values: (T, D), float64, NaN if missing.
        truth: values without noise (T, D) of a generated series; None if they are unknown.
    """

    name: str
    times: np.ndarray
    values: np.ndarray
    truth: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def span(self) -> float:
        """Time from the first observation to the last."""
        return float(self.times[-1] - self.times[0])

    def take(self, rows: np.ndarray | slice) -> TimeSeries:
        """Return some of the observations."""
        truth = None if self.truth is None else self.truth[rows]
        return TimeSeries(self.name, self.times[rows], self.values[rows], truth)

    def between(self, start: float = -np.inf, end: float = np.inf) -> TimeSeries:
        """Return the observations at start < time <= end."""
        return self.take(slice(*np.searchsorted(self.times, [start, end], side="right")))


@dataclass(frozen=True, eq=False)
class Example:
    """A forecast to make, and what it is compared with.

    Attributes:
        history: observations that the model sees.
        past: all observations before the forecast that baselines see; they begin before the history of a long series.
        inside: observations hidden within the history, for interpolation.
        after: observations after the history, for extrapolation.
    """

    history: TimeSeries
    past: TimeSeries
    inside: TimeSeries
    after: TimeSeries


@dataclass(frozen=True, eq=False)
class SeriesData:
    """Time series of the same features, in original units.

    Attributes:
        name: what to call them in reports.
        axis: meaning of the times.
        columns: names of the D features.
        train: series to learn from.
        validation: forecasts that choose the best weights; none if the series are too short.
        test: forecasts for the reported figures.
        history: length of the histories that forecasts start from.
        horizon: length of the forecasts.
        hidden: share of the observations of a history that training hides from the model.
        period: length of a season, for the baseline that repeats the last one; None if it is unknown.
        notes: sentences to print once and to keep with the results.
    """

    name: str
    axis: TimeAxis
    columns: tuple[str, ...]
    train: tuple[TimeSeries, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    history: float
    horizon: float
    hidden: float = 0.0
    period: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def scale(self) -> np.ndarray:
        """Standard deviation (D,) of the training values."""
        return np.nanstd(np.concatenate([series.values for series in self.train]), axis=0)

    @property
    def mean(self) -> np.ndarray:
        """Mean (D,) of the training values."""
        return np.nanmean(np.concatenate([series.values for series in self.train]), axis=0)

    def digest(self) -> str:
        """Return the SHA-256 of all observations."""
        digest = hashlib.sha256("\n".join(self.columns).encode())
        for series in self._all():
            digest.update(series.name.encode())
            digest.update(np.ascontiguousarray(series.times).data)
            digest.update(np.ascontiguousarray(series.values).data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return the plain values that a stored run keeps of its data."""
        about = {name: getattr(self, name) for name in ("name", "history", "horizon", "hidden", "period")}
        lists = {"columns": list(self.columns), "axis": dataclasses.asdict(self.axis)}
        return {**about, **lists, "sha256": self.digest()}

    def _all(self) -> Iterator[TimeSeries]:
        yield from self.train
        for example in (*self.validation, *self.test):
            yield from (example.history, example.past, example.inside, example.after)
