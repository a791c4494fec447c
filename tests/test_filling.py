"""Completions of rows with missing cells: against closed forms, enumeration and rejection, and through the program."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from stored_runs import store_density
from test_mixed_tables import TRAIN, table
from test_table_density import COLUMNS, perturbed, rows_of

from anode import Solver
from cnf.tables import Column, table_model
from cnf.tables.filling import SWITCH, Proposal, fill

NAN = math.nan
MANY = 4000  # completions and proposals


def test_completions_of_a_gaussian_have_its_conditional_moments():
    factor = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0.5, 0.3, 0.2]])
    x = 5 + torch.randn(3000, 3) @ factor.T * torch.tensor([10, 1, 100])
    model = table_model([Column(name) for name in "abc"], x, hidden=(4,), whiten=True)  # a Gaussian as yet
    covariance, mean = torch.cov(x.T.double(), correction=0), x.double().mean(0)
    rows = torch.tensor([[20, NAN, NAN], [NAN, 6, 200], [1, 4, NAN], [NAN, NAN, NAN]], dtype=torch.float64)
    completed = fill(model, rows, MANY, proposals=MANY)
    assert (completed.effective > MANY / 5).all()
    for row, found in zip(rows, completed.rows.transpose(0, 1), strict=True):
        a, b = ~row.isnan(), row.isnan()
        slopes = torch.linalg.solve(covariance[a][:, a], covariance[a][:, b]).T
        expected = covariance[b][:, b] - slopes @ covariance[a][:, b]
        unit = expected.diagonal().sqrt()
        off = found[:, b].mean(0) - mean[b] - slopes @ (row[a] - mean[a])
        assert (off / unit).abs().max() < 0.08
        assert ((torch.cov(found[:, b].T).view(expected.shape) - expected) / unit / unit[:, None]).abs().max() < 0.12
        assert (found[:, a] == row[a]).all()


@pytest.fixture(scope="module")
def model():
    return perturbed(table_model(COLUMNS, rows_of(), hidden=(8, 8))).with_solver(Solver(rtol=1e-4, atol=1e-4))


def test_missing_categories_have_the_probabilities_of_enumerated_rows(model):
    rows = torch.tensor([[0.3, 0.0, 0.0], [0.3, 1.0, 0.0]], dtype=torch.float64)
    expected = model.log_prob(rows).softmax(0)[1].item()
    completed = fill(model, [[0.3, NAN, 0.0]], MANY, proposals=MANY)
    assert completed.rows[:, 0, 1].mean().item() == pytest.approx(expected, abs=0.03)
    assert expected == pytest.approx(0.5, abs=0.45)  # neither of them certain


def test_completions_are_those_of_rejection_sampling(model):
    share, colour, amount = model.sample(60_000, complete=True).T
    kept = amount[(colour == 1) & ((share - 0.6).abs() < 0.03)]
    assert len(kept) > 1000
    found = fill(model, [[0.6, 1.0, NAN]], MANY, proposals=MANY).rows[:, 0, 2]
    assert not found.isnan().any()
    assert (found == 0).double().mean().item() == pytest.approx((kept == 0).double().mean().item(), abs=0.04)
    kept, found = kept[kept != 0], found[found != 0]
    assert found.mean().item() == pytest.approx(kept.mean().item(), abs=0.12 * kept.std().item())
    assert found.std().item() == pytest.approx(kept.std().item(), rel=0.1)


def test_a_proposal_is_a_density_and_that_of_its_samples():
    states, centers = torch.tensor([[0], [1], [0]]), torch.tensor([[0.0, 1.0], [2.0, -1.0], [1.0, 0.0]]).double()
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double()
    frequencies = torch.tensor([0.5, 0.3, 0.2]).double()
    proposal = Proposal(states, [frequencies], centers, covariance, torch.tensor([0, -1]))
    axis = torch.linspace(-6, 8, 141).double()
    pairs, line = torch.cartesian_prod(axis, axis), torch.stack([torch.zeros_like(axis), axis], 1)
    total = [proposal.log_prob(torch.zeros(len(pairs), 1).long(), pairs).exp().sum() * 0.01]
    total += [proposal.log_prob(torch.full((141, 1), k), line).exp().sum() * 0.1 for k in (1, 2)]
    assert sum(total).item() == pytest.approx(1, abs=1e-6)
    drawn, y = proposal.sample(20_000)
    shares = torch.bincount(drawn[:, 0]) / 20_000
    torch.testing.assert_close(shares.double(), torch.stack(total), atol=0.015, rtol=0)
    assert shares[2].item() == pytest.approx(SWITCH * 0.2, abs=0.005)
    expected = centers.T.cov(correction=0) + covariance
    torch.testing.assert_close(y.T.cov(), expected, atol=0.05, rtol=0)


def test_recorded_values_stay_and_missing_ones_are_recorded():
    count = torch.poisson(torch.full((400,), 4.0))
    rows = torch.stack([count, (count + torch.randn(400)).round(decimals=1)], 1)
    columns = [Column("count", "ordinal", scale="log", low=0.0, step=1.0), Column("value", step=0.1)]
    model = table_model(columns, rows, hidden=(4,), whiten=True)
    completed = fill(model, torch.tensor([[NAN, 4.2], [3.0, NAN], [3.0, 4.2]], dtype=torch.float64), 200).rows
    assert (completed[:, 0, 0] == completed[:, 0, 0].round()).all()
    assert (completed[:, 0, 0] >= 0).all()
    torch.testing.assert_close(completed[:, 1, 1], completed[:, 1, 1].round(decimals=1))
    assert (completed[:, 2] == torch.tensor([3.0, 4.2], dtype=torch.float64)).all()
    assert completed[:, 0, 0].mean().item() == pytest.approx(4, abs=1)


def test_completions_follow_the_columns_that_are_given():
    group = torch.randint(2, (500, 1)).double()
    rows = torch.randn(500, 2).double() + 6 * group
    given = [Column("group", "category", ("a", "b"))]
    columns = [Column("x"), Column("y")]
    model = table_model(columns, rows, given=given, given_rows=group, hidden=(8,), whiten=True)
    optimizer = torch.optim.Adam(model.flow.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (-model.elbo(rows, group).value.mean()).backward()
        optimizer.step()
    x = torch.tensor([[NAN, 0.0], [NAN, 6.0], [NAN, NAN]]).double()
    c = torch.tensor([[0.0], [1.0], [1.0]]).double()
    found = fill(model, x, 1000, c).rows[..., 0].mean(0)
    torch.testing.assert_close(found, torch.tensor([0.0, 6.0, 6.0]).double(), atol=0.8, rtol=0)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("missing", ["model", "drop"])
def test_a_table_is_filled_by_the_program(run, missing):
    frame = table()
    frame.loc[::8, "length"] = None
    frame.loc[4, ["length", "price"]] = None
    frame.loc[6, "island"] = None
    frame["name"] = [f"row {i}" for i in range(len(frame))]
    frame.to_csv("t.csv", index=False)
    assert run("density", "t.csv", "--missing", missing, *TRAIN)[0] == 0
    status, out, err = run("sample", "runs/t", "--fill", "t.csv", "-n", 3, "--out", "full.csv")
    assert status == 0, err
    full = pd.read_csv("full.csv")
    gaps = int(frame[["island", "length", "price", "tested"]].isna().any(axis=1).sum())
    assert [*full] == ["row", *frame]
    assert (len(full), full.isna().sum().sum()) == (len(frame) + 2 * gaps, 0)
    assert f"3 completions of each of {gaps} rows" in out
    assert "effective samples  mean" in out
    for name in frame:
        before = frame[name].iloc[full.row - 1].reset_index(drop=True)
        known = before.notna()
        assert (full[name][known].astype(str) == before[known].astype(str)).all() or np.allclose(
            full[name][known].astype(float), before[known].astype(float)
        )
    assert (full.row.value_counts() == 3).sum() == gaps
    assert full.length[full.row == 1].nunique() == 3
    assert run("sample", "runs/t", "--fill", "t.csv", "-n", 3, "--out", "again.csv")[0] == 0
    assert full.equals(pd.read_csv("again.csv"))
    for options, message in (
        (("full.csv",), "has the columns row already"),
        (("full.csv", "--given", "island=north"), "--given has no effect with --fill"),
        (("full.csv", "--temperature", 0.5), "--temperature has no effect with --fill"),
    ):
        status, _, err = run("sample", "runs/t", "--out", "w.csv", "--fill", *options)
        assert (status, message in err) == (2, True), err


@pytest.fixture
def numbers(run):
    """A run of a table of numbers, one of them on a grid from 0."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=300), "children": rng.poisson(4, 300)})
    frame.to_csv("t.csv", index=False)
    store_density("runs/t", "t.csv")
    return frame


def test_a_table_of_numbers_is_filled(run, numbers):
    numbers["other"] = 1.5
    numbers.iloc[:3, 0] = numbers.iloc[2:9, 1] = None
    numbers.to_csv("gaps.csv", index=False)
    assert run("sample", "runs/t", "--fill", "gaps.csv", "--out", "full.csv")[0] == 0
    full = pd.read_csv("full.csv")
    assert len(full) == 300 + 4 * 9
    assert not full.isna().any(axis=None)
    assert (full.children >= 0).all()
    assert (full.children % 1 == 0).all()


def test_what_is_given_is_not_drawn(run, numbers):
    store_density("runs/given", "t.csv", given=("a",))
    numbers.loc[3, ["a", "children"]] = None
    numbers.to_csv("gaps.csv", index=False)
    status, _, err = run("sample", "runs/given", "--fill", "gaps.csv", "--out", "full.csv")
    assert status == 2
    assert "gaps.csv misses cells of what runs/given is given (a; data row 4): fill them in" in err


@pytest.mark.usefixtures("numbers")
@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"a": [1.0, 2.0], "children": [1, 2]}, "gaps.csv misses no cell of the columns of runs/t"),
        ({"a": [1.0, None]}, "gaps.csv lacks the columns children"),
        ({"a": ["x", None], "children": [1, 2]}, "column a cannot hold 'x' (data row 1)"),
    ],
)
def test_tables_that_cannot_be_filled(run, frame, message):
    pd.DataFrame(frame).to_csv("gaps.csv", index=False)
    status, _, err = run("sample", "runs/t", "--fill", "gaps.csv", "--out", "full.csv")
    assert status == 2
    assert message in err
