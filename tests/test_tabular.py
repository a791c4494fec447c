"""Tables as data sets: splits, warnings, jitter, contexts, classes, and large files that stay on disk."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from train_flows.data import load_density_data, load_labelled_data, tables, tabular


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(200, 3)) * [1, 1000, 1e-3]


def write(path, x, columns="abc"):
    pd.DataFrame(x, columns=list(columns)).to_csv(path, index=False)
    return str(path)


def density(*args, **kwargs):
    return load_density_data(*map(str, args), **kwargs)


class TestSplit:
    @given(st.integers(20, 400), st.integers(0, 5))
    @settings(deadline=None, max_examples=15)
    def test_is_a_partition(self, tmp_path_factory, n, seed):
        path = tmp_path_factory.mktemp("split") / "t.npy"
        np.save(path, np.stack([np.arange(n), np.arange(n) ** 2], 1).astype(float))
        data, again = density(path, seed=seed), density(path, seed=seed)
        joined = torch.cat([part.x for part in (data.train, data.validation, data.test)])
        assert sorted(joined[:, 0].tolist()) == list(range(n))
        assert len(data.test) == len(data.validation) == n // 10
        assert data.digest() == again.digest()

    def test_npz_of_three_parts_keeps_its_own(self, tmp_path, x):
        np.savez(tmp_path / "t.npz", train=x[:100], validation=x[100:150], test=x[150:])
        for split in (True, False):
            data = density(tmp_path / "t.npz", split=split)
            np.testing.assert_allclose(data.test.x, x[150:].astype(np.float32))
            assert len(data.train) == (100 if split else 0)
        np.testing.assert_allclose(density(tmp_path / "t.npz").train.x, x[:100].astype(np.float32))

    def test_none(self, tmp_path, x):
        data = density(write(tmp_path / "t.csv", x[:5]), split=False)
        assert [len(part) for part in (data.train, data.validation, data.test)] == [0, 0, 5]
        np.testing.assert_allclose(data.test.x, x[:5].astype(np.float32))


def test_contexts_are_columns_that_are_given(tmp_path, x):
    x[:, 0] = 1  # constant, which a context may be
    data = density(write(tmp_path / "t.csv", x), given=("c", "a"))
    assert (data.columns, data.context, data.shape) == (("b",), ("c", "a"), (1,))
    b, c = data.train.batch(torch.tensor([3, 1]))
    assert (b.shape, c.shape, c.dtype) == ((2, 1), (2, 2), torch.float32)
    row = np.flatnonzero(x[:, 1].astype(np.float32) == b[0].item())
    np.testing.assert_allclose(c[0], x[row, [2, 0]], rtol=1e-6)
    refused("--given d is not a column of .*t.csv: choose one of a, b, c", density, tmp_path / "t.csv", given=["d"])
    refused("--given a b c leaves no column of .*t.csv", density, tmp_path / "t.csv", given=("a", "b", "c"))
    refused("--given a is typed more than once", density, tmp_path / "t.csv", given=("a", "b", "a"))


class TestColumns:
    """Columns of tables; test_column_checks.py has the notes."""

    def few(self, tmp_path):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(1000, 3))
        x[:, 1] = rng.integers(5, size=1000) * 0.5
        return write(tmp_path / "t.csv", x)

    def test_beyond_single_precision_in_the_test_part(self, tmp_path, x):
        far = x.copy()
        far[0, 0] = 1e39
        np.savez(tmp_path / "t.npz", train=x, validation=x, test=far)
        refused("x0 is too large", density, tmp_path / "t.npz")

    def test_that_follow_from_others(self, tmp_path):
        x = np.random.default_rng(0).normal(size=(1000, 4))
        x[:, 3] = x[:, 0] - 2 * x[:, 1] + 1e-3 * x[:, 3]
        (note,) = density(write(tmp_path / "t.csv", x, "abcd")).notes
        assert note.startswith("a, b, d: almost linear in other columns")
        x[:, 3] = x[:, 0] - 2 * x[:, 1] + 0.1 * np.random.default_rng(1).normal(size=1000)
        assert not density(write(tmp_path / "t.csv", x, "abcd")).notes

    def test_rows_that_repeat(self, tmp_path):
        x = np.random.default_rng(0).normal(size=(1000, 3))
        x[:400] = x[400:800]
        data = density(write(tmp_path / "t.csv", x))
        seen = {tuple(row) for row in data.train.x.tolist()}
        count = sum(tuple(row) in seen for row in data.test.x.tolist())
        assert 0 < count < 100
        assert data.notes == (f"{count} of 100 test rows are training rows too",)

    def test_a_spike_has_a_probability(self, tmp_path, x):
        x[:50, 0] = 0
        plain, of_kinds = (density(write(tmp_path / "t.csv", x), jitter=jitter) for jitter in (False, True))
        assert torch.equal(plain.train.x, of_kinds.train.x.float())
        assert [column.atoms for column in of_kinds.kinds] == [(0.0,), (), ()]
        assert (plain.kinds, of_kinds.grids) == ((), {})

    def test_jitter_fills_the_gaps(self, tmp_path):
        path = self.few(tmp_path)
        plain, jittered, again, other = (
            density(path, jitter=jitter, seed=seed) for jitter, seed in ((False, 0), (True, 0), (True, 0), (True, 1))
        )
        assert (jittered.grids["b"].step, list(jittered.grids), plain.grids) == (0.5, ["b"], {})
        assert jittered.digest() == again.digest() != other.digest()
        for part in ("train", "validation", "test"):
            noise = (getattr(jittered, part).x - getattr(plain, part).x).numpy()
            assert (noise[:, [0, 2]] == 0).all()
            assert (noise[:, 1] != 0).mean() > 0.99
        noise = (jittered.train.x - plain.train.x).numpy()[:, 1]
        assert np.abs(noise).max() <= 0.25
        assert noise.std() == pytest.approx(0.5 / 12**0.5, rel=0.1)
        described = jittered.describe()
        assert described["grids"] == {"b": {"step": 0.5, "origin": 0.0, "low": 0.0, "high": 2.0}}

    @pytest.mark.parametrize("rows", [20, 200])
    def test_real_numbers_are_left_alone(self, tmp_path, x, rows):
        data = density(write(tmp_path / "t.csv", x[:rows]))
        assert (data.notes, data.grids) == ((), {})

    def test_that_are_never_negative(self, tmp_path, x):
        x[:, 1] = np.abs(x[:, 1])
        assert density(write(tmp_path / "t.csv", x)).describe()["from_zero"] == ["b"]


def test_real_tables(real_data):
    protein = density(real_data / "tabular" / "protein.csv.gz")
    assert protein.shape == (9,)
    assert len(protein.train) == 45_730 - 2 * 4_573
    assert density(real_data / "tabular" / "parkinsons.csv.gz").shape == (18,)
    climate = density(real_data / "climate" / "DailyDelhiClimateTrain.csv")
    assert climate.columns == ("date", "meantemp", "humidity", "wind_speed", "meanpressure")
    assert climate.kinds[0].kind == "date"


class TestClasses:
    def write(self, path, labels, **columns):
        x = np.random.default_rng(0).normal(size=len(labels))
        pd.DataFrame({"x": x, "kind": labels, "z": 2 * x, **columns}).to_csv(path, index=False)
        return str(path)

    @pytest.mark.parametrize(
        ("labels", "classes"),
        [
            (["b", "a", "NA"], ("NA", "a", "b")),
            ([10, 9, -1], ("-1", "9", "10")),
            ([1.0, 2.5, 0.0], ("0", "1", "2.5")),
            (["10", "9", "ten"], ("9", "10", "ten")),
            (["01", " none", "1e3"], ("01", "1e3", "none")),
            (["rød ", " grün", "青"], ("grün", "rød", "青")),
        ],
    )
    def test_names_and_order(self, tmp_path, labels, classes):
        data = load_labelled_data(self.write(tmp_path / "t.csv", labels * 10), target="kind")
        assert (data.classes, data.outputs, data.columns, data.is_table) == (classes, 3, ("x", "z"), True)
        x, y = data.train.batch(slice(None))
        assert (x.shape, y.shape, y.dtype) == ((24, 2), (24,), torch.int64)
        written = pd.read_csv(tmp_path / "t.csv", keep_default_na=False, dtype={"kind": str})
        names = dict(zip(written.x.astype(np.float32), written.kind.str.strip(), strict=True))
        for value, label in zip(x[:, 0].tolist(), y.tolist(), strict=True):
            assert classes[label] in (names[np.float32(value)], names[np.float32(value)].removesuffix(".0"))

    def test_of_other_formats(self, tmp_path, x):
        x[:, 1] = np.arange(200) % 4
        np.save(tmp_path / "t.npy", x)
        np.savez(tmp_path / "t.npz", train=x[:100], validation=x[100:150], test=x[150:])
        pd.DataFrame(x).rename(columns=lambda i: f"x{i}").astype({"x1": str}).to_parquet(tmp_path / "t.parquet")
        for suffix in ("npy", "npz", "parquet"):
            data = load_labelled_data(str(tmp_path / f"t.{suffix}"), target="x1")
            assert (data.classes, data.columns) == (("0", "1", "2", "3"), ("x0", "x2"))
        data = load_labelled_data(str(tmp_path / "t.npz"), target="x1")
        np.testing.assert_array_equal(data.test.y, np.arange(150, 200) % 4)

    @pytest.mark.parametrize(
        ("labels", "classes"),
        [
            (["7", "07", "007", "1e3", "1000"], ("007", "07", "7", "1000", "1e3")),
            (["01234", "1234"], ("01234", "1234")),
            (["9007199254740992", "9007199254740993"], ("9007199254740992", "9007199254740993")),
            (["1", "1.0", "1.", "2", "2.50", "2.5"], ("1", "2", "2.5", "2.50")),
            (["10", "1.0", "-2.0"], ("-2", "1", "10")),
        ],
    )
    def test_labels_equal_as_numbers_stay_apart(self, tmp_path, labels, classes):
        """Only a needless decimal point is dropped."""
        assert load_labelled_data(self.write(tmp_path / "t.csv", labels * 10), target="kind").classes == classes

    def test_large_whole_numbers_and_categories_of_other_formats(self, tmp_path):
        x = np.stack([np.arange(40), 2**53 + np.arange(40) % 2], axis=1)
        np.save(tmp_path / "t.npy", x)
        data = load_labelled_data(str(tmp_path / "t.npy"), target="x1")
        assert data.classes == ("9007199254740992", "9007199254740993")
        frame = pd.DataFrame(
            {"x": np.arange(40.0), "kind": pd.Categorical(["low", "high"] * 20, ["low", "high", "no"])}
        )
        frame.to_parquet(tmp_path / "t.parquet")
        assert load_labelled_data(str(tmp_path / "t.parquet"), target="kind").classes == ("high", "low")
        frame.loc[3, "kind"] = None
        frame.to_parquet(tmp_path / "t.parquet")
        refused("kind is empty in data row 4", load_labelled_data, str(tmp_path / "t.parquet"), target="kind")

    @pytest.mark.parametrize(
        ("labels", "target", "message"),
        [
            (["a", "b"] * 15, "sort", "--target sort is not a column of .*: choose one of x, kind, z$"),
            (["a", "b"] * 15, "knd", r"choose one of x, kind, z \(did you mean kind\?\)"),
            (["a", "b"] * 15, None, "--target is missing: choose one of x, kind, z"),
            (["a"] * 30, "kind", r"one class only \(a\)"),
            ([*range(30)], "kind", "30 distinct values in 30 rows, which are not classes: pass --task regression"),
            ([f"id {i}" for i in range(30)], "kind", "which are not classes: choose another column"),
            (["a", ""] * 15, "kind", "kind is empty in data row 2"),
            (["1", "nan"] * 15, "kind", "kind is empty in data row 2"),
            (["a", "b"], "kind", "2 distinct values in 2 rows|2 rows: at least 20"),
            (["a", "b"] * 15, "z", "z holds 30 distinct values in 30 rows, .* --task regression"),
        ],
    )
    def test_refused(self, tmp_path, labels, target, message):
        refused(message, load_labelled_data, self.write(tmp_path / "t.csv", labels), target=target)

    def test_without_a_split_anything_goes(self, tmp_path):
        data = load_labelled_data(self.write(tmp_path / "t.csv", ["a"] * 3), target="kind", split=False)
        assert (data.classes, data.test.y.tolist(), len(data.train)) == (("a",), [0, 0, 0], 0)

    def test_a_constant_column_and_one_far_from_zero(self, tmp_path):
        path = self.write(tmp_path / "t.csv", ["a", "b"] * 20, one=1.0, far=1.7e9 + np.arange(40))
        (note,) = load_labelled_data(path, target="kind").notes
        assert note.startswith("far: far from zero")

    def test_scikit_learn(self):
        data = load_labelled_data("wine", seed=2)
        assert (data.outputs, data.shape, len(data.train), len(data.test)) == (3, (13,), 178 - 34, 17)
        assert load_labelled_data("breast-cancer").classes == ("malignant", "benign")


class TestRegression:
    def test_a_column_of_numbers_to_predict(self, tmp_path, x):
        path = write(tmp_path / "t.csv", x)
        data = load_labelled_data(path, target="b", task="regression", seed=3)
        assert (data.classes, data.outputs, data.columns, data.is_table) == ((), 1, ("a", "c"), True)
        assert [part.y.shape for part in (data.train, data.validation, data.test)] == [(160, 1), (20, 1), (20, 1)]
        rows = {tuple(row) for row in x.astype(np.float32).tolist()}
        for (a, c), b in zip(data.test.x.tolist(), data.test.y[:, 0].tolist(), strict=True):
            assert (a, b, c) in rows

    def test_refused(self, tmp_path, x):
        path = write(tmp_path / "t.csv", np.c_[x, np.ones(200)], "abcd")
        refused("d is constant: choose another column", load_labelled_data, path, target="d", task="regression")
        refused("--target is missing", load_labelled_data, path, task="regression")
        words = pd.DataFrame({"a": x[:, 0], "kind": ["a", "b"] * 100})
        words.to_csv(path, index=False)
        refused("column kind holds text", load_labelled_data, path, target="kind", task="regression")
        refused("column kind holds text", load_labelled_data, path, target="a", task="regression")
        refused("--task regression is for tables from files", load_labelled_data, "wine", task="regression")


class TestMapped:
    """A large NPY table stays on disk."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(tables, "MAPPED_BYTES", 0)
        monkeypatch.setattr(tabular, "CHUNK_ROWS", 700)
        monkeypatch.setattr(tabular, "MAX_HEAD", 300)

    @pytest.fixture
    def rows(self):
        """Rows in order, so that neighbours are alike; the last column counts them."""
        x = np.random.default_rng(0).normal(size=(5003, 3)) @ np.array([[1, 0.9, 0], [0, 0.1, 30], [0, 0, 5]])
        return np.column_stack([x[x[:, 0].argsort()], np.arange(len(x))])

    def save(self, path, x):
        np.save(path, x)
        return path

    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.int32])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_parts_are_disjoint_and_cover_the_table(self, tmp_path, rows, dtype, order):
        rows = np.asarray(rows.astype(dtype), order=order)
        data = density(self.save(tmp_path / "t.npy", rows), seed=3, jitter=False)
        assert data.train.mapped
        assert not data.test.mapped
        assert (data.columns, data.shape) == (("x0", "x1", "x2", "x3"), (4,))
        assert [len(part) for part in (data.train, data.validation, data.test)] == [5003 - 600, 300, 300]
        joined = torch.cat([data.train.batch(slice(None)), data.validation.x, data.test.x])
        assert joined.dtype == torch.float32
        np.testing.assert_array_equal(joined[joined[:, 3].argsort()], rows.astype(np.float32))
        assert data.test.x[:50, 3].std() > 1000  # from all over the table
        assert "300 each validate and test" in data.notes[0]

    def test_batches_and_heads(self, tmp_path, rows):
        train = density(self.save(tmp_path / "t.npy", rows)).train
        batch = train.batch(torch.tensor([7, 0]))
        np.testing.assert_array_equal(batch, rows[batch[:, 3].int()].astype(np.float32))
        assert torch.equal(train.head(8).x[[7, 0]], batch)
        assert not train.head(8).mapped
        limited = density(tmp_path / "t.npy", train_size=100).train
        assert limited.mapped
        assert len(limited) == 100

    def test_the_split_is_that_of_small_tables(self, tmp_path, rows, monkeypatch):
        mapped = density(self.save(tmp_path / "t.npy", rows[:1000]), seed=1)
        assert density(tmp_path / "t.npy", seed=1).digest() == mapped.digest()
        assert density(tmp_path / "t.npy", seed=2).digest() != mapped.digest()
        monkeypatch.setattr(tables, "MAPPED_BYTES", 2**30)
        small = density(tmp_path / "t.npy", seed=1)
        assert not small.train.mapped
        assert torch.equal(small.train.x, mapped.train.batch(slice(None)))
        assert torch.equal(small.test.x, mapped.test.x)

    def test_without_a_split(self, tmp_path, rows):
        data = density(self.save(tmp_path / "t.npy", rows), split=False)
        assert data.test.mapped
        assert len(data.train) == 0
        np.testing.assert_array_equal(data.test.batch(slice(40, 50)), rows[40:50].astype(np.float32))

    def test_notes(self, tmp_path, rows):
        rows[:, 2] = 1000 * rows[:, 0] - 2 * rows[:, 3]
        _, linear = density(self.save(tmp_path / "t.npy", rows)).notes
        assert linear.startswith("x0, x2, x3: almost linear")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_columns_on_a_grid(self, tmp_path, rows, dtype):
        rows[:, 1] = np.random.default_rng(0).integers(5, size=len(rows))
        data = density(self.save(tmp_path / "t.npy", rows), dtype=dtype)
        assert data.notes[1].startswith("x1 (1): on a grid")
        assert data.digest() == density(tmp_path / "t.npy", dtype=dtype).digest()
        parts = data.train.batch(torch.arange(500)), data.train.head(500).x, data.validation.x, data.test.x
        for x in parts:
            assert x.dtype == dtype
            recorded = torch.from_numpy(rows[x[:, 3].int()])
            assert torch.equal(x[:, [0, 2, 3]], recorded[:, [0, 2, 3]].to(dtype))
            noise = x[:, 1] - recorded[:, 1]
            assert noise.abs().max() <= 0.5
            assert noise.std().item() == pytest.approx(12**-0.5, rel=0.1)
        assert not torch.equal(parts[0][:, 1], data.train.batch(torch.arange(500))[:, 1])  # drawn whenever it is read

    def test_double_precision(self, tmp_path, rows):
        rows[:, 0] = 1.7e9 + 600 * np.random.default_rng(0).random(len(rows))
        batch = density(self.save(tmp_path / "t.npy", rows), dtype=torch.float64).train.batch(slice(None))
        np.testing.assert_array_equal(batch, rows[batch[:, 3].int()])

    @pytest.mark.parametrize(
        ("row", "value", "message"),
        [
            (-1, np.nan, "x1 holds missing or infinite values"),
            (2000, np.inf, "x1 holds missing or infinite values"),
            (2000, 1e40, "x1 is too large"),
            (slice(None), 3.0, "x1 is constant"),
        ],
    )
    def test_refused(self, tmp_path, rows, row, value, message):
        rows[row, 1] = value
        refused(rf"t\.npy: {message}", density, self.save(tmp_path / "t.npy", rows))

    def test_other_arrays_are_read_as_a_whole(self, tmp_path, rows):
        for values in (rows.astype(np.float16), rows.astype(">f8")):
            assert not density(self.save(tmp_path / "t.npy", values[:500, :3])).train.mapped
        refused("complex128", density, self.save(tmp_path / "t.npy", rows * 1j))
        assert not density(self.save(tmp_path / "t.npy", rows), given=["x0"]).train.mapped
