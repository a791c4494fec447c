"""The benchmark of tables of several kinds: figures of every model, resumed runs, rows of its page."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cnf.tables import Column, table_model
from train_flows import density
from train_flows.benchmark import mixed_tables
from train_flows.data import Dataset, Split
from train_flows.results_pages import mixed_rows

COLUMNS = (
    Column("width"),
    Column("height"),
    Column("colour", "category", ("blue", "red")),
)


def table(n, correlation=0.9):
    rng = np.random.default_rng(n)
    x = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], n)
    frame = pd.DataFrame(np.round(100 * np.exp(0.2 * x)).astype(int), columns=["width", "price"])
    frame["colour"] = np.where(x[:, 0] > 0, "red", "blue")
    return frame


@pytest.fixture
def quick(monkeypatch, undrawn, unrepeated):
    train = density.main
    options = ["--steps", "4", "--validate-every", "2", "--hidden", "4"]
    monkeypatch.setattr(density, "main", lambda args: train([*args, *options]))
    monkeypatch.setattr(mixed_tables, "SAMPLES", 3000)


@pytest.mark.usefixtures("quick")
def test_a_table_from_start_to_end(run):
    table(300).to_csv("t.csv", index=False)
    table(301).rename(columns={"price": "depth"}).to_csv("other.csv", index=False)
    assert run("benchmark", "mixed", "t.csv", "other.csv", "--target", "price", "--seeds", 1, "--minutes", 1)[0] == 0
    assert run("benchmark", "mixed", "t.csv", "other.csv", "--seeds", 9, "--budget-minutes", 1e-9)[0] == 0
    content = json.loads(Path("mixed-tables.json").read_text())
    assert {"command", "machine", "versions", "work"} <= set(content)
    first, other = content["contests"]
    assert (first["data"], first["seed"], first["rows"]["test"], first["columns"]) == ("t.csv", 0, 30, 3)
    assert list(first["classifier"])[:2] == ["density", "Gaussian copula"]
    assert list(first["classifier"])[-1] == "training rows"
    assert first["violations"] == {"share": 0.0, "columns": {}}
    assert first["target"]["name"] == "price"
    assert "target" not in other
    rows = {row["data"]: row for row in mixed_rows(content)}
    assert rows["t.csv"]["nll"] == first["nll"]["value"]
    assert rows["t.csv"]["density, target"].startswith(f"{first['target']['density']['value']:.3f} ± ")
    # Nearly the same unit: the probability of a whole number.
    entropy = math.log(20 * math.sqrt(1 - 0.9**2)) + 0.5 * math.log(2 * math.pi * math.e)
    assert first["target"]["boosted trees"]["value"] == pytest.approx(entropy, abs=0.6)
    assert "density, target" not in rows["other.csv"]


def test_accuracies_are_means_over_the_seeds():
    def contest(seed, accuracy):
        figures = {"accuracy": accuracy, "standard_error": 0.03}
        about = {"data": "t", "seed": seed, "minutes": 1.0, "nll": {"value": 2.0 + seed}, "gaussian_nll": 3.0}
        found = {"classifier": {"density": figures}, "violations": {"share": 0.1 * seed}}
        return {**about, **found, "anomalies": {"numbers": {"density": 0.8 + 0.1 * seed}}}

    (row,) = mixed_rows({"contests": [contest(0, 0.5), contest(1, 0.6)]})
    assert row["density, accuracy"] == f"0.550 ± {0.03 / math.sqrt(2):.3f}"
    assert (row["seeds"], row["nll"], row["violations"]) == (2, 2.5, 0.1)
    assert row["density, numbers"] == pytest.approx(0.85)
    (row,) = mixed_rows({"contests": [contest(0, 0.5), contest(1, None)]})
    assert row["density, accuracy"] is None


def test_the_score_of_the_true_model_finds_broken_dependence():
    """For the Gaussian density of correlation r, against the area by simulation of the log-likelihood ratio."""
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.float64))
    x = torch.randn(3000, 2, dtype=torch.float64) @ root.T
    rows = torch.cat([x, torch.randint(2, (3000, 1)).double()], 1)
    model = table_model(COLUMNS, rows, hidden=(4,), whiten=True)
    parts = [Split(part) for part in (rows[:2000], rows[:10], rows[2000:])]
    dataset = Dataset("t", *parts, ("width", "height", "colour"), is_table=True, kinds=COLUMNS)
    found = mixed_tables.anomalies(model, dataset, mixed_tables.parts_of(dataset), 0)
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(2).double(), scale_tril=root)
    clean, broken = (gaussian.log_prob(each) for each in (x[:1000], torch.randn(1000, 2, dtype=torch.float64)))
    area = (clean[:, None] > broken).double().mean().item()
    assert found["numbers"]["density"] == pytest.approx(area, abs=0.02)
    assert found["numbers"]["density"] > found["numbers"]["isolation forest"]
    assert found["any columns"]["density"] < found["numbers"]["density"]  # the colour tells nothing


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no table given"),
        (["plain.csv"], "plain.csv holds numbers alone: use train-flows benchmark tabular"),
        (["t.csv", "--target", "cost"], "--target cost is not a column of any table"),
        (["t.csv", "--target", "colour"], "--target colour of t.csv must hold positive numbers"),
    ],
)
def test_what_is_refused_is_one_line(run, tmp_path, args, message):
    np.savetxt(tmp_path / "plain.csv", np.random.default_rng(0).normal(size=(40, 2)), delimiter=",")
    table(60).to_csv("t.csv", index=False)
    status, _, err = run("benchmark", "mixed", *args)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
