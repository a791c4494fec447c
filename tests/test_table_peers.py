"""Peers of mixed tables: each finds what it can in tables whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from train_flows.benchmark import table_peers


def table(n, seed, correlation=0.9):
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal(np.zeros(3), np.full((3, 3), correlation) + (1 - correlation) * np.eye(3), n)
    frame = pd.DataFrame(
        {"amount": np.exp(z[:, 0]), "grade": np.array(["low", "mid", "high"])[np.digitize(z[:, 1], [0, 1])]}
    )
    frame["count"] = np.floor(np.exp(z[:, 2])).astype(int)
    frame.loc[rng.random(n) < 0.1, "amount"] = np.nan
    return frame


class TestGaussianCopula:
    def test_it_finds_the_correlations_behind_the_cells(self):
        frame = table(4000, 0).dropna()
        found = table_peers.GaussianCopula.fit(frame, 0)
        signs = np.sign(found.correlation[0])  # the order of categories may be reversed
        np.testing.assert_allclose(found.correlation * np.outer(signs, signs), 0.9 + 0.1 * np.eye(3), atol=0.02)

    def test_samples_have_the_marginals(self):
        frame = table(4000, 0)
        samples = table_peers.GaussianCopula.fit(frame, 0).sample(20000, 0)
        assert list(samples) == list(frame)
        assert set(samples["count"]) <= set(frame["count"])
        assert samples["amount"].isna().mean() == pytest.approx(frame["amount"].isna().mean(), abs=0.01)
        shares = samples["grade"].value_counts(normalize=True) - frame["grade"].value_counts(normalize=True)
        assert shares.abs().max() < 0.015

    def test_one_seed_one_table(self):
        copula = table_peers.GaussianCopula.fit(table(100, 0), 0)
        pd.testing.assert_frame_equal(copula.sample(20, 1), copula.sample(20, 1))
        assert not copula.sample(20, 1).equals(copula.sample(20, 2))


@pytest.mark.parametrize("columns", [None, ("amount", "count")])
def test_planted_rows_keep_the_marginals(columns):
    rows = table(2000, 0).dropna()
    found, planted = table_peers.plant_anomalies(rows, 0, columns, share=0.05)
    assert planted.sum() == round(0.05 * len(rows))
    different = (found.to_numpy() != rows.to_numpy()).any(axis=1)
    assert (different <= planted).all()
    assert different.sum() > 0.9 * planted.sum()
    for name in rows:
        assert sorted(found[name]) == sorted(rows[name])


def test_the_forest_finds_far_rows():
    rows = table(500, 1)
    rows.loc[:9, "amount"] = 500.0
    scores = table_peers.isolation_scores(table(1000, 0), rows, 0)
    assert len(set(np.argsort(scores)[-10:]) & set(range(10))) >= 8


def test_boosted_regression_reaches_the_entropy_of_a_log_normal():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 6000)
    frame = pd.DataFrame({"x": x, "c": np.where(x > 0, "a", "b"), "price": np.exp(3 + x + 0.2 * rng.normal(size=6000))})
    nll, error = table_peers.boosted_nll(frame[:4000], frame[4000:5000], frame[5000:], "price", 0)
    assert nll == pytest.approx(3 + np.log(0.2) + 0.5 * np.log(2 * np.pi * np.e), abs=0.06 + 3 * error)
