"""Settings of ``train-flows forecast``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import Field

from anode import InputError
from anode.errors import config
from anode.time_series import SeriesConfig
from train_flows.settings import RunSettings, Training, check_training

GENERATED = ("spirals", "sines")  # series of the literature
Share = Annotated[float, Field(gt=0, le=1)]


@config
class ForecastData:
    """Series to learn.

    Attributes:
        source: spirals, sines, or path of a table with a row for each time
        time: column of times, numbers or dates
        series: column that names the series of a row; all rows are of one series if omitted
        target: columns of values; all other columns of numbers if omitted
        horizon: length of the end of each series to forecast, such as 30d; units s, m, h, d, w, y, or none for numbers
        split: time after which each series is to be forecast, in place of a horizon
        test_series: share of the series to hold out as a whole, each with its horizon to forecast
        history: length of the histories that forecasts start from; the horizon if omitted, all of held-out series
        horizon_warm_up: steps over which the targets of training grow to their full length
        observed: share of the observations of a history that the model sees; the others test interpolation
        period: known periods, such as 1d 1y; their sine and cosine are given to the model
        day_first: read 01/02/2013 as 1 February
        month_first: read 01/02/2013 as 2 January
        date_format: format of the dates, such as %d.%m.%y; recognised if omitted
    """

    source: str | None = None
    time: str | None = None
    series: str | None = None
    target: tuple[str, ...] = ()
    horizon: str | None = None
    split: str | None = None
    test_series: Annotated[float, Field(ge=0, lt=1)] = 0.0
    history: str | None = None
    horizon_warm_up: Annotated[int, Field(ge=0)] = 0
    observed: Share = 1.0
    period: tuple[str, ...] = ()
    day_first: bool = False
    month_first: bool = False
    date_format: str | None = None

    @property
    def first_is_day(self) -> bool | None:
        """Whether the day comes first in dates; None if they are to tell."""
        return self.day_first if self.day_first or self.month_first else None


@config
class ForecastSettings:
    """All settings of ``train-flows forecast``, by concern."""

    data: ForecastData = ForecastData()
    model: SeriesConfig = SeriesConfig()
    training: Training = Training(steps=2000, batch_size=64, lr=1e-2)
    run: RunSettings = RunSettings()

    def validate(self, typed: Collection[str] = ()) -> None:
        """Check that the settings go together.

        Args:
            typed: names of the options that were chosen explicitly; each of them must have an effect.
        """
        data = self.data
        for options in (("horizon", "split"), ("day_first", "month_first", "date_format")):
            if len(chosen := [_typed(name) for name in options if getattr(data, name)]) > 1:
                raise InputError(f"{' and '.join(chosen)} exclude each other: omit one")
        of_tables = ("time", "series", "target", "split", "day_first", "month_first", "date_format", "period")
        if data.source in GENERATED and (useless := [name for name in of_tables if getattr(data, name)]):
            raise InputError(f"{_typed(useless[0])} is for tables, {data.source} is generated: omit it")
        model = self.model
        decodes = model.kind in ("latent", "ode-rnn")
        encodes = model.kind != "ode-rnn" and model.start == "encoded"
        effective = {
            "kl_warm_up": encodes,  # the prior of what is encoded
            "latent": decodes,
            "decoder": decodes or model.noise_from == "state",
            "encoder": encodes,
        }
        if useless := [name for name in effective if name in typed and not effective[name]]:
            options = f"--kind {model.kind} --start {model.start} --noise-from {model.noise_from}"
            raise InputError(f"{_typed(useless[0])} has no effect on {options}: omit it")
        if data.horizon_warm_up >= self.training.steps:
            raise InputError(
                f"--horizon-warm-up {data.horizon_warm_up} takes all of the {self.training.steps} steps: lower it"
            )
        check_training(self.training, self.model.solver, self.run)


def _typed(name: str) -> str:
    return f"--{name.replace('_', '-')}"
