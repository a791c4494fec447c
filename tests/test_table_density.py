"""Densities of tables with columns of several kinds: sums and integrals, masks, samples, storage."""

import math

import pytest
import torch
from torch.distributions import Normal

import cnf
from anode import InputError, MLPField, Solver
from cnf.divergence import exact_by_pullbacks
from cnf.tables import Column, context_row, table_model
from cnf.tables.columns import encode, state_features
from cnf.tables.masks import MaskedField, Trend, WhitenPresent

SOLVER = Solver(rtol=1e-8, atol=1e-8)
COLUMNS = (
    Column("share", "bounded", scale="logit", low=0.0, high=1.0),
    Column("colour", "category", ("blue", "red")),
    Column("amount", atoms=(0.0,), gaps=True),
)


def perturbed(model, scale=0.3):
    """Give the flow weights with which numbers depend on each other and on the states."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.flow.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.double().with_solver(SOLVER)


def rows_of(n=400):
    torch.manual_seed(0)
    colour = torch.randint(2, (n,)).double()
    amount = torch.randn(n).double() + 2 * colour
    amount[: n // 4], amount[n // 4 : n // 2] = 0, math.nan
    share = torch.sigmoid(torch.randn(n).double() + colour)
    return torch.stack([share, colour, amount], 1)[torch.randperm(n)]


@pytest.fixture(scope="module")
def model():
    return perturbed(table_model(COLUMNS, rows_of(), hidden=(8, 8), solver=SOLVER))


def test_mixed_likelihood_sums_and_integrates_to_one(model):
    share = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    amount = torch.linspace(-12, 16, 401, dtype=torch.float64)
    total = 0.0
    for colour in (0.0, 1.0):
        for other in (0.0, math.nan):
            x = torch.stack([share, share.new_full((300,), colour), share.new_full((300,), other)], 1)
            total += model.log_prob(x).exp().mean()
        grid = torch.cartesian_prod(share[::3], torch.tensor([colour], dtype=torch.float64), amount)
        area = (share[3] - share[0]) * (amount[1] - amount[0])
        total += torch.cat([model.log_prob(part).exp() for part in grid.split(20000)]).sum() * area
    assert total.item() == pytest.approx(1, abs=2e-3)


def test_absent_numbers_change_nothing_and_present_ones_do(model):
    x = torch.tensor([[0.3, 1.0, math.nan]], dtype=torch.float64)
    rows = encode(model.columns, x)
    features = model.features(rows.states, None)
    moved = model.flow.transform.encode(rows.y + torch.tensor([[0.0, 5.0]]), features)
    assert torch.allclose(moved, model.flow.transform.encode(rows.y, features))
    assert moved[0, 1] == 0


@pytest.mark.parametrize("hidden", [(), (8,), (8, 8), (8, 8, 8)])
@pytest.mark.parametrize(("patterns", "repeats"), [(1, 3), (3, 60), (5, 80), (5, 1)])  # few rows take Jacobians
def test_divergence_of_a_masked_field_is_that_over_present_numbers(hidden, patterns, repeats):
    torch.manual_seed(0)
    field = MaskedField(MLPField(4, hidden, context=6), 4).double()
    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.float64)
    mask = torch.cat([mask[:patterns].repeat(repeats, 1), mask[-1:]])[torch.randperm(repeats * patterns + 1)]
    n = len(mask)
    x, c = torch.randn(n, 4).double(), torch.cat([mask, torch.randn(n, 2).double()], 1)
    t = torch.tensor(0.3, dtype=torch.float64)
    velocity, divergence = field.velocity_and_divergence(t, x, c)
    expected = exact_by_pullbacks(field, t, x, c)
    assert torch.allclose(velocity, expected.velocity)
    assert torch.allclose(divergence, expected.divergence)
    assert (velocity[mask == 0] == 0).all()


def test_whitening_of_present_numbers_is_that_of_their_covariance():
    torch.manual_seed(0)
    x = torch.randn(500, 3).double() @ torch.randn(3, 3).double()
    white = WhitenPresent(3).double().fit(x, torch.ones(500, 3))
    mask = torch.tensor([[1.0, 0.0, 1.0]]).double().expand(500, 3)
    z, log_det, _ = white(x, mask)
    pair = z[:, [0, 2]]
    assert torch.allclose(pair.T @ pair / 500, torch.eye(2).double(), atol=1e-8)
    covariance = torch.cov(x[:, [0, 2]].T, correction=0)
    assert torch.allclose(log_det, -covariance.logdet().div(2).expand(500))
    back = white.inverse(z, mask).point
    assert torch.allclose(back[:, [0, 2]], x[:, [0, 2]])


@pytest.mark.parametrize("masked", [False, True])
def test_a_trend_is_the_regression_on_the_context(masked):
    torch.manual_seed(0)
    mask = (torch.rand(2000, 2) < 0.8).double() if masked else torch.ones(2000, 2).double()
    c = torch.cat([mask, torch.randn(2000, 2).double()], 1)
    noise = torch.randn(2000, 2).double()
    x = mask * (c[:, 2:] @ torch.tensor([[2.0, 0.0], [-1.0, 3.0]]).double() + 5 + 0.1 * noise)
    trend = Trend(2, 4, masked).double().fit(x, mask, c)
    z = trend.encode(x, c)
    assert torch.allclose(z[mask == 1], 0.1 * noise[mask == 1], atol=0.05)
    assert (z[mask == 0] == 0).all()
    assert torch.allclose(trend.decode(z, c), x)
    weights = torch.arange(2000) % 3
    weighted, repeated = (Trend(2, 4, masked).double() for _ in range(2))
    weighted.fit(x, mask, c, weights.double())
    repeated.fit(*(each.repeat_interleave(weights, 0) for each in (x, mask, c)))
    assert torch.allclose(weighted.matrix, repeated.matrix, atol=2e-3)


@pytest.mark.parametrize("options", [{}, {"extra": 1}, {"extra": 2, "augmentation": "categorical"}])
def test_an_untrained_density_is_a_gaussian_at_least(options):
    torch.manual_seed(0)
    colour = torch.randint(2, (1000,)).double()
    rows = torch.stack([20 * colour + torch.randn(1000).double(), colour], 1)
    model = table_model([Column("size"), COLUMNS[1]], rows, hidden=(4,), **options)
    gaussian = Normal(rows[:, 0].mean(), rows[:, 0].std()).log_prob(rows[:, 0]).mean() - math.log(2)
    assert model.log_prob(rows).mean() > gaussian - 0.5


def test_whitening_leaves_out_outliers():
    torch.manual_seed(0)
    x = torch.randn(1000, 1).double() @ torch.ones(1, 2).double() + 0.01 * torch.randn(1000, 2).double()
    expected = torch.cov(x.T, correction=0)
    x = torch.cat([x, torch.tensor([[0.0, 40.0]], dtype=torch.float64)])
    fitted = WhitenPresent(2).double().fit(x, torch.ones_like(x))
    assert torch.allclose(fitted.covariance, expected)


def test_far_outliers_have_a_sensible_density():
    x = torch.cat([rows_of(), torch.tensor([[0.5, 0.0, 1e6]])])
    model = table_model(COLUMNS, x, hidden=(8, 8))
    assert model.log_prob(x).min() > -500
    assert model.log_prob(torch.tensor([[0.5, 0.0, 1e12]])) > -2000
    assert model.log_prob(torch.tensor([[0.5, 0.0, 1e7]])) < model.log_prob(torch.tensor([[0.5, 0.0, 1e6]]))


def test_a_flow_sees_the_values_of_many_atoms():
    values = torch.arange(12, dtype=torch.float64)
    column = Column("size", atoms=tuple(values.tolist()), gaps=True).fitted(torch.cat([values, values + 20]))
    assert column.num_features == 2
    features = state_features([column], torch.arange(14).unsqueeze(1), values)
    on_scale = (values - column.center) / column.spread
    assert torch.allclose(features[:, 0], torch.cat([torch.zeros(1), on_scale, torch.zeros(1)]).double())
    assert features[:, 1].tolist() == 13 * [0] + [1]
    few = Column("size", atoms=(0.0, 1.0))
    assert state_features([few], torch.tensor([[0], [2]]), values).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_recorded_values_have_probabilities_that_sum_to_one():
    torch.manual_seed(0)
    counts = torch.poisson(torch.full((500, 1), 4.0)).double()
    column = Column("count", "ordinal", scale="log", low=0.0, step=1.0)
    model = perturbed(table_model([column], counts, hidden=(8,), solver=SOLVER), 0.1)
    assert model.kind == "bound"
    total = model.log_prob(torch.arange(200.0)[:, None], samples=64).exp().sum().item()
    assert total == pytest.approx(1, abs=0.02)
    assert model.elbo(counts).value.mean() <= model.log_prob(counts, samples=64).mean() + 0.02


@pytest.mark.parametrize(
    "column",
    [
        Column("x", center=3.0, spread=2.0),
        Column("x", "positive", scale="log", low=1.0, center=0.5, spread=2.0),
        Column("x", "bounded", scale="logit", low=0.0, high=4.0, spread=0.5),
        Column("x", scale="asinh", center=1.0, spread=3.0),
        Column("x", "ordinal", scale="log", low=0.0, step=1.0),
    ],
    ids=lambda column: f"{column.kind}-{column.scale}",
)
def test_scales_are_inverted_and_their_slopes_are_derivatives(column):
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) + (0.0 if column.step else 0.25)
    x.requires_grad_()
    y, log_slope = column.to_scale(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(slope.log(), log_slope)
    assert torch.allclose(column.from_scale(y), x)


def test_samples_have_the_kinds_of_the_columns(model):
    torch.manual_seed(0)
    x = model.sample(4000)
    share, colour, amount = x.T
    assert x.dtype == torch.float64
    assert ((share > 0) & (share < 1)).all()
    assert set(colour.tolist()) == {0.0, 1.0}
    assert amount.isnan().double().mean().item() == pytest.approx(0.25, abs=0.04)
    assert (amount == 0).double().mean().item() == pytest.approx(0.25, abs=0.04)
    assert not model.sample(500, complete=True).isnan().any()


@pytest.mark.parametrize("options", [{}, {"extra": 2}, {"residual_steps": 2}], ids=["flow", "lifted", "steps"])
def test_rows_return_from_the_base(options):
    rows = rows_of()[:, :2]
    built = table_model(COLUMNS[:2], rows, hidden=(8,), activation=("tanh",), solver=SOLVER, **options)
    back = perturbed(built, 0.1).round_trip(rows)
    assert torch.allclose(back, rows, atol=1e-6)


def test_a_density_given_columns_follows_them():
    rows = rows_of()
    model = table_model(COLUMNS[:1], rows[:, :1], given=COLUMNS[1:], given_rows=rows[:, 1:], hidden=(8,))
    c = torch.tensor([1.0, math.nan], dtype=torch.float64)
    assert model.sample(5, c).shape == (5, 1)
    assert model.log_prob(rows[:, :1], rows[:, 1:]).shape == (400,)
    with pytest.raises(InputError, match="c is missing: pass rows \\(5, 2\\) of colour, amount"):
        model.sample(5)
    torch.manual_seed(0)
    by_name = model.sample(5, given={"amount": None, "colour": "red"})
    torch.manual_seed(0)
    assert torch.equal(by_name, model.sample(5, c))


@pytest.mark.parametrize(
    ("given", "cells"),
    [
        ({"grade": 2, "share": 0.25, "amount": "0"}, [1.0, 0.25, 0.0]),
        ({"grade": "2.0", "share": "0.25", "amount": None}, [1.0, 0.25, math.nan]),
        ({"grade": "low", "share": 0.25, "amount": torch.tensor(-3.5)}, [2.0, 0.25, -3.5]),
    ],
)
def test_values_by_name_are_cells(given, cells):
    columns = [Column("grade", "category", ("1", "2", "low")), COLUMNS[0], COLUMNS[2]]
    row = context_row(columns, given)
    assert torch.equal(row.nan_to_num(99), torch.tensor(cells, dtype=torch.float64).nan_to_num(99))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"colour": "red"}, "given lacks share: pass a value for each of colour, share"),
        ({"colour": "red", "share": 0.5, "size": 1}, "given size: the density is given colour, share; omit other"),
        ({"colour": "grey", "share": 0.5}, "given colour: 'grey' is not a category; pass one of blue, red"),
        ({"colour": 1, "share": 0.5}, "given colour: 1 is not a category"),
        ({"colour": "red", "share": 1}, "given share: 1 is not a number between 0 and 1; pass one"),
        ({"colour": "red", "share": "half"}, "given share: 'half' is not a number between 0 and 1; pass one"),
        ({"colour": None, "share": 0.5}, "given colour: None is a missing cell, but the data miss none"),
        ({"colour": "red", "share": math.nan}, "given share: nan is a missing cell"),
    ],
)
def test_values_by_name_that_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        context_row([COLUMNS[1], COLUMNS[0]], given)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.5, 2.0, 1.0], "column colour cannot hold 2"),
        ([1.5, 0.0, 1.0], "column share cannot hold 1.5"),
        ([math.nan, 0.0, 1.0], "column share cannot hold nan"),
        ([0.5, math.nan, 1.0], "column colour cannot hold nan"),
    ],
)
def test_cells_that_no_column_can_hold_are_refused(model, row, message):
    with pytest.raises(InputError, match=message):
        model.log_prob(torch.tensor([row], dtype=torch.float64))


def test_flows_that_cannot_leave_numbers_out_are_refused():
    with pytest.raises(InputError, match="residual_steps=4 is not for tables with atoms or missing cells"):
        table_model(COLUMNS, rows_of(), residual_steps=4)


def test_a_stored_table_is_the_same_density(tmp_path, model):
    cnf.save(model, tmp_path)
    loaded = cnf.load(tmp_path)
    assert loaded.columns == model.columns
    assert torch.equal(loaded.log_prob(rows_of()), model.log_prob(rows_of()))
