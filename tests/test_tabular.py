"""Tables in every format, what is refused, and the published benchmarks on small files of the true format."""

import gzip
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anode import InputError
from train_flows import data
from train_flows.data import published, sizes, tables, tabular


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(200, 3)) * [1, 1000, 1e-3]


def write(path, x, columns=("a", "b", "c")):
    frame = pd.DataFrame(x, columns=list(columns))
    if path.name.endswith(".npz"):
        np.savez(path, table=x)
    elif path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.npy", "t.npz", "t.parquet"])
def test_every_format_reads_alike(tmp_path, x, name):
    table = tables.read(write(tmp_path / name, x))
    np.testing.assert_allclose(table.values, x)
    assert table.columns == (("x0", "x1", "x2") if ".np" in name else ("a", "b", "c"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " "])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("opener", [open, gzip.open])
def test_csv_dialects(tmp_path, x, delimiter, header, opener):
    path = tmp_path / ("t.csv" if opener is open else "t.csv.gz")
    with opener(path, "wt") as file:
        if header:
            file.write(delimiter.join("abc") + "\n")
        file.writelines(delimiter.join(map(repr, row)) + "\n" for row in x.tolist())
    table = tables.read(path)
    np.testing.assert_allclose(table.values, x)
    assert table.columns == (("a", "b", "c") if header else ("x0", "x1", "x2"))


@given(st.integers(20, 400), st.integers(0, 5))
@settings(deadline=None, max_examples=15)
def test_split_is_a_partition(tmp_path_factory, n, seed):
    path = tmp_path_factory.mktemp("split") / "t.npy"
    np.save(path, np.stack([np.arange(n), np.arange(n) ** 2], 1).astype(float))
    parts = tabular.load(path, seed)
    again = tabular.load(path, seed)
    joined = np.concatenate([part.numpy() for part in (parts.train, parts.validation, parts.test)])
    assert sorted(joined[:, 0]) == list(range(n))
    assert len(parts.test) == len(parts.validation) == n // 10
    assert (parts.test == again.test).all()


def test_another_seed_is_another_split(tmp_path, x):
    path = write(tmp_path / "t.csv", x)
    assert not (tabular.load(path, 0).test == tabular.load(path, 1).test).all()


def test_npz_of_three_parts_keeps_its_split(tmp_path, x):
    np.savez(tmp_path / "t.npz", train=x[:100], validation=x[100:150], test=x[150:])
    parts = tabular.load(tmp_path / "t.npz")
    np.testing.assert_allclose(parts.train, x[:100].astype(np.float32))
    np.testing.assert_allclose(parts.test, x[150:].astype(np.float32))


class TestRefused:
    """Each a message that names the file, what is wrong, and what to do."""

    def refuse(self, path, names):
        with pytest.raises(InputError, match=names) as caught:
            data.load(str(path))
        assert path.name in str(caught.value)

    def test_missing(self, tmp_path):
        self.refuse(tmp_path / "t.csv", "does not exist")

    @pytest.mark.parametrize("suffix", tables.SUFFIXES)
    def test_empty(self, tmp_path, suffix):
        path = tmp_path / f"t{suffix}"
        path.touch()
        self.refuse(path, "is empty")

    def test_only_a_header(self, tmp_path):
        path = tmp_path / "t.csv"
        path.write_text("a,b\n")
        self.refuse(path, "is empty")

    @pytest.mark.parametrize("suffix", [".csv.gz", ".npy", ".npz", ".parquet"])
    def test_garbage(self, tmp_path, suffix):
        path = tmp_path / f"t{suffix}"
        path.write_bytes(b"garbage" * 100)
        self.refuse(path, "cannot be read|damaged")

    def test_text(self, tmp_path, x):
        frame = pd.DataFrame(x, columns=["a", "b", "c"]).astype(object)
        frame.loc[6, "b"] = "seven"
        frame.to_csv(tmp_path / "t.csv", index=False)
        self.refuse(tmp_path / "t.csv", r"column b holds text in 1 of 200 rows \(first in data row 7: 'seven'\)")

    def test_dates(self, tmp_path, x):
        frame = pd.DataFrame(x, columns=["a", "b", "c"])
        frame["day"] = pd.Timestamp("2020-01-01")
        frame.to_parquet(tmp_path / "t.parquet")
        self.refuse(tmp_path / "t.parquet", "column day")

    @pytest.mark.parametrize(("value", "names"), [(np.nan, "missing values"), (np.inf, "infinite values")])
    @pytest.mark.parametrize("suffix", [".csv", ".npy", ".parquet"])
    def test_not_finite(self, tmp_path, x, value, names, suffix):
        x[3, 1] = value
        self.refuse(write(tmp_path / f"t{suffix}", x), f"{names} in 1 of 200 rows")

    def test_one_column(self, tmp_path):
        path = tmp_path / "t.csv"
        path.write_text("\n".join(map(str, range(50))))
        self.refuse(path, "one column")

    def test_few_rows(self, tmp_path, x):
        self.refuse(write(tmp_path / "t.csv", x[:19]), "19 rows: at least 20")

    def test_constant_columns(self, tmp_path, x):
        x[:, [0, 2]] = 5
        self.refuse(write(tmp_path / "t.csv", x), "a, c is constant")

    def test_three_axes(self, tmp_path):
        np.save(tmp_path / "t.npy", np.zeros((30, 2, 2)))
        self.refuse(tmp_path / "t.npy", r"\(30, 2, 2\)")

    def test_several_arrays(self, tmp_path, x):
        np.savez(tmp_path / "t.npz", one=x, two=x)
        self.refuse(tmp_path / "t.npz", "one, two")

    def test_pickled_arrays(self, tmp_path):
        np.save(tmp_path / "t.npy", np.array([["a", 1.0]] * 30, dtype=object), allow_pickle=True)
        self.refuse(tmp_path / "t.npy", "allow_pickle")

    def test_pickles_are_not_opened(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return pytest.fail, ("the pickle was executed",)

        path = tmp_path / "t.pkl"
        path.write_bytes(pickle.dumps(Bomb()))
        self.refuse(path, "read_pickle")

    def test_other_files(self, tmp_path):
        path = tmp_path / "t.xlsx"
        path.write_text("?")
        self.refuse(path, "not a table")
        self.refuse(tmp_path, "no image")

    @pytest.mark.parametrize(
        ("scale", "offset", "names"), [(1, 1e12, "constant"), (1e-60, 0, "constant"), (1e45, 0, "large")]
    )
    def test_columns_beyond_single_precision(self, tmp_path, x, scale, offset, names):
        x[:, 1] = x[:, 1] * scale + offset
        self.refuse(write(tmp_path / "t.csv", x), f"b is (too )?{names}")

    def test_a_test_part_beyond_single_precision(self, tmp_path, x):
        far = x.copy()
        far[0, 0] = 1e39
        np.savez(tmp_path / "t.npz", train=x, validation=x, test=far)
        self.refuse(tmp_path / "t.npz", "x0 is too large")

    def test_repeated_names(self, tmp_path):
        (tmp_path / "t.csv").write_text("a ,a\n" + "1.5,2.5\n" * 30)
        self.refuse(tmp_path / "t.csv", "more than one column a")

    def test_an_endless_field(self, tmp_path):
        (tmp_path / "t.csv").write_text('"' + "1" * 200_000 + "\n1,2\n" * 30)
        self.refuse(tmp_path / "t.csv", "cannot be read as CSV")

    @pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
    def test_an_endless_line(self, tmp_path, suffix):
        content = b"a,b\n" + b"," * 2**21
        (tmp_path / f"t{suffix}").write_bytes(gzip.compress(content) if suffix == ".csv.gz" else content)
        self.refuse(tmp_path / f"t{suffix}", "a line is longer than")

    @pytest.mark.parametrize("suffix", [".csv.gz", ".npz", ".parquet"])
    def test_small_files_of_large_tables(self, tmp_path, suffix, monkeypatch):
        path, x = tmp_path / f"t{suffix}", np.zeros((100_000, 3))
        if suffix == ".npz":
            np.savez_compressed(path, table=x)
        else:
            write(path, x)
        assert len(tables.read(path).values) == len(x)
        monkeypatch.setattr(sizes, "SMALL", 10**5)
        assert path.stat().st_size * sizes.RATIO < x.nbytes / 2
        self.refuse(path, "unpack")

    @pytest.mark.parametrize("shape", [(10**12, 3), (2**62, 8), (-200, 3), (200, 30), (1, 3), (0, 0)])
    @pytest.mark.parametrize("suffix", [".npy", ".npz"])
    def test_headers_that_lie(self, tmp_path, x, shape, suffix):
        with (tmp_path / "t.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
            file.write(x.tobytes())
        if suffix == ".npz":
            with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
                archive.write(tmp_path / "t.npy", "table.npy")
        self.refuse(tmp_path / f"t{suffix}", "its header declares")

    def test_names_of_several_lines(self, tmp_path, x):
        x[3, 1] = np.nan
        path = write(tmp_path / "t.parquet", x, ("a", "b\n\n\x1b[31m", "c"))
        with pytest.raises(InputError, match=r"column b \?\[31m holds missing values") as caught:
            data.load(str(path))
        assert len(str(caught.value).splitlines()) == 1

    def test_complex_numbers(self, tmp_path, x):
        np.save(tmp_path / "t.npy", x + 1j)
        self.refuse(tmp_path / "t.npy", "complex128")

    def test_an_index_column(self, tmp_path, x):
        pd.DataFrame(x).to_csv(tmp_path / "t.csv")
        self.refuse(tmp_path / "t.csv", "without its index")

    def test_rows_longer_than_the_header(self, tmp_path):
        (tmp_path / "t.csv").write_text("a,b\n" + "1.5,2.5,3.5\n" * 30)
        self.refuse(tmp_path / "t.csv", "cannot be read as CSV")

    def test_a_damaged_gzip(self, tmp_path, x):
        path = write(tmp_path / "t.csv.gz", x)
        content = bytearray(path.read_bytes())
        content[len(content) // 2 :] = b"\xff" * (len(content) - len(content) // 2)
        path.write_bytes(bytes(content))
        self.refuse(path, "cannot be read as CSV")

    @pytest.mark.parametrize("suffix", [".npy", ".npz"])
    def test_numpy_files_under_the_other_name_are_read(self, tmp_path, x, suffix):
        path = tmp_path / f"t{suffix}"
        with path.open("wb") as file:
            np.save(file, x) if suffix == ".npz" else np.savez(file, table=x)
        np.testing.assert_allclose(tables.read(path).values, x)

    @pytest.mark.parametrize(
        ("part", "change", "names"),
        [
            ("train", lambda x: x[:10], "train has 10 rows"),
            ("validation", lambda x: x[:0], "validation is empty"),
            ("test", lambda x: x[:1], "test has 1 rows"),
            ("test", lambda x: x[:, :2], "number of columns"),
            ("train", lambda x: x[:, :1], "train has one column"),
            ("test", lambda x: x.astype(object), "pickled objects"),
        ],
    )
    def test_parts_that_do_not_serve(self, tmp_path, x, part, change, names):
        parts = {"train": x, "validation": x, "test": x}
        np.savez(tmp_path / "t.npz", **parts | {part: change(x)})
        self.refuse(tmp_path / "t.npz", names)


@pytest.mark.parametrize("header", ["0,1,2", "2019,2020,2021", '"a","b","c"', " a, b, c", "\ufeffa,b,c"])
def test_headers_of_every_sort(tmp_path, x, header):
    path = tmp_path / "t.csv"
    path.write_text("\n".join([header, *[", ".join(map(repr, row)) for row in x.tolist()]]), encoding="utf-8")
    table = tables.read(path)
    np.testing.assert_allclose(table.values, x)
    assert table.columns == tuple(name.strip(' "\ufeff') for name in header.split(","))


def test_blank_lines_and_commas_in_names(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\n\n" + "0.1 -0.5\n" * 30)
    assert tables.read(path).values.shape == (30, 2)
    path.write_text("weight (kg, dry);height\n" + "1.5;2\n" * 30)
    assert tables.read(path).columns == ("weight (kg, dry)", "height")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_numbers_of_every_sort(tmp_path, end):
    path = tmp_path / "t.csv"
    path.write_bytes(end.join(["1e3,-2,3", "4,5.5,6E-2"] * 15).encode())
    np.testing.assert_allclose(tables.read(path).values[:2], [[1000, -2, 3], [4, 5.5, 0.06]])


class TestNearDiscrete:
    def table(self, tmp_path):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(1000, 3))
        x[:, 1] = rng.integers(5, size=1000) * 0.5
        return write(tmp_path / "t.csv", x)

    def test_columns_are_reported(self, tmp_path):
        (note,) = tabular.load(self.table(tmp_path)).notes
        assert note.startswith("b: few distinct values")
        assert "--jitter" in note

    def test_columns_that_follow_from_others_are_reported(self, tmp_path):
        x = np.random.default_rng(0).normal(size=(1000, 4))
        x[:, 3] = x[:, 0] - 2 * x[:, 1] + 1e-3 * x[:, 3]
        (note,) = tabular.load(write(tmp_path / "t.csv", x, "abcd")).notes
        assert note.startswith("a, b, d: almost linear in other columns")
        x[:, 3] = x[:, 0] - 2 * x[:, 1] + 0.1 * np.random.default_rng(1).normal(size=1000)
        assert not tabular.load(write(tmp_path / "t.csv", x, "abcd")).notes

    def test_repeated_rows_are_reported(self, tmp_path):
        x = np.random.default_rng(0).normal(size=(1000, 3))
        x[:400] = x[400:800]
        loaded = tabular.load(write(tmp_path / "t.csv", x))
        seen = {tuple(row) for row in loaded.train.tolist()}
        count = sum(tuple(row) in seen for row in loaded.test.tolist())
        assert 0 < count < 100
        assert loaded.notes == (f"{count} of 100 test rows are training rows too",)

    def test_jitter_fills_the_gaps(self, tmp_path):
        plain, jittered = tabular.load(self.table(tmp_path)), tabular.load(self.table(tmp_path), jitter=True)
        assert "jitter" in jittered.notes[0]
        for part in ("train", "validation", "test"):
            assert (getattr(jittered, part) != getattr(plain, part))[:, 1].float().mean() > 0.99
        noise = (jittered.train - plain.train).numpy()
        assert (noise[:, [0, 2]] == 0).all()
        assert np.abs(noise[:, 1]).max() <= 0.25
        assert noise[:, 1].std() == pytest.approx(0.5 / 12**0.5, rel=0.1)

    def test_the_gap_is_that_of_single_precision(self, tmp_path):
        x = np.random.default_rng(0).normal(size=(400, 2))
        x[:, 1] = np.random.default_rng(0).choice([0.3, 3 * 0.1, 0.5], size=400)  # 3 * 0.1 is another float64
        jittered = tabular.load(write(tmp_path / "t.csv", x, "ab"), jitter=True)
        assert len(jittered.train[:, 1].unique()) > 300

    def test_jitter_is_for_files(self):
        for name in ("moons", "digits", "power"):
            with pytest.raises(InputError, match=f"not for {name}"):
                data.load(name, jitter=True)

    @pytest.mark.parametrize("rows", [20, 200])
    def test_real_numbers_are_left_alone(self, tmp_path, x, rows):
        assert tabular.load(write(tmp_path / "t.csv", x[:rows]), jitter=True).notes == ()

    def test_spikes_are_reported_not_jittered(self, tmp_path, x):
        x[:50, 0] = 0
        plain, jittered = (tabular.load(write(tmp_path / "t.csv", x), jitter=jitter) for jitter in (False, True))
        assert plain.notes == jittered.notes
        assert plain.notes[0].startswith("a: one value")
        assert (plain.train == jittered.train).all()

    def test_large_offsets_are_reported(self, tmp_path, x):
        x[:, 0] += 1e6
        assert "subtract an offset" in tabular.load(write(tmp_path / "t.csv", x)).notes[0]


def test_real_tables(real_data):
    protein = data.load(str(real_data / "tabular" / "protein.csv.gz"))
    assert protein.shape == (9,)
    assert len(protein.train) == 45_730 - 2 * 4_573
    assert data.load(str(real_data / "tabular" / "parkinsons.csv.gz")).shape == (18,)
    with pytest.raises(InputError, match="column date"):
        data.load(str(real_data / "climate" / "DailyDelhiClimateTrain.csv"))


class TestPublished:
    rng = np.random.default_rng(0)

    def check(self, splits, sizes, dims):
        assert [len(splits[part].values) for part in ("train", "validation", "test")] == sizes
        assert all(table.values.shape[1] == dims for table in splits.values())

    def normalised(self, splits):
        seen = np.concatenate([splits["train"].values, splits["validation"].values])
        np.testing.assert_allclose(seen.mean(0), 0, atol=1e-9)
        np.testing.assert_allclose(seen.std(0), 1, atol=1e-9)

    def test_power(self, tmp_path):
        (tmp_path / "power").mkdir()
        np.save(tmp_path / "power" / "data.npy", self.rng.normal(size=(1000, 8)) * 50)
        splits = published.read("power", tmp_path)
        self.check(splits, [810, 90, 100], 6)
        self.normalised(splits)

    def test_gas_drops_correlated_columns(self, tmp_path):
        (tmp_path / "gas").mkdir()
        free = self.rng.normal(size=(500, 8))
        names = ["Time", "Meth", "Eth", *[f"R{i}" for i in range(16)]]
        columns = np.concatenate([self.rng.normal(size=(500, 3)), free, 3 * free + 1e-3], 1)
        pd.DataFrame(columns, columns=names).to_csv(tmp_path / "gas" / "ethylene_CO.csv", index=False)
        splits = published.read("gas", tmp_path)
        self.check(splits, [405, 45, 50], 8)

    def test_hepmass_keeps_signal_and_drops_repeats(self, tmp_path):
        (tmp_path / "hepmass").mkdir()
        for part, n, spare in (("train", 1000, []), ("test", 400, ["mass"])):
            x = self.rng.normal(size=(n, 27))
            x[:, 4] = self.rng.integers(3, size=n)
            frame = pd.DataFrame(x, columns=[f"f{i}" for i in range(27)])
            frame.insert(0, "# label", np.arange(n) % 2)
            frame[spare] = 1000.0
            frame.to_csv(tmp_path / "hepmass" / f"1000_{part}.csv", index=False)
        self.check(published.read("hepmass", tmp_path), [450, 50, 200], 26)

    def test_miniboone(self, tmp_path):
        (tmp_path / "miniboone").mkdir()
        np.save(tmp_path / "miniboone" / "data.npy", self.rng.normal(size=(300, 43)) + 7)
        splits = published.read("miniboone", tmp_path)
        self.check(splits, [243, 27, 30], 43)
        self.normalised(splits)

    def test_bsds300(self, tmp_path):
        (tmp_path / "bsds300").mkdir()
        parts = {part: self.rng.normal(size=(n, 63)) for part, n in (("train", 50), ("validation", 20), ("test", 30))}
        np.savez(tmp_path / "bsds300" / "BSDS300.npz", **parts)
        splits = published.read("bsds300", tmp_path)
        self.check(splits, [50, 20, 30], 63)
        np.testing.assert_array_equal(splits["test"].values, parts["test"])

    def test_other_files_of_those_names_are_refused(self, tmp_path):
        (tmp_path / "gas").mkdir()
        pd.DataFrame({"a": [1.0]}).to_csv(tmp_path / "gas" / "ethylene_CO.csv", index=False)
        with pytest.raises(InputError, match="not in their published form"):
            data.load("gas", data_root=tmp_path)

    def test_truncated_files_are_refused(self, tmp_path):
        (tmp_path / "bsds300").mkdir()
        path = tmp_path / "bsds300" / "BSDS300.npz"
        np.savez(path, train=np.zeros((50, 63)))
        for content in (b"", path.read_bytes()[:1000]):
            path.write_bytes(content)
            with pytest.raises(InputError, match=r"BSDS300\.npz"):
                data.load("bsds300", data_root=tmp_path)

    def test_missing_values_are_refused(self, tmp_path):
        (tmp_path / "miniboone").mkdir()
        np.save(tmp_path / "miniboone" / "data.npy", np.full((100, 43), np.nan))
        with pytest.raises(InputError, match="not finite"):
            data.load("miniboone", data_root=tmp_path)

    @pytest.mark.parametrize("name", published.PUBLISHED)
    def test_missing_files_are_named(self, tmp_path, name):
        with pytest.raises(InputError, match=f"{name}.*--data-root"):
            data.load(name, data_root=tmp_path)
