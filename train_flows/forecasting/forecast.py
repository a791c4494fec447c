"""``train-flows forecast DATA``: train a continuous-time model of series, and forecast what is held out of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anode.time_series import Series, SeriesModel, series_model
from anode.time_series.series_models import KIND
from train_flows import recipes
from train_flows.command_line import Program, parse
from train_flows.forecasting.forecast_settings import GENERATED, ForecastSettings
from train_flows.run import distributed, session
from train_flows.run.animation import keep_frame
from train_flows.run.folder import Run
from train_flows.run.loop import fit
from train_flows.settings import to_sections

if TYPE_CHECKING:
    import numpy as np

    from train_flows.forecasting.series_data import SeriesData

VALIDATION_SAMPLES = 20  # of the latent state
FRAME_FEATURES = 3  # at most
PROGRAM = Program(
    name="forecast",
    about="Train a continuous-time model of series at irregular times: a neural ODE, augmented, of second order or "
    "latent (--kind). It forecasts the end of each series (--horizon, --split) or held-out series (--test-series), and "
    "simple forecasts stand beside its scores.",
    kind=KIND,
    recipe=recipes.forecast,
    length="steps",
    known=lambda source: source in GENERATED,
    common=(
        *("source", "time", "series", "target", "horizon", "split", "test_series", "history", "observed", "period"),
        *("day_first", "date_format"),
        *("kind", "extra", "latent", "hidden", "start", "noise"),
        *("steps", "batch_size", "lr", "validate_every", "solver", "rtol", "atol"),
        *("out", "seed", "device", "overwrite", "budget_minutes", "resume"),
    ),
    api_only=(
        *("periods", "init", "likelihood_from", "restart_lr", "measure", "precision", "max_skipped", "lr_warm_up"),
        "first_step",
    ),
)


def main(args: list[str]) -> None:
    """Run the command line ``train-flows forecast``; nothing is written before everything typed is known to be good."""
    started = time.monotonic()
    settings, origin = parse(PROGRAM, ForecastSettings(), args)
    device = session.begin(settings.run)
    from train_flows.forecasting.loading import load_series  # pandas: --help need not wait for it

    with distributed.progress_bar("reading"):
        data = load_series(settings)
    session.tell(origin, *(f"note: {note}" for note in data.notes))
    settings = fit_to_data(settings, data)
    model = build(settings, data).to(device)
    run = session.open_run(settings.run, to_sections(settings), KIND, model.arguments, data)
    task = ForecastTask(settings, data, model, run)
    lengths = [data.axis.show_duration(length) for length in (data.horizon, data.history)]
    session.tell(
        f"{sum(map(len, data.train)):,} times in {len(data.train)} series to train on, of {len(data.columns)} columns; "
        f"forecasts of {lengths[0]} from histories of {lengths[1]}: {len(data.validation)} to validate on, "
        f"{len(data.test)} to test on"
    )
    before = time.monotonic() - started
    with session.resumable(run, PROGRAM.name):
        notes = fit(task, run, settings.run, PROGRAM.name, started)
        run.load_best(model)
        report(task, run, before, [*data.notes, *notes])


def fit_to_data(settings: ForecastSettings, data: SeriesData) -> ForecastSettings:
    """Return the settings with a batch no larger than the number of windows, and with periods in units of time."""
    from train_flows.forecasting.windows import window_starts

    batch_size = session.fitting_batch(settings.training.batch_size, len(window_starts(data)), "windows")
    periods = tuple(data.axis.duration("--period", text) for text in settings.data.period)
    return dataclasses.replace(
        settings,
        training=dataclasses.replace(settings.training, batch_size=batch_size),
        model=dataclasses.replace(settings.model, periods=periods),
    )


def build(settings: ForecastSettings, data: SeriesData) -> SeriesModel:
    """Build the untrained model, standardised by the training part."""
    from train_flows.forecasting.comparison import to_series

    with session.default_dtype(getattr(torch, settings.run.dtype)):
        return series_model(len(data.columns), data=to_series(data.train), config=settings.model)


class ForecastTask:
    """Training of a model of series, validated by the NLL of its forecasts.

    Attributes:
        settings: of the program.
        training: of the optimiser.
        data: the series.
        model: the model.
        run: folder of the run, where validations keep frames of the first test forecast; None to keep none.
        criterion: ``nll``; None without a validation part, which keeps the weights of the last step.
    """

    def __init__(
        self, settings: ForecastSettings, data: SeriesData, model: SeriesModel, run: Run | None = None
    ) -> None:
        from train_flows.forecasting.windows import training_windows

        self.settings = settings
        self.training = settings.training
        self.data = data
        self.model = model
        self.run = run
        self.criterion = "nll" if data.validation else None
        self._windows = training_windows(
            data, self.training.batch_size, settings.run.seed, settings.data.horizon_warm_up
        )

    def batch(self, step: int) -> tuple[Series, Series]:
        """Return histories and targets of the windows of a step."""
        from train_flows.forecasting.comparison import to_series

        windows = self._windows(step)
        return to_series([w.history for w in windows], self.model), to_series([w.target for w in windows], self.model)

    def objective(self, batch: tuple[Series, Series], step: int) -> Tensor:
        """Return the loss of the windows per observed value; the weight of its prior rises over the warm-up."""
        warm_up = self.training.kl_warm_up
        return self.model.loss(*batch, kl_weight=min(1.0, (step + 1) / warm_up) if warm_up else 1.0)

    def loss_name(self, step: int) -> str:
        """Return the name of the loss in records."""
        return "loss"

    def validate(self) -> dict[str, float]:
        """Return NLL, RMSE and CRPS of the forecasts of the validation part, in units of standard deviations."""
        from train_flows.forecasting.comparison import validation_scores

        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same latent samples every time
            figures = validation_scores(self.model, self.data, VALIDATION_SAMPLES)
            if self.run is not None:
                keep_frame(self.run, self._frame)
            return figures

    def _frame(self) -> np.ndarray:
        """Return quantiles (5, TIMES, D) of the forecast of the first test series, of its first features."""
        from train_flows.forecasting.curves import quantile_curves

        return quantile_curves(self.model, self.data.test[0], VALIDATION_SAMPLES)[:, :, :FRAME_FEATURES]


def report(task: ForecastTask, run: Run, before: float, notes: Sequence[str]) -> None:
    """Score the forecasts of the test part with the baselines, write ``result.json``, print the table, draw pictures.

    Args:
        task: the training, whose model has the weights to keep.
        run: its folder.
        before: seconds spent before training.
        notes: sentences to keep with the figures.
    """
    from train_flows.forecasting import comparison

    started, records = time.monotonic(), run.records()
    torch.manual_seed(0)  # of latent samples, as train-flows evaluate does
    figures, left_out = comparison.compare(task.model, task.data)
    said = comparison.verdict(figures)
    figures["seconds"] = round(before + records[-1]["seconds"] + time.monotonic() - started, 1)
    run.write_result(figures, [*notes, *left_out, *said])
    print(f"\ntest part of {task.data.name}", comparison.table(figures, task.data), sep="\n")
    session.tell(*said, *(f"note: {note}" for note in left_out))
    from train_flows.evaluation import wording
    from train_flows.figures import of_series  # matplotlib takes a second, which --help need not wait for

    with distributed.progress_bar("drawing"):
        pictures = of_series.draw_forecasts(run, task.data, task.model)
    print(wording.run_lines(figures["seconds"], run.folder, pictures))
