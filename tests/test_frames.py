"""Tables of people's values as rows of numbers, and back: exact for every kind, with errors that name the cell."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from anode import InputError
from cnf.tables import table_model
from cnf.tables.columns import Column, encode
from train_flows.data import frames, tables
from train_flows.data.frames import LeftOut, to_frame, to_rows
from train_flows.data.kinds import find_columns

N = 40
GAPS = st.lists(st.booleans(), min_size=N, max_size=N)


def cells(values):
    return st.lists(values, min_size=N, max_size=N)


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=5).map(lambda text: f"k{text}")
DATES = st.dates(pd.Timestamp("1900-01-01").date(), pd.Timestamp("2100-01-01").date())
TIMES = st.datetimes(pd.Timestamp("1990-01-01").to_pydatetime(), pd.Timestamp("2040-01-01").to_pydatetime())
COLUMNS = st.one_of(
    cells(st.sampled_from(["u", "v, w", 'say "x"', "größe", "two\nlines", " blanks ", "日本"])),
    cells(TEXTS),
    cells(st.booleans()),
    cells(st.integers(-3, 3)),
    cells(st.integers(-(2**52), 2**52)),
    cells(st.integers(-50, 50).map(lambda k: round(k / 10, 1))),
    cells(st.floats(-1e6, 1e6)),
    cells(st.floats(1e-6, 1e6)),
    cells(st.floats(0, 1)),
    cells(DATES.map(pd.Timestamp)),
    cells(TIMES.map(pd.Timestamp)),
)


def same(a, b):
    """Return True for columns of the same values, with gaps in the same cells."""
    missing = a.isna().to_numpy()
    if (b.isna().to_numpy() != missing).any():
        return False
    return all(x == y for x, y in zip(a[~missing], b[~missing], strict=True))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(COLUMNS, st.none() | GAPS), min_size=1, max_size=5))
def test_round_trip(columns):
    frame = pd.DataFrame({"always": np.linspace(-3, 3, N) ** 3, "five": 5})
    for i, (values, gaps) in enumerate(columns):
        series = pd.Series(values)
        frame[f"c{i}"] = series if gaps is None else series.mask(pd.Series(gaps))
        frame[f"copy of c{i}"] = frame[f"c{i}"]
    found = find_columns(frame, gaps=True)
    rows = to_rows("t.csv", frame, found.columns)
    for cells, column in zip(torch.from_numpy(rows).T, found.columns, strict=True):
        assert torch.equal(column.value_of(column.state_of(cells), cells).isnan(), cells.isnan())
    back = to_frame(rows, found.columns, found.left_out)
    lost = {each.name for each in found.left_out if each.reason in ("identifier", "text", "missing")}
    assert list(back) == [name for name in frame if name not in lost]
    for name in back:
        assert same(frame[name], back[name]), name
    np.testing.assert_array_equal(to_rows("t.csv", back, found.columns), rows)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(COLUMNS, st.none() | GAPS), min_size=1, max_size=4))
def test_rows_return_from_a_density_in_their_units(columns):
    frame = pd.DataFrame({"x": np.linspace(-3, 3, N) ** 3})
    for i, (values, gaps) in enumerate(columns):
        frame[f"c{i}"] = pd.Series(values) if gaps is None else pd.Series(values).mask(pd.Series(gaps))
    found = find_columns(frame, gaps=True).columns
    rows = torch.from_numpy(to_rows("t.csv", frame, found))
    model = table_model(found, rows, hidden=(4,))
    assert model.log_prob(rows, samples=1 + model.stochastic).isfinite().all()
    encoded = encode(model.columns, rows, noise=False)
    back = to_frame(model.decode(encoded.states, encoded.y).numpy(), found)
    for column in found:
        one, other = frame[column.name], back[column.name]
        if column.is_category:
            assert same(one, other), column
        elif column.kind == "date":
            assert (one - other).abs().max() < pd.Timedelta(1, "ms"), column
        else:
            one, other = one.to_numpy(float, na_value=np.nan), other.to_numpy(float, na_value=np.nan)
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-9 * np.nanmax(np.abs(one)))
    for cells, column in zip(model.sample(20).T, found, strict=True):
        known = cells[~cells.isnan()]
        assert (known >= (-math.inf if column.low is None else column.low)).all(), column
        assert (known <= (math.inf if column.high is None else column.high)).all(), column


@settings(max_examples=30, deadline=None)
@given(st.lists(COLUMNS, min_size=1, max_size=4))
def test_columns_are_plain_values(columns):
    found = find_columns(pd.DataFrame({"x": np.linspace(-3, 3, N) ** 3} | {f"c{i}": v for i, v in enumerate(columns)}))
    for kind, each in ((Column, found.columns), (LeftOut, found.left_out)):
        adapter = TypeAdapter(tuple[kind, ...])
        assert adapter.validate_python(json.loads(adapter.dump_json(each))) == each


class TestToFrame:
    def test_types(self):
        columns = [
            Column("truth", "category", ("False", "True")),
            Column("count", "category", ("0", "1", "10")),
            Column("half", "category", ("0", "0.5")),
            Column("kind", "category", ("u", "v")),
            Column("n", "ordinal", step=1),
            Column("grid", step=0.1),
            Column("day", "date", first="2024-01-31", step=1),
        ]
        frame = to_frame(np.array([[1, 2, 1, 0, 3, 0.1 + 0.2, 1], [0, 0, 0, 1, -4, 0.7, 29.0]]), columns)
        assert frame.to_dict("list") == {
            "truth": [True, False],
            "count": [10, 0],
            "half": [0.5, 0.0],
            "kind": ["u", "v"],
            "n": [3, -4],
            "grid": [0.3, 0.7],
            "day": [pd.Timestamp("2024-02-01"), pd.Timestamp("2024-02-29")],
        }
        assert [kind.kind for kind in frame.dtypes] == ["b", "i", "f", "O", "i", "f", "M"]

    def test_gaps(self):
        columns = [
            Column("a", gaps=True),
            Column("b", "category", ("0", "1"), gaps=True),
            Column("n", "ordinal", gaps=True),
        ]
        frame = to_frame(np.array([[1.5, np.nan, 3], [np.nan, 1, np.nan]]), columns)
        assert frame.isna().to_numpy().tolist() == [[False, True, False], [True, False, True]]
        assert frame.to_csv(index=False).splitlines() == ["a,b,n", "1.5,,3", ",1,"]

    def test_constants_and_copies_return_to_their_places(self):
        a = np.arange(N) % 3
        frame = pd.DataFrame(
            {
                "unit": "kg",
                "id": [f"car {i}" for i in range(N)],
                "a": a,
                "name": np.array(["no", "yes", "maybe"])[a],
                "x": np.linspace(-3, 3, N) ** 3,
                "five": 5,
                "day": pd.Timestamp("2024-01-31"),
            }
        )
        frame["again"] = frame["x"]
        found = find_columns(frame)
        back = to_frame(np.array([[2, 0.25], [0, -1.5]]), found.columns, found.left_out)
        assert back.to_dict("list") == {
            "unit": ["kg", "kg"],
            "a": [2, 0],
            "name": ["maybe", "no"],
            "x": [0.25, -1.5],
            "five": [5, 5],
            "day": [pd.Timestamp("2024-01-31")] * 2,
            "again": [0.25, -1.5],
        }

    def test_a_copy_between_two_keys_is_that_of_the_nearest(self):
        name = LeftOut(
            "name", "copy", 1, Column("name", "category", ("u", "v")), "n", (1.0, 4.0, None), (0.0, 1.0, None)
        )
        frame = to_frame(np.array([[1.0], [2.0], [3.0], [9.0], [np.nan]]), [Column("n", gaps=True)], [name])
        assert frame["name"].fillna("missing").tolist() == ["u", "u", "v", "v", "missing"]


class TestToRows:
    def test_the_same_value_in_other_types(self):
        columns = [
            Column("a", "category", ("0", "1")),
            Column("b", "category", ("False", "True")),
            Column("n", "ordinal"),
        ]
        expected = [[1, 0, 12], [0, 1, 15]]
        for frame in (
            pd.DataFrame({"a": [1, 0], "b": [False, True], "n": [12, 15]}),
            pd.DataFrame({"a": [1.0, 0.0], "b": ["False", "True"], "n": ["12", "15.0"]}),
            pd.DataFrame(
                {"a": ["1.0", "0"], "b": pd.array([False, True], "boolean"), "n": pd.array([12, 15], "Int64")}
            ),
            pd.DataFrame({"n": [12, 15], "more": [1, 2], "b": [False, True], "a": pd.Categorical([1, 0])}),
        ):
            np.testing.assert_array_equal(to_rows("t.csv", frame, columns), expected)

    def test_dates_are_read_as_the_model_knows_them(self):
        frame = pd.DataFrame({"day": ["01/02/2024", "03/02/2024"]})
        for day_first, days in ((True, [0, 2]), (False, [-30, 30])):
            column = Column("day", "date", first="2024-02-01", day_first=day_first)
            np.testing.assert_array_equal(to_rows("t.csv", frame, [column])[:, 0], days)

    @pytest.mark.parametrize(
        ("column", "values", "message"),
        [
            (
                Column("a", "category", ("u", "v")),
                ["u", "w"],
                r"a cannot hold 'w' \(data row 2\): its categories are u, v",
            ),
            (Column("a"), [1.5, "x"], r"a cannot hold 'x' \(data row 2\): it holds numbers"),
            (Column("a"), [1.5, np.inf], r"a cannot hold inf \(data row 2\)"),
            (Column("a", "positive", scale="log", low=0), [1.5, -2.5], r"a cannot hold -2.5 .*between 0 and inf"),
            (Column("a", "bounded", scale="logit", low=0, high=1), [0.5, 1], r"a cannot hold 1.0 .*between 0 and 1"),
            (Column("a", "date", first="2024-01-31"), ["2024-01-31", "soon"], r"a cannot hold 'soon' .*it holds dates"),
            (Column("a"), [1.5, None], r"a holds missing values in 1 of 2 rows \(first in data row 2\): fill them in"),
            (Column("a", "category", ("u",)), ["u", None], r"a holds missing values .*--missing model"),
            (Column("b"), [1.5, 2.5], r"lacks the columns b: it has a"),
        ],
    )
    def test_refused(self, column, values, message):
        with pytest.raises(InputError, match=f"t.csv.*{message}") as caught:
            to_rows("t.csv", pd.DataFrame({"a": values}), [column])
        assert "np." not in str(caught.value)

    def test_rows_of_a_part_keep_their_number(self):
        frame = pd.DataFrame({"a": ["u", "u", "w"]})
        with pytest.raises(InputError, match=r"\(data row 3\)"):
            to_rows("t.csv", frame[1:], [Column("a", "category", ("u",))])

    def test_atoms_may_be_out_of_bounds(self):
        column = Column("a", "positive", scale="log", low=0, atoms=(-9.0, 0.0))
        assert to_rows("t.csv", pd.DataFrame({"a": [-9, 0, 2]}), [column])[:, 0].tolist() == [-9, 0, 2]


@pytest.mark.parametrize("name", ["mixed/penguins.csv", "mixed/titanic.csv", "mixed/diamonds.csv.gz"])
def test_real_tables(real_data, name):
    frame = tables.read(real_data / name).parts["all"]
    found = find_columns(frame, gaps=True)
    back = to_frame(to_rows(name, frame, found.columns), found.columns, found.left_out)
    assert list(back) == list(frame)
    for column in frame:
        assert same(frame[column], back[column]), column


def test_dates_without_a_year_first():
    times, day_first = frames.parse_dates(pd.Series(["31/01/2024 7:05", "1.2.2024", None, "31/02/2024"]))
    assert day_first
    assert [str(time) for time in times[:2].astype("datetime64[m]")] == ["2024-01-31T07:05", "2024-02-01T00:00"]
    assert np.isnat(times[2:]).all()
