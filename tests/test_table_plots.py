"""Figures of tables: the columns they show, and what a reader can tell apart."""

import io

import numpy as np
import pytest

from train_flows.figures import table_plots

NAMES = [f"column_{i}" for i in range(40)]


def table(n=300, d=4, shift=0.0):
    return np.random.default_rng(0).normal(size=(n, d)) + shift


class TestCorner:
    def test_data_and_samples_are_in_one_triangle(self):
        figure = table_plots.corner({"data": table(), "samples": table(shift=0.5)}, NAMES)
        assert len(figure.axes) == 10  # 4 marginals and 6 pairs
        (pair,) = [axes for axes in figure.axes if (axes.get_xlabel(), axes.get_ylabel()) == ("column_0", "column_3")]
        means = {}
        for dots in pair.collections:
            shape = dots.get_paths()[0].vertices.tobytes()
            means.setdefault((tuple(dots.get_facecolor()[0]), shape), []).append(np.asarray(dots.get_offsets()))
        assert len(means) == 2
        data, samples = (np.concatenate(parts) for parts in means.values())
        assert len(data) == len(samples) == 300
        np.testing.assert_allclose(samples.mean(0) - data.mean(0), 0.5)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["data (300)", "samples (300)"]
        assert figure.legends[0].get_title().get_text() == ""

    def test_the_edges_have_numbers(self):
        figure = table_plots.corner({"data": 1e6 * table(), "samples": 1e6 * table()}, NAMES)
        figure.savefig(io.BytesIO())
        for axes in figure.axes:
            has_numbers = [any(label.get_text() for label in axes.get_xticklabels() if label.get_visible())]
            assert has_numbers == [bool(axes.get_xlabel())]

    @pytest.mark.parametrize(("d", "shown"), [(1, 1), (2, 2), (7, 7), (8, 6), (30, 6)])
    def test_all_of_few_columns_and_six_of_many(self, d, shown):
        figure = table_plots.corner({"samples": table(2000, d)}, NAMES)
        assert len(figure.axes) == shown * (shown + 1) / 2
        note = figure.legends[0].get_title().get_text()
        assert (f"6 of {d} columns: the 3 pairs that depend most on each other" in note) == (d > 7)
        assert ("1,000 points of each" in note) == (d > 1)

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("unit", [1e-22, 1e25])
    def test_any_unit_and_a_rare_value(self, unit):
        x = unit * table()
        x[:, 1] = np.arange(300) == 7
        table_plots.corner({"data": x.astype(np.float32), "samples": x.astype(np.float32)}, NAMES).savefig(io.BytesIO())

    @pytest.mark.filterwarnings("error")
    def test_samples_out_of_range(self):
        table_plots.corner({"data": table(), "samples": table(shift=1e6)}, NAMES).savefig(io.BytesIO())


class TestDependentPairs:
    def test_lines_and_parabolas_come_first(self):
        x = table(500, 9)
        x[:, 7] = np.exp(x[:, 2]) + 0.01 * x[:, 7]
        x[:, 0] = x[:, 4] ** 2 + 0.1 * x[:, 0]
        x[:, 8] = 0.8 * x[:, 1] + x[:, 8]
        pairs = table_plots.dependent_pairs(x)
        assert [set(pair) for pair in pairs.tolist()] == [{2, 7}, {0, 4}, {1, 8}]

    def test_a_constant_depends_on_nothing(self):
        x = table(100, 8)
        x[:, 3] = 1
        x[:, 5] = x[:, 6]
        pairs = table_plots.dependent_pairs(x)
        assert set(pairs[0].tolist()) == {5, 6}
        assert 3 not in pairs


def test_samples_alone():
    x = table(100, 3)
    assert [len(table_plots.samples(x[:, :d], NAMES).axes) for d in (1, 2, 3)] == [1, 1, 6]
    assert table_plots.samples(x[:, :2], NAMES).axes[0].get_title() == "100 samples"
