"""Scores of rows: percentiles by counting, surprises against closed forms, and the program that writes them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from stored_runs import report_of, store_density
from test_mixed_tables import TRAIN, table

from cnf.tables import Column, table_model
from train_flows.data import Split
from train_flows.evaluation import scores
from train_flows.evaluation.table_rows import write_rows

COVARIANCE = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 4.0]])


def gaussian(unit=1.0):
    """A Gaussian as a density of a table, its last column in a unit, with samples and their log-densities."""
    x = np.random.default_rng(0).multivariate_normal([0, 0, 0], COVARIANCE, 400) * [1, 1, unit]
    model = table_model([Column(name) for name in "abc"], x, hidden=(4,), whiten=True).double()
    rows = Split(torch.from_numpy(x))
    return model, rows, scores.log_densities(model, rows, 1, None, "")


def test_percentiles_count_the_rows_below():
    reference = torch.tensor([3.0, 1.0, 2.0, 2.0])
    assert scores.percentiles(torch.tensor([0.5, 2.0, 2.5, 9.0]), reference).tolist() == [0, 25, 75, 100]


def test_surprises_are_gains_by_typical_cells():
    model, rows, log_p = gaussian()
    x = rows.x.numpy()
    law = multivariate_normal(x.mean(0), np.cov(x.T, bias=True))
    np.testing.assert_allclose(log_p, law.logpdf(x), rtol=1e-5)
    odd, typical = x[:4].copy(), x[100:160]
    odd[1] = [2.0, -2.0, 0.0]
    odd[2] = [0.0, 0.0, 9.0]
    of_odd = torch.from_numpy(law.logpdf(odd))
    own = scores.on_scales(model, of_odd, torch.from_numpy(odd))
    gains = scores.surprises(model, Split(torch.from_numpy(odd)), torch.from_numpy(typical), own, 1, None)
    for i in range(4):
        for j in range(3):
            replaced = np.tile(odd[i], (60, 1))
            replaced[:, j] = typical[:, j]
            expected = np.log(np.exp(law.logpdf(replaced)).mean()) - law.logpdf(odd[i])
            assert gains[i, j].item() == pytest.approx(expected, abs=1e-4)
    assert set(gains[1].topk(2).indices.tolist()) == {0, 1}
    assert gains[2].argmax() == 2


def test_surprises_do_not_depend_on_units():
    found = []
    for unit in (1.0, 1e4):
        model, rows, log_p = gaussian(unit)
        own = scores.on_scales(model, log_p, rows.x)
        gains = scores.surprises(model, rows.take(slice(5)), rows.x[50:90], own[:5], 1, None)
        found.append(torch.cat([own[:, None], gains.flatten()[:, None]]))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_rows_without_numbers_are_not_ahead_of_others():
    x = 1e3 * torch.randn(400, 2, dtype=torch.float64)
    x[:4] = torch.nan
    model = table_model([Column("a", gaps=True), Column("b", gaps=True)], x, hidden=(4,))
    log_p = scores.log_densities(model, Split(x), 1, None, "")
    compared = scores.on_scales(model, log_p, x)
    assert (log_p[:4] > log_p[4:].max()).all()  # without the unit of numbers
    assert (compared[:4] < compared[4:].median()).all()


@pytest.fixture
def numbers(run):
    """A run of a table of numbers, with words beside them that are not learned."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.multivariate_normal([0, 0, 0], COVARIANCE, 400), columns=[*"abc"])
    frame.to_csv("t.csv", index=False)
    store_density("runs/t", "t.csv", run={"dtype": "float64"})
    return frame


def test_rows_are_written_with_their_scores(run, numbers):
    numbers.loc[7] = [9.0, -9.0, 0.0]
    numbers.insert(0, "name", [f"row {i}" for i in range(400)])
    numbers.loc[5, "b"] = None
    numbers.to_csv("rows.csv", index=False)
    status, out, err = run("score", "runs/t", "rows.csv")
    assert (status, err) == (0, "")
    scored = pd.read_csv("scored.csv")
    pd.testing.assert_frame_equal(scored[[*numbers]], numbers)
    assert scored.log_density.isna().to_numpy().nonzero()[0].tolist() == [5]
    assert scored.percentile.isna().sum() == 1
    assert "note: 1 rows miss cells that runs/t does not know, and are not scored: fill them in" in out
    assert "\n8                  0.00" in out
    assert scored.percentile.median() == pytest.approx(50, abs=8)
    assert scored.percentile.corr(scored.log_density, method="spearman") > 0.999


@pytest.mark.usefixtures("numbers")
def test_the_test_part_has_the_likelihood_of_evaluate(run):
    figures = report_of(run, "score", "runs/t", "--out", "s.csv")
    scored = pd.read_csv("s.csv")
    assert figures["nll"]["kind"] == "exact"
    assert figures["nll"]["value"] == pytest.approx(report_of(run, "evaluate", "runs/t")["nll"]["value"], rel=1e-6)
    assert figures["nll"]["value"] == pytest.approx(-scored.log_density.mean(), abs=1e-5)
    assert (figures["rows"], figures["scored"]) == (40, 40)
    assert figures["compared"] == {"rows": 320, "of": "training rows"}
    first, second, *_ = figures["oddest"]
    row = scored.iloc[first["row"] - 1]
    assert (first["log_density"], first["percentile"]) == pytest.approx((row.log_density, row.percentile), abs=1e-4)
    assert first["log_density"] == pytest.approx(scored.log_density.min(), abs=1e-5)
    assert first["log_density"] <= second["log_density"]


def test_columns_on_a_grid_are_scored_with_noise(run):
    frame = pd.DataFrame({"a": np.random.default_rng(0).normal(size=300)})
    frame["children"] = np.random.default_rng(1).poisson(5, 300)
    frame.to_csv("t.csv", index=False)
    store_density("runs/t", "t.csv")
    figures = report_of(run, "score", "runs/t", "--samples", 16)
    assert (figures["nll"]["kind"], figures["nll"]["samples"]) == ("bound", 16)
    scored = pd.read_csv("scored.csv")
    assert (scored.children % 1 == 0).all()
    assert figures["nll"]["value"] <= report_of(run, "evaluate", "runs/t")["nll"]["value"] + 0.05


def test_whole_numbers_with_gaps_are_written_without_a_point(tmp_path):
    frame = pd.DataFrame({"a": [1, None, 3e10], "b": [0.5, None, 1], "c": [None] * 3, "d": [1.0, 2.0, 1e300]})
    write_rows(tmp_path / "new" / "t.csv", frame)
    assert (tmp_path / "new" / "t.csv").read_text() == "a,b,c,d\n1,0.5,,1.0\n,,,2.0\n30000000000,1.0,,1e+300\n"


@pytest.mark.usefixtures("undrawn")
def test_a_table_of_several_kinds_is_scored(run, tmp_path):
    frame = table()
    frame.loc[::4, "length"] = None
    frame.to_csv("t.csv", index=False)
    assert run("density", "t.csv", *TRAIN)[0] == 0
    frame.loc[9, "price"] = 1e7
    frame.to_csv("rows.csv", index=False)
    status, out, err = run("score", "runs/t", "rows.csv", "--out", "new/s.csv")
    assert (status, err) == (0, "")
    scored = pd.read_csv("new/s.csv")
    assert not scored.log_density.isna().any()
    assert scored.percentile[9] == 0
    assert "10                 0.00" in out
    assert "price = 1e+07" in out
    assert (tmp_path / "new" / "s.png").stat().st_size > 5000
    assert run("score", "runs/t", "--out", "part.csv")[0] == 0
    assert [*pd.read_csv("part.csv")] == [*frame, "log_density", "percentile"]
    frame.loc[3, "island"] = "west"
    frame.to_csv("rows.csv", index=False)
    for options, message in (
        (("rows.csv", "--out", "w.csv"), "rows.csv: column island cannot hold 'west' (data row 4)"),
        (("t.csv", "--out", "new/s.csv"), "new/s.csv exists"),
        (("new/s.csv", "--out", "w.csv"), "has the columns log_density, percentile already: rename them"),
        (("t.csv", "--out", "w.csv", "--samples", 8), "--samples 8 is for bounds"),
        (("t.csv", "--out", "w.csv", "--prune", 0.1), "--prune 0.1 is for mixtures of flows"),
    ):
        status, _, err = run("score", "runs/t", *options)
        assert (status, message in err) == (2, True), err


def test_a_density_of_classes_is_refused(run):
    store_density("runs/m", "moons", conditional=True, train_size=100, test_size=20)
    status, _, err = run("score", "runs/m")
    assert status == 2
    assert "runs/m is not a density of a table with named columns" in err


def test_rows_are_scored_without_the_training_rows(run, numbers):
    numbers.iloc[:50].to_csv("new.csv", index=False)
    among = report_of(run, "score", "runs/t", "new.csv")
    known = pd.read_csv("scored.csv")
    Path("t.csv").unlink()
    status, out, _ = run("score", "runs/t", "new.csv", "--out", "again.csv")
    assert status == 0
    assert "percentiles are among samples of the model, for its training rows are out of reach" in out
    again = pd.read_csv("again.csv")
    assert again.log_density.to_numpy() == pytest.approx(known.log_density.to_numpy(), abs=1e-5)
    assert again.percentile.between(0, 100).all()
    assert among["compared"]["of"] == "training rows"
    assert run("score", "runs/t", "--out", "test.csv")[0] == 2
