"""Time series: reading and splitting, windows to train on, scores of forecasts, and forecasts to compare with."""
