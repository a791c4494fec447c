"""Blocks inside networks of the user."""

import pytest
import torch
from fields import Linear
from tasks import minimise
from torch import nn

from anode import MLP, Augment, InputError, MLPField, Normalize, ODEBlock, ResNet, ScalePixels, Solver, with_solver


@pytest.mark.parametrize("shape", [(5, 2), (5, 3, 4, 4)])
def test_augment_appends_zeros_along_dimension_1(shape):
    x = torch.randn(shape)
    y = Augment(4)(x)
    assert torch.equal(y[:, : shape[1]], x)
    assert torch.equal(y[:, shape[1] :], torch.zeros(shape[0], 4, *shape[2:]))
    assert torch.equal(Augment(0)(x), x)


def test_normalize_is_the_identity_until_it_is_fitted():
    x = torch.randn(200, 3) * torch.tensor([5.0, 0.1, 0.0]) + 3
    layer = Normalize((3,))
    assert torch.equal(layer(x), x)
    y = layer.fit(x)(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]))  # a constant stays constant


class TestODEBlock:
    def test_it_is_the_flow_of_its_field(self, float64):
        field, x = Linear(torch.randn(2, 2)), torch.randn(5, 2)
        block = ODEBlock(field, Solver(rtol=1e-10, atol=1e-10))
        torch.testing.assert_close(block(x), field.solution(x, 1.0))
        path = block.trajectory(x, [0.0, 0.5, 1.0])
        torch.testing.assert_close(path[0], x)
        torch.testing.assert_close(path[1], field.solution(x, 0.5), rtol=1e-6, atol=1e-6)

    def test_a_zero_field_stays_put(self):
        y = Augment(2)(torch.randn(5, 2))
        for state in ODEBlock(MLPField(4, zero_init=True)).trajectory(y, [0, 0.2, 0.9, 1]):
            assert torch.equal(state, y)

    def test_it_takes_a_context(self):
        block = ODEBlock(MLPField(2, context=3))
        x, c = torch.randn(5, 2), torch.randn(5, 3)
        assert not torch.allclose(block(x, c), block(x, c + 1))

    def test_it_learns_what_needs_the_extra_dimension(self):
        """x -> -x on the line needs trajectories that pass each other (no linear readout here)."""
        x = torch.tensor([[-1.0], [1.0]])
        solver = Solver("rk4", step_size=0.25, gradient="direct")
        losses = {}
        for extra in (0, 1):
            torch.manual_seed(0)
            net = nn.Sequential(Augment(extra), ODEBlock(MLPField(1 + extra, (16,)), solver))
            losses[extra] = minimise(lambda net=net: (net(x)[:, :1] + x).square().mean(), net, 150, 2e-2)[-1]
        assert losses[1] < 0.01
        assert losses[0] > 0.9  # the best order-preserving answer is 0 for both

    def test_it_moves_and_saves(self, tmp_path):
        nets = [nn.Sequential(Augment(1), ODEBlock(MLPField(3)), nn.Linear(3, 1)).double() for _ in range(2)]
        torch.save(nets[0].state_dict(), tmp_path / "net.pt")
        nets[1].load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
        x = torch.randn(4, 2, dtype=torch.float64)
        assert torch.equal(nets[0](x), nets[1](x))


def test_arrays_and_lists_are_inputs():
    x = torch.randn(5, 2)
    block = ODEBlock(MLPField(2, 8, context=1), "rk4")
    nets = [
        nn.Sequential(Augment(2), ODEBlock(MLPField(4, 8)), nn.Linear(4, 1)),
        nn.Sequential(Normalize((2,)), MLP(2, 8)),
        ResNet([MLPField(2, 8)]),
        lambda x: block(x, x[:, :1] if hasattr(x, "shape") else [row[:1] for row in x]),
        lambda x: block.trajectory(x, [0, 0.5], torch.ones(5, 1)),
    ]
    for net in nets:
        for same in (x.numpy(), x.double().numpy(), x.tolist()):
            torch.testing.assert_close(net(same), net(x))
    pixels = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    torch.testing.assert_close(ScalePixels()(pixels.numpy()), ScalePixels()(pixels))


class TestResNet:
    def test_it_is_the_sum_of_its_blocks(self):
        fields = [MLPField(2, (4,), time="none") for _ in range(3)]
        x = torch.randn(5, 2)
        states = [x]
        for field in fields:
            states.append(states[-1] + field(torch.zeros(()), states[-1]))
        net = ResNet(fields)
        torch.testing.assert_close(net(x), states[-1])
        torch.testing.assert_close(net.trajectory(x, [0, 1 / 3, 1]), torch.stack([states[0], states[1], states[3]]))
        torch.testing.assert_close(net.trajectory(x, [0.5])[0], (states[1] + states[2]) / 2)

    def test_it_is_eulers_method_if_blocks_share_a_field(self):
        field = MLPField(2, (4,), time="concat")
        with torch.no_grad():
            for parameter in field.layers[-1].parameters():
                parameter /= 4  # the step
        x = torch.randn(5, 2)
        euler = Solver("euler", step_size=0.25)
        scaled = euler.integrate(lambda t, y: 4 * field(t, y), x, 0, 1, field=field)
        torch.testing.assert_close(ResNet([field] * 4)(x), scaled)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Augment(-1), "extra=-1"),
        (lambda: Augment("2"), "extra='2'"),
        (lambda: Augment(1)(torch.ones(3)), r"x of shape \(3,\) does not have a dimension 1"),
        (lambda: ODEBlock(MLPField(2))("text"), r"x of type str cannot become a tensor \(it holds text\)"),
        (lambda: ODEBlock(MLPField(2))(torch.ones(4, 2, dtype=torch.int64)), "the state has dtype torch.int64"),
        (lambda: ScalePixels(1), "levels=1"),
        (lambda: ResNet([]), "at least one block"),
        (lambda: ResNet([MLPField(2)]).trajectory(torch.ones(4, 2), [0, 2]), r"times=\[0.0, 2.0\] must lie from 0"),
        (lambda: MLP(2, ()), "hidden"),
        (lambda: ODEBlock(MLPField(2), 4), "solver=4 is not a Solver"),
        (lambda: with_solver(ODEBlock(MLPField(2)), "rk5"), "method='rk5' is unknown"),
        (lambda: Normalize((2,)).fit(torch.randn(5, 1)), r"\(5, 1\) do not fit: pass one or more of shape \(2,\)"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(InputError, match=words):
        make()
