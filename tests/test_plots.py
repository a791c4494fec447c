"""Figures: what they show of the arrays they are given."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from train_flows.figures import image_plots, plots


class TestSamples:
    def test_the_grid_covers_nearly_all_points(self):
        x = np.random.default_rng(0).normal(size=(5000, 2)) * [1, 10]
        left, right, bottom, top = box = plots.extent(x)
        inside = (x[:, 0] > left) & (x[:, 0] < right) & (x[:, 1] > bottom) & (x[:, 1] < top)
        assert inside.mean() > 0.998
        points = plots.grid(box, 4)
        np.testing.assert_allclose(points[:4, 1], bottom + (top - bottom) / 8)  # row by row from the bottom
        np.testing.assert_allclose(points[::4, 0], left + (right - left) / 8)

    def test_data_density_and_samples_have_titles_and_labels(self):
        x = np.random.default_rng(0).normal(size=(100, 2))
        figure = plots.density_2d(x, np.zeros(16), x[:50], ("height", "weight"))
        titles = [axes.get_title() for axes in figure.axes[:3]]
        assert titles == ["data (100)", "density", "samples (50)"]
        assert [axes.get_xlabel() for axes in figure.axes[:3]] == ["height"] * 3
        assert figure.axes[0].get_ylabel() == "weight"

    def test_a_corner_has_the_first_set_below_and_the_last_above(self):
        low = np.random.default_rng(0).uniform(size=(9, 7))
        high = low + 0.5
        figure = plots.corner({"data": low, "samples": high}, [f"x{i}" for i in range(7)], most=3)
        assert len(figure.axes) == 9
        below, above = figure.axes[3], figure.axes[1]
        assert np.asarray(below.collections[0].get_offsets()).max() <= 1
        assert np.asarray(above.collections[0].get_offsets()).min() >= 0.5
        assert "first 3 of 7 columns" in figure.get_suptitle()

    def test_features_of_many_dimensions_are_principal_components(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(50, 5)) * [10, 5, 0.1, 0.1, 0.1]
        figure = plots.features({"inputs": x[:, :2], "features": x}, rng.integers(2, size=50))
        assert [axes.get_xlabel() for axes in figure.axes] == ["first coordinate", "first principal component"]
        assert "of the variance shown" in figure.axes[1].get_title()
        shown = np.asarray(figure.axes[1].collections[0].get_offsets())
        assert shown.std(0)[0] > shown.std(0)[1] > 1


class TestImages:
    def test_images_stand_row_by_row_with_gaps(self):
        images = np.arange(1.0, 6.0).reshape(5, 1, 1, 1) * np.ones((5, 1, 2, 3))
        shown = image_plots.tiles(images, 3, max_value=10.0)
        g = image_plots.GAP
        line = [g] * 13
        first = [g, 0.1, 0.1, 0.1, g, 0.2, 0.2, 0.2, g, 0.3, 0.3, 0.3, g]
        second = [g, 0.4, 0.4, 0.4, g, 0.5, 0.5, 0.5, g, g, g, g, g]
        np.testing.assert_allclose(shown[:, :, 0], [line, first, first, line, second, second, line])
        assert shown.shape[2] == 3

    def test_gray_levels_are_the_same_in_all_sets(self):
        dark, light = np.full((4, 1, 2, 2), 3.0), np.full((9, 1, 2, 2), 12.0)
        figure = image_plots.image_panels({"dark": dark, "light": light}, max_value=16)
        shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
        assert [panel[1, 1, 0] for panel in shown] == [3 / 16, 12 / 16]
        assert [axes.get_title() for axes in figure.axes] == ["dark", "light"]
        assert shown[0].shape == shown[1].shape == (7, 7, 3)  # two by two of each

    def test_rows_hold_their_class(self):
        x = np.repeat(np.array([3.0, 1.0, 2.0, 1.0]), 4).reshape(4, 1, 2, 2)
        figure = image_plots.images_by_class({"data": (x, np.array([2, 0, 1, 0]))}, ("a", "b", "c"), 3.0)
        (axes,) = figure.axes
        assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
        shown = np.asarray(axes.images[0].get_array())[:, :, 0]
        for tick, wanted in zip(axes.get_yticks(), ([1, 1], [2, 0], [3, 0]), strict=True):
            row = shown[int(tick) + 1]
            assert [row[2], row[5]] == pytest.approx([value / 3 for value in wanted])

    def test_mistakes_are_counted(self):
        scores = np.eye(3)[[0, 1, 1, 2]]
        figure = image_plots.mistakes(np.zeros((4, 1, 2, 2)), np.array([0, 1, 2, 2]), scores, ("a", "b", "c"), 255)
        assert figure.axes[0].get_title() == "75.0% of 4 are right"
        assert figure.axes[1].get_title() == "c > b"


class TestCurves:
    def test_a_band_is_the_range_of_all_seeds(self):
        axes = Figure().subplots()
        curves = np.array([[1.0, 2.0, np.nan, 4.0], [3.0, 2.0, np.nan, np.nan]])
        plots.bands(axes, {"NODE": curves}, "title", "loss", log=True)
        np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 2], [1, 2], [3, 4]])
        assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("epoch", "loss", "log")

    def test_lines_of_a_panel_differ_without_colour(self):
        records = [{"step": 10 * i, "loss": 1.0 / (i + 1), "nll": 2.0} for i in range(3)]
        figure = plots.run_curves(records, {"nats": ("loss", "nll", "missing")})
        (axes,) = figure.axes
        assert len(axes.lines) == 2
        assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("training step", "nats")

    @pytest.mark.parametrize("count", [1, 7, 8, 40])
    def test_every_run_has_a_colour_of_its_own(self, count):
        steps = np.arange(3.0)
        runs = {f"run {i}": {"step": steps, "loss": steps + i, "nfe": steps} for i in range(count)}
        figure = plots.compare_runs(runs, {"loss": {"loss": "loss"}, "nfe": {"nfe": "forward"}}, ("nfe", "loss"))
        colors = {line.get_color() for line in figure.axes[0].lines if len(line.get_xydata()) > 1}
        assert len(colors) == count
