"""train-flows density on tables as people have them: grids, one column, large and small units, outliers."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import cnf
from anode import storage

TINY = ("--steps", 4, "--validate-every", 2, "--hidden", 8, 8, "--batch-size", 64)
N = 400


@pytest.fixture
def train(run, tmp_path):
    """Train on columns; gives what is printed and the result of the run."""

    def call(columns, *options):
        pd.DataFrame(columns).to_csv(tmp_path / "t.csv", index=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            status, out, err = run("density", "t.csv", *TINY, "--overwrite", *options)
        assert (status, err) == (0, "")
        return out, json.loads(Path("runs/t/result.json").read_text())

    return call


@pytest.fixture
def z():
    return np.random.default_rng(0).normal(size=(N, 2))


def test_one_column(train, tmp_path, run, z):
    out, result = train({"a": 5 + z[:, 0]})
    assert "note" not in out
    assert result["nll"]["value"] == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=0.4)
    assert (tmp_path / "runs" / "t" / "samples.png").stat().st_size > 5000
    assert run("sample", "runs/t", "-n", 9, "--out", "s.csv")[0] == 0
    assert list(pd.read_csv("s.csv")) == ["a"]
    assert run("sample", "runs/t", "-n", 9, "--out", "s.png")[0] == 0
    assert run("evaluate", "runs/t", "s.csv")[0] == 0


@pytest.mark.usefixtures("undrawn")
class TestFigures:
    def test_columns_on_a_grid(self, train, run, z):
        columns = {"a": z[:, 0], "children": np.random.default_rng(1).poisson(9, N), "length": z[:, 1].round(1)}
        out, result = train(columns)
        assert "note: children (1), length (0.1): on a grid" in out
        assert "NLL, recorded      at most" in out
        assert result["grid"]["steps"] == {"children": 1.0, "length": 0.1}
        assert result["grid"]["nll_bound"] == pytest.approx(result["nll"]["value"] + math.log(10))
        assert json.loads(run("evaluate", "runs/t", "--json")[1])["grid"] == result["grid"]
        out, result = train(columns, "--no-jitter")
        assert "no noise is added" in out
        assert "grid" not in result

    @pytest.mark.parametrize("unit", [1e-22, 1e25, 1e37])
    def test_small_and_large_units(self, train, z, unit):
        out, result = train({"a": unit * z[:, 0], "b": unit * z[:, 1]})
        shift = 2 * math.log(unit)
        assert result["nll"]["value"] - shift == pytest.approx(math.log(2 * math.pi * math.e), abs=0.5)
        assert result["nll"]["value_standardized"] == pytest.approx(result["nll"]["value"] - shift, abs=0.2)
        assert f"NLL, standardized  {result['nll']['value_standardized']:.4f} nats" in out
        assert result["inverse_error"] / unit < 1e-3
        assert "inf" not in out

    def test_repeated_columns(self, train, z):
        out, _ = train({f"c{i}": z[:, i % 2] for i in range(12)})
        assert "note: c0, c1, c2, c3, c4, c5, c6, c7, ...: almost linear in other columns" in out

    def test_a_success_that_is_none(self, train, z):
        z[7, 1] = 1e6
        out, result = train({"a": z[:, 0], "flux": z[:, 1]})
        assert "note: flux: a few rows set the standard deviation" in out
        assert "misleading: a few rows set the standard deviation of flux" in out
        assert result["heavy_tailed"] == ["flux"]

    def test_double_precision(self, train, z):
        t = 1.7e9 + 600 * np.random.default_rng(1).random(N)
        out, result = train({"t": t, "v": z[:, 0]}, "--dtype", "float64")
        assert "note" not in out
        assert result["nll"]["value"] == pytest.approx(math.log(600) + 1.42, abs=0.5)
        flow = cnf.load("runs/t")
        assert flow.transform.transforms[0].mean.dtype == torch.float64
        assert storage.read_config("runs/t", "density")["settings"]["run"]["dtype"] == "float64"
        samples = flow.sample(500)[:, 0]
        assert len(samples.unique()) == 500
        assert abs(samples.mean().item() - 1.7e9 - 300) < 60
