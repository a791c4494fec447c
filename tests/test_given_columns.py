"""Columns that are given, and tables of categories alone, through the programs."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import cnf
from train_flows.data import load_density_data

pytestmark = pytest.mark.usefixtures("unrepeated")
TRAIN = ("--steps", 20, "--validate-every", 10, "--hidden", 8, "--out", "runs/t")


def table(n=240):
    rng = np.random.default_rng(0)
    island = rng.choice(["north", "south, or east"], n)
    frame = pd.DataFrame({"island": island, "length": rng.normal(40, 5, n) + 5 * (island == "north")})
    return frame.assign(tested=rng.random(n) < 0.3, unit="mm")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("island", "length", "tested", "unit"), "leaves no column of"),
        (("island", "length", "tested"), "t.csv holds nothing to learn given island, length, tested"),
        (("unit",), "--given unit cannot be given: it is constant; omit it"),
        (("island", "north"), "--given north cannot be given: island determines it; give that one alone"),
        (("name",), "--given name cannot be given: it names the rows; omit it, or pass --kind name=category"),
    ],
)
def test_columns_that_cannot_be_given(run, given, message):
    frame = table()
    if "north" in given:
        frame["north"] = frame.island == "north"
    if "name" in given:
        frame["name"] = [f"row {i}" for i in range(len(frame))]
    frame.to_csv("t.csv", index=False)
    status, _, err = run("density", "t.csv", "--given", *given, *TRAIN)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


def test_dates_and_copies_of_what_is_given(run, undrawn):
    frame = table().drop(columns="tested")
    frame["day"] = pd.date_range("2024-01-01", periods=len(frame)).astype(str)
    frame["code"] = (frame.island == "north") + 7
    frame.to_csv("t.csv", index=False)
    assert run("density", "t.csv", "--given", "island", "day", *TRAIN)[0] == 0
    given = ("--given", "island=north", "day=2024-03-01", "--out", "s.csv")
    assert run("sample", "runs/t", "-n", 20, *given)[0] == 0
    samples = pd.read_csv("s.csv")
    assert set(samples.day) == {"2024-03-01"}
    assert set(samples.code) == {8}
    status, _, err = run("sample", "runs/t", "--given", "island=north", "day=spring", "--out", "w.csv")
    assert status == 2
    assert "--given day=spring must be a date, such as 2024-01-01" in err


@pytest.mark.parametrize("options", [(), ("--given", "tested", "--objective", "flow-matching+likelihood")])
def test_a_table_of_categories_alone_takes_no_steps(run, tmp_path, undrawn, options):
    frame = table()[["island", "tested"]]
    frame["grade"] = np.where(frame.island == "north", "a", np.random.default_rng(1).choice(["a", "b", "c"], 240))
    frame.to_csv("t.csv", index=False)
    status, out, err = run("density", "t.csv", *options, "--out", "runs/t")
    assert status == 0, err
    assert "the model is fitted already: no steps to take" in out
    figure = json.loads((tmp_path / "runs" / "t" / "result.json").read_text())["nll"]
    model = cnf.load("runs/t")
    assert (figure["kind"], model.flow) == ("exact", None)
    rows = torch.cartesian_prod(*[torch.arange(float(column.states)) for column in model.columns]).double()
    c = torch.zeros(len(rows), 1).double() if options else None
    assert model.log_prob(rows, c).exp().sum().item() == pytest.approx(1, abs=1e-5)
    data = load_density_data("t.csv", given=("tested",) if options else ())
    assert figure["value"] == pytest.approx(-model.log_prob(data.test.x, data.test.c).mean().item(), abs=1e-5)
    assert run("evaluate", "runs/t")[0] == run("evaluate", "runs/t", "t.csv")[0] == 0
    given = ("--given", "tested=False") if options else ()
    assert run("sample", "runs/t", "-n", 90, "--out", "s.csv", *given)[0] == 0
    samples = pd.read_csv("s.csv")
    assert (samples[samples.island == "north"].grade == "a").mean() > 0.9
    records = (tmp_path / "runs" / "t" / "metrics.jsonl").read_text()
    assert run("density", "--resume", "runs/t")[0] == 0
    assert (tmp_path / "runs" / "t" / "metrics.jsonl").read_text() == records
