"""Blocks inside networks of the user."""

import pytest
import torch
from fields import Linear
from torch import nn

from anode import Augment, InputError, MLPField, ODEBlock, Solver


@pytest.mark.parametrize("shape", [(5, 2), (5, 3, 4, 4)])
def test_augment_appends_zeros_along_dimension_1(shape):
    x = torch.randn(shape)
    y = Augment(4)(x)
    assert y.shape == (shape[0], shape[1] + 4, *shape[2:])
    assert torch.equal(y[:, : shape[1]], x)
    assert (y[:, shape[1] :] == 0).all()


def test_augment_by_nothing_and_by_less():
    x = torch.randn(5, 2)
    assert torch.equal(Augment(0)(x), x)
    with pytest.raises(InputError, match="extra=-1"):
        Augment(-1)


def test_block_is_the_flow_of_its_field(float64):
    field = Linear(torch.randn(2, 2))
    x = torch.randn(5, 2)
    block = ODEBlock(field, Solver(rtol=1e-10, atol=1e-10))
    torch.testing.assert_close(block(x), field.solution(x, 1.0))
    path = block.trajectory(x, [0.0, 0.5, 1.0])
    torch.testing.assert_close(path[0], x)
    torch.testing.assert_close(path[1], field.solution(x, 0.5), rtol=1e-6, atol=1e-6)


def test_block_takes_a_context():
    block = ODEBlock(MLPField(2, context=3))
    x, c = torch.randn(5, 2), torch.randn(5, 3)
    assert not torch.allclose(block(x, c), block(x, c + 1))


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
def test_classifier_learns_what_needs_the_extra_dimension(gradient):
    """x -> -x on the line needs trajectories that pass each other (no linear readout here)."""
    x = torch.tensor([[-1.0], [1.0]])
    solver = Solver("rk4", step_size=0.2, gradient=gradient)
    losses = {}
    for extra in (0, 1):
        torch.manual_seed(0)
        net = nn.Sequential(Augment(extra), ODEBlock(MLPField(1 + extra, (16,)), solver))
        optimizer = torch.optim.Adam(net.parameters(), 2e-2)
        for _ in range(150):
            optimizer.zero_grad()
            loss = (net(x)[:, :1] + x).square().mean()
            loss.backward()
            optimizer.step()
        losses[extra] = loss.item()
    assert losses[1] < 0.01
    assert losses[0] > 0.9  # the best order-preserving answer is 0 for both


def test_block_moves_and_saves(tmp_path):
    net = nn.Sequential(Augment(1), ODEBlock(MLPField(3)), nn.Linear(3, 1)).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = nn.Sequential(Augment(1), ODEBlock(MLPField(3)), nn.Linear(3, 1)).double()
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(net(x), other(x))
