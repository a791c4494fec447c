"""Time series by neural ODEs: forecasts with distributions, from observations at irregular times.

model = series_model(2, data=series, kind="latent")
model.forecast(history, at=[1.0, 2.5]).mean
"""

from anode.time_series.series import Series, pad
from anode.time_series.series_models import SeriesConfig, SeriesModel, series_model

__all__ = ["Series", "SeriesConfig", "SeriesModel", "pad", "series_model"]
