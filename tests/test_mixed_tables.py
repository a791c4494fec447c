"""Tables with words, dates and missing cells through the programs."""

import json

import numpy as np
import pandas as pd
import pytest
from stored_runs import report_of

import cnf

pytestmark = pytest.mark.usefixtures("unrepeated")
TRAIN = ("--steps", 20, "--validate-every", 10, "--hidden", 8, "--out", "runs/t")


def table(n=240):
    rng = np.random.default_rng(0)
    island = rng.choice(["north", "south, or east"], n)
    frame = pd.DataFrame({"island": island, "length": rng.normal(40, 5, n) + 5 * (island == "north")})
    frame["price"] = np.exp(rng.normal(1, 1.5, n))
    frame["tested"] = rng.random(n) < 0.3
    frame["unit"] = "mm"
    return frame


@pytest.mark.parametrize("gaps", [False, True])
def test_a_table_is_trained_sampled_and_evaluated(run, tmp_path, gaps):
    frame = table()
    if gaps:
        frame.loc[::4, "length"] = None
    frame.to_csv("t.csv", index=False)
    status, out, err = run("density", "t.csv", *TRAIN)
    assert status == 0, err
    assert "island  " in out
    assert ("missing, learned" in out) is gaps
    result = json.loads((tmp_path / "runs" / "t" / "result.json").read_text())
    assert result["quality"]["violations"]["share"] == 0
    assert run("sample", "runs/t", "-n", 300, "--out", "s.csv")[0] == 0
    samples = pd.read_csv("s.csv")
    assert [*samples] == [*frame]
    assert set(samples.island) == set(frame.island)
    assert set(samples.unit) == {"mm"}
    assert (samples.price > 0).all()
    assert samples.length.isna().any() is np.bool_(gaps)
    assert run("evaluate", "runs/t")[0] == run("evaluate", "runs/t", "s.csv")[0] == 0
    assert isinstance(cnf.load("runs/t"), cnf.tables.TableDensity)


def test_a_table_given_columns(run):
    table().to_csv("t.csv", index=False)
    assert run("density", "t.csv", "--given", "island", "tested", *TRAIN)[0] == 0
    assert run("sample", "runs/t", "-n", 50, "--given", "island=north", "tested=True", "--out", "s.csv")[0] == 0
    status, _, err = run("sample", "runs/t", "--given", "island=north", "tested=True", "--out", "s.npy")
    assert (status, "--out s.npy is for numbers, island, unit holds others: pass --out NAME.csv" in err) == (2, True)
    samples = pd.read_csv("s.csv")
    assert set(samples.island) == {"north"}
    assert [*samples][-3:] == ["length", "price", "unit"]
    status, _, err = run("sample", "runs/t", "-n", 50, "--given", "island=west", "tested=True", "--out", "w.csv")
    assert status == 2
    assert "given island: 'west' is not a category; pass one of north, south, or east" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kind", "island=continuous"), "island"),
        (("--kind", "length"), "--kind length must be NAME=VALUE"),
        (("--bounds", "price=5:1"), "the lower bound must be below the upper one"),
        (("--no-jitter",), "--no-jitter is for tables of numbers"),
        (("--bounds", "price=low"), "--bounds price=low must be LOW:HIGH"),
        (("--residual-steps", 4, "--missing", "model"), "--residual-steps 4 is not for tables with atoms"),
    ],
)
def test_options_that_do_not_fit_a_table_are_refused(run, options, message):
    frame = table()
    frame.loc[::4, "length"] = None
    frame.to_csv("t.csv", index=False)
    status, _, err = run("density", "t.csv", *options, *TRAIN)
    assert status == 2
    assert message in err


def test_a_twentieth_of_rows_with_gaps_is_left_out(run):
    frame = table()
    frame.loc[:5, "length"] = None
    frame.to_csv("t.csv", index=False)
    status, out, _ = run("density", "t.csv", *TRAIN)
    assert status == 0
    assert "6 of 240 rows have missing cells and are left out" in out


def test_evaluate_gives_the_figures_of_the_training_for_any_rows(run, tmp_path):
    frame = table()
    frame.to_csv("t.csv", index=False)
    frame[:60].to_csv("other.csv", index=False)
    assert run("density", "t.csv", *TRAIN)[0] == 0
    trained = json.loads((tmp_path / "runs" / "t" / "result.json").read_text())
    found = report_of(run, "evaluate", "runs/t")
    assert (found["quality"], found["gaussian_nll"]) == (trained["quality"], trained["gaussian_nll"])
    assert [column["name"] for column in found["quality"]["coverage"]] == ["length", "price"]
    other = report_of(run, "evaluate", "runs/t", "other.csv")["quality"]["privacy"]
    assert 0.5 < other["test_duplicates"] < 1
    assert "coverage  " in run("evaluate", "runs/t")[1]
    (tmp_path / "t.csv").unlink()
    status, out, err = run("evaluate", "runs/t", "other.csv")
    assert status == 0
    assert err.startswith("note: figures that need the training rows are left out: ")
    assert "in training rows" not in out
    assert "NLL, Gaussian" not in out
    assert "classifier  " in out
