"""Times of series as numbers: dates count in days from an origin; points in time and durations as people type them."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from anode import InputError
from anode.errors import config
from train_flows.data import frames
from train_flows.data.dataset import finite_number

DURATION = re.compile(r"(\d+\.?\d*|\.\d+)\s*([smhdwy]?)")
DAYS = {"s": 1 / 86400, "m": 1 / 1440, "h": 1 / 24, "d": 1.0, "w": 7.0, "y": 365.25, "": 1.0}  # of a unit; m: minutes


@config
class TimeAxis:
    """Meaning of the times of series, which are plain numbers.

    Attributes:
        name: of the column.
        origin: date of time 0, such as 2013-01-01, from which times count in days; None if times are numbers.
        day_first: 01/02/2013 is in February (True) or in January (False); None if dates have the year first.
        date_format: format of the dates, as of ``strptime``; None if they are recognised.
    """

    name: str = "time"
    origin: str | None = None
    day_first: bool | None = None
    date_format: str | None = None

    @property
    def unit(self) -> str:
        """Unit of times in words: days, or nothing."""
        return "days" if self.origin else ""

    def times(self, dates: np.ndarray) -> np.ndarray:
        """Return dates (N,), datetime64, as days from the origin, float64."""
        return frames.days_since(dates.astype("datetime64[us]"), np.datetime64(self.origin or "1970-01-01"))

    def dates(self, times: np.ndarray) -> np.ndarray:
        """Return times (N,) as dates, datetime64[us]; numbers stay numbers."""
        if self.origin is None:
            return np.asarray(times)
        whole = np.round(np.asarray(times, dtype=np.float64) * frames.DAY).astype("timedelta64[us]")
        return np.datetime64(self.origin, "us") + whole

    def point(self, option: str, text: str) -> float:
        """Return a point in time as a number.

        Args:
            option: option that it was typed for, for errors.
            text: a number, or a date if the times are dates.
        """
        if self.origin is None:
            value = finite_number(text)
            if value is None:
                raise InputError(f"{option} {text} must be a number, as the times in column {self.name} are")
            return value
        time, other = self.times(self._readings(pd.Series([text])))
        if np.isnan(time):
            raise InputError(f"{option} {text} must be a date, such as {self.origin}")
        if other != time:
            raise InputError(f"{option} {text} can be read two ways: write {self.show(time)} or {self.show(other)}")
        return float(time)

    def _readings(self, text: pd.Series) -> np.ndarray:
        """Return the first and the last date, (2,), as which a text can be read, in the format of the column or not."""
        if self.date_format and not np.isnat(dates := dates_of_format(text, self.date_format)).any():
            return dates.repeat(2)
        dates, day_first = frames.parse_dates(text, self.day_first)
        return np.append(dates, dates if day_first is not None else frames.parse_dates(text, True)[0])

    def duration(self, option: str, text: str) -> float:
        """Return a duration such as ``30d`` in the unit of the times; m stands for minutes, y for 365.25 days.

        Args:
            option: option that it was typed for, for errors.
            text: a positive number, with a unit if the times are dates; days without one.
        """
        found = DURATION.fullmatch(text.strip())
        if found is None or float(found[1]) == 0:
            raise InputError(
                f"{option} {text} must be a positive duration, such as 30d: the units are s, m, h, d, w, y"
            )
        if self.origin is None and found[2]:
            raise InputError(f"{option} {text} has a unit, but the times in column {self.name} are numbers: omit it")
        return float(found[1]) * DAYS[found[2]]

    def show(self, time: float) -> str:
        """Return a point in time as text: a date, with the time of day if it is not midnight, or a number."""
        if self.origin is None:
            return f"{time:.15g}"
        return str(self.dates(np.array(time)).astype("datetime64[s]")).removesuffix("T00:00:00").replace("T", " ")

    def show_duration(self, length: float) -> str:
        """Return a duration as text that :meth:`duration` reads."""
        return f"{length:.6g}{'d' if self.origin else ''}"


def dates_of_format(texts: pd.Series, date_format: str) -> np.ndarray:
    """Return texts as dates (N,), datetime64[us] without a time zone (UTC), NaT for those of another format."""
    labels = texts.map(frames.label, na_action="ignore").astype("str")  # 20130101 is a number in a table
    try:
        found = pd.to_datetime(labels, format=date_format, errors="coerce", utc=True)
    except ValueError as error:
        raise InputError(f"--date-format {date_format} is not a format of dates ({error}): try %d/%m/%Y") from error
    return found.dt.tz_localize(None).to_numpy("datetime64[us]")
