"""Series in tables: times, dates, several series, and one line for whatever cannot be used."""

import gzip

import numpy as np
import pandas as pd
import pytest

from anode import InputError
from train_flows.forecasting.series_tables import read_series
from train_flows.forecasting.time_axis import TimeAxis


def write(path, text):
    path.write_text(text)
    return path


def read(tmp_path, text, time="date", **options):
    return read_series(write(tmp_path / "a.csv", text), time, **options)


def lines(dates, values=None):
    values = range(len(dates)) if values is None else values
    return "date,x\n" + "".join(f"{date},{value}\n" for date, value in zip(dates, values, strict=True))


class TestTimes:
    def test_numbers_stay_numbers(self, tmp_path):
        axis, columns, (one,), notes = read(tmp_path, "date,x,y\n0.5,1,2\n2,3,\n7,4,9\n")
        assert (axis, columns, notes) == (TimeAxis("date"), ("x", "y"), [])
        np.testing.assert_array_equal(one.times, [0.5, 2, 7])
        np.testing.assert_array_equal(one.values, [[1, 2], [3, np.nan], [4, 9]])

    @pytest.mark.parametrize(
        ("dates", "options"),
        [
            (["2013-01-01", "2013-01-02", "2013-02-01"], {}),
            (["01/01/2013", "02/01/2013", "01/02/2013"], {"day_first": True}),
            (["01/01/2013", "01/02/2013", "02/01/2013"], {"day_first": False}),
            (["01.01.2013", "02.01.2013", "01.02.2013"], {}),
            (["20130101", "20130102", "20130201"], {"date_format": "%Y%m%d"}),
            (["1 Jan 2013", "2 Jan 2013", "1 Feb 2013"], {}),
            (["2013-01-01T00:00Z", "2013-01-02 01:00+01:00", "2013-02-01"], {}),
        ],
    )
    def test_dates_are_days(self, tmp_path, dates, options):
        axis, _, (one,), _ = read(tmp_path, lines(dates), **options)
        assert axis.origin == "2013-01-01"
        np.testing.assert_array_equal(one.times, [0, 1, 31])

    def test_times_of_day_are_fractions(self, tmp_path):
        axis, _, (one,), _ = read(tmp_path, lines(["2013-01-01 06:00", "2013-01-01 18:00", "2013-01-03"]))
        np.testing.assert_array_equal(one.times, [0.25, 0.75, 2])
        assert axis.show(0.25) == "2013-01-01 06:00:00"

    @pytest.mark.parametrize(
        ("dates", "said", "days"),
        [
            (
                ["11/01/2013", "12/01/2013", "01/02/2013"],
                "day first, in which order they increase; --month",
                [0, 1, 21],
            ),
            (["01/02/2013", "01/03/2013", "01/04/2013"], "the month first, by assumption; --day-first", [0, 1, 2]),
        ],
    )
    def test_dates_that_can_be_read_two_ways_say_so(self, tmp_path, dates, said, days):
        _, _, (one,), (note,) = read(tmp_path, lines(dates))
        assert said in note
        assert dates[0] in note or dates[1] in note
        np.testing.assert_array_equal(one.times, days)
        assert read(tmp_path, lines(dates), day_first=True)[3] == []

    @pytest.mark.parametrize(("zone", "count"), [("", 0), ("Z", 0), ("+00:00", 0), ("+02:00", 1), ("-0530", 1)])
    def test_time_zones_are_converted_with_a_note(self, tmp_path, zone, count):
        notes = read(tmp_path, lines([f"2013-01-0{day} 12:00:00.5{zone}" for day in (1, 2)]))[3]
        assert notes == ["date: times with a time zone are converted to UTC"] * count

    def test_dates_come_back(self):
        axis, days = TimeAxis("date", "1969-12-31"), np.array([0.0, 0.5, 20_000.25])
        np.testing.assert_array_equal(axis.times(axis.dates(days)), days)
        assert axis.point("--at", "1970-01-02") == 2
        assert [axis.show(day) for day in days] == ["1969-12-31", "1969-12-31 12:00:00", "2024-10-03 06:00:00"]

    @pytest.mark.parametrize(
        ("text", "days"),
        [("30d", 30), ("12h", 0.5), ("2w", 14), ("1y", 365.25), ("90m", 1 / 16), ("1.5", 1.5), (".5d", 0.5)],
    )
    def test_durations(self, text, days):
        axis = TimeAxis("date", "2013-01-01")
        assert axis.duration("--horizon", text) == pytest.approx(days)
        assert axis.duration("--horizon", axis.show_duration(days)) == pytest.approx(days)

    @pytest.mark.parametrize("text", ["0d", "-3d", "3 months", "d", "", "1e400d"])
    def test_other_durations_are_refused(self, text):
        with pytest.raises(InputError, match=r"--horizon.* must be a positive duration"):
            TimeAxis("date", "2013-01-01").duration("--horizon", text)

    @pytest.mark.parametrize(
        ("text", "day_first", "days"),
        [("2013-02-01", None, 31), ("01/02/2013", True, 31), ("01/02/2013", False, 1), ("01.02.2013", None, 31),
         ("13/02/2013", None, 43), ("02/02/2013", None, 32)],
    )  # fmt: skip
    def test_typed_dates_are_read_in_the_order_of_the_column(self, text, day_first, days):
        assert TimeAxis("t", "2013-01-01", day_first).point("--split", text) == days

    def test_typed_dates_that_can_be_read_two_ways_are_refused(self):
        with pytest.raises(InputError, match="01/02/2013 can be read two ways: write 2013-01-02 or 2013-02-01"):
            TimeAxis("t", "2013-01-01").point("--split", "01/02/2013")

    @pytest.mark.parametrize("text", ["01.02.13", "2013-02-01", "1 Feb 2013"])
    def test_typed_dates_may_have_the_format_of_the_column_or_none(self, text):
        assert TimeAxis("t", "2013-01-01", None, "%d.%m.%y").point("--at", text) == 31

    def test_large_numbers_are_shown_whole(self):
        assert [TimeAxis("t").show(time) for time in (1577836800.0, 0.1, 5.0)] == ["1577836800", "0.1", "5"]

    def test_units_are_for_dates(self):
        assert TimeAxis("t").duration("--horizon", "30") == 30
        with pytest.raises(InputError, match="30d has a unit, but the times in column t are numbers"):
            TimeAxis("t").duration("--horizon", "30d")
        with pytest.raises(InputError, match="--split 2013-01-01 must be a number"):
            TimeAxis("t").point("--split", "2013-01-01")
        with pytest.raises(InputError, match="--split soon must be a date"):
            TimeAxis("t", "2013-01-01").point("--split", "soon")


class TestRows:
    @pytest.mark.parametrize("delimiter", [";", "\t", "|"])
    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
    def test_dialects(self, tmp_path, delimiter, encoding):
        """Decimal commas leave the points of dates alone."""
        rows = [["Datum", "Wärme"], ["01.02.2013", "0,5"], ["03.02.2013", "NA"], ["04.02.2013", "-1,25"]]
        text = "\r\n".join(delimiter.join(row) for row in rows)
        with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
            file.write(text.encode(encoding))
        axis, columns, (one,), notes = read_series(tmp_path / "a.csv.gz", "Datum")
        assert (axis.origin, columns) == ("2013-02-01", ("Wärme",))
        assert (one.times.tolist(), one.values[:, 0].tolist()) == ([0, 3], [0.5, -1.25])
        assert notes[-1] == "numbers are read with decimal commas"

    def test_unsorted_rows_are_sorted_with_a_note(self, tmp_path):
        _, _, (one,), notes = read(tmp_path, "date,x\n2,20\n1,10\n3,30\n")
        np.testing.assert_array_equal(one.values[:, 0], [10, 20, 30])
        assert notes == ["rows are sorted by date"]

    def test_several_series_may_share_times(self, tmp_path):
        text = "id,date,x\n" + "".join(f"{name},{t},{t + k}\n" for k, name in enumerate("ba") for t in range(3))
        _, columns, series, notes = read(tmp_path, text, series="id")
        assert ([one.name for one in series], columns, notes) == (["b", "a"], ("x",), [])
        np.testing.assert_array_equal(series[1].values[:, 0], [1, 2, 3])

    def test_series_may_be_numbered(self, tmp_path):
        _, _, series, _ = read(tmp_path, "id,date,x\n1,0,1\n1,1,2\n2,0,5\n2,1,9\n", series="id")
        assert [one.name for one in series] == ["1", "2"]

    def test_text_columns_are_left_out_with_a_note(self, tmp_path):
        _, columns, _, notes = read(tmp_path, "date,place,x\n0,a,1\n1,b,2\n")
        assert (columns, notes) == (("x",), ["place: left out, not numbers"])

    def test_rows_without_values_are_left_out(self, tmp_path):
        _, _, (one,), _ = read(tmp_path, "date,x,y\n0,1,2\n1,,\n2,,3\n3,7,3\n")
        np.testing.assert_array_equal(one.times, [0, 2, 3])


BAD = {
    "no time column": ("date,x\n0,1\n1,2\n", {"time": None}, "--time is missing: name the column of times of a.csv"),
    "unknown time": ("date,x\n0,1\n", {"time": "day"}, "--time day is not a column of a.csv: choose one of date, x"),
    "unknown series": ("date,x\n0,1\n", {"series": "id"}, "--series id is not a column"),
    "unknown target": ("date,x\n0,1\n", {"target": ("y",)}, "--target y is not a column"),
    "twice": ("date,x\n0,1\n1,2\n", {"target": ("x", "x")}, "--target names x twice: omit one"),
    "two roles": ("date,x\n0,1\n", {"target": ("date",)}, "column date of a.csv has two roles"),
    "no date": (lines(["soon", "later"]), {}, "column date holds neither numbers nor dates .first 'soon'."),
    "one bad date": (
        lines(["2013-01-01", "2013-01-02", "2013-13-03", "2013-01-04"]),
        {},
        "column date holds '2013-13-03' in data row 3, which is not a date: correct it",
    ),
    "days and months contradict": (
        lines(["13/01/2013", "01/13/2013", "01/01/2013", "02/02/2013"]),
        {},
        "column date holds '13/01/2013' in data row 1",
    ),
    "other format": (
        lines(["2013-01-01", "2013-01-02"]),
        {"date_format": "%d.%m.%Y"},
        "date of --date-format %d.%m.%Y",
    ),
    "bad format": (lines(["2013-01-01", "2013-01-02"]), {"date_format": "%Q"}, "--date-format %Q is not a format"),
    "missing time": ("date,x\n0,1\n,2\n3,4\n", {}, "column date lacks a time in data row 2"),
    "missing series": ("id,date,x\na,0,1\n,1,2\n", {"series": "id"}, "column id names no series in data row 2"),
    "order of numbers": (
        "date,x\n0,1\n1,2\n",
        {"day_first": True},
        "are for dates, column date of a.csv holds numbers",
    ),
    "repeated": (
        "date,x\n3,1\n0,2\n0,3\n3,4\n",
        {},
        "column date holds 0 in data rows 2 and 3: drop one of them, or name the column of the series by --series",
    ),
    "repeated date": (
        "id,date,x\na,2013-01-01,1\na,2013-01-01,2\n",
        {"series": "id"},
        "column date holds 2013-01-01 of series a in data rows 1 and 2: drop one",
    ),
    "one observation": (
        "id,date,x\na,0,1\na,1,2\nb,0,3\n",
        {"series": "id"},
        "series b has a single observation or none .data row 3.",
    ),
    "constant": ("date,x,y\n0,1,5\n1,2,5\n", {}, "column y is constant .5.: leave it out, by --target"),
    "missing": ("date,x,y\n0,1,\n1,2,\n", {}, "all values of column y are missing: leave it out"),
    "text": (
        "date,x\n0,1\n1,2\n2,oops\n3,4\n",
        {},
        "column x holds 'oops' in data row 3, which is not a number: correct it, leave the cell empty",
    ),
    "typed text": ("date,x,y\n0,a,1\n1,b,2\n", {"target": ("x",)}, "column x holds 'a' in data row 1, which is not a"),
    "infinite": ("date,x\n0,1\n1,inf\n2,3\n", {}, "column x holds inf in data row 2, which is infinite"),
    "one row": ("date,x\n0,1\n", {}, "the series has a single observation or none .data row 1."),
    "too large": ("date,x\n0,1e300\n1,2e300\n", {}, "column x has values up to 2e.300 within a range of 1e.300"),
    "too small": ("date,x\n0,1e-300\n1,2e-300\n", {}, "beyond the seven digits of the model: change the unit"),
    "too far from zero": (
        "date,x\n0,1000000000\n1,1000000002\n",
        {},
        "within a range of 2, beyond .* subtract a constant",
    ),
    "no numbers": ("date,x\n0,a\n1,b\n", {}, "a.csv lacks a column of numbers besides date"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_named_with_its_remedy(tmp_path, case):
    text, options, message = case
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, text, **{"time": "date", **options})
    assert "\n" not in str(error.value)


def test_real_dates_with_the_day_first(real_data):
    axis, columns, (one,), notes = read_series(real_data / "climate" / "DailyDelhiClimateTrain.csv", "date")
    frame = pd.read_csv(real_data / "climate" / "DailyDelhiClimateTrain.csv")
    assert (len(one), axis.origin, axis.day_first, notes) == (len(frame), "2013-01-01", True, [])
    np.testing.assert_array_equal(np.diff(one.times), 1)
    assert columns == ("meantemp", "humidity", "wind_speed", "meanpressure")
