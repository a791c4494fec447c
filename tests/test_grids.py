"""Grids of recorded values: which columns have one, its step and bounds, and the way back."""

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets

from train_flows.data.grids import Grid, find_grid

N = 1000


def draws():
    return np.random.default_rng(0)


def single(x):
    """Return numbers as a file of single precision holds them."""
    return x.astype(np.float32).astype(np.float64)


COUNTS = draws().poisson(3, N).astype(float)
TENTHS = draws().integers(0, 20, N)
HALF = np.where(draws().random(N) < 0.5, TENTHS / 10, single(TENTHS.astype(np.float32) * np.float32(0.1)))
STRAY = np.where(np.arange(N) == 5, TENTHS / 10 + 3e-4, TENTHS / 10)
CHARACTER = (COUNTS - COUNTS.mean()) / COUNTS.std()


class TestFound:
    @pytest.mark.parametrize(
        ("values", "grid"),
        [
            (COUNTS, Grid(1.0, 0.0, 0.0, None)),
            (draws().integers(0, 2, N).astype(float), Grid(1.0, 0.0, 0.0, 1.0)),
            ((draws().random(N) < 0.005).astype(float), Grid(1.0, 0.0, 0.0, 1.0)),
            (np.round(draws().normal(50, 1, N), 1), Grid(0.1, 0.0)),
            (0.5 * draws().integers(1, 6, N), Grid(0.5, 0.0, 0.5, 2.5)),
            (2.0 * draws().integers(0, 9, N) + 1, Grid(2.0, 1.0, 1.0, 17.0)),
            (TENTHS * 0.1, Grid(0.1, 0.0, 0.0, 1.9)),
            (HALF, Grid(0.1, 0.0, 0.0, 1.9)),
            (STRAY, Grid(0.1, 0.0, 0.0, 1.9)),
            (draws().choice([0.0, 2.0, 5.0, 7.0], N), Grid(1.0, 0.0, 0.0, 7.0)),  # no gap is the step
            (500 * np.round(draws().lognormal(10, 1, N) / 500), Grid(500.0, 0.0)),
        ],
        ids=["counts", "yes-no", "rare", "0.1", "halves", "odd", "k*0.1", "half single", "stray", "gcd", "hundreds"],
    )
    def test_step_origin_and_bounds(self, values, grid):
        found = find_grid(values)
        assert found is not None
        assert (found.low, found.high) == pytest.approx((grid.low, grid.high))
        assert found.step == pytest.approx(grid.step, rel=1e-6)
        assert (found.origin / found.step - grid.origin / grid.step) % 1 == pytest.approx(0, abs=1e-6)

    def test_of_any_unit(self):
        found = find_grid(CHARACTER)
        assert found is not None
        assert found.step == pytest.approx(1 / COUNTS.std())
        np.testing.assert_allclose(found.nearest(CHARACTER), CHARACTER, atol=1e-9)
        scaled = find_grid(1e-22 * COUNTS)
        assert scaled is not None
        assert scaled.step == pytest.approx(1e-22)

    def test_columns_of_iris(self):
        for values in datasets.load_iris().data.T:
            grid = find_grid(values)
            assert grid is not None
            assert grid.step == 0.1


class TestNotFound:
    @pytest.mark.parametrize("n", [20, 200, 20_000])
    @pytest.mark.parametrize("rounded", [np.asarray, single])
    def test_real_numbers(self, n, rounded):
        rng = draws()
        for values in (rng.normal(size=n), rng.standard_cauchy(n), rng.lognormal(3, 4, n), 1.7e9 + 600 * rng.random(n)):
            if rounded is single and values[0] > 1e9:
                continue  # those are on a grid of 128
            assert find_grid(rounded(values)) is None

    @pytest.mark.parametrize(
        "values",
        [
            np.zeros(N),
            np.where(np.arange(N) == 3, 1e6, 0.0),
            np.where(draws().random(N) < 0.6, 0.0, draws().normal(size=N)),
            np.round(draws().lognormal(10, 1, N)),  # whole numbers, but hardly any twice
            np.round(draws().normal(0, 1, N), 4),
        ],
        ids=["constant", "outlier", "many zeros", "sparse", "fine"],
    )
    def test_no_plain_grid(self, values):
        assert find_grid(values) is None

    def test_a_few_arbitrary_values(self):
        rng = draws()
        assert not any(find_grid(rng.choice(rng.normal(size=rng.integers(4, 30)), N)) for _ in range(50))

    @pytest.mark.parametrize("name", ["protein", "parkinsons"])
    def test_real_tables(self, real_data, name):
        frame = pd.read_csv(real_data / "tabular" / f"{name}.csv.gz", header=None)
        assert all(find_grid(frame[column].to_numpy()) is None for column in frame)


class TestNearest:
    def test_values_of_the_grid_within_bounds(self):
        x = np.array([-0.4, 1.59, 2.5001, 7.0])
        np.testing.assert_array_equal(Grid(1.0, 0.0, low=0.0).nearest(x), [0, 2, 3, 7])
        np.testing.assert_array_equal(Grid(1.0, 0.0, 0.0, 1.0).nearest(x), [0, 1, 1, 1])
        assert not np.signbit(Grid(1.0, 0.0).nearest(np.array([-0.1]))).any()

    def test_decimals_are_plain(self):
        x = np.arange(-50, 50) / 10
        assert (Grid(0.1, 0.0).nearest(x + 0.04) == x).all()
        assert (Grid(0.25, 0.05).nearest(np.array([0.31, 0.92])) == [0.3, 0.8]).all()

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_it_undoes_noise(self, dtype):
        rng = draws()
        for values in (COUNTS, HALF, CHARACTER, np.round(rng.normal(50, 1, N), 1)):
            grid = find_grid(values)
            assert grid is not None
            noisy = (values + grid.step * rng.uniform(-0.499, 0.499, N)).astype(dtype)
            np.testing.assert_allclose(grid.nearest(noisy), values, atol=1e-6)
