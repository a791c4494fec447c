"""Numbers, words and missing cells of CSV files as people write them."""

import numpy as np
import pytest

from train_flows.data import csv_tables

COMMAS = "numbers are read with decimal commas"


def cases(table):
    """Parametrise a test by a table of cases by name."""
    return pytest.mark.parametrize("case", table.values(), ids=table)


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    frame, _, notes = csv_tables.read(path)
    return frame, notes


class TestWords:
    """Tables that hold text besides numbers."""

    def check(self, path, content, expected, notes=()):
        frame, found = read(path, content)
        assert {name: [None if x != x else x for x in frame[name]] for name in frame} == expected
        assert found == list(notes)

    @cases(
        {
            "commas": "kind,a\nu,0.5\n v ,1.5\n",
            "semicolons and decimal commas": "kind;a\nu;0,5\nv;1,5\n",
            "tabs": "kind\ta\nu\t0.5\nv\t1.5\n",
            "byte-order mark": "\ufeffkind,a\nu,0.5\nv,1.5\n",
            "UTF-16": "kind,a\nu,0.5\nv,1.5\n".encode("utf-16"),
        }
    )
    def test_dialects(self, tmp_path, case):
        notes = [COMMAS] * (";" in str(case))
        self.check(tmp_path / "t.csv", case, {"kind": ["u", "v"], "a": [0.5, 1.5]}, notes)

    def test_line_breaks_commas_and_quotes(self, tmp_path):
        content = 'kind,a\n"two\nlines",1.5\n"a, b",2.5\n"5"" wide",3.5\n"1,5",4.5\n'
        words = ["two\nlines", "a, b", '5" wide', "1,5"]
        self.check(tmp_path / "t.csv", content, {"kind": words, "a": [1.5, 2.5, 3.5, 4.5]})

    def test_words_with_blanks(self, tmp_path):
        content = "first name,last name\nJohn Smith,Mary Jane\nAnn Lee,Joe Roe\n"
        expected = {"first name": ["John Smith", "Ann Lee"], "last name": ["Mary Jane", "Joe Roe"]}
        self.check(tmp_path / "t.csv", content, expected)

    def test_dates_and_addresses_are_no_numbers(self, tmp_path):
        content = "date;ip;a\n01.02.2017;10.0.0.1;1,5\n"
        self.check(tmp_path / "t.csv", content, {"date": ["01.02.2017"], "ip": ["10.0.0.1"], "a": [1.5]}, [COMMAS])

    def test_data_in_the_first_line(self, tmp_path):
        for content in ("u,0.5,p\nv,1.5,q\n", "u,2020-01-01,p\nv,2020-01-02,q\n"):
            frame, _ = read(tmp_path / "t.csv", content)
            assert (list(frame), len(frame)) == (["x0", "x1", "x2"], 2)

    def test_names_that_are_numbers(self, tmp_path):
        frame, notes = read(tmp_path / "t.csv", "name,2019,2020\n" + "ann,0.5,1.5\nbob,2.5,3.5\n" * 10)
        assert (list(frame), len(frame), len(notes)) == (["name", "2019", "2020"], 20, 1)


class TestMissing:
    @pytest.mark.parametrize(
        "spelling",
        [
            "",
            "NA",
            "N/A",
            "n/a",
            "NaN",
            "nan",
            "null",
            "NULL",
            "None",
            "-",
            "?",
            "#N/A",
            "missing",
            "n.a.",
            "empty",
            "--",
        ],
    )
    def test_among_numbers(self, tmp_path, spelling):
        frame, notes = read(tmp_path / "t.csv", f"a,kind\n1.5,u\n{spelling},v\n2.5,u\n")
        np.testing.assert_array_equal(frame["a"], [1.5, np.nan, 2.5])
        usual = spelling in ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "null", "NULL", "None")
        assert notes == [f"a: {spelling} is read as missing"] * (not usual)

    @pytest.mark.parametrize(("spelling", "is_missing"), [("", True), ("NA", True), ("N/A", True), ("n.a.", True)])
    def test_among_words(self, tmp_path, spelling, is_missing):
        frame, notes = read(tmp_path / "t.csv", f"a,kind\n1.5,u\n3.5,{spelling}\n2.5,u\n")
        assert list(frame["kind"].isna()) == [False, True, False]
        assert notes == [f"kind: {spelling} is read as missing"] * bool(spelling)

    @pytest.mark.parametrize("spelling", ["-", "?", "None", "missing"])
    def test_words_that_may_be_missing_are_kept_with_a_note(self, tmp_path, spelling):
        frame, notes = read(tmp_path / "t.csv", f"a,kind\n1.5,u\n3.5,{spelling}\n2.5,u\n")
        assert list(frame["kind"]) == ["u", spelling, "u"]
        assert notes == [f"kind: {spelling} is read as a word; if it is missing, leave the fields empty"]

    def test_truth_with_gaps(self, tmp_path):
        frame, notes = read(tmp_path / "t.csv", "a,b\n1.5,True\n2.5,\n3.5,False\n")
        assert ([bool(x) for x in frame["b"].dropna()], notes) == ([True, False], [])

    def test_a_short_row(self, tmp_path):
        frame, _ = read(tmp_path / "t.csv", "a,kind\n1.5,u\n2.5\n3.5,v\n")
        assert frame["kind"].isna().tolist() == [False, True, False]


@cases(
    {
        "many groups": ('a,b\n"1,234,567",u\n"12,345",v\n999,u\n', [1234567, 12345, 999], "1,234,567"),
        "groups and decimals": ('a,b\n"1,234.5",u\n"12,345",v\n', [1234.5, 12345], "1,234.5"),
        "points elsewhere": ('a,b\n"1,234",2.5\n"12,345",3.5\n', [1234, 12345], "1,234"),
        "points": ("a;b\n1.234,5;u\n2,5;v\n1.000;w\n", [1234.5, 2.5, 1000], "1.234,5"),
        "many points": ("a;b\n1.234.567;1.500\n12.345;2.000\n", [1234567, 12345], "1.234.567"),
        "blanks": ("a;b\n1 234 567,5;u\n12 345;v\n", [1234567.5, 12345], "1 234 567,5"),
        "apostrophes": ("a;b\n1'234'567.5;u\n12'345;v\n", [1234567.5, 12345], "1'234'567.5"),
    }
)
def test_thousands(tmp_path, case):
    content, expected, example = case
    frame, notes = read(tmp_path / "t.csv", content)
    np.testing.assert_array_equal(frame["a"], expected)
    assert any(f"thousands separators, as in {example}" in note for note in notes)
    if "1.500" in content:
        np.testing.assert_array_equal(frame["b"], [1500, 2000])


def test_leading_zeros(tmp_path):
    frame, notes = read(tmp_path / "t.csv", "zip,kind\n01234,u\n10001,v\n")
    assert frame["zip"].tolist() == ["01234", "10001"]
    assert notes == ["zip: kept as text for leading zeros, as in 01234"]
