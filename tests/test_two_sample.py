"""Figures of samples next to rows: what they are for equal distributions, and for known differences."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from cnf.tables.columns import Column
from train_flows.evaluation import two_sample
from train_flows.evaluation.wording import describe_coverage, quality_table

COLUMNS = [
    Column("size", kind="positive", scale="log", low=0, step=0.1, atoms=(-1.0,)),
    Column("share", gaps=True),
    Column("kind", kind="category", categories=("a", "b", "c"), gaps=True),
    Column("old", kind="category", categories=("False", "True")),
    Column("day", kind="date", first="2024-01-01"),
]


def table(n, seed, correlation=0.8):
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], n)
    frame = pd.DataFrame({"size": np.exp(z[:, 0]).round(1) + 0.1, "share": z[:, 1]})
    frame["kind"] = np.array(["a", "b", "c"])[np.digitize(z.sum(1), [-1, 2])]
    frame["old"] = z[:, 1] > 0
    frame["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, n), unit="D")
    frame.loc[rng.random(n) < 0.2, "share"] = np.nan
    frame.loc[rng.random(n) < 0.1, "kind"] = None
    return frame


def judge(samples, test, train=None):
    return two_sample.judge(samples, test, table(500, 9) if train is None else train, COLUMNS, 0)


class TestCells:
    def test_values_codes_days_and_gaps(self):
        frame = table(2, 0)
        frame.loc[0] = [0.5, math.nan, "b", True, pd.Timestamp("2024-01-03")]
        frame.loc[1] = [0.7, 2.0, "d", False, pd.Timestamp("2024-02-01")]
        np.testing.assert_allclose(
            two_sample.to_cells(frame, COLUMNS), [[0.5, math.nan, 1, 1, 2], [0.7, 2.0, -1, 0, 31]]
        )

    def test_whole_numbers_as_categories_with_gaps(self):
        column = Column("class", kind="category", categories=("1", "2"), gaps=True)
        cells = two_sample.to_cells(pd.DataFrame({"class": [2.0, math.nan, 1.0]}), [column])
        np.testing.assert_array_equal(cells[:, 0], [1, math.nan, 0])


class TestColumnDistance:
    def test_of_shifted_normals(self):
        x = norm.ppf((np.arange(4000) + 0.5) / 4000)
        found = two_sample.column_distance(x + 0.5, x, False, np.random.default_rng(0))
        assert found["measure"] == "KS"
        assert found["distance"] == pytest.approx(2 * norm.cdf(0.25) - 1, abs=1e-3)
        assert found["missing"] == found["missing_chance"] == 0

    def test_of_shares_and_gaps(self):
        a = np.array([0] * 5 + [1] * 5 + [math.nan] * 10)
        b = np.array([0] * 2 + [1] * 4 + [2] * 4)
        found = two_sample.column_distance(a, b, True, np.random.default_rng(0))
        assert found["distance"] == pytest.approx(0.4)
        assert found["missing"] == pytest.approx(0.5)

    @pytest.mark.parametrize("is_category", [True, False])
    def test_chance_is_exceeded_by_equal_distributions_in_one_case_of_twenty(self, is_category):
        rng = np.random.default_rng(0)
        x = rng.integers(0, 4, (300, 140)).astype(float) if is_category else rng.normal(size=(300, 140))
        found = [two_sample.column_distance(row[:80], row[80:], is_category, rng) for row in x]
        assert 0.01 < np.mean([one["distance"] > one["chance"] for one in found]) < 0.09

    def test_a_column_without_values(self):
        found = two_sample.column_distance(np.full(5, math.nan), np.zeros(5), False, np.random.default_rng(0))
        assert (found["distance"], found["missing"]) == (None, 1.0)


class TestClassifier:
    def test_equal_distributions_are_at_a_half(self):
        found = judge(table(2000, 1), table(400, 2))["classifier"]
        assert (found["rows"], found["repeats"]) == (400, 3)
        assert abs(found["accuracy"] - 0.5) < 4 * found["standard_error"] < 0.1

    def test_dependence_is_seen_where_marginals_are_right(self):
        samples = table(2000, 1)
        samples["share"] = samples["share"].sample(frac=1, random_state=0).to_numpy()
        found = judge(samples, table(400, 2))
        assert all(column["distance"] < column["chance"] for column in found["columns"])
        assert found["classifier"]["accuracy"] > 0.65
        assert abs(found["classifier_train"]["accuracy"] - 0.5) < 0.08

    def test_no_more_rows_than_the_smaller_set(self):
        found = judge(table(30, 1), table(400, 2))["classifier"]
        assert (found["rows"], found["repeats"]) == (30, 1)
        assert 0.03 < found["standard_error"] < 0.09
        assert judge(table(5, 1), table(400, 2))["classifier"]["accuracy"] is None

    def test_many_categories(self):
        rng = np.random.default_rng(0)
        x = rng.integers(0, 5000, (2000, 1)).astype(float)
        found = two_sample.classifier_test(x[:1000], x[1000:], [True], 0)
        assert abs(found["accuracy"] - 0.5) < 0.05


def test_cells_that_their_columns_cannot_hold():
    samples = table(10, 1)
    assert two_sample.violations(two_sample.to_cells(samples, COLUMNS), COLUMNS) == {"share": 0.0, "columns": {}}
    samples["size"] = samples["size"].astype(float)
    samples.loc[0, "size"] = -1.0  # an atom
    samples.loc[1, "size"] = -2.0
    samples.loc[1, "kind"] = "d"
    samples.loc[2, "day"] = pd.NaT
    samples.loc[3, "share"] = math.inf
    found = two_sample.violations(two_sample.to_cells(samples, COLUMNS), COLUMNS)
    assert found == {"share": 0.3, "columns": {"size": 0.1, "share": 0.1, "kind": 0.1, "day": 0.1}}


class TestPrivacy:
    def test_a_model_that_memorises(self):
        train, test = table(500, 3), table(100, 4)
        found = judge(train.sample(300, replace=True, random_state=0).astype({"share": "float32"}), test, train)
        assert found["privacy"]["duplicates"] == 1
        assert found["privacy"]["test_duplicates"] < 0.02  # rounded rows with gaps that are alike by chance
        assert found["privacy"]["distance_ratio"] < 1e-6
        assert abs(found["classifier"]["accuracy"] - 0.5) < 0.15  # which does not see it

    def test_new_rows_of_one_distribution(self):
        found = judge(table(500, 3), table(500, 4))["privacy"]
        assert max(found["duplicates"], found["test_duplicates"]) < 0.02
        assert found["distance_ratio"] == pytest.approx(1, abs=0.1)

    def test_recorded_values_are_equal_whatever_their_last_bits(self):
        columns = [Column("a", step=0.1, origin=0.05)]
        train, rng = np.array([[0.05], [0.35]]), np.random.default_rng(0)
        found = two_sample.privacy(0.05 + np.array([[0.1 * 3], [0.2]]), train, train, columns, rng)
        assert (found["duplicates"], found["test_duplicates"]) == (0.5, 1)
        assert found["distance_ratio"] is None


class TestCoverage:
    def test_uniform_ranks(self):
        found = two_sample.coverage((np.arange(1000) + 0.5) / 1000)
        assert found["ks"] == pytest.approx(0.0005)
        assert [one["share"] for one in found["within"].values()] == [0.5, 0.8, 0.95]
        assert found["within"]["80%"]["standard_error"] == pytest.approx(math.sqrt(0.16 / 1000))

    def test_ranks_of_a_model_that_is_too_sure(self):
        x = np.random.default_rng(0).normal(size=4000)
        found = two_sample.coverage(norm.cdf(2 * np.append(x, math.nan)))  # half the standard deviation
        assert found["values"] == 4000
        assert found["ks"] > 5 * found["chance"]
        assert found["within"]["95%"]["share"] == pytest.approx(2 * norm.cdf(0.98) - 1, abs=0.03)

    def test_no_ranks(self):
        found = two_sample.coverage(np.full(3, math.nan))
        assert found["ks"] is None
        assert describe_coverage(found) == "- (no values)"

    def test_in_words(self):
        words = describe_coverage(two_sample.coverage((np.arange(1000) + 0.5) / 1000))
        assert words.startswith("50.0% +- 1.6% in central 50%, 80.0% +- 1.3% in central 80%, 95.0%")


def test_the_table_has_a_line_for_each_column_and_figure():
    found = judge(table(400, 1, correlation=-0.8), table(400, 2))
    lines = quality_table(found).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == [column.name for column in COLUMNS]
    assert "KS" in lines[1]
    assert "*" in lines[3]  # the category depends on the correlation
    assert f"accuracy {found['classifier']['accuracy']:.3f}" in lines[6]
    assert "0.00% of 400 samples" in lines[7]
    many = {**found, "columns": [{**column, "name": f"x{i}"} for i in range(6) for column in found["columns"]]}
    assert "(12 of 30 columns, those that differ most)" in quality_table(many)
