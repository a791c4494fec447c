"""Figures: what they show of the arrays they are given."""

import io
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

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

    def test_a_box_is_never_flat(self):
        rare = np.zeros((5000, 1))
        rare[7] = 1
        for x, wanted in (
            (rare, [-0.075, 1.075]),
            (np.full((9, 1), -20.0), [-21, -19]),
            (np.ones((1, 1)), [0.95, 1.05]),
        ):
            np.testing.assert_allclose(np.ravel(plots.limits(x.astype(np.float32))), wanted, rtol=1e-6)
        low, high = plots.limits(np.zeros((9, 1)))
        assert low < 0 < high

    def test_an_outlier_does_not_set_the_box(self):
        x = np.random.default_rng(0).normal(size=(1000, 1))
        x[0] = 1e6
        assert plots.limits(x)[1] < 5

    def test_data_density_and_samples_have_titles_and_labels(self):
        x = np.random.default_rng(0).normal(size=(100, 2))
        figure = plots.density_2d(x, np.zeros(16), x[:50], ("height", "weight"))
        titles = [axes.get_title() for axes in figure.axes[:3]]
        assert titles == ["data (100)", "density", "samples (50)"]
        assert [axes.get_xlabel() for axes in figure.axes[:3]] == ["height"] * 3
        assert figure.axes[0].get_ylabel() == "weight"

    @pytest.mark.parametrize("unit", [1e-22, 1.0, 1e25])
    @pytest.mark.filterwarnings("error")
    def test_densities_in_any_unit_have_one_scale_of_colours(self, unit):
        rng = np.random.default_rng(0)
        x, samples = (unit * rng.normal(size=(2, 40_000, 2))).astype(np.float32)
        points = plots.grid(plots.extent(x)) / unit
        log_density = (-0.5 * (points**2).sum(1) - np.log(2 * np.pi) - 2 * np.log(unit)).astype(np.float32)
        figure = plots.density_2d(x, log_density, samples)
        data, density, drawn = (axes.images[0] for axes in figure.axes[:3])
        assert {image.get_clim() for image in (data, density, drawn)} == {(0, 1)}
        expected = np.exp(-0.5 * (points**2).sum(1)).reshape(128, 128)
        np.testing.assert_allclose(np.asarray(density.get_array()), expected, atol=2e-3)
        for image in (data, drawn):
            counted = np.asarray(image.get_array())
            assert counted[40:60, 40:60].mean() == pytest.approx(expected[51:77, 51:77].mean(), rel=0.05)
        peak = float(figure.axes[3].get_ylabel().split()[-1])
        assert peak == pytest.approx(1 / (2 * np.pi * unit**2), rel=0.01)
        figure.savefig(io.BytesIO())

    @pytest.mark.filterwarnings("error")
    def test_a_density_that_vanishes_on_the_grid(self):
        x = np.random.default_rng(0).normal(size=(100, 2))
        figure = plots.density_2d(x, np.full(16, -np.inf), x)
        assert np.asarray(figure.axes[1].images[0].get_array()).max() == 0
        figure.savefig(io.BytesIO())

    def test_few_points_are_points_and_many_a_histogram(self):
        x = np.random.default_rng(0).normal(size=(20_000, 2))
        few, many = Figure().subplots(1, 2)
        plots.cloud(few, x[:274], plots.extent(x))
        plots.cloud(many, x, plots.extent(x))
        assert len(few.collections[0].get_offsets()) == 274
        assert many.images[0].get_array().sum() == pytest.approx(20_000, rel=0.01)
        assert plots.marker_size(50) > plots.marker_size(1000) > plots.marker_size(5000)

    def test_one_column_has_histograms_and_the_density(self):
        x, points = np.random.default_rng(0).normal(size=(2, 1000)), np.linspace(-4, 4, 9)
        figure = plots.density_1d(*x, points, -0.5 * points**2 - 0.5 * np.log(2 * np.pi), "speed")
        (axes,) = figure.axes
        np.testing.assert_allclose(axes.lines[0].get_ydata()[4], 0.39894, rtol=1e-4)
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == ["data (1,000)", "samples (1,000)", "density of the model"]
        assert axes.get_xlabel() == "speed"

    def test_long_names_are_wrapped(self):
        name = "speed_of_sound_in_water (m/s) at 1 $ and 2 $"
        assert plots.axis_label(name).splitlines() == ["speed_of_sound_", "in_water (m/s) at", r"1 \$ and 2 \$"]
        assert plots.axis_label("a " * 60).endswith("...")
        assert plots.axis_label("body_mass_g") == "body_mass_g"

    @pytest.mark.parametrize(("count", "milliseconds"), [(3, 250), (21, 150), (50, 60)])
    def test_the_last_frame_of_a_gif_is_held(self, tmp_path, count, milliseconds):
        """Few frames follow each other slowly; a GIF keeps hundredths of a second."""
        frames = np.random.default_rng(0).normal(size=(count, 50, 2))
        times = np.linspace(0, 1, count).tolist()
        plots.save_gif(plots.flow_animation(frames, times, (-3, 3, -3, 3)), tmp_path / "flow.gif")
        with Image.open(tmp_path / "flow.gif") as gif:
            durations = [(gif.seek(i), gif.info["duration"])[1] for i in range(gif.n_frames)]
        assert durations == [*[milliseconds] * (count - 1), 1000]


class TestFeatures:
    def test_features_of_many_dimensions_are_principal_components(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(50, 5)) * [10, 5, 0.1, 0.1, 0.1]
        figure = plots.features({"inputs": x[:, :2], "features": x}, np.zeros(50, dtype=int), ("all",))
        assert [axes.get_xlabel() for axes in figure.axes] == ["first coordinate", "first principal component"]
        assert "of the variance shown" in figure.axes[1].get_title()
        shown = np.asarray(figure.axes[1].collections[0].get_offsets())
        assert shown.std(0)[0] > shown.std(0)[1] > 1

    @pytest.mark.parametrize("count", [2, 7, 10])
    def test_classes_have_names_and_differ_without_colour(self, count):
        names = [f"_{i} $" for i in range(count)]
        x = np.random.default_rng(0).normal(size=(50, 2))
        figure = plots.features({"inputs": x}, np.arange(50) % count, names)
        shown = figure.legends[0]
        assert [text.get_text() for text in shown.get_texts()] == [name.replace("$", r"\$") for name in names]
        shapes = {path.vertices.tobytes() for dots in figure.axes[0].collections for path in dots.get_paths()}
        assert len(shapes) == count
        figure.savefig(io.BytesIO())

    def test_many_classes_have_a_bar_of_colours(self):
        x = np.random.default_rng(0).normal(size=(50, 1))
        figure = plots.features({"inputs": x}, np.arange(50) % 12, [str(i) for i in range(12)])
        assert not figure.legends
        assert "number of the class" in figure.axes[1].get_ylabel()
        assert figure.axes[0].get_ylabel() == "class"


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
        assert figure.axes[1].get_title() == "c >\nb"


class TestCurves:
    def test_a_band_is_the_range_of_all_seeds(self):
        axes = Figure().subplots()
        curves = np.array([[1.0, 2.0, np.nan, 4.0], [3.0, 2.0, np.nan, np.nan]])
        plots.bands(axes, {"NODE": curves}, "title", "loss", log=True)
        np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 2], [1, 2], [3, 4]])
        assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("epoch", "loss", "log")

    def test_lines_of_a_panel_have_words_and_differ_without_colour(self):
        records = [{"step": 10 * i, "loss": 1.0 / (i + 1), "nll": math.nan if i == 1 else 2.0} for i in range(3)]
        panels = {"nats": {"loss": "training", "nll": "validation", "missing": "test"}, "none": {"nfe": "forward"}}
        (axes,) = plots.run_curves(records, panels).axes
        assert [line.get_label() for line in axes.lines] == ["training", "validation"]
        assert len(axes.lines[1].get_xydata()) == 2
        assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("training step", "nats")

    @pytest.mark.parametrize("count", [1, 7, 8, 40])
    def test_every_run_has_a_colour_of_its_own(self, count):
        runs = {f"run {i}": [{"step": k, "loss": k + i, "nfe": k} for k in range(3)] for i in range(count)}
        figure = plots.compare_runs(runs, {"loss": {"loss": "loss"}, "nfe": {"nfe": "forward"}}, ("nfe", "loss"))
        colors = {line.get_color() for line in figure.axes[0].lines if len(line.get_xydata()) > 1}
        assert len(colors) == count
