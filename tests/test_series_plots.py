"""Figures of series: what they show of the arrays they are given."""

import dataclasses
import io

import numpy as np
import pytest

from train_flows.figures import series_plots


def bands(times):
    quantiles = np.arange(5.0)[:, None] + np.linspace(0, 1, len(times))
    history, target = (times[:3], np.zeros(3)), (times[3:6], np.ones(3))
    return series_plots.Bands("one", history, target, times, quantiles)


@pytest.mark.parametrize("times", [np.arange(8.0), np.datetime64("2020-01-01") + np.arange(8)])
def test_bands_lie_between_their_quantiles(times):
    panel = bands(times)
    figure = series_plots.forecast_bands([[panel, panel], [panel, panel]], ["price", "volume"], "day")
    axes = figure.axes
    assert [a.get_ylabel() for a in axes[::2]] == ["price", "volume"]
    assert [a.get_xlabel() for a in axes] == ["", "", "day", "day"]
    wide, narrow = (c.get_paths()[0].vertices[:, 1] for c in axes[0].collections[:2])
    assert (wide.min(), wide.max(), narrow.min(), narrow.max()) == (0, 5, 1, 4)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["90% interval", "50% interval", "median", "history", "held out"]
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize("dimensions", [2, 3])
def test_paths_are_coloured_by_time(dimensions):
    times, nothing = np.linspace(3, 5, 50), np.empty((0, dimensions))
    points = np.stack([np.sin(k * times) for k in range(1, dimensions + 1)], 1)
    panel = series_plots.Path("one", times, points, nothing, nothing, 4.0)
    figure = series_plots.paths([panel], ["a", "b", "c"][:dimensions], "time")
    colors = figure.axes[0].collections[0]
    assert (colors.norm.vmin, colors.norm.vmax) == (3, 5)
    assert figure.axes[-1].get_ylabel() == "time"
    end = np.array(figure.axes[0].lines[0].get_data_3d() if dimensions == 3 else figure.axes[0].lines[0].get_data())
    np.testing.assert_allclose(end.ravel(), points[25])
    figure.savefig(io.BytesIO())


def test_a_vector_field_has_arrows_of_one_length():
    times, nothing = np.linspace(0, 1, 20), np.empty((0, 2))
    panel = series_plots.Path("one", times, np.stack([times, times], 1), nothing, nothing, 0.5)
    velocities = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, -0.1]])
    figure = series_plots.paths([panel], ["a", "b"], "time", (np.eye(3, 2), velocities))
    arrows = figure.axes[0].collections[0]
    np.testing.assert_allclose(np.stack([arrows.U, arrows.V], 1), [[0.6, 0.8], [0, 0], [0, -1]])


def test_an_animation_keeps_the_axes():
    times = np.arange(8.0)
    panels = [
        [dataclasses.replace(bands(times), quantiles=scale * bands(times).quantiles)] for scale in (9.0, 2.0, 1.0)
    ]
    figure = series_plots.forecast_bands([panels[-1]], ["price"], "day")
    (axes,) = figure.axes
    limits, artists = axes.axis(), len(axes.collections) + len(axes.lines)
    for title, (panel,), image in zip(
        "abc", panels, series_plots.animate(figure, series_plots.draw_bands, panels, "abc"), strict=True
    ):
        assert axes.axis() == limits
        assert axes.get_title() == title
        assert len(axes.collections) + len(axes.lines) == artists
        assert axes.collections[0].get_paths()[0].vertices[:, 1].max() == panel.quantiles.max()
        assert image.size == (560, 272)
