"""Tables in every format, and what is refused with a message of one line."""

import numpy as np
import pandas as pd
import pytest

from anode import InputError
from train_flows.data import load_density_data, load_labelled_data, tables


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


def read(path):
    frame = tables.read(path).parts["all"]
    return tables.numbers(str(path), frame), tuple(frame.columns)


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        load_density_data(str(path))
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.npy", "t.npz", "t.parquet"])
def test_every_format_reads_alike(tmp_path, x, name):
    values, columns = read(write(tmp_path / name, x))
    np.testing.assert_allclose(values, x)
    assert columns == (("x0", "x1", "x2") if ".np" in name else ("a", "b", "c"))


class TestNumPy:
    """Arrays and records in NPY and NPZ files."""

    def test_records_have_names(self, tmp_path, x):
        records = np.zeros(200, dtype=[("mass", "f4"), ("charge", ">i8"), ("time", "<f8")])
        records["mass"], records["charge"], records["time"] = x[:, 0], np.arange(200), x[:, 2]
        expected = np.column_stack([x[:, 0].astype(np.float32), np.arange(200), x[:, 2]])
        np.savez(tmp_path / "parts.npz", train=records, validation=records, test=records[:50, None])
        np.savez(tmp_path / "t.npz", table=records)
        for name, content in (
            ("t.npy", records),
            ("column.npy", records[:, None]),
            ("t.rec.npy", np.rec.array(records)),
        ):
            np.save(tmp_path / name, content)
        for name in ("t.npy", "column.npy", "t.rec.npy", "t.npz", "parts.npz"):
            table = tables.read(tmp_path / name)
            assert (table.named, table.notes) == (True, ())
            for part, frame in table.parts.items():
                assert list(frame) == ["mass", "charge", "time"]
                np.testing.assert_array_equal(tables.numbers(name, frame), expected[: 50 if part == "test" else 200])

    @pytest.mark.parametrize("dtype", [">f8", "f2", "i1", "u8", "?"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_types_and_orders(self, tmp_path, x, dtype, order):
        array = np.asarray(np.abs(x), dtype, order=order)
        np.save(tmp_path / "t.npy", array)
        np.testing.assert_array_equal(read(tmp_path / "t.npy")[0], array.astype(np.float64))

    def test_one_column(self, tmp_path, x):
        for name in ("t.npy", "t.csv", "t.parquet"):
            values, _ = read(write(tmp_path / name, x[:, :1], "a"))
            np.testing.assert_allclose(values, x[:, :1])


class TestParquet:
    def read(self, path, frame):
        frame.to_parquet(path)
        table = tables.read(path)
        return table.parts["all"], table.notes

    def test_an_index_with_a_name_is_noted(self, tmp_path, x):
        frame = pd.DataFrame(x, columns=list("abc"))
        for indexed, names, notes in (
            (frame.set_index("a"), "bc", ("the index a is left out; pandas' reset_index() makes it a column",)),
            (
                frame.set_index(["a", "b"]),
                "c",
                ("the index a, b is left out; pandas' reset_index() makes it a column",),
            ),
            (frame.sample(frac=1), "abc", ()),
            (frame[frame.a > 0], "abc", ()),
        ):
            found, said = self.read(tmp_path / "t.parquet", indexed)
            assert (list(found), said) == (list(names), notes)
            np.testing.assert_array_equal(tables.numbers("t", found, min_rows=1), indexed.to_numpy())

    def test_types_of_numbers(self, tmp_path, x):
        a, b, c = x.T
        frame = pd.DataFrame(
            {0: a, 1: pd.array(np.arange(200), "Int64"), 2: pd.array(b, "Float32"), 3: c > 0, 4: c.astype(str)}
        )
        found, _ = self.read(tmp_path / "t.parquet", frame)
        assert list(found) == ["0", "1", "2", "3", "4"]
        expected = np.column_stack([a, np.arange(200), b.astype(np.float32), c > 0, c])
        np.testing.assert_array_equal(tables.numbers("t", found), expected)

    @pytest.mark.parametrize(
        ("column", "message"),
        [
            (["1.5", "?", "2"] * 10, r"column b holds text in 10 of 30 rows \(first in data row 2: '\?'\)"),
        ],
    )
    def test_refused(self, tmp_path, column, message):
        path = tmp_path / "t.parquet"
        pd.DataFrame({"a": np.arange(30) / 7, "b": column}).to_parquet(path)
        refused(path, message)

    def test_a_folder_is_one_table(self, tmp_path, x):
        frame = pd.DataFrame(x, columns=list("abc")).assign(part=np.arange(200) // 100)
        frame.to_parquet(tmp_path / "partitions", partition_cols=["part"])
        (tmp_path / "spark").mkdir()
        for i, rows in frame.groupby("part"):
            rows.to_parquet(tmp_path / "spark" / f"part-{i}.snappy.parquet", index=False)
        (tmp_path / "spark" / "_SUCCESS").touch()
        for name in ("spark", "partitions"):
            found = tables.read(tmp_path / name).parts["all"]
            assert list(found) == ["a", "b", "c", "part"]
            np.testing.assert_array_equal(found[["a", "b", "c"]], x)
        assert load_density_data(str(tmp_path / "spark")).columns == ("a", "b", "c", "part")
        assert load_labelled_data(str(tmp_path / "spark"), target="part").classes == ("0", "1")

    def test_a_folder_of_other_tables(self, tmp_path, x):
        for name in ("part-0.csv", "part-1.csv", "part-2.parquet"):
            write(tmp_path / name, x)
        refused(tmp_path, r"is a folder of tables \(part-0.csv, part-1.csv\): pass one file")


class TestRefused:
    def test_missing(self, tmp_path):
        refused(tmp_path / "t.csv", "does not exist")

    @pytest.mark.parametrize("suffix", tables.SUFFIXES)
    @pytest.mark.parametrize("content", [b"", b"\x00garbage" * 100])
    def test_empty_and_garbage(self, tmp_path, suffix, content):
        path = tmp_path / f"t{suffix}"
        path.write_bytes(content)
        refused(path, "cannot be read|damaged|not saved by NumPy|not text|is empty" if content else "is empty")

    @pytest.mark.parametrize("suffix", [".pkl", ".xlsx"])
    def test_other_files(self, tmp_path, suffix):
        (tmp_path / f"t{suffix}").write_text("?")
        refused(tmp_path / f"t{suffix}", "not a table")

    @pytest.mark.parametrize("suffix", [".csv", ".npy", ".parquet"])
    def test_not_finite(self, tmp_path, x, suffix):
        x[3, 1] = np.inf
        refused(write(tmp_path / f"t{suffix}", x), r"infinite values in 1 of 200 rows \(first in data row 4")

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((30, 2, 2)), r"\(30, 2, 2\)"),
            (np.ones((30, 2)) * 1j, "complex128"),
            (
                np.array([["a", 1.0]] * 30, dtype=object),
                "holds pickled Python objects, which can run code: save an array",
            ),
            (np.zeros(30, dtype=[("a", "f8"), ("b", "f8", 3)]), r"field b is of type .*3.*: save one field a number"),
            (np.zeros((5, 6), dtype=[("a", "f8"), ("b", "f8")]), r"\(5, 6\)"),
            (np.ones((19, 2)), "19 rows: at least 20"),
        ],
    )
    def test_arrays(self, tmp_path, array, message):
        np.save(tmp_path / "t.npy", array, allow_pickle=True)
        refused(tmp_path / "t.npy", message)

    def test_pickles_and_damaged_arrays(self, tmp_path, x):
        path = tmp_path / "t.npy"
        pd.DataFrame(x).to_pickle(path)
        refused(path, "holds pickled Python objects, which can run code")
        np.save(path, x)
        path.write_bytes(path.read_bytes()[:1000])
        refused(path, r"t.npy is damaged \(.*\): write it again by numpy.save")
        path.write_text("1.5, 2.5")
        refused(path, "was not saved by NumPy: write it again by numpy.save")

    def test_several_arrays(self, tmp_path, x):
        np.savez(tmp_path / "t.npz", one=x, two=x)
        refused(tmp_path / "t.npz", "one, two")
        np.savez(tmp_path / "t.npz", **{f"array{i}": x for i in range(500)})
        refused(tmp_path / "t.npz", r"holds the arrays array0, .*array7, \.\.\.: pass one array")

    @pytest.mark.parametrize(
        ("part", "change", "names"),
        [
            ("train", lambda x: x[:10], "train has 10 rows"),
            ("validation", lambda x: x[:0], "validation is empty"),
            ("test", lambda x: x[:1], "test has 1 rows"),
            ("test", lambda x: x[:, :2], "differ in their columns"),
            ("test", lambda x: x.astype(object), "pickled Python objects"),
        ],
    )
    def test_three_parts(self, tmp_path, x, part, change, names):
        np.savez(tmp_path / "t.npz", **{"train": x, "validation": x, "test": x} | {part: change(x)})
        refused(tmp_path / "t.npz", names)

    def test_names_of_several_lines(self, tmp_path, x):
        x[3, 1] = np.inf
        refused(
            write(tmp_path / "t.parquet", x, ("a", "b\n\n\x1b[31m", "c")), r"column b \?\[31m holds infinite values"
        )
