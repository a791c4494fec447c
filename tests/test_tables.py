"""Tables in every format, and what is refused with a message of one line."""

import gzip

import numpy as np
import pandas as pd
import pytest

from anode import InputError
from train_flows.data import load_density_data, tables


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
    frame = tables.read(path)["all"]
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


class TestCSV:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t", " "])
    @pytest.mark.parametrize("header", [True, False])
    @pytest.mark.parametrize("opener", [open, gzip.open])
    def test_dialects(self, tmp_path, x, delimiter, header, opener):
        path = tmp_path / ("t.csv" if opener is open else "t.csv.gz")
        with opener(path, "wt") as file:
            if header:
                file.write(delimiter.join("abc") + "\n")
            file.writelines(delimiter.join(map(repr, row)) + "\n" for row in x.tolist())
        values, columns = read(path)
        np.testing.assert_allclose(values, x)
        assert columns == (("a", "b", "c") if header else ("x0", "x1", "x2"))

    @pytest.mark.parametrize("header", ["0,1,2", "2019,2020,2021", '"a","b","c"', " a, b, c", "\ufeffa,b,c"])
    def test_headers(self, tmp_path, x, header):
        path = tmp_path / "t.csv"
        path.write_text("\n".join([header, *[", ".join(map(repr, row)) for row in x.tolist()]]), encoding="utf-8")
        values, columns = read(path)
        np.testing.assert_allclose(values, x)
        assert columns == tuple(name.strip(' "\ufeff') for name in header.split(","))

    def test_blank_lines_commas_in_names_and_numbers(self, tmp_path):
        path = tmp_path / "t.csv"
        path.write_text("\n\n" + "0.1 -0.5\n" * 30)
        assert read(path)[0].shape == (30, 2)
        path.write_text("weight (kg, dry);height\n" + "1.5;2\n" * 30)
        assert read(path)[1] == ("weight (kg, dry)", "height")
        path.write_bytes(b"1e3,-2,3\r\n4,5.5,6E-2\r\n" * 15)
        np.testing.assert_allclose(read(path)[0][:2], [[1000, -2, 3], [4, 5.5, 0.06]])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("a,b\n", "is empty"),
            ("a ,a\n" + "1.5,2.5\n" * 30, "more than one column a"),
            ('"' + "1" * 200_000 + "\n1,2\n" * 30, "cannot be read as CSV"),
            ("a,b\n" + "1.5,2.5,3.5\n" * 30, "cannot be read as CSV"),
            (",a,b\n" + "".join(f"{i},{i}.5,{-i}.5\n" for i in range(30)), "without its index"),
            ("a,b\n" + "1.5,2.5\n" * 6 + "1.5,seven\n" + "1.5,2.5\n" * 23, "column b holds text in 1 of 30 rows"),
        ],
    )
    def test_refused(self, tmp_path, content, message):
        (tmp_path / "t.csv").write_text(content)
        refused(tmp_path / "t.csv", message)

    def test_a_damaged_gzip(self, tmp_path, x):
        path = write(tmp_path / "t.csv.gz", x)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + b"\xff" * (len(content) // 2))
        refused(path, "cannot be read as CSV")


class TestRefused:
    def test_missing(self, tmp_path):
        refused(tmp_path / "t.csv", "does not exist")

    @pytest.mark.parametrize("suffix", tables.SUFFIXES)
    @pytest.mark.parametrize("content", [b"", b"\x00garbage" * 100])
    def test_empty_and_garbage(self, tmp_path, suffix, content):
        path = tmp_path / f"t{suffix}"
        path.write_bytes(content)
        refused(path, "cannot be read|damaged|one column|text|is empty" if content else "is empty")

    @pytest.mark.parametrize("suffix", [".pkl", ".xlsx"])
    def test_other_files(self, tmp_path, suffix):
        (tmp_path / f"t{suffix}").write_text("?")
        refused(tmp_path / f"t{suffix}", "not a table")

    @pytest.mark.parametrize(("value", "names"), [(np.nan, "missing values"), (np.inf, "infinite values")])
    @pytest.mark.parametrize("suffix", [".csv", ".npy", ".parquet"])
    def test_not_finite(self, tmp_path, x, value, names, suffix):
        x[3, 1] = value
        refused(write(tmp_path / f"t{suffix}", x), rf"{names} in 1 of 200 rows \(first in data row 4")

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((30, 2, 2)), r"\(30, 2, 2\)"),
            (np.ones((30, 2)) * 1j, "complex128"),
            (np.array([["a", 1.0]] * 30, dtype=object), "allow_pickle"),
            (np.ones((19, 2)), "19 rows: at least 20"),
        ],
    )
    def test_arrays(self, tmp_path, array, message):
        np.save(tmp_path / "t.npy", array, allow_pickle=True)
        refused(tmp_path / "t.npy", message)

    def test_several_arrays(self, tmp_path, x):
        np.savez(tmp_path / "t.npz", one=x, two=x)
        refused(tmp_path / "t.npz", "one, two")

    @pytest.mark.parametrize(
        ("part", "change", "names"),
        [
            ("train", lambda x: x[:10], "train has 10 rows"),
            ("validation", lambda x: x[:0], "validation is empty"),
            ("test", lambda x: x[:1], "test has 1 rows"),
            ("test", lambda x: x[:, :2], "number of columns"),
            ("test", lambda x: x.astype(object), "pickled objects"),
        ],
    )
    def test_three_parts(self, tmp_path, x, part, change, names):
        np.savez(tmp_path / "t.npz", **{"train": x, "validation": x, "test": x} | {part: change(x)})
        refused(tmp_path / "t.npz", names)

    def test_names_of_several_lines(self, tmp_path, x):
        x[3, 1] = np.nan
        refused(write(tmp_path / "t.parquet", x, ("a", "b\n\n\x1b[31m", "c")), r"column b \?\[31m holds missing values")
