"""Classifiers of one interface: what each model computes, what it cannot, and that it survives storage."""

import itertools
import json

import pytest
import torch
from fields import Linear
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import anode
from anode import (
    MLP,
    Augment,
    Classifier,
    InputError,
    MLPField,
    ODEBlock,
    ResNet,
    SecondOrderField,
    Solver,
    classifier,
    count_evals,
)
from anode.classifiers import Leading

VARIANTS = {
    "node": ({"shape": (2,)}, (5, 2)),
    "anode": ({"shape": (2,), "extra": 3}, (5, 2)),
    "learned lift": ({"shape": (2,), "extra": 3, "lift": "learned"}, (5, 2)),
    "second order": ({"shape": (2,), "model": "second-order", "extra": 2}, (5, 2)),
    "resnet": ({"shape": (2,), "model": "resnet", "blocks": 3, "extra": 1}, (5, 2)),
    "mlp": ({"shape": (2,), "model": "mlp", "hidden": (7, 6)}, (5, 2)),
    "no readout": ({"shape": (3,), "readout": "none", "extra": 1}, (5, 3)),
    "images": ({"shape": (1, 4, 4), "extra": 1}, (5, 1, 4, 4)),
    "convolutional lift": ({"shape": (2, 4, 4), "extra": 1, "lift": "learned"}, (5, 2, 4, 4)),
    "second-order images": ({"shape": (1, 3, 3), "model": "second-order", "extra": 1, "lift": "learned"}, (5, 1, 3, 3)),
    "standardized": ({"shape": (2,), "standardize": True}, (5, 2)),
    "convolutions": ({"shape": (2, 5, 4), "field": "conv", "filters": 6, "extra": 1}, (5, 2, 5, 4)),
    "residual convolutions": (
        {"shape": (2, 5, 4), "model": "resnet", "field": "conv", "filters": 6, "blocks": 2, "extra": 1},
        (5, 2, 5, 4),
    ),
    "pooled": (
        {"shape": (2, 5, 4), "field": "norm-conv", "readout": "pool", "extra": 1, "lift": "learned"},
        (5, 2, 5, 4),
    ),
    "ODE-Net": (
        {"shape": (1, 12, 11), "field": "norm-conv", "stem": "conv", "readout": "pool", "filters": 8, "extra": 1},
        (5, 1, 12, 11),
    ),
    "residual stem": (
        {"shape": (1, 12, 11), "model": "resnet", "field": "norm-conv", "stem": "residual", "filters": 8},
        (5, 1, 12, 11),
    ),
    "pixels": ({"shape": (1, 4, 4), "field": "conv", "filters": 3, "levels": 17}, (5, 1, 4, 4)),
    "fixed steps": ({"shape": (2,), "solver": Solver("rk4", step_size=0.5)}, (5, 2)),
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    options, shape = VARIANTS[request.param]
    return classifier(outputs=3, **options), torch.randn(shape)


class TestEveryModel:
    def test_gives_outputs_with_gradients(self, variant):
        model, x = variant
        y = model(x)
        assert y.shape == (5, 3)
        y.square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        torch.testing.assert_close(model.readout(model.features(x)), y)

    def test_begins_and_ends_its_trajectories(self, variant):
        model, x = variant
        if isinstance(model.body, MLP):
            with pytest.raises(InputError, match="MLP, which has no trajectories"):
                model.trajectory(x, [0, 1])
            return
        path = model.trajectory(x, [0.0, 0.5, 1.0])
        torch.testing.assert_close(path[0], model.lift(x))
        torch.testing.assert_close(path[-1], model.features(x), rtol=1e-3, atol=1e-3)

    def test_survives_storage(self, variant, tmp_path):
        model, x = variant
        anode.save(model, tmp_path / "model", note="mine")
        loaded = anode.load(tmp_path / "model")
        assert torch.equal(loaded(x), model(x))
        assert loaded.config == json.loads(json.dumps(model.config))
        assert not loaded.training
        assert json.loads((tmp_path / "model" / "config.json").read_text())["note"] == "mine"

    def test_drops_into_a_network_and_changes_type(self, variant):
        model, x = variant
        net = nn.Sequential(nn.Identity(), model, nn.Softmax(1)).double()
        assert net(x.double()).dtype == torch.float64

    def test_solves_at_other_tolerances(self, variant):
        model, x = variant
        tight = anode.with_solver(model, Solver(rtol=1e-9, atol=1e-9))
        assert next(tight.parameters()) is next(model.parameters())
        torch.testing.assert_close(tight(x), model(x), rtol=1e-2, atol=1e-2)
        assert model.config["model"] in ("resnet", "mlp") or tight.config["solver"]["rtol"] == 1e-9
        assert model.config["solver"]["rtol"] > 1e-9


def test_compiles_to_the_same_function():
    model = classifier((2,), 1, extra=2)
    compiled = torch.compile(model, backend="eager")
    inside = torch.compile(model.body.field, backend="eager")
    block = ODEBlock(inside, model.body.solver)
    for _ in range(3):
        x = torch.randn(6, 2)
        torch.testing.assert_close(compiled(x), model(x))
        with count_evals(block) as nfe:
            torch.testing.assert_close(block(model.lift(x)), model.features(x))
        assert nfe.forward > 0


def test_node_is_the_flow_of_its_field(float64):
    field = Linear(torch.randn(2, 2))
    model = Classifier(Augment(0), ODEBlock(field, Solver(rtol=1e-10, atol=1e-10)), nn.Identity())
    x = torch.randn(5, 2)
    torch.testing.assert_close(model(x), field.solution(x, 1.0))


def test_zero_field_stays_put():
    block = ODEBlock(MLPField(4, zero_init=True))
    y = Augment(2)(torch.randn(5, 2))
    for state in block.trajectory(y, [0, 0.2, 0.9, 1]):
        assert torch.equal(state, y)


class TestResNet:
    def test_is_the_sum_of_its_blocks(self):
        fields = [MLPField(2, (4,), time="none") for _ in range(3)]
        x = torch.randn(5, 2)
        states = [x]
        for field in fields:
            states.append(states[-1] + field(torch.zeros(()), states[-1]))
        net = ResNet(fields)
        torch.testing.assert_close(net(x), states[-1])
        torch.testing.assert_close(net.trajectory(x, [0, 1 / 3, 1]), torch.stack([states[0], states[1], states[3]]))
        torch.testing.assert_close(net.trajectory(x, [0.5])[0], (states[1] + states[2]) / 2)

    def test_is_eulers_method_where_blocks_share_a_field(self):
        field = MLPField(2, (4,), time="concat")
        with torch.no_grad():
            for parameter in field.layers[-1].parameters():
                parameter /= 4  # the step
        x = torch.randn(5, 2)
        euler = Solver("euler", step_size=0.25)
        scaled = euler.integrate(lambda t, y: 4 * field(t, y), x, 0, 1, field=field)
        torch.testing.assert_close(ResNet([field] * 4)(x), scaled)

    def test_needs_a_block(self):
        with pytest.raises(InputError, match="at least one block"):
            ResNet([])


class TestSecondOrder:
    def test_is_the_motion_of_an_oscillator(self, float64):
        """d^2x/dt^2 = -w^2 x from rest: x(t) = x cos wt, v(t) = -w x sin wt."""
        w = 1.7

        class Spring(MLPField):
            def forward(self, t, x, c=None):
                return -(w**2) * c

        block = ODEBlock(SecondOrderField(Spring(2, context=2)), Solver(rtol=1e-10, atol=1e-10))
        x = torch.randn(5, 2)
        t = torch.tensor(w)
        expected = torch.cat([x * t.cos(), -w * x * t.sin()], dim=1)
        torch.testing.assert_close(block(Augment(2)(x)), expected)

    def test_gradients_equal_finite_differences(self, float64):
        field = SecondOrderField(MLPField(2, (6,), context=2))
        block = ODEBlock(field, Solver(rtol=1e-10, atol=1e-10))
        y = torch.randn(3, 4, requires_grad=True)
        assert torch.autograd.gradcheck(block, y, eps=1e-5, atol=1e-6)

        names, values = zip(*block.named_parameters(), strict=True)
        block.solver = Solver(rtol=1e-10, atol=1e-10, gradient="direct")

        def end(*values):
            return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (y.detach(),))

        inputs = tuple(value.detach().requires_grad_() for value in values)
        assert torch.autograd.gradcheck(end, inputs, eps=1e-5, atol=1e-6)

    def test_divergence_is_the_trace_of_its_jacobian(self, float64):
        field = SecondOrderField(MLPField(3, (6, 5), context=3))
        t, y = torch.tensor(0.4), torch.randn(4, 6)
        velocity, divergence = field.velocity_and_divergence(t, y)
        torch.testing.assert_close(velocity, field(t, y))
        jacobians = [torch.func.jacrev(lambda row: field(t, row[None])[0])(row) for row in y]
        torch.testing.assert_close(divergence, torch.stack([j.trace() for j in jacobians]))

    def test_without_a_rule_has_no_divergence_either(self):
        field = SecondOrderField(MLPField(2, (4, 4), time="squash", context=2))
        assert field.velocity_and_divergence(torch.zeros(3), torch.randn(3, 4)) is None

    def test_refuses_what_is_no_motion(self):
        field = SecondOrderField(MLPField(2, context=2))
        with pytest.raises(InputError, match="even dimension 1"):
            field(torch.zeros(()), torch.randn(3, 3))
        with pytest.raises(InputError, match="context is the position"):
            field(torch.zeros(()), torch.randn(3, 4), torch.randn(3, 1))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 3), activation=st.sampled_from(["relu", "tanh", "softplus"]))
def test_the_flow_of_an_ode_on_the_line_is_increasing(seed, scale, activation):
    """For any weights: trajectories of one field cannot pass each other; the zeros of ANODE are what frees them."""
    torch.manual_seed(seed)
    model = classifier((1,), 1, readout="none", activation=activation, solver=Solver(rtol=1e-7, atol=1e-7)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale
        x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        assert (model(x).diff(dim=0) > 0).all()


def test_augmented_flows_and_residual_blocks_need_not_be_increasing():
    """The property above can fail: it is about ODEs on the line, not about networks."""
    x = torch.linspace(-2, 2, 40)[:, None]
    for options in ({"extra": 1}, {"model": "resnet"}):
        falls = False
        for seed in range(20):
            torch.manual_seed(seed)
            model = classifier((1,), 1, readout="none", **options)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter *= 3
                falls = falls or bool((model(x).diff(dim=0) < 0).any())
        assert falls


def test_a_lift_of_zeros_and_a_learned_one():
    x = torch.randn(5, 2)
    assert torch.equal(classifier((2,), 1, extra=3).lift(x), torch.cat([x, torch.zeros(5, 3)], 1))
    linear = classifier((2,), 1, extra=3, lift="learned").lift
    assert isinstance(linear, nn.Linear)
    assert linear(x).shape == (5, 5)
    assert isinstance(classifier((1, 4, 4), 1, extra=2, lift="learned").lift, nn.Conv2d)


def test_leading_components_are_the_outputs():
    y = torch.randn(5, 4)
    assert torch.equal(Leading(2)(y), y[:, :2])


def test_inputs_are_standardized_by_the_data():
    x = torch.randn(200, 2) * torch.tensor([5.0, 0.1]) + 3
    first = classifier((2,), 1, data=x).lift[0]
    torch.testing.assert_close(first(x).mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(first(x).std(0, correction=0), torch.ones(2))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"model": "cnn"}, "model='cnn' is unknown; choose one of node, second-order, resnet, mlp"),
        ({"lift": "random"}, "lift='random' is unknown"),
        ({"readout": "mean"}, "readout='mean' is unknown"),
        ({"extra": -1}, "extra=-1"),
        ({"shape": (2, 2)}, r"shape=\(2, 2\)"),
        ({"shape": (0,)}, r"shape=\(0,\)"),
        ({"outputs": 0}, "outputs=0"),
        ({"blocks": 0}, "blocks=0"),
        ({"model": "second-order"}, "extra=0 must be 2"),
        ({"model": "mlp", "extra": 1}, "mlp"),
        ({"model": "mlp", "lift": "learned"}, "mlp"),
        ({"model": "mlp", "hidden": ()}, "hidden"),
        ({"readout": "none", "outputs": 3}, "outputs=3"),
        ({"activation": "gelu"}, "gelu"),
        ({"time": "late"}, "late"),
        ({"solver": {"method": "rk5"}}, "rk5"),
    ],
)
def test_bad_values_are_named(options, names):
    with pytest.raises(InputError, match=names):
        classifier(**{"shape": (2,), "outputs": 1} | options)


def test_the_stored_solver_is_the_one_in_use(tmp_path):
    model = classifier((2,), 1)
    model.body.solver = Solver("rk4", step_size=0.25)
    anode.save(model, tmp_path)
    assert anode.load(tmp_path).body.solver == Solver("rk4", step_size=0.25)


def test_other_solvers_reach_every_ode_of_any_network():
    class Foreign(nn.Linear):
        config = object()  # as other libraries have it

    net = nn.Sequential(Foreign(2, 2), classifier((2,), 3), ODEBlock(MLPField(3)))
    tight = anode.with_solver(net, Solver(rtol=1e-8, atol=1e-8))
    assert tight[1].body.solver == tight[2].solver == Solver(rtol=1e-8, atol=1e-8)
    assert tight[1].config["solver"]["rtol"] == 1e-8
    assert net[2].solver == Solver()


def test_trajectories_begin_with_the_lift():
    with pytest.raises(InputError, match="must begin at 0"):
        classifier((2,), 1).trajectory(torch.randn(3, 2), [0.5, 1.0])


def test_models_by_hand_are_not_stored(tmp_path):
    with pytest.raises(InputError, match="composed by hand"):
        anode.save(Classifier(Augment(0), nn.Identity(), nn.Identity()), tmp_path)


def test_parameters_differ_only_where_the_models_do():
    counts = {
        name: sum(p.numel() for p in classifier((2,), 1, **options).parameters())
        for name, options in {
            "node": {},
            "anode": {"extra": 5},
            "resnet": {"model": "resnet"},
            "mlp": {"model": "mlp"},
        }.items()
    }

    # layers d -> 32 -> 32 -> d with time in the first, and a readout of d + 1
    def field(d, timed):
        return (d + timed) * 32 + 32 + 32 * 32 + 32 + 32 * d + d

    assert counts["node"] == field(2, 1) + 3
    assert counts["anode"] == field(7, 1) + 8
    assert counts["resnet"] == 5 * field(2, 0) + 3
    assert counts["mlp"] == 2 * 32 + 32 + 32 * 32 + 32 + 33


def test_all_models_learn_what_a_homeomorphism_can(float64):
    x = torch.randn(64, 2)
    y = (x[:, :1] > 0).double() * 2 - 1
    for options in ({}, {"extra": 2}, {"model": "second-order", "extra": 2}, {"model": "resnet"}, {"model": "mlp"}):
        torch.manual_seed(0)
        model = classifier((2,), 1, solver=Solver("rk4", step_size=0.5), hidden=(16,), **options)
        optimizer = torch.optim.Adam(model.parameters(), 2e-2)
        for _ in range(60):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        assert loss < 0.3


def test_second_order_dynamics_pass_where_first_order_cannot():
    """x -> -x on the line without a readout, from rest."""
    x = torch.tensor([[-1.0], [1.0]])
    losses = []
    for options in ({}, {"model": "second-order", "extra": 1}):
        torch.manual_seed(0)
        model = classifier((1,), 1, readout="none", activation="tanh", solver=Solver("rk4", step_size=0.2), **options)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            loss = (model(x) + x).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9
    assert losses[1] < 0.01


def test_interfaces_vary_by_one_argument():
    x = torch.randn(3, 2)
    for model, lift, extra in itertools.product(("node", "resnet"), ("zeros", "learned"), (0, 1, 100)):
        assert classifier((2,), 1, model=model, lift=lift, extra=extra)(x).shape == (3, 1)
