"""CSV files as people have them: what is read, under which names and with which notes, and what is refused."""

import gzip

import numpy as np
import pytest

from anode import InputError
from train_flows.data import csv_tables, load_density_data, load_labelled_data, tables

X = np.round(np.random.default_rng(0).normal(size=(40, 3)), 3)
COMMAS = "numbers are read with decimal commas"
INDEX = "the first column lacks a name and tells the rows apart: it is left out"
KEPT = "the first column lacks a name; if it numbers the rows, write the table without its index"
LATIN = "text that is not UTF-8 is read as Windows-1252 (Latin-1)"


def rows(delimiter=",", decimal=".", x=X, first=(), last=""):
    """Write the rows of a table, after a first column if there is one."""
    fields = [[f"{value:.3f}".replace(".", decimal) for value in row] for row in x]
    fields = [[str(cell), *row] for cell, row in zip(first, fields, strict=True)] if len(first) else fields
    return "".join(delimiter.join(row) + last + "\n" for row in fields)


def cases(table):
    """Parametrise a test by a table of cases by name."""
    return pytest.mark.parametrize("case", table.values(), ids=table)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def check(path, content, names, expected=X, notes=(), named=True):
    frame, is_named, found = csv_tables.read(write(path, content))
    np.testing.assert_array_equal(tables.numbers("t", frame), expected)
    assert (list(frame), is_named, found) == (list(names), named, list(notes))


def refused(path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        load_density_data(str(write(path, content)))
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "np." not in str(caught.value)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " ", "|"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("suffix", csv_tables.SUFFIXES)
def test_delimiters(tmp_path, delimiter, header, suffix):
    content = ((delimiter.join("abc") + "\n" if header else "") + rows(delimiter)).encode()
    content = gzip.compress(content) if suffix == ".csv.gz" else content
    check(tmp_path / f"t{suffix}", content, "abc" if header else ("x0", "x1", "x2"), named=header)


@cases(
    {
        "several blanks": ("  a  b  c\n" + rows("   "), "abc"),
        "byte-order mark": ("\ufeffa,b,c\n" + rows(), "abc"),
        "Windows lines": (("a,b,c\n" + rows()).replace("\n", "\r\n"), "abc"),
        "old Macintosh lines": (("# by me\na,b,c\n" + rows()).replace("\n", "\r"), "abc"),
        "blank lines": ("\n\na,b,c\n\n" + rows(), "abc"),
        "Unicode": ("größe,λ,日本\n" + rows(), ["größe", "λ", "日本"]),
        "quoted names": ('"a, b","c ""d""",e\n' + rows(), ["a, b", 'c "d"', "e"]),
        "names of several lines": ('"a\n(kg)",b,c\n' + rows(), ["a(kg)", "b", "c"]),
        "names with commas": ("weight (kg, dry);b;c\n" + rows(";"), ["weight (kg, dry)", "b", "c"]),
        "blanks after commas": ("a, b, c\n" + rows(", "), "abc"),
        "commas at the end": ("a,b,c,\n" + rows(last=","), "abc"),
        "commas at the end of rows": ("a,b,c\n" + rows(last=","), "abc"),
        "whole numbers over decimals": ("2019,2020,2021\n" + rows(), ["2019", "2020", "2021"]),
        "names such as ours": ("x2,x1,x0\n" + rows(), ["x2", "x1", "x0"]),
        "savetxt": ("# a b c\n" + rows(" "), "abc"),
        "savetxt with commas": ("# a,b,c\n" + rows(), "abc"),
        "savetxt with commas in the rows": ("# a b c\n" + rows(), "abc"),
        "comments": ("# by me\n\n% 2020, twice\na,b,c\n" + rows(), "abc"),
        "comments and names in one": ("# in two sittings of an hour\n# a b c\n" + rows(" "), "abc"),
        "an inch": ('a,width 5 "c,d\n' + rows(), ["a", 'width 5 "c', "d"]),
        "comment of Matlab": ("% by me\na,b,c\n" + rows(), "abc"),
        "sep=": ("sep=;\na;b;c\n" + rows(";"), "abc"),
        "sep= of a tab": ('"SEP=\t"\na\tb\tc\n' + rows("\t"), "abc"),
        "UTF-16": (("a,b,c\n" + rows()).encode("utf-16"), "abc"),
        "UTF-16, big-endian": (b"\xfe\xff" + ("λ,b,c\n" + rows()).encode("utf-16-be"), "λbc"),
        "UTF-32": (("a,b,c\n" + rows()).encode("utf-32"), "abc"),
    }
)
def test_read_without_a_word(tmp_path, case):
    check(tmp_path / "t.csv", *case)


@cases(
    {
        "decimal commas": ("a;b;c\n" + rows(";", ","), "abc", X, COMMAS),
        "decimal commas and tabs": ("a\tb\tc\n" + rows("\t", ","), "abc", X, COMMAS),
        "decimal commas and blanks": ("a b c\n" + rows(" ", ","), "abc", X, COMMAS),
        "decimal commas in quotes": (
            "a,b,c\n" + "".join(f'"{r}"\n' for r in rows('","', ",").split()),
            "abc",
            X,
            COMMAS,
        ),
        "decimal commas later on": ("a;b;c\n1;2;3\n" + rows(";", ","), "abc", np.vstack([[1, 2, 3], X]), COMMAS),
        "exponents": ("a;b\n" + "1,5e-3;-,5\n+2,25E2;3\n" * 10, "ab", [[1.5e-3, -0.5], [225, 3]] * 10, COMMAS),
        "Latin-1": (("größe,b,c\n" + rows()).encode("latin-1"), ["größe", "b", "c"], X, LATIN),
        "Windows-1252": (("€,b,c\n" + rows()).encode("cp1252"), "€bc", X, LATIN),
        "index": (",a,b,c\n" + rows(first=range(40)), "abc", X, INDEX),
        "shuffled index": (",a,b,c\n" + rows(first=[7 * i % 40 for i in range(40)]), "abc", X, INDEX),
        "index of an index": (",Unnamed: 0,a,b,c\n" + rows(first=[f"{i},{-i}" for i in range(40)]), "abc", X, INDEX),
        "names of rows": ('"",a,b,c\n' + rows(first=[f"car {i}" for i in range(40)]), "abc", X, INDEX),
        "index that repeats": (",a\n" + "0,0.5\n1,2.5\n" * 10, ["Unnamed: 0", "a"], [[0, 0.5], [1, 2.5]] * 10, KEPT),
        "numbers without a name": (
            ",a\n" + "0.1,5\n1.2,6\n" * 10,
            ["Unnamed: 0", "a"],
            [[0.1, 5], [1.2, 6]] * 10,
            KEPT,
        ),
    }
)
def test_read_with_a_note(tmp_path, case):
    *content_names_and_rows, note = case
    check(tmp_path / "t.csv", *content_names_and_rows, [note])


@pytest.mark.parametrize("delimiter", [";", "\t", " "])
def test_decimal_commas_without_names(tmp_path, delimiter):
    check(tmp_path / "t.csv", rows(delimiter, ","), ("x0", "x1", "x2"), notes=[COMMAS], named=False)


class TestNamesThatAreNumbers:
    @pytest.mark.parametrize(
        ("first", "scale"),
        [
            ("350.0,350.5,351.0", 0.1),
            ("-9.5,-9.25,-9", 1),
            ("1e4,2e4,3e4", 1000),
            ("id,350.0,351.5", 0.1),
            ("350.0,351.5,yield", 0.1),
        ],
    )
    def test_far_from_all_rows(self, tmp_path, first, scale):
        names, x = first.split(","), np.abs(np.round(X * scale, 3))
        note = f"the first line holds names, {', '.join(names)}: its numbers are far from all others"
        check(tmp_path / "t.csv", first + "\n" + rows(x=x), names, x, [note])

    def test_with_decimal_commas(self, tmp_path):
        note = "the first line holds names, 350,0, 350,5, 351,0: its numbers are far from all others"
        content = "350,0;350,5;351,0\n" + rows(";", ",")
        check(tmp_path / "t.csv", content, ["350,0", "350,5", "351,0"], notes=[COMMAS, note])

    def test_whole_numbers_over_counts(self, tmp_path):
        note = "the first line holds names, 350, 351: its numbers are far from all others"
        check(tmp_path / "t.csv", "350,351\n" + "3,17\n0,9\n" * 20, ["350", "351"], [[3, 17], [0, 9]] * 20, [note])

    @pytest.mark.parametrize("first", ["0.1,0.2,0.3", "350.5,350.0,351.0", "350.5,0.1,351.0", "1,1,2", "2.5,2.6,2.7"])
    def test_data_in_the_first_line(self, tmp_path, first):
        x = np.vstack([np.array(first.split(","), float), X])
        check(tmp_path / "t.csv", first + "\n" + rows(), ("x0", "x1", "x2"), x, named=False)

    def test_a_doubtful_line_is_noted(self, tmp_path):
        x = np.random.default_rng(0).uniform(0, 1000, size=(40, 10)).round(3)
        x[0] = 350 + 0.5 * np.arange(10)
        names = [f"x{i}" for i in range(10)]
        note = (
            "the first line, 350.0, 350.5, 351.0, 351.5, 352.0, 352.5, 353.0, 353.5, ..., is taken as data; "
            "if it holds names, begin them by a letter"
        )
        content = ",".join(map(str, x[0])) + "\n" + rows(x=x[1:])
        check(tmp_path / "t.csv", content, names, x, [note], named=False)
        x.sort(axis=1)  # every row increases
        check(tmp_path / "t.csv", rows(x=x), names, x, named=False)


@cases(
    {
        "units": ("a,b,c\nkg,m,s\n" + rows(), "column a holds text in 1 of 41 rows .*data row 1: 'kg'"),
        "total": ("a,b,c\n" + rows() + "total,1,2\n", "column a holds text in 1 of 41 rows .*data row 41: 'total'"),
        "long row": ("a,b,c\n" + rows() + "1,2,3,4\n", "cannot be read as CSV .*line 42, saw 4"),
        "long rows": ("a,b\n" + rows(), "a row has more fields than the first line, which has 2.*check the file"),
        "minus of typesetters": ("a,b,c\n" + rows() + "\u22121.5,2,3\n", "column a holds text .*'\u22121.5'"),
        "per cent": ("a,b,c\n" + rows(last="%"), "column c holds text in 40 of 40 rows"),
        "dollars": ("a,b,c\n" + rows() + "$5,2,3\n", r"column a holds text .*'\$5'"),
        "dates": ("a,b,c\n" + rows() + "2020-01-31,2,3\n", "column a holds text .*'2020-01-31'"),
        "point": ("a,b,c\n" + rows() + ".,2,3\n", r"column a holds text .*'\.'"),
        "names twice": ("a ,a\n" + "1.5,2.5\n" * 30, "more than one column a"),
        "a quote": ('"' + "1" * 200_000 + "\n1,2\n" * 30, "cannot be read as CSV"),
        "names alone": ("a,b\n", "is empty"),
        "comments alone": ("# a\n% b\n", "is empty"),
        "decimal commas among commas": (
            "a,b,c\n" + rows(decimal=","),
            "if commas mark the decimals, write points, or put semi",
        ),
        "one column of commas": ("a\n1,5\n2,5\n", "if commas mark the decimals, write points"),
        "points and commas": (
            "a;b;c\n" + rows(";", ",") + "1;2.5;3\n",
            r"comma \(0,126\) and with a point \(2.5\): write",
        ),
        "thousands": (
            "a;b\n" + "1,234;5,678\n9,100;2\n" * 20,
            "such as 1,234, whose comma may mark decimals or thousands",
        ),
        "thousands in uneven groups": (
            'a,b\n"1,234,567",2.5\n"12,34,567",3.5\n' * 20,
            "such as 12,34,567, whose comma",
        ),
        "thousands with a mark and without": ('a,b\n"1,234",2.5\n1234,3.5\n' * 20, "such as 1234, whose comma may"),
        "points and commas for thousands": (
            "a;b\n" + "1.234,5;1,234,567\n" * 30,
            r"comma \(1.234,5\) and with a point \(1,234,567\)|comma .* and with",
        ),
        "names twice with words": ("kind,kind\n" + "u,2.5\n" * 30, "more than one column kind"),
        "UTF-16 without its mark": (("a,b,c\n" + rows()).encode("utf-16-le"), "zero bytes.*save it as UTF-8"),
        "damaged UTF-16": (
            ("a,b,c\n" + rows()).encode("utf-16") + b"\0",
            "begins as utf-16 but is damaged .*save it as UTF-8",
        ),
        "unknown encoding": (b"\x81,b\n1,2\n", "neither UTF-8 nor Windows-1252 .*save it as UTF-8"),
    }
)
def test_refused(tmp_path, case):
    refused(tmp_path / "t.csv", *case)


@pytest.mark.parametrize("last", ["# end", "1,2", "NA,2,3", "?,2,3"])
def test_a_row_that_lacks_a_cell_is_left_out_with_a_note(tmp_path, last):
    (tmp_path / "t.csv").write_text("a,b,c\n" + rows() + last + "\n")
    dataset = load_density_data(str(tmp_path / "t.csv"))
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 40
    assert any("1 of 41 rows have missing cells and are left out" in note for note in dataset.notes)
    short = "1 row with fewer fields than others (first in data row 41): their last cells are read as missing"
    assert (short in dataset.notes) is (last.count(",") < 2)


def test_true_and_false_are_numbers(tmp_path):
    x = np.column_stack([X[:, 0], np.arange(40) % 2])
    content = "a,b\n" + "".join(f"{a},{b == 1}\n" for a, b in x)
    check(tmp_path / "t.csv", content, "ab", x)


def test_a_damaged_gzip(tmp_path):
    content = gzip.compress(("a,b,c\n" + rows()).encode())
    refused(tmp_path / "t.csv.gz", content[: len(content) // 2] + b"\xff" * 500, "cannot be read as CSV")


@cases(
    {
        "shuffled index": (",a,b,kind\n" + "".join(f"{7 * i % 40},{i}.5,-{i},{'pq'[i % 2]}\n" for i in range(40)), 1),
        "decimal commas": ("a;b;kind\n" + "".join(f"{i},5;-{i};{'pq'[i % 2]}\n" for i in range(40)), 1),
        "numbers as names": ("1.5,2.5,kind\n" + "".join(f"{i},{-i},{'pq'[i % 2]}\n" for i in range(40)), 0),
    }
)
def test_classes(tmp_path, case):
    content, notes = case
    data = load_labelled_data(str(write(tmp_path / "t.csv", content)), target="kind")
    assert data.columns == (("1.5", "2.5") if content.startswith("1.5") else ("a", "b"))
    assert (data.classes, len(data.notes)) == (("p", "q"), notes)


def test_classes_keep_their_commas(tmp_path):
    content = "a;kind\n" + "".join(f"{i},5;{'01'[i % 2]},5\n" for i in range(40))
    data = load_labelled_data(str(write(tmp_path / "t.csv", content)), target="kind")
    assert (data.columns, data.classes) == (("a",), ("0,5", "1,5"))


@pytest.mark.parametrize(
    "title", ["Penguins", "Penguins of 2020", '"Penguins, 2020"', "Penguins,,", "Penguins\n", ",,"]
)
def test_a_title_above_the_names(tmp_path, title):
    content = title + "\na,b,c\n" + rows()
    shown = title.strip('",\n') or "nothing"
    check(tmp_path / "t.csv", content, "abc", notes=[f"the first line is a title and is left out: {shown}"])


def test_thousands_of_columns(tmp_path):
    x = np.round(np.random.default_rng(0).normal(size=(5, 10_000)), 2)
    content = ",".join(["kind", *(f"x{i}" for i in range(10_000))]) + "\n"
    content += "".join("u," + ",".join(map(str, row)) + "\n" for row in x)
    frame, _, _ = csv_tables.read(write(tmp_path / "t.csv", content))
    np.testing.assert_array_equal(frame.iloc[:, 1:], x)
