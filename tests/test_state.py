"""States to resume from: what goes into a file comes out of it, and nothing else is taken for one."""

import math

import pytest
import torch
from torch import nn

from anode import CheckpointError
from train_flows.state import digest, pack, unpack


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.safetensors"


def returned(state, path):
    path.write_bytes(pack(state))
    return unpack(path)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        7,
        10**30,
        0.1,
        -0.0,
        math.inf,
        -math.inf,
        "text \u2028\n",
        [],
        [1, [2.5, None]],
        (1, (2, [3])),
        {},
        {0: {"step": 1}, "0": (), (1, 2): [], None: math.inf, 1.5: "x"},
    ],
    ids=repr,
)
def test_plain_values_return(value, path):
    found = returned({"value": value}, path)
    assert repr(found) == repr({"value": value})  # types, order, and the sign of zero


def test_nan_returns(path):
    assert math.isnan(returned({"value": math.nan}, path)["value"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3, 1), (2, 3, 4)])
def test_tensors_return(dtype, shape, path):
    tensor = (100 * torch.randn(shape)).to(dtype)
    (found,) = returned({"tensors": [tensor]}, path)["tensors"]
    assert (found.dtype, found.shape) == (dtype, shape)
    assert torch.equal(found, tensor)


def test_memory_may_be_shared_and_strided(path):
    x = torch.randn(4, 6)
    state = {"whole": x, "again": x, "part": x[1:, ::2], "turned": x.T}
    found = returned(state, path)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_numbers_that_are_not_finite_return(path):
    x = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    assert torch.equal(returned({"x": x}, path)["x"].view(torch.int32), x.view(torch.int32))


def test_an_optimizer_goes_on_as_it_would(path):
    def trained(optimizer, model, steps):
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.full((5, 3), 0.1 * step)).square().sum().backward()
            optimizer.step()

    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.1, fused=True)
    trained(optimizer, model, 3)
    state = returned({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    other = nn.Linear(3, 2)
    other.load_state_dict(state["model"])
    resumed = torch.optim.Adam(other.parameters(), 0.1, fused=True)
    resumed.load_state_dict(state["optimizer"])
    for pair in ((optimizer, model), (resumed, other)):
        trained(*pair, 3)
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"bytes", 1j, nn.Linear(1, 1)], ids=lambda value: type(value).__name__
)
def test_other_objects_are_not_stored(value):
    with pytest.raises(TypeError, match=type(value).__name__):
        pack({"value": value})


def test_the_digest_tells_states_apart():
    states = [{"x": torch.zeros(2)}, {"x": torch.zeros(2, 1)}, {"y": torch.zeros(2)}, {"x": [0.0, 0.0]}, {"x": 0}, {}]
    assert len({digest(state) for state in states}) == len(states)
    assert digest({"x": torch.zeros(2)}) == digest(states[0])


class TestRefused:
    def test_none_there(self, path):
        with pytest.raises(CheckpointError, match=r"state.safetensors is missing"):
            unpack(path)

    def test_every_byte_counts(self, path):
        content = pack({"step": 3, "x": torch.randn(2)})
        for place in range(len(content)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
            with pytest.raises(CheckpointError):
                unpack(path)

    def test_no_object_is_unpickled(self, path):
        class Bomb:
            def __reduce__(self):
                return pytest.fail, ("the state was executed",)

        torch.save({"step": 3, "bomb": Bomb()}, path)
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            unpack(path)
