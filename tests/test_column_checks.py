"""Checks of columns: what is refused, and notes with the names, the cause and the remedy."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import datasets

from anode import InputError
from train_flows.data import load_density_data, load_labelled_data
from train_flows.data.column_checks import scale_notes

N = 1000


@pytest.fixture
def z():
    return np.random.default_rng(0).normal(size=(N, 3))


@pytest.fixture
def notes(tmp_path):
    """Write columns to a file and return the notes on them."""

    def load(columns, **options):
        frame = pd.DataFrame(columns if isinstance(columns, dict) else dict(zip("abcdefgh", columns.T, strict=False)))
        frame.to_csv(tmp_path / "t.csv", index=False)
        return load_density_data(str(tmp_path / "t.csv"), **options).notes

    return load


def test_normal_columns_of_any_unit_have_no_notes(z, notes):
    for unit in (1e-22, 1.0, 1e18, 1e37):
        assert notes(unit * z) == ()
    assert notes(1e-60 * z, dtype=torch.float64) == ()
    assert notes(1e200 * z, dtype=torch.float64) == ()


def test_one_column(z, notes):
    assert notes(z[:, :1]) == ()


class TestGrids:
    def test_a_note_names_columns_and_steps(self, z, notes):
        (note,) = notes({"a": z[:, 0], "children": np.round(3 * z[:, 1] ** 2), "length": np.round(z[:, 2], 1)})
        assert note.startswith("children (1), length (0.1): on a grid of the step in brackets; uniform noise")
        assert "--no-jitter" in note
        (note,) = notes({"a": z[:, 0], "length": np.round(z[:, 2], 1)}, jitter=False)
        assert note.startswith("length (0.1): on a grid of the step in brackets, and no noise is added")

    @pytest.mark.parametrize("name", ["iris", "wine"])
    def test_rounded_columns_are_no_reason_to_drop_them(self, notes, name):
        bunch = getattr(datasets, f"load_{name}")()
        (note,) = notes(dict(zip(bunch.feature_names, bunch.data.T, strict=True)))
        assert "on a grid" in note
        assert "drop" not in note

    def test_few_values_of_no_grid(self, z, notes):
        (note,) = notes({"a": z[:, 0], "b": np.random.default_rng(1).choice(z[:30, 1], N)})
        assert note.startswith("b: few distinct values, so the likelihood can grow without limit")

    def test_one_value_of_many_rows(self, z, notes):
        z[:60, 0] = 0.25
        (note,) = notes(z, jitter=False)
        assert note.startswith("a: one value is far too common")


def test_contexts_have_notes_on_their_scale_and_digits(z, notes):
    t = 1.7e9 + 600 * np.random.default_rng(0).random(N)
    far, outlier = {"y": z[:, 0], "t": t}, {"y": z[:, 0], "c": np.where(np.arange(N) == 17, 1e6, z[:, 1])}
    (note,) = notes(far, given=("t",))
    assert note.startswith("t: far from zero for its spread: single precision keeps 6 of 800 distinct values of t")
    assert notes(far, given=("t",), dtype=torch.float64) == ()
    (note,) = notes(outlier, given=("c",))
    assert note.startswith("c: a few rows set the standard deviation")


class TestScale:
    @pytest.mark.parametrize(
        "heavy",
        [
            lambda z: np.where(np.arange(N) == 17, 1e6, z),
            lambda z: np.exp(4 * z),
            lambda _: 10 ** np.random.default_rng(1).uniform(-6, 6, N),
            lambda _: np.random.default_rng(1).standard_cauchy(N),
        ],
        ids=["outlier", "log-normal", "log-uniform", "Cauchy"],
    )
    def test_set_by_a_few_rows(self, z, notes, heavy):
        z[:, 1] = heavy(z[:, 1])
        (note,) = notes(z)
        assert note.startswith("b: a few rows set the standard deviation; take the logarithm, clip")

    @pytest.mark.parametrize("tame", [np.abs, np.exp, lambda z: z**3, lambda z: np.where(z > 2, 5, z)])
    def test_moderate_tails(self, z, notes, tame):
        z[:, 1] = tame(z[:, 1])
        assert notes(z) == ()

    @pytest.mark.parametrize("code", [99.0, -99.0, 0.0])
    def test_codes_of_missing_values(self, z, notes, code):
        catalogue = {"z": z[:, 0], "g": 22 + z[:, 1], "u": np.where(np.arange(N) % 33 == 0, code, 23 + z[:, 2])}
        (note,) = notes(catalogue)
        assert note.startswith(f"u: {code:g} in ")
        assert "of the rows is far from all other values" in note

    @pytest.mark.parametrize(("rows", "noted"), [(4, False), (5, True)])
    def test_a_code_has_five_rows(self, z, rows, noted):
        z = z[:500]
        z[:rows, 1] = 99
        assert ("is far from all other values" in "".join(scale_notes(z, ("a", "b", "c"))[1])) == noted

    def test_a_code_of_many_rows_is_one_note(self, z, notes):
        z[::9, 1] = 99
        (note,) = notes(z, jitter=False)
        assert note.startswith("b: 99 in 11")

    def test_codes_at_both_ends_and_on_a_grid(self, z, notes):
        age = np.random.default_rng(0).integers(18, 90, N)
        age[::40], age[1::40] = 999, -1000
        _, *found = notes({"a": z[:, 0], "age": age})
        assert [note.split(" in ")[0] for note in found] == ["age: 999", "age: -1000"]

    def test_a_code_of_many_columns_is_one_note(self, notes):
        x = np.random.default_rng(0).normal(size=(N, 30))
        x[np.random.default_rng(1).random(x.shape) < 0.03] = -999
        (note,) = notes({f"c{i}": values for i, values in enumerate(x.T)})
        assert note.startswith("c0, c1, c2, c3, c4, c5, c6, c7, ...: -999 in up to ")

    def test_a_rare_yes_is_none(self, z, notes):
        (note,) = notes({"a": z[:, 0], "rare": 1 * (np.arange(N) % 50 == 0)}, jitter=False)
        assert note.startswith("rare (1): on a grid")


class TestDependence:
    @pytest.mark.parametrize(
        "made",
        [lambda a, b: a**2, lambda a, b: np.sin(2 * a), lambda a, b: a * b, lambda a, b: a**2 + b**2 + a],
        ids=["square", "sine", "product", "sum of squares"],
    )
    def test_functions_of_other_columns(self, z, notes, made):
        (note,) = notes(np.column_stack([z, made(z[:, 0], z[:, 1])]))
        assert note.startswith("d: almost a function of other columns, so the likelihood can grow without limit")
        noise = 0.05 * np.random.default_rng(1).normal(size=N)
        assert notes(np.column_stack([z, made(z[:, 0], z[:, 1]) + noise])) == ()

    def test_rounded_ones_are_none(self, z, notes):
        (note,) = notes({"a": z[:, 0], "b": z[:, 1], "tenths": np.round(10 * z[:, 0])})
        assert note.startswith("tenths (1): on a grid")

    def test_names_are_cut(self, z, notes):
        (note,) = notes({f"r{i}": z[:, i % 2] for i in range(24)})
        assert note.startswith("r0, r1, r2, r3, r4, r5, r6, r7, ...: almost linear in other columns")

    def test_wide_tables(self, notes):
        (note,) = notes({f"c{i}": x for i, x in enumerate(np.random.default_rng(0).normal(size=(120, 100)))})
        assert note == "fewer training rows (80) than columns (120), which do not determine a covariance"

    def test_protein(self, real_data):
        first, second = load_density_data(str(real_data / "tabular" / "protein.csv.gz")).notes
        assert first.startswith("x1: almost a function")  # x1 is the product of x0 and x2, but for offsets
        assert second == "286 of 4573 test rows are training rows too"


FAR = {
    "unix": lambda z: {"t": 1.7e9 + 600 * np.random.default_rng(1).random(N), "v": z[:, 0]},
    "julian": lambda z: {"t": 2459000.5 + 3 * np.random.default_rng(1).random(N), "v": z[:, 0]},
    "ra": lambda z: {"t": 150.1 + 1e-6 * z[:, 0], "v": 2.2 + 1e-6 * z[:, 1]},
    "nearly constant": lambda z: {"t": 1 + 1e-9 * z[:, 0], "v": z[:, 1]},
}


class TestPrecision:
    @pytest.mark.parametrize("name", FAR)
    def test_double_precision_is_kept_from_the_file_on(self, z, notes, tmp_path, name):
        columns = FAR[name](z)
        assert notes(columns, dtype=torch.float64) == ()
        data = load_density_data(str(tmp_path / "t.csv"), dtype=torch.float64)
        joined = torch.cat([part.x for part in (data.train, data.validation, data.test)])
        assert sorted(joined[:, 0].tolist()) == sorted(columns["t"].tolist())

    @pytest.mark.parametrize("name", ["unix", "julian", "ra"])
    def test_single_precision_loses_digits(self, z, notes, name):
        (note,) = notes(FAR[name](z))
        assert "far from zero for its spread: single precision keeps" in note
        assert note.endswith("subtract an offset, or pass --dtype float64")

    @pytest.mark.parametrize(
        ("column", "dtype", "message"),
        [
            (lambda z: 0 * z + 5, torch.float32, "b is constant and does not have a density: drop"),
            (lambda z: 1 + 1e-9 * z, torch.float32, "b is constant in single precision: .* --dtype float64"),
            (lambda z: 1e-60 * z, torch.float32, "b is constant in single precision: .* --dtype float64"),
            (lambda z: 1e45 * z, torch.float32, "b is too large for single precision: rescale"),
            (lambda z: 0 * z + 5, torch.float64, "b is constant and does not have a density: drop"),
        ],
    )
    def test_columns_without_a_density(self, z, notes, column, dtype, message):
        z[:, 1] = column(z[:, 1])
        with pytest.raises(InputError, match=message) as caught:
            notes(z, dtype=dtype)
        assert "\n" not in str(caught.value)

    def test_columns_of_classifiers(self, z, tmp_path):
        frame = pd.DataFrame({**FAR["unix"](z), "kind": ["a", "b"] * (N // 2)})
        frame.loc[3, "v"] = 1e6
        frame.to_csv(tmp_path / "t.csv", index=False)
        data = load_labelled_data(str(tmp_path / "t.csv"), target="kind", dtype=torch.float64)
        assert data.train.x.dtype == torch.float64
        assert len(data.train.x[:, 0].unique()) == 800
        assert [note.split(":")[0] for note in data.notes] == ["v"]
        single = load_labelled_data(str(tmp_path / "t.csv"), target="kind")
        assert [note.split(":")[0] for note in single.notes] == ["v", "t"]
