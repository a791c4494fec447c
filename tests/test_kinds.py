"""Kinds of columns, in real tables and in made ones: findings, columns left out, choices of the user, and errors."""

import numpy as np
import pandas as pd
import pytest

from anode import InputError
from train_flows.data import tables
from train_flows.data.kinds import describe, find_columns, has_discrete

N = 400
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=N)


def find(values, **options):
    """Return the column of some values, in a table with another one."""
    return find_columns(pd.DataFrame({"a": values, "other": RNG.normal(size=len(values))}), **options).columns[0]


def left_out(**columns):
    found = find_columns(pd.DataFrame(columns | {"other": RNG.normal(size=N)}))
    return {each.name: each.reason for each in found.left_out}


def refused(values, message, **options):
    frame = pd.DataFrame({"a": values, "other": RNG.normal(size=len(values))})
    with pytest.raises(InputError, match=message) as caught:
        find_columns(frame, name="t.csv", **options)
    assert "\n" not in str(caught.value)


def kinds_of(path, **options):
    found = find_columns(tables.read(path).parts["all"], **options)
    assert len(describe(found).splitlines()) == len(found.columns) + len(found.left_out)
    return {column.name: column for column in found.columns}, {each.name: each.reason for each in found.left_out}


class TestRealTables:
    def test_penguins(self, real_data):
        columns, others = kinds_of(real_data / "mixed/penguins.csv")
        assert {name: column.kind for name, column in columns.items()} == {
            "species": "category",
            "island": "category",
            "bill_length_mm": "continuous",
            "bill_depth_mm": "continuous",
            "flipper_length_mm": "ordinal",
            "body_mass_g": "ordinal",
            "sex": "category",
        }
        assert others == {}
        assert columns["species"].categories == ("Adelie", "Chinstrap", "Gentoo")
        assert [columns[name].step for name in ("bill_length_mm", "flipper_length_mm", "body_mass_g")] == [0.1, 1, 25]
        assert {column.scale for column in columns.values()} == {"linear"}

    @pytest.mark.parametrize("gaps", [False, True])
    def test_titanic(self, real_data, gaps):
        columns, others = kinds_of(real_data / "mixed/titanic.csv", gaps=gaps)
        assert {name for name, column in columns.items() if column.kind == "category"} - {"deck"} == {
            "survived",
            "pclass",
            "sex",
            "sibsp",
            "parch",
            "embarked",
            "who",
            "adult_male",
            "alone",
        }
        assert (columns["age"].kind, columns["fare"].kind, columns["fare"].atoms) == ("positive", "positive", (0.0,))
        assert others == {"class": "copy", "embark_town": "copy", "alive": "copy"} | (
            {} if gaps else {"deck": "missing"}
        )
        assert {name for name, column in columns.items() if column.gaps} == (
            {"age", "embarked", "deck"} if gaps else set()
        )

    def test_diamonds(self, real_data):
        columns, others = kinds_of(real_data / "mixed/diamonds.csv.gz")
        assert [columns[name].kind for name in ("cut", "color", "clarity")] == ["category"] * 3
        assert (columns["carat"].kind, columns["carat"].scale, columns["carat"].step) == ("positive", "log", 0.01)
        assert (columns["price"].kind, columns["price"].scale, columns["price"].step) == ("ordinal", "log", 1)
        assert {columns[name].atoms for name in "xyz"} == {(0.0,)}
        assert (columns["depth"].kind, columns["depth"].atoms) == ("continuous", ())
        assert (columns["table"].kind, columns["table"].recurs) == ("continuous", True)
        assert columns["carat"].recurs
        assert {0.3, 1.0, 1.01} < set(columns["carat"].atoms)
        assert others == {}

    def test_series(self, real_data):
        columns, _ = kinds_of(real_data / "climate/DailyDelhiClimateTrain.csv")
        date = columns["date"]
        assert (date.kind, date.first, date.day_first, date.step) == ("date", "2013-01-01", True, 1)
        assert [columns[name].kind for name in ("meantemp", "meanpressure")] == ["continuous"] * 2
        columns, _ = kinds_of(real_data / "series/seaice.csv.gz")
        assert [column.kind for column in columns.values()] == ["date", "continuous"]

    @pytest.mark.parametrize("name", ["protein", "parkinsons"])
    def test_tables_of_real_numbers_stay_as_they_are(self, real_data, name):
        columns, others = kinds_of(real_data / f"tabular/{name}.csv.gz")
        assert others == {}
        for column in columns.values():
            assert (column.kind, column.scale, column.step, column.atoms) == ("continuous", "linear", 0, ())


class TestFound:
    @pytest.mark.parametrize(
        ("values", "categories"),
        [
            (["u", "v"] * 200, ("u", "v")),
            (["v", "10", "9", "u"] * 100, ("9", "10", "u", "v")),
            ([True, False] * 200, ("False", "True")),
            ([3, 1, 2, 0] * 100, ("0", "1", "2", "3")),
            ([3.0, 1.0, 2.0, 0.0] * 100, ("0", "1", "2", "3")),
            (["1", "2"] * 200, ("1", "2")),
            (["007", "7", "10"] * 100, ("007", "7", "10")),
            ([0.1, 0.37, 2.2] * 100, ("0.1", "0.37", "2.2")),
            (pd.Categorical(["low", "high"] * 200, ["low", "mid", "high"]), ("low", "high")),
        ],
    )
    def test_categories(self, values, categories):
        column = find(values)
        assert (column.kind, column.categories) == ("category", categories)

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (NORMAL, {"kind": "continuous", "scale": "linear", "low": None, "step": 0, "atoms": ()}),
            (NORMAL.round(1), {"kind": "continuous", "scale": "linear", "step": 0.1}),
            (10**NORMAL, {"kind": "positive", "scale": "log", "low": 0, "high": None}),
            (RNG.exponential(size=N), {"kind": "positive", "scale": "log", "low": 0}),
            (20 + NORMAL, {"kind": "continuous", "scale": "linear", "low": None}),
            (RNG.uniform(size=N), {"kind": "bounded", "scale": "logit", "low": 0, "high": 1}),
            (100 * RNG.uniform(size=N), {"kind": "bounded", "scale": "logit", "low": 0, "high": 100}),
            (RNG.standard_t(1, size=N), {"kind": "continuous", "scale": "asinh"}),
            (RNG.poisson(30, size=N), {"kind": "ordinal", "scale": "linear", "step": 1, "low": None}),
            (RNG.geometric(0.05, size=N) - 1, {"kind": "ordinal", "step": 1, "low": 0}),
            (50 * RNG.poisson(30, size=N), {"kind": "ordinal", "step": 50}),
            (np.round(1000 * 10**NORMAL), {"kind": "ordinal", "scale": "log", "low": 0}),
            (-RNG.poisson(30, size=N), {"kind": "ordinal", "scale": "linear", "low": None}),
        ],
    )
    def test_numbers(self, values, expected):
        column = find(values)
        assert {name: getattr(column, name) for name in expected} == expected

    @pytest.mark.parametrize(
        ("values", "kind", "atoms"),
        [
            (np.where(NORMAL > 0, 0, 10 ** (2 - NORMAL)), "positive", (0.0,)),
            (np.clip(0.5 + NORMAL / 2, 0, 1), "bounded", (0.0, 1.0)),
            (np.where(NORMAL > 2, -999, NORMAL), "continuous", (-999.0,)),
            (np.where(NORMAL > 2, 999, RNG.poisson(30, size=N)), "ordinal", (999.0,)),
            (np.where(NORMAL > 0, 0.25, NORMAL), "continuous", (0.25,)),
        ],
    )
    def test_atoms(self, values, kind, atoms):
        column = find(values)
        assert (column.kind, column.atoms) == (kind, atoms)

    def test_round_numbers_recur(self):
        ages = np.round(RNG.normal(40, 12, size=10 * N))
        assert find(ages).atoms == ()
        heaped = np.where(RNG.random(10 * N) < 0.4, 5 * np.round(ages / 5), ages)
        assert {30.0, 35.0, 40.0, 45.0, 50.0} < set(find(heaped).atoms)
        assert find(heaped, kinds={"a": "ordinal"}).atoms == ()

    def test_counts_from_zero_have_no_atoms(self):
        assert find(RNG.poisson(3, size=N) + 5 * RNG.poisson(0.3, size=N)).atoms == ()

    def test_gaps(self):
        gappy = np.where(NORMAL > 1, np.nan, NORMAL)
        frame = pd.DataFrame({"a": gappy, "b": np.where(NORMAL > 1, None, "u"), "c": RNG.normal(size=N)})
        found = find_columns(frame, gaps=True)
        assert [(column.name, column.gaps) for column in found.columns] == [("a", True), ("b", True), ("c", False)]
        found = find_columns(frame)
        assert [(column.name, column.gaps) for column in found.columns] == [("a", False), ("c", False)]
        assert f"{(NORMAL > 1).sum()} of 400 rows have missing cells" in found.notes[0]
        assert [(each.name, each.reason) for each in found.left_out] == [("b", "constant")]


class TestDates:
    @pytest.mark.parametrize(
        ("first", "format", "day_first"),
        [
            ("2024-01-31", "%Y-%m-%d", False),
            ("2024-01-31", "%d/%m/%Y", True),
            ("2024-01-31", "%m/%d/%Y", False),
            ("2024-01-31", "%d.%m.%Y", True),
            ("2024-01-31", "%Y/%m/%d", False),
            ("2024-01-31", "%d %b %Y", False),
            ("2024-01-31", "%B %d, %Y", False),
        ],
    )
    def test_spellings(self, first, format, day_first):
        days = pd.date_range(first, periods=60)
        column = find(list(days.strftime(format)))
        assert (column.kind, column.first, column.day_first, column.step) == ("date", first, day_first, 1)

    def test_times(self):
        times = pd.date_range("2024-01-31", periods=60, freq="7h")
        for values in (
            times,
            list(times.astype(str)),
            list(times.strftime("%d/%m/%Y %H:%M")),
            times.tz_localize("UTC"),
        ):
            column = find(values)
            assert (column.kind, column.first, column.step) == ("date", "2024-01-31", 0)

    def test_ambiguous(self):
        frame = pd.DataFrame({"a": ["01/02/2024", "03/02/2024", "04/05/2024"] * 10, "b": NORMAL[:30]})
        found = find_columns(frame)
        assert found.columns[0].first == "2024-01-02"
        assert "a: the dates do not show if the day or the month comes first" in found.notes[0]

    def test_days_and_months_in_both_places(self):
        refused(
            ["31/01/2024", "01/31/2024"] * 20,
            "column a holds other text than dates .* in 20 of 40 rows .*data row 1: '31/01/2024'",
        )

    @pytest.mark.parametrize("stray", ["unknown", "2024-02-30", "2024"])
    def test_a_stray_word(self, stray):
        dates = list(pd.date_range("2024-01-01", periods=40).strftime("%Y-%m-%d"))
        refused(
            [*dates, stray],
            f"column a holds other text than dates .* in 1 of 41 rows .*data row 41: '{stray}'.*--kind a=category",
        )


class TestLeftOut:
    def test_identifiers(self):
        words = [f"car {i}" for i in range(N)]
        assert left_out(i=np.arange(N), words=words, user_id=RNG.permutation(N) + 1000, x=NORMAL, c=5 * ["u"] * 80) == {
            "i": "identifier",
            "words": "identifier",
            "user_id": "identifier",
            "c": "constant",
        }

    def test_numbers_are_no_identifiers(self):
        assert left_out(x=NORMAL, year=np.arange(N) + 1600, count=RNG.permutation(N)) == {}

    def test_copies(self):
        a, n, kind = RNG.integers(0, 3, N), RNG.poisson(30, N), RNG.integers(0, 2, N)
        found = find_columns(
            pd.DataFrame(
                {
                    "a": a,
                    "name": np.array(["no", "yes", "maybe"])[a],
                    "x": NORMAL,
                    "again": NORMAL,
                    "n": n,
                    "other": kind,
                    "n2": n.astype(float),
                }
            )
        )
        assert {each.name: (each.reason, each.of) for each in found.left_out} == {
            "name": ("copy", "a"),
            "again": ("copy", "x"),
            "n2": ("copy", "n"),
        }

    def test_functions_of_another_column_are_no_copies(self):
        a = RNG.integers(0, 4, N)
        assert left_out(a=a, coarse=a // 2, x=NORMAL, y=NORMAL**3) == {}

    def test_too_many_texts(self):
        assert left_out(words=[f"w{i}" for i in RNG.integers(0, 350, N)]) == {"words": "text"}
        assert left_out(words=[f"w{i}" for i in RNG.integers(0, 40, N)]) == {}

    def test_one_unit_in_few_words(self):
        assert find([f"{k} doors" for k in RNG.integers(2, 6, N)]).kind == "category"
        assert left_out(code=[f"{k} {'AB'[k % 2]}" for k in RNG.integers(0, 10**6, N)]) == {"code": "identifier"}

    def test_lines_say_what_was_left_out(self):
        found = find_columns(pd.DataFrame({"c": 1.5, "x": NORMAL, "y": NORMAL, "id": np.arange(N)}))
        assert [line.split()[0] for line in describe(found).splitlines()] == ["x", "c", "y", "id"]

    def test_lines_are_few_and_stay_lines(self):
        names = ["two\nlines", "w" * 80]
        frame = pd.DataFrame({f"x{i}": RNG.normal(size=N) for i in range(60)}).assign(a=names * (N // 2), b="u")
        lines = describe(find_columns(frame[["a", *frame.columns.drop("a")]])).splitlines()
        assert lines[0] == f"a    category    2 categories: two lines, {'w' * 57}..."
        assert [line.strip() for line in lines[40:]] == [
            "...              and 21 continuous",
            "b    constant    always u: left out; samples have it again",
        ]


class TestChosen:
    @pytest.mark.parametrize(
        ("values", "kind", "bounds", "expected"),
        [
            (10**NORMAL, "continuous", None, {"kind": "continuous", "scale": "linear", "low": None}),
            ([0, 1, 2, 3] * 100, "ordinal", None, {"kind": "ordinal", "step": 1, "low": 0}),
            ([0, 1, 2, 3] * 100, "continuous", None, {"kind": "continuous", "step": 1}),
            (20 + NORMAL, "positive", None, {"kind": "positive", "scale": "log", "low": 0}),
            (20 + NORMAL, None, (10, None), {"kind": "positive", "scale": "log", "low": 10}),
            (20 + NORMAL, None, (0, 50), {"kind": "bounded", "scale": "logit", "low": 0, "high": 50}),
            (20 + NORMAL, None, (None, 50), {"kind": "continuous", "scale": "linear", "low": None, "high": 50}),
            (RNG.uniform(0.4, 0.6, N), "bounded", None, {"kind": "bounded", "low": 0, "high": 1}),
            (np.arange(N) % 20, "category", None, {"kind": "category"}),
            (["2", "x"] * 200, "category", None, {"categories": ("2", "x")}),
        ],
    )
    def test_kinds_and_bounds(self, values, kind, bounds, expected):
        column = find(values, kinds={"a": kind} if kind else {}, bounds={"a": bounds} if bounds else {})
        assert {name: getattr(column, name) for name in expected} == expected

    @pytest.mark.parametrize("kind", ["id", "drop"])
    def test_leaving_out(self, kind):
        found = find_columns(pd.DataFrame({"a": NORMAL, "b": NORMAL**2}), kinds={"a": kind})
        assert [column.name for column in found.columns] == ["b"]

    @pytest.mark.parametrize(
        ("values", "message", "options"),
        [
            (NORMAL, "--kind b is not a column of t.csv: choose one of a, other", {"kinds": {"b": "drop"}}),
            (NORMAL, "--kind a='count' is unknown; choose one of continuous", {"kinds": {"a": "count"}}),
            (NORMAL, r"a: -?[\d.]+ \(data row \d+\) is not a whole number", {"kinds": {"a": "ordinal"}}),
            (
                NORMAL,
                r"a: -[\d.]+ \(data row \d+\) is out of bounds \(0:\): .*--bounds a=",
                {"kinds": {"a": "positive"}},
            ),
            (NORMAL, r"is out of bounds \(0:1\)", {"bounds": {"a": (0, 1)}}),
            (NORMAL, "needs two bounds to be bounded: pass --bounds a=LOW:HIGH", {"kinds": {"a": "bounded"}}),
            (NORMAL, "has 400 different values in 400 rows, .*categories", {"kinds": {"a": "category"}}),
            (NORMAL, "holds other text than dates .* in 400 of 400 rows", {"kinds": {"a": "date"}}),
            (["u", "v"] * 20, "holds text in 40 of 40 rows .*data row 1: 'u'", {"kinds": {"a": "continuous"}}),
            (NORMAL, "lower bound must be below", {"bounds": {"a": (1, 0)}}),
            (["u", "v"] * 20, "--bounds a is for numbers", {"kinds": {"a": "category"}, "bounds": {"a": (0, 1)}}),
            (["u", "v"] * 20, "--bounds a is for numbers", {"bounds": {"a": (0, 1)}}),
            (NORMAL, "--bounds a is for numbers", {"kinds": {"a": "drop"}, "bounds": {"a": (0, 1)}}),
        ],
    )
    def test_refused(self, values, message, options):
        refused(values, message, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [*map(str, NORMAL.round(3)), "kg"],
            "column a holds text in 1 of 401 rows .*data row 401: 'kg'.*--kind a=categ",
        ),
        ([f"{x:.3f}%" for x in NORMAL], "column a holds text in 400 of 400 rows .*data row 1: '.*%'"),
        ([f"${x:.2f}" for x in NORMAL**2], r"column a holds text in 400 of 400 rows .*'\$.*without signs and units"),
        ([f"{x:.2f} EUR" for x in NORMAL], "column a holds text in 400 of 400 rows .*EUR.*without signs and units"),
        ([1.5, np.inf, *NORMAL], "column a holds infinite values in 1 of 402 rows .*data row 2"),
        (NORMAL * 1j, "column a is of type complex128"),
        (pd.to_timedelta(np.arange(30), "D"), "column a is of type timedelta64"),
        ([[1, 2]] * 30, "column a holds a list .*data row 1.*--kind a=drop"),
    ],
)
def test_columns_that_cannot_be_used(values, message):
    refused(values, message)


def test_tables_without_anything_to_learn():
    for frame, message in (
        (pd.DataFrame({"a": [1.5] * 30}), "all columns are constant"),
        (pd.DataFrame({"a": [None] * 30}), "nothing to learn"),
        (pd.DataFrame({"a": [1.5, None] * 15, "b": [None, 2.5] * 15}), "misses a cell in every row.*--missing model"),
        (pd.DataFrame([[1.5, 2.5]], columns=["a", "a"]), "more than one column a"),
    ):
        with pytest.raises(InputError, match=message):
            find_columns(frame)


def real(n=1000):
    return pd.DataFrame(np.random.default_rng(0).normal(size=(n, 3)), columns=list("abc"))


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (lambda r: r.integers(10, size=1000), True),
        (lambda r: r.integers(11, size=1000), False),
        (lambda r: r.integers(5, size=1000) / 2, False),  # on a grid
        (lambda r: r.choice(r.normal(size=4), 1000), True),
        (lambda r: np.where(r.random(1000) < 0.08, 0.5, r.normal(size=1000)), True),
        (lambda r: np.where(np.arange(1000) < 80, 0.5, r.normal(size=1000)), True),  # in the first rows
        (lambda r: np.where(r.random(1000) < 0.03, 0.5, r.normal(size=1000)), False),
        (lambda r: r.normal(size=1000).round(1), False),
        (lambda _: np.ones(1000), False),
        (lambda r: np.where(r.random(1000) < 0.5, np.inf, 0), False),
    ],
)
def test_numbers_that_are_categories_or_common(column, found):
    frame = real().assign(b=column(np.random.default_rng(1)))
    assert has_discrete(frame) is found
    assert has_discrete(pd.concat([frame] * 50)) is found
    if np.isfinite(frame.b).all():
        kind = {each.name: each for each in find_columns(frame).columns}.get("b")
        assert found == (kind is not None and (kind.is_category or frame.b.isin(kind.atoms).mean() > 0.05))
