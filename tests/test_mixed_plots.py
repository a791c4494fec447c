"""Figures of tables with categories and gaps: which cells they show, and how."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from train_flows.figures import mixed_plots, plots

NAMES = ["size", "kind", "price", "grade"]
CATEGORIES = {"kind": ("a", "b", "c"), "grade": ("low", "high")}


def table(n=300, seed=0):
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n).astype(float)
    rows = np.stack(
        [3 * kind + rng.normal(size=n), kind, np.exp(4 * rng.normal(size=n)), rng.integers(0, 2, n)], axis=1
    )
    rows[:30, 0] = np.nan
    rows[30:45, 3] = np.nan
    rows[45:51, 2] = 0
    return rows


def corner(data, samples, columns=NAMES, categories=CATEGORIES, log=("price",)):
    figure = mixed_plots.corner(data, samples, columns, categories, log)
    figure.savefig(io.BytesIO())
    return figure


def texts(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()], legend.get_title().get_text()


class TestCorner:
    def test_data_below_and_samples_above_in_the_colours_of_one_category(self):
        data, samples = table(), table(500, 1)
        samples[:, 0] += 100
        panels = np.array(corner(data, samples).axes).reshape(4, 4)
        below, above = panels[1, 0].collections[0], panels[0, 1].collections[0]
        assert np.nanmax(below.get_offsets()[:, 0]) < 20 < np.nanmin(above.get_offsets()[:, 1])
        colors = {to_rgba(color)[:3] for color in plots.LINE_COLORS[:3]}
        assert {tuple(color[:3]) for color in below.get_facecolor()} == colors
        labels, _ = texts(panels[0, 0].figure)
        assert labels == ["data (300), below", "samples (500), above", "kind: a", "kind: b", "kind: c"]

    def test_categories_and_missing_ones_stand_apart(self):
        panels = np.array(corner(table(), table()).axes).reshape(4, 4)
        places = np.asarray(panels[3, 1].collections[0].get_offsets())
        assert len(places) == 300
        assert set(places[:, 1].round()) == {0, 1, 2}
        assert [label.get_text() for label in panels[3, 0].get_yticklabels()] == ["low", "high", "missing"]

    def test_logarithmic_axes(self):
        panels = np.array(corner(table(), table()).axes).reshape(4, 4)
        assert [axes.get_xscale() for axes in panels[3]] == ["linear", "linear", "log", "linear"]
        assert panels[2, 0].get_yscale() == "log"

    def test_equal_numbers_of_points(self):
        figure = corner(table(5000), table(400))
        assert {len(axes.collections[0].get_offsets()) for axes in figure.axes if axes.collections} == {400}
        assert texts(figure)[1] == "400 points of each in the panels of pairs"

    def test_six_of_many_columns(self):
        rows = np.concatenate([table(), table(seed=1), table(seed=2)], axis=1)
        names = [f"{name}{i}" for i in range(3) for name in NAMES]
        figure = corner(rows, rows, names, {"kind1": ("a", "b", "c")}, ())
        assert len(figure.axes) == 36
        assert "6 of 12 columns" in texts(figure)[1]

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("change", ["no data", "constant", "far samples", "no categories", "one column"])
    def test_hard_tables(self, change):
        data, samples, count, categories = table(), table(), 4, CATEGORIES
        if change == "no data":
            data[:, [0, 2]] = np.nan
        elif change == "constant":
            data[:, [0, 2]] = 1
        elif change == "far samples":
            samples[:, [0, 2]] *= 1e9
        elif change == "no categories":
            categories = {}
        else:
            count = 1
        corner(data[:, :count], samples[:, :count], NAMES[:count], categories)
        mixed_plots.marginals(data[:, :count], samples[:, :count], NAMES[:count], categories).savefig(io.BytesIO())


class TestMarginals:
    def test_shares_of_cells(self):
        data = table()
        figure = mixed_plots.marginals(data, table(400, 1), NAMES, CATEGORIES, ("price",))
        size, kind, price, grade = figure.axes
        assert size.get_title() == "missing: data 10.0%, samples 7.5%"
        assert price.get_title() == "at most 0: data 2.0%, samples 1.5%"
        assert price.get_xscale() == "log"
        heights = [bar.get_height() for bar in grade.patches]
        np.testing.assert_allclose(heights[:3], [(data[:, 3] == 0).mean(), (data[:, 3] == 1).mean(), 0.05])
        assert sum(heights[3:]) == pytest.approx(1)
        assert [label.get_text() for label in kind.get_xticklabels()] == ["a", "b", "c"]

    def test_the_largest_of_many_categories(self):
        codes = np.repeat(np.arange(40.0), np.arange(1, 41))[:, None]
        figure = mixed_plots.marginals(codes, codes, ["c"], {"c": [f"name {k}" for k in range(40)]})
        labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        assert (labels[0], labels[-1], len(labels)) == ("name 39", "others", 12)
        assert figure.axes[0].patches[11].get_height() == pytest.approx(sum(range(30)) / 820)

    def test_dates(self):
        days = np.datetime64("2021-03-01").astype(int) + np.arange(700.0)[:, None]
        figure = mixed_plots.marginals(days, days, ["day"], {}, dates=["day"])
        figure.savefig(io.BytesIO())
        assert {"2022", "Jul"} & {label.get_text() for label in figure.axes[0].get_xticklabels()}

    def test_of_many_columns(self):
        x = np.random.default_rng(0).normal(size=(50, 45))
        figure = mixed_plots.marginals(x, x, [f"x{i}" for i in range(45)], {})
        assert len(figure.axes) == 40
        assert texts(figure)[1] == "40 of 45 columns"


class TestOddest:
    def test_the_surprising_cells_are_marked(self):
        figure = mixed_plots.oddest([["1.5", "a"], ["", "b"]], ["size", "kind"], ["7", "9"], [0.0, 0.25], [1, 0])
        cells = figure.axes[0].tables[0].get_celld()
        assert [cells[1, j].get_text().get_text() for j in range(4)] == ["7", "0", "1.5", "a"]
        assert cells[2, 2].get_text().get_text() == "missing"
        marked = {at for at, cell in cells.items() if cell.get_text().get_fontweight() == "bold"}
        assert marked == {(1, 3), (2, 2)}

    def test_marked_columns_of_a_wide_table(self):
        columns = [f"x{i}" for i in range(50)]
        figure = mixed_plots.oddest([columns] * 2, columns, ["0", "1"], [0, 0], [49, 30])
        cells = figure.axes[0].tables[0].get_celld()
        head = [cells[0, j].get_text().get_text() for j in range(2, 14)]
        assert head == [*columns[:10], "x30", "x49"]
        assert "12 of 50 columns" in figure.axes[0].get_title()
