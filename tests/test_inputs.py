"""Arguments as people have them: what arrays, frames, lists, counts and shapes become, in every model."""

import math
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from fields import wild
from torch.utils.data import DataLoader, TensorDataset

from anode import InputError
from anode.inputs import to_shape, to_tensor, whole_number
from cnf import FlowMatching, MaximumLikelihood, Mixture, Normal, ReverseKL, Standardize, Whiten, density_model

ROWS = np.arange(10.0).reshape(5, 2)
DENSITIES = {
    "flow": {},
    "lifted": {"extra": 1},
    "mixture": {"extra": 2, "augmentation": "categorical"},
}


@pytest.mark.parametrize(
    "values",
    [
        ROWS.tolist(),
        ROWS.astype(np.float32),
        ROWS.astype(">f8"),
        ROWS[::-1][::-1],
        np.asfortranarray(ROWS),
        ROWS.astype(np.uint16),
        ROWS.astype(object),
        [[Decimal(3), 1] for _ in range(5)],
        pd.DataFrame(ROWS, columns=["a", "b"]),
        pd.DataFrame(ROWS).astype("Int64"),
        pd.DataFrame({"flag": [True, False] * 2 + [True], "x": ROWS[:, 0]}),
        list(torch.from_numpy(ROWS)),
        torch.from_numpy(ROWS).half(),
    ],
    ids=lambda values: type(values).__name__,
)
def test_numbers_of_every_kind_become_tensors(values):
    found = to_tensor("x", values)
    assert found.is_floating_point()
    expected = [[float(value) for value in row] for row in (values.values if hasattr(values, "iloc") else values)]
    assert found.tolist() == expected


def test_a_tensor_stays_itself():
    x = torch.randn(3, requires_grad=True)
    assert to_tensor("x", x) is x
    rows = [x[:1], x[1:2]]
    torch.autograd.backward(to_tensor("x", rows).sum())
    assert x.grad.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    "values",
    [None, "text", [["a"]], [[1.0], [1.0, 2.0]], {"x": 1.0}, np.array(["2020-01-01"], dtype="M8[D]"), 1j, [1j],
     torch.ones(2, dtype=torch.complex64), pd.DataFrame({"x": [1, pd.NA]}), pd.DataFrame({"x": ["?", 1]})],
    ids=lambda values: type(values).__name__,
)  # fmt: skip
def test_other_values_are_refused_by_name(values):
    with pytest.raises(InputError, match=r"rows (of type|holds)"):
        to_tensor("rows", values)


def test_counts_and_shapes():
    for same in (1000, 1e3, np.int32(1000), (1000,), [1000], torch.Size([1000])):
        assert whole_number("n", same) == 1000
        assert type(whole_number("n", same)) is int
        assert to_shape(same) == (1000,)
    assert to_shape(torch.Size([1, 8, 8])) == (1, 8, 8)
    for wrong in (0, -1, 2.5, math.nan, math.inf, True, "3", None, (3, 4), torch.ones(3), 1j):
        with pytest.raises(InputError, match=r"n.* must be a whole number of at least 1"):
            whole_number("n", wrong)
    for wrong in ((), "2", None, (2, 0), torch.ones(3), 0):
        with pytest.raises(InputError, match="shape"):
            to_shape(wrong)


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_take_what_people_have(name):
    """Rows as lists, arrays, frames and integers give the figures of the tensor that they are."""
    data, contexts = torch.randint(50, (40, 2)), torch.randint(50, (40, 1))
    model = wild(density_model(2, data, context_data=contexts, hidden=8, **DENSITIES[name]))
    x, c = data[:5].float(), contexts[:5].float()
    calls = [lambda x, c: model.log_prob(x, c), lambda x, c: model.elbo(x, c).value, lambda x, c: model(c).log_prob(x),
             lambda x, c: MaximumLikelihood(model)(x, c), lambda x, c: FlowMatching(model)((x, c)),
             lambda x, c: model.sample(len(c), c), lambda x, c: model.sample_paths(5, [0, 1], c),
             lambda x, c: model.sample((5,), c[0]), lambda x, c: model(c).sample()]  # fmt: skip
    if name == "flow":
        calls += [model.encode, model.decode, model.round_trip, lambda x, c: model.rsample(torch.Size([5]), c),
                  lambda x, c: model.trajectory(x, [0, 1], c)]  # fmt: skip
    for call in calls:
        torch.manual_seed(0)
        expected = call(x, c)
        for convert in (torch.Tensor.long, torch.Tensor.double, torch.Tensor.numpy, torch.Tensor.tolist):
            torch.manual_seed(0)
            torch.testing.assert_close(call(convert(x), convert(c)), expected)
    frame = model.log_prob(pd.DataFrame(x.numpy()), pd.DataFrame(c.numpy(), columns=["given"]))
    assert frame.shape == (5,)


def test_gradients_pass_conversions():
    flow, x = wild(density_model((2,), hidden=(8,))), torch.randn(4, 2)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        gradients.append(torch.autograd.grad(flow.log_prob(leaf).sum(), leaf)[0])
    assert gradients[1].dtype == torch.float64
    torch.testing.assert_close(gradients[1].float(), gradients[0])


@pytest.mark.parametrize("make", [torch.Tensor.numpy, pd.DataFrame, torch.Tensor.tolist])
def test_layers_and_bases_are_fitted_to_what_people_have(make):
    x = torch.randn(200, 2) @ torch.tensor([[2.0, 1.0], [0.0, 0.5]]) + 3
    given = make(x) if make is not pd.DataFrame else make(x.numpy())
    for layer in (Standardize, Whiten):
        torch.testing.assert_close(layer(2).fit(given).encode(x), layer((2,)).fit(x).encode(x))
    fitted = []
    for points in (x, given):
        torch.manual_seed(1)
        fitted.append(Mixture(2, 3).fit(points).log_prob(x))
    torch.testing.assert_close(*fitted)
    models = [density_model(2, points, whiten=True) for points in (x, given)]
    torch.testing.assert_close(models[0].log_prob(x), models[1].log_prob(x))
    assert Normal(3).sample(2).shape == (2, 3)


@pytest.mark.parametrize("objective", [MaximumLikelihood, FlowMatching])
def test_objectives_take_batches_of_loaders(objective):
    x, c = torch.randn(6, 2), torch.randn(6, 1)
    plain, given = density_model(2, hidden=8), density_model(2, context=(1,), hidden=8)

    def loss(model, *batch):
        torch.manual_seed(0)
        return objective(model)(*batch)

    (batch,), (pair,) = DataLoader(TensorDataset(x), 6), DataLoader(TensorDataset(x, c), 6)
    for same in (batch, (x,), [x.numpy()], x.tolist(), list(x)):
        torch.testing.assert_close(loss(plain, same), loss(plain, x))
    for same in ((pair,), ([x, c],), (x, c), (x.numpy(), c.tolist()), ((x.tolist(), c.tolist()),)):
        torch.testing.assert_close(loss(given, *same), loss(given, (x, c)))
    with pytest.raises(InputError, match=r"the batch has 2 parts and c: pass x, \(x,\) or \(x, c\)"):
        loss(given, (x, c), c)
    for wrong in (torch.nn.Linear(2, 2), None):
        with pytest.raises(InputError, match="is not a density"):
            objective(wrong)


@pytest.mark.parametrize("objective", [MaximumLikelihood, FlowMatching])
@pytest.mark.parametrize("name", DENSITIES)
def test_weights_make_a_weighted_mean(float64, objective, name):
    x, weights = torch.randn(4, 2), [3, 0, 1, 0.5]
    model = objective(wild(density_model(2, hidden=8, **DENSITIES[name])))

    def loss(weights):
        torch.manual_seed(0)
        return model(x, weights=weights)

    each = torch.stack([loss(row) for row in torch.eye(4)])
    torch.testing.assert_close(loss(weights), (torch.tensor(weights) * each).sum() / 4.5)
    torch.testing.assert_close(loss(None), each.mean())
    with pytest.raises(InputError, match=r"weights of shape \(5,\) do not fit 4 samples: pass \(B,\)"):
        loss(torch.ones(5))


def test_reverse_kl_takes_counts():
    objective = ReverseKL(density_model(2, hidden=8), lambda x: -x.square().sum(1))
    torch.manual_seed(0)
    expected = objective(50)
    torch.manual_seed(0)
    assert torch.equal(objective(50.0), expected)
