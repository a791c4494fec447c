"""Weights of rows: a row of weight 2 counts as two equal rows in moments, batches, figures and programs."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from anode import InputError
from anode.units import MeanScale, moments, to_shares
from cnf import Mixture, Whiten, density_model
from cnf.tables import Categories, Column, table_model
from cnf.tables.masks import WhitenPresent
from train_flows import TableDensityEstimator
from train_flows.data import Split, load_density_data, tables
from train_flows.density import smoothing_noise
from train_flows.evaluation import likelihood
from train_flows.run.step import weighted_batches

N = 40
TINY = ("--steps", 2, "--validate-every", 2, "--hidden", 8, "--batch-size", 32)


@pytest.fixture
def rows():
    """Return rows (N, 3), whole weights from 0 to 3, and the rows repeated that often."""
    x = torch.randn(N, 3, dtype=torch.float64) @ torch.tensor([[1.0, 0.5, 0], [0, 2, 1], [0, 0, 3]]).double() + 5
    weights = torch.arange(N) % 4
    return x, weights.double(), x.repeat_interleave(weights, 0)


def same(a, b):
    return pytest.approx(a.double().numpy().ravel(), rel=1e-6, abs=1e-6) == b.double().numpy().ravel()


def test_moments_of_weights_are_those_of_repeated_rows(rows):
    x, weights, repeated = rows
    for found, expected in zip(moments(x, weights), moments(repeated), strict=True):
        assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-12)
    assert to_shares(1e300 * weights, N).sum() == pytest.approx(1)
    scale, expected = MeanScale((3,)).fit(x, 7 * weights), MeanScale((3,)).fit(repeated)
    assert same(scale.mean, expected.mean)
    assert same(scale.scale, expected.scale)


def test_whitening(rows, monkeypatch):
    monkeypatch.setattr("cnf.transforms.MANY", 1)  # without shrinking
    x, weights, repeated = rows
    found, expected = Whiten((3,)).fit(x, weights), Whiten((3,)).fit(repeated)
    assert same(found.root, expected.root)
    assert same(found.mean, expected.mean)
    mask = torch.rand(N, 3) < 0.7
    found = WhitenPresent(3).fit(x, mask, weights)
    expected = WhitenPresent(3).fit(repeated, mask.repeat_interleave(weights.long(), 0))
    assert same(found.mean, expected.mean)
    assert same(found.covariance, expected.covariance)


def test_equal_weights_shrink_correlations_as_none_do():
    x = torch.randn(30, 10, dtype=torch.float64)
    assert not same(Whiten((10,)).fit(x).root, Whiten((10,)).fit(x[:15], torch.ones(15)).root)
    assert same(Whiten((10,)).fit(x).root, Whiten((10,)).fit(x, torch.full((30,), 3.0)).root)


@pytest.mark.parametrize("scale", ["linear", "log", "logit"])
def test_scales_of_columns(rows, scale):
    x, weights, repeated = (each if each.ndim == 1 else each[:, 0].exp() for each in rows)
    column = Column("a", scale=scale, low=-1, high=1e6, atoms=(float(x[3]),), gaps=True)
    x[7] = math.nan
    repeated = x.repeat_interleave(weights.long())
    found, expected = column.fitted(x, weights), column.fitted(repeated)
    assert found.center == pytest.approx(expected.center, rel=1e-12)
    assert found.spread == pytest.approx(expected.spread, rel=1e-12)


def test_mixture_is_fitted_in_proportion():
    z = torch.cat([torch.randn(300, 1) - 10, torch.randn(300, 1) + 10])
    base = Mixture((1,), 2).fit(z, torch.tensor([1.0, 9.0]).repeat_interleave(300))
    assert sorted(base.weights.tolist()) == pytest.approx([0.1, 0.9], abs=0.04)


def test_categories_of_one_variable_are_weighted_frequencies():
    states, weights = torch.tensor([[0], [1], [1], [2]] * 50), torch.tensor([4.0, 1, 2, 0] * 50)
    found = Categories((3,)).fit(states, weights=weights)
    probabilities = found.log_prob(torch.arange(3)[:, None]).exp()
    shares, pseudo = torch.tensor([4, 3, 0]) / 7, torch.full((3,), 1 / 3)
    assert probabilities.numpy() == pytest.approx(((150 * shares + pseudo) / 151).numpy(), rel=1e-5)  # 150 with weights


def test_models_of_weights_are_those_of_repeated_rows(rows):
    x, weights, repeated = rows
    times = weights.long()
    found, expected = density_model((3,), x, weights=weights), density_model((3,), repeated)
    assert found.log_prob(x).detach().numpy() == pytest.approx(expected.log_prob(x).detach().numpy(), abs=1e-4)
    c = 100 + torch.randn(N, 2)
    found = density_model((3,), x, context_data=c, weights=weights).context_scale
    assert same(found.mean, MeanScale((2,)).fit(c.repeat_interleave(times, 0)).mean)
    columns = [Column("a"), Column("b"), Column("c")]
    found = table_model(columns, x, weights=weights, hidden=(8,))
    expected = table_model(columns, x.repeat_interleave(times, 0), hidden=(8,))
    assert (found.log_prob(x) - expected.log_prob(x)).abs().max() < 1e-3
    for one, other in zip(found.columns, expected.columns, strict=True):
        assert one.center == pytest.approx(other.center)


def test_smoothing_keeps_the_weighted_moments(rows):
    x, weights, repeated = rows
    add_noise = smoothing_noise(x, 0.8, weights)
    many = add_noise(repeated.repeat(2000, 1))
    assert many.mean(0).numpy() == pytest.approx(repeated.mean(0).numpy(), abs=0.05)
    assert torch.cov(many.T).numpy() == pytest.approx(torch.cov(repeated.T, correction=0).numpy(), abs=0.2)


def test_batches_draw_rows_in_proportion():
    weights = torch.tensor([0.0, 1, 2, 0, 5, 0])
    batch = weighted_batches((torch.arange(6), 10 * torch.arange(6)), weights, 50, seed=0)
    draws = [batch(step) for step in range(400)]
    assert all((c == 10 * x).all() for x, c in draws)
    counts = torch.bincount(torch.cat([x for x, _ in draws]), minlength=6)
    n, p = counts.sum(), weights / weights.sum()
    assert (counts[weights == 0] == 0).all()
    assert ((counts - n * p).abs() <= 4 * (n * p * (1 - p)).sqrt()).all()
    assert batch(7)[0].equal(batch(7)[0])  # a function of the step
    assert not batch(7)[0].equal(batch(8)[0])
    assert not batch(7)[0].equal(weighted_batches(torch.arange(6), weights, 50, seed=1)(7))


def test_figures_are_weighted_means(rows):
    x, weights, repeated = (each.float() for each in rows)
    model = density_model((3,), x)
    data, copies = Split(x, weights=weights.double()), Split(repeated)
    found, expected = (likelihood.nll(model, part)[0] for part in (data, copies))
    assert found["value"] == pytest.approx(expected["value"], abs=1e-5)
    assert likelihood.validation_nll(model, data)["nll"] == pytest.approx(expected["value"], abs=1e-5)
    log_p, shares = model.log_prob(x).detach().double(), weights.double() / weights.sum()
    error = (shares.square() * (log_p - shares @ log_p).square()).sum().sqrt()
    assert found["standard_error"] == pytest.approx(error.item(), rel=1e-3)
    ones = likelihood.standard_error(log_p, torch.ones(N))
    assert ones == pytest.approx(likelihood.standard_error(log_p, None) * math.sqrt((N - 1) / N))


def test_parts_carry_weights():
    weights = torch.rand(2000).double()
    part = Split(torch.arange(2000.0)[:, None], weights=weights)
    assert part.take(slice(5)).weights.equal(weights[:5])
    assert part.head(7).weights.equal(weights[:7])
    assert part.take(slice(5)).joined(part.take(slice(5, 9))).weights.equal(weights[:9])
    even = part.evened()
    assert even.weights is None
    kept = even.x[:, 0].long()
    assert len(kept.unique()) == len(kept)
    expected, p = weights.sum() / weights.max(), weights / weights.max()
    assert abs(len(kept) - expected) < 4 * (p * (1 - p)).sum().sqrt()
    assert part.evened(1).x.shape != even.x.shape or not part.evened(1).x.equal(even.x)


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=100), "w": np.arange(100) % 4, "b": rng.normal(size=100)})
    frame["kind"] = np.where(frame["a"] + rng.normal(size=100) > 0, "high", "low")
    return frame


@pytest.mark.usefixtures("undrawn", "unrepeated")
@pytest.mark.parametrize("columns", [["a", "w", "b"], ["a", "w", "b", "kind"]], ids=["numbers", "kinds"])
def test_program(run, table, columns):
    table[columns].to_csv("t.csv", index=False)
    status, out, err = run("density", "t.csv", "--weights", "w", *TINY)
    assert (status, err) == (0, "")
    assert "note: 25 of 100 rows have weight 0 and are left out" in out
    data = load_density_data("t.csv", weights="w")
    assert data.columns == data.features == tuple(c for c in columns if c != "w")
    for part in (data.train, data.validation, data.test):  # rows keep their weights
        row = table.set_index(table["a"].round(5)).loc[part.x[:, 0].double().numpy().round(5), "w"]
        assert part.weights.tolist() == row.tolist()
    figure = json.loads(Path("runs/t/result.json").read_text())["nll"]["value"]
    assert json.loads(run("evaluate", "runs/t", "--json")[1])["nll"]["value"] == pytest.approx(figure, abs=0.05)
    table[columns].to_csv("other.csv", index=False)
    weighted = json.loads(run("evaluate", "runs/t", "other.csv", "--json")[1])["nll"]["value"]
    table[columns].drop(columns="w").to_csv("plain.csv", index=False)
    assert json.loads(run("evaluate", "runs/t", "plain.csv", "--json")[1])["nll"]["value"] != weighted
    repeated = table[columns].loc[table.index.repeat(table["w"])].drop(columns="w")
    repeated.to_csv("repeated.csv", index=False)
    equal = json.loads(run("evaluate", "runs/t", "repeated.csv", "--json")[1])["nll"]["value"]
    assert equal == pytest.approx(weighted, abs=0.02 if "kind" in columns else 1e-5)
    table[columns].assign(w=1).to_csv("t.csv", index=False)
    assert "t.csv has changed" in run("evaluate", "runs/t")[2]


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "many"])
def test_bad_weights_are_refused_with_column_and_row(run, table, value):
    table["w"] = table["w"].astype(object)
    table.loc[6, "w"] = value
    table.to_csv("t.csv", index=False)
    status, _, err = run("density", "t.csv", "--weights", "w", *TINY)
    assert status == 2
    assert f"t.csv: column w holds {value} in data row 7, weights are numbers from 0 on" in err
    with pytest.raises(InputError, match="column sample_weight holds"):
        TableDensityEstimator(verbose=False).fit(table[["a", "b"]], sample_weight=table["w"])


def test_weights_that_cannot_be_used(run, table, tmp_path, monkeypatch):
    table.assign(w=0).to_csv("t.csv", index=False)
    assert "the weights in column w are all zero" in run("density", "t.csv", "--weights", "w")[2]
    assert "--weights v is not a column of" in run("density", "t.csv", "--weights", "v")[2]
    assert "--weights w is for tables from files" in run("density", "moons", "--weights", "w")[2]
    np.save("big.npy", np.random.default_rng(0).normal(size=(100, 3)))
    monkeypatch.setattr(tables, "MAPPED_BYTES", 100)
    assert "--weights x2 is not for" in run("density", "big.npy", "--weights", "x2")[2]
    for weights in ([1.0], [0.0, 0.0], [1.0, -1.0], [1.0, math.nan]):
        with pytest.raises(InputError, match="weights of shape"):
            to_shares(weights, 2)


def test_estimator_of_weights_has_the_moments_of_repeated_rows(table):
    weights, x = table["w"], table[["a", "b"]]
    options = {"steps": 1, "hidden": (4,), "whiten": False}
    model = TableDensityEstimator(verbose=False, options=options).fit(x, sample_weight=list(weights))
    standard = next(part for part in model.flow.modules() if isinstance(part, MeanScale) and part.fitted)
    used = x.loc[table.index.repeat(weights)]
    assert abs(standard.mean[0] - used["a"].mean()) < 3 * used["a"].std() / math.sqrt(10)  # without validation rows
    assert model.n_features_in_ == 2
