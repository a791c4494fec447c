"""Classifiers of one interface: what each model computes, its size and storage, and choices that exclude others."""

import dataclasses
import itertools
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fields import Linear
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import minimise
from torch import nn
from torch.nn import functional as F

import anode
from anode import (
    MLP,
    Augment,
    Classifier,
    ClassifierConfig,
    Field,
    InputError,
    ODEBlock,
    Solver,
    classifier_model,
    count_evals,
)

IMAGE = {"shape": (1, 8, 8)}
ODE_NET = {"field": "norm-conv", "stem": "conv", "readout": "pool"}
VARIANTS = {
    "node": ({"shape": (2,)}, (5, 2)),
    "anode": ({"shape": (2,), "extra": 3}, (5, 2)),
    "learned lift": ({"shape": (2,), "extra": 3, "lift": "learned"}, (5, 2)),
    "second order": ({"shape": (2,), "model": "second-order", "extra": 2}, (5, 2)),
    "resnet": ({"shape": (2,), "model": "resnet", "blocks": 3, "extra": 1}, (5, 2)),
    "mlp": ({"shape": (2,), "model": "mlp", "hidden": (7, 6)}, (5, 2)),
    "no readout": ({"shape": (3,), "readout": "none", "extra": 1}, (5, 3)),
    "images": ({"shape": (1, 4, 4), "extra": 1}, (5, 1, 4, 4)),
    "second-order images": ({"shape": (1, 3, 3), "model": "second-order", "extra": 1, "lift": "learned"}, (5, 1, 3, 3)),
    "convolutions": ({"shape": (2, 5, 4), "field": "conv", "hidden": (6,), "extra": 1}, (5, 2, 5, 4)),
    "residual convolutions": (
        {"shape": (2, 5, 4), "model": "resnet", "field": "conv", "hidden": (6,), "blocks": 2, "extra": 1},
        (5, 2, 5, 4),
    ),
    "pooled": (
        {"shape": (2, 5, 4), "field": "norm-conv", "readout": "pool", "extra": 1, "lift": "learned"},
        (5, 2, 5, 4),
    ),
    "ODE-Net": ({"shape": (1, 12, 11), **ODE_NET, "hidden": (8,), "extra": 1}, (5, 1, 12, 11)),
    "residual stem": (
        {"shape": (1, 12, 11), "model": "resnet", "field": "norm-conv", "stem": "residual", "hidden": (8,)},
        (5, 1, 12, 11),
    ),
    "pixels": ({"shape": (1, 4, 4), "field": "conv", "hidden": (3,), "levels": 17}, (5, 1, 4, 4)),
    "fixed steps": ({"shape": (2,), "solver": Solver("rk4", step_size=0.5)}, (5, 2)),
}


def count(shape, outputs=10, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in classifier_model(shape, outputs, **options).parameters())


@pytest.fixture(params=VARIANTS)
def variant(request):
    options, shape = VARIANTS[request.param]
    return classifier_model(outputs=3, **options), torch.randn(shape)


class TestEveryModel:
    def test_outputs_have_gradients(self, variant):
        model, x = variant
        y = model(x)
        assert y.shape == (5, 3)
        y.square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        torch.testing.assert_close(model.readout(model.features(x)), y)

    def test_trajectories_begin_and_end_at_the_states(self, variant):
        model, x = variant
        if isinstance(model.body, MLP):
            with pytest.raises(InputError, match="MLP, without trajectories"):
                model.trajectory(x, [0, 1])
            return
        path = model.trajectory(x, [0.0, 0.5, 1.0])
        torch.testing.assert_close(path[0], model.state(x))
        torch.testing.assert_close(path[-1], model.features(x), rtol=1e-3, atol=1e-3)
        for times in ([0.5, 1.0], [0.0, 2.0], []):
            with pytest.raises(InputError, match=r"must begin at 0.* and not pass 1"):
                model.trajectory(x, times)

    def test_it_survives_storage(self, variant, tmp_path):
        model, x = variant
        anode.save(model, tmp_path / "model", note="mine")
        with pytest.raises(InputError, match="model of type Linear is not a classifier"):
            anode.save(torch.nn.Linear(2, 2), tmp_path / "other")
        loaded = anode.load(tmp_path / "model")
        assert torch.equal(loaded(x), model(x))
        assert (loaded.config, loaded.shape, loaded.levels) == (model.config, model.shape, model.levels)
        assert loaded.outputs == 3
        assert not loaded.training
        assert json.loads((tmp_path / "model" / "config.json").read_text())["note"] == "mine"

    def test_it_fits_into_a_network_and_changes_type(self, variant):
        model, x = variant
        assert nn.Sequential(nn.Identity(), model, nn.Softmax(1)).double()(x.double()).dtype == torch.float64

    def test_it_is_solved_at_other_tolerances(self, variant):
        model, x = variant
        before = model.config
        tight = model.with_solver(Solver(rtol=1e-9, atol=1e-9))
        assert next(tight.parameters()) is next(model.parameters())
        torch.testing.assert_close(tight(x), model(x), rtol=1e-2, atol=1e-2)
        assert model.config == before
        if model.config.model in ("node", "second-order"):
            assert tight.config == dataclasses.replace(before, solver=Solver(rtol=1e-9, atol=1e-9))


class TestDescription:
    def test_one_configuration_or_its_fields(self):
        config = ClassifierConfig(extra=3, hidden=[8], solver={"method": "rk4", "step_size": 0.5})
        assert (config.hidden, config.solver) == ((8,), Solver("rk4", step_size=0.5))
        assert classifier_model((2,), 1, config=config).config == config
        with pytest.raises(InputError, match="config and extra exclude each other"):
            classifier_model((2,), 1, config=config, extra=1)

    def test_the_stored_solver_is_the_one_in_use(self, tmp_path):
        model = classifier_model((2,), 1)
        model.body.solver = Solver("rk4", step_size=0.25)
        anode.save(model, tmp_path)
        assert anode.load(tmp_path).body.solver == Solver("rk4", step_size=0.25)

    def test_models_composed_by_hand_are_not_stored(self, tmp_path):
        model = Classifier(Augment(0), nn.Identity(), nn.Identity())
        assert model.config is model.shape is None
        with pytest.raises(InputError, match="composed by hand"):
            anode.save(model, tmp_path)


def test_models_and_lifts_vary_by_one_argument():
    x = torch.randn(3, 2)
    for model, lift, extra in itertools.product(("node", "resnet"), ("zeros", "learned"), (0, 1, 100)):
        assert classifier_model((2,), 1, model=model, lift=lift, extra=extra)(x).shape == (3, 1)


def test_compiled_models_are_the_same_function():
    model = classifier_model((2,), 1, extra=2)
    compiled = torch.compile(model, backend="eager")
    block = ODEBlock(torch.compile(model.body.field, backend="eager"), model.body.solver)
    for _ in range(3):
        x = torch.randn(6, 2)
        torch.testing.assert_close(compiled(x), model(x))
        with count_evals(block) as nfe:
            torch.testing.assert_close(block(model.state(x)), model.features(x))
        assert nfe.forward > 0


def test_steps_are_not_compiled():
    """They depend on the data; ``Field.compile`` compiles what they evaluate."""
    compiling = []
    field = Field.wrap(lambda x: (compiling.append(torch.compiler.is_compiling()), -x)[1])
    compiled = torch.compile(nn.Sequential(nn.Linear(2, 2), ODEBlock(field)), backend="eager")
    for n in (3, 3, 5):
        compiled(torch.randn(n, 2)).sum().backward()
    assert len(compiling) > 0
    assert not any(compiling)


def test_node_is_the_flow_of_its_field(float64):
    field, x = Linear(torch.randn(2, 2)), torch.randn(5, 2)
    model = Classifier(Augment(0), ODEBlock(field, Solver(rtol=1e-10, atol=1e-10)), nn.Identity())
    torch.testing.assert_close(model(x), field.solution(x, 1.0))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 3), activation=st.sampled_from(["relu", "tanh", "softplus"]))
def test_the_flow_of_an_ode_on_the_line_is_increasing(seed, scale, activation):
    """For any weights: trajectories of one field cannot pass each other; augmented dimensions let them."""
    torch.manual_seed(seed)
    options = {"readout": "none", "activation": activation, "solver": Solver(rtol=1e-7, atol=1e-7)}
    model = classifier_model((1,), 1, **options).double()
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
            model = classifier_model((1,), 1, readout="none", **options)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter *= 3
                falls = falls or bool((model(x).diff(dim=0) < 0).any())
        assert falls


class TestStages:
    def test_lifts_of_zeros_and_learned_ones(self):
        x = torch.randn(5, 2)
        assert torch.equal(classifier_model((2,), 1, extra=3).lift(x), torch.cat([x, torch.zeros(5, 3)], 1))
        assert classifier_model((2,), 1, extra=3, lift="learned").lift[-1].weight.shape == (5, 2)
        assert classifier_model((1, 4, 4), 1, extra=2, lift="learned").lift[-1].weight.shape == (3, 1, 3, 3)

    def test_without_a_readout_the_first_components_are_the_outputs(self):
        model, x = classifier_model((4,), 2, readout="none"), torch.randn(5, 4)
        assert torch.equal(model(x), model.features(x)[:, :2])

    def test_inputs_are_normalised_by_the_data(self):
        x = torch.randn(200, 2) * torch.tensor([5.0, 0.1]) + 3
        first = classifier_model((2,), 1, data=x).lift[0]
        torch.testing.assert_close(first(x).mean(0), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(first(x).std(0, correction=0), torch.ones(2))

    def test_pixels_are_scaled_to_one(self):
        models = []
        for levels in (256, None):
            torch.manual_seed(1)
            models.append(classifier_model((1, 4, 4), 3, field="conv", hidden=(4,), extra=1, levels=levels))
        x = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
        torch.testing.assert_close(models[0](x), models[1](x / 255))

    @pytest.mark.parametrize("kind", ["conv", "residual"])
    @pytest.mark.parametrize("size", [(28, 29), (32, 13), (64, 9)])
    def test_stems_reduce_a_map_as_described(self, kind, size):
        model = classifier_model((3, *size), 2, field="conv", stem=kind, hidden=(8,), extra=1)
        shape = model.state(torch.randn(2, 3, *size)).shape[1:]
        channels, *sides = model.config.map_shape((3, *size))
        assert shape == (channels + 1, *sides)
        assert all(abs(side - full / 4) < 1.5 for side, full in zip(sides, size, strict=True))

    def test_the_residual_stem_has_downsampling_blocks(self, float64):
        block, x = classifier_model((1, 12, 12), 2, stem="residual", hidden=(4,)).lift[1][1], torch.randn(2, 4, 6, 6)
        h = F.relu(F.group_norm(x, 4))
        inner = F.relu(F.group_norm(F.conv2d(h, block.convs[0].weight, stride=2, padding=1), 4))
        expected = F.conv2d(h, block.skip.weight, stride=2) + F.conv2d(inner, block.convs[1].weight, padding=1)
        torch.testing.assert_close(block(x), expected)

    def test_the_pooled_readout_sees_means(self, float64):
        readout, x = classifier_model((4, 6, 6), 3, field="norm-conv", readout="pool").readout, torch.randn(2, 4, 5, 6)
        means = F.relu(F.group_norm(x, 4)).mean((2, 3))
        torch.testing.assert_close(readout(x), F.linear(means, readout[-1].weight, readout[-1].bias))


class TestInputs:
    """Samples as people have them, checked in one sentence each."""

    def test_arrays_frames_and_lists_are_converted(self):
        model, x = classifier_model((2,), 3), np.random.default_rng(0).normal(size=(5, 2))
        wanted = model(torch.tensor(x, dtype=torch.float32))
        frame = pd.DataFrame(x, columns=["a", "b"])
        tensors = (torch.tensor(x), torch.tensor(x).float())
        for other in (x, x.astype(np.float32), frame, frame.astype("Float64"), x.tolist(), *tensors):
            assert torch.equal(model(other), wanted)
            assert torch.equal(model.trajectory(other, [0, 1])[0], model.state(other))
        whole = np.arange(10).reshape(5, 2)
        assert torch.equal(model(whole), model(torch.tensor(whole)))
        assert model.double()(x.astype(np.float32)).dtype == torch.float64

    def test_gradients_flow_through_a_converted_tensor(self):
        x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
        classifier_model((2,), 1)(x).sum().backward()
        assert x.grad.abs().min() > 0

    def test_pixels_of_a_model_in_double_precision(self):
        model = classifier_model((1, 4, 4), 3, field="conv", hidden=(4,), levels=256).double()
        assert model(torch.randint(256, (2, 1, 4, 4), dtype=torch.uint8)).dtype == torch.float64

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (torch.zeros(2), "x of shape (2,) does not fit the classifier: pass (B, 2)"),
            (np.zeros((4, 3)), "x of shape (4, 3) does not fit the classifier: pass (B, 2)"),
            ([[1.0, "a"]], "x of type list cannot become a tensor (it holds text)"),
            (pd.DataFrame({"a": [1.0], "b": ["word"]}), "x of type DataFrame cannot become a tensor"),
            (
                pd.DataFrame({"a": pd.to_datetime(["2020-01-01"]), "b": [1.0]}),
                "x of type DataFrame cannot become a tensor",
            ),
            ([[1.0, 2.0], [1.0]], "x of type list cannot become a tensor"),
            (torch.zeros(3, 2, dtype=torch.complex64), "x holds complex numbers"),
            (torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]), "x is not finite in 1 of 2 samples: remove those"),
            (np.array([[np.inf, 1.0]]), "x is not finite in 1 of 1 samples: remove those"),
        ],
    )
    def test_anything_else_is_refused(self, x, message):
        for call in (model := classifier_model((2,), 3), model.predict, model.predict_proba):
            with pytest.raises(InputError) as refusal:
                call(x)
            assert str(refusal.value).startswith(message)

    def test_raw_units_are_learned_with_data_and_warned_of_without(self):
        x = torch.randn(400, 2) * torch.tensor([1e4, 1e-3]) + torch.tensor([1e3, 0])
        y = (x[:, 0] * x[:, 1] > 0).long()
        options, losses = {"model": "resnet", "blocks": 2, "hidden": (32,)}, []
        for data in (x.numpy(), None):
            torch.manual_seed(0)
            model = classifier_model((2,), 2, data=data, **options)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("default")
                losses += minimise(lambda model=model: F.cross_entropy(model(x), y), model, 60, 3e-2)[-1:]
            assert len(caught) == (data is None)  # once
        assert "x is far from unit scale" in str(caught[0].message)
        assert "pass data=x to classifier_model" in str(caught[0].message)
        assert losses[0] < 0.2
        assert losses[1] > 0.5

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_the_warning_is_for_units_far_from_one(self, scale):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            classifier_model((2,), 1)(scale * torch.randn(64, 2))
            classifier_model((1, 4, 4), 2, levels=256)(scale * torch.rand(8, 1, 4, 4))
        words = [str(warning.message) for warning in caught]
        assert ["classifier_model" in word for word in words] == {1e-3: [True, False], 1.0: [False], 1e3: [True]}[scale]
        assert all("pass whole numbers from 0 to levels - 1" in word or "data=x" in word for word in words)

    def test_samples_in_other_units_than_the_data(self):
        x = 1e3 + torch.randn(64, 2)
        model = classifier_model((2,), 1, data=x)
        model(x)
        with pytest.warns(UserWarning, match="x is far from the data that the model is fitted to: check its units"):
            model(x / 1000)

    def test_gradients_of_each_sample_of_a_discrete_network(self):
        model, x = classifier_model((2,), 1, model="mlp"), torch.randn(4, 2)
        weights = dict(model.named_parameters())

        def loss(weights, x):
            return torch.func.functional_call(model, weights, (x[None],)).square().sum()

        found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
        one = torch.func.grad(loss)(weights, x[2])
        torch.testing.assert_close({name: value[2] for name, value in found.items()}, one)


class TestPredictions:
    def test_names_numbers_and_probabilities(self):
        model, x = classifier_model((2,), 3, classes=["low", "mid", "high"]), torch.randn(6, 2)
        outputs = model(x)
        assert model.predict(x) == [model.classes[k] for k in outputs.argmax(1)]
        torch.testing.assert_close(model.predict_proba(x.numpy()), outputs.softmax(1))
        assert not model.predict_proba(x.requires_grad_()).requires_grad
        nameless = classifier_model((2,), 3)
        assert torch.equal(nameless.predict(x), nameless(x).argmax(1))

    def test_the_sign_of_a_single_output_is_the_class(self):
        x = torch.randn(20, 2)
        model = classifier_model((2,), 1, classes=("out", "in"))
        assert model.predict(x) == ["in" if value > 0 else "out" for value in model(x)]
        with pytest.raises(InputError, match="predict_proba needs an output for each class"):
            model.predict_proba(x)

    def test_names_are_stored(self, tmp_path):
        anode.save(classifier_model((2,), 2, classes=("é", "007")), tmp_path)
        assert anode.load(tmp_path).classes == ("é", "007")


class TestRegression:
    def test_outputs_are_in_the_units_of_the_target(self, tmp_path):
        x = torch.randn(300, 2)
        y = 5e4 + 1e4 * x[:, 0]
        model = classifier_model((2,), 1, task="regression", data=x, target=y.numpy())
        torch.testing.assert_close(model.target.mean, y.mean()[None])
        torch.testing.assert_close(model.target.scale, y.std(correction=0)[None])
        minimise(lambda: ((model(x)[:, 0] - y) / model.target.scale).square().mean(), model, 60, 1e-2)
        predicted = model.predict(x)
        assert (predicted[:, 0] - y).square().mean().sqrt() < 1500
        assert not predicted.requires_grad
        anode.save(model, tmp_path)
        loaded = anode.load(tmp_path)
        assert torch.equal(loaded.predict(x), predicted)
        assert loaded.config.task == "regression"
        with pytest.raises(InputError, match="use predict"):
            loaded.predict_proba(x)

    def test_several_values(self):
        x, y = torch.randn(50, 3), torch.randn(50, 2) * torch.tensor([1.0, 100.0])
        model = classifier_model((3,), 2, task="regression", target=y, model="mlp")
        assert model.target.scale[1] > 50
        assert model.predict(x).shape == (50, 2)


class TestSizes:
    """The papers numbers of parameters."""

    @pytest.mark.parametrize(
        ("shape", "node", "extra", "sizes"),
        [
            ((1, 28, 28), 92, 5, (84_395, 84_816)),
            ((3, 32, 32), 125, 10, (172_358, 171_799)),
            ((3, 64, 64), 164, 5, (366_269, 365_714)),
        ],
    )
    def test_pairs_of_the_anode_paper(self, shape, node, extra, sizes):
        options = {"field": "conv", "time": "none"}
        assert count(shape, **options, hidden=(node,)) == sizes[0]
        assert count(shape, **options, hidden=(64,), extra=extra) == sizes[1]

    def test_ode_net(self):
        """The public code's six residual blocks lack the biases and the third norm."""
        shape, options = (1, 28, 28), {**ODE_NET, "hidden": (64,)}
        assert count(shape, **options) == 208_266
        assert count(shape, **{**options, "stem": "residual"}) == 232_970
        resnet = {**options, "model": "resnet", "blocks": 6}
        more = 6 * (2 * 64 + 2 * 64)
        assert count(shape, **resnet) == 576_778 + more
        assert count(shape, **{**resnet, "stem": "residual"}) == 601_482 + more  # 0.60M published
        assert count(shape, model="mlp", hidden=(300,)) == 238_510  # 0.24M published

    def test_they_differ_only_where_the_models_do(self):
        def field(d, timed):  # layers d -> 32 -> 32 -> d with time in the first, and a readout of d + 1
            return (d + timed) * 32 + 32 + 32 * 32 + 32 + 32 * d + d

        assert count((2,), 1) == field(2, 1) + 3
        assert count((2,), 1, extra=5) == field(7, 1) + 8
        assert count((2,), 1, model="resnet") == 5 * field(2, 0) + 3
        assert count((2,), 1, model="mlp") == 2 * 32 + 32 + 32 * 32 + 32 + 33


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"model": "cnn"}, "model='cnn' is unknown; choose one of node, second-order, resnet, mlp"),
            ({"extr": 1}, "did you mean extra?"),
            ({"extra": -1}, "extra=-1"),
            ({"shape": (2, 2)}, "shape=(2, 2)"),
            ({"shape": (0,)}, "shape=0 must be a whole number"),
            ({"shape": (2.5,)}, "shape=2.5"),
            ({"outputs": 0}, "outputs=0"),
            ({"blocks": 0}, "blocks=0"),
            ({"model": "second-order"}, "extra=0 must be 2"),
            ({"model": "mlp", "extra": 1}, "model='mlp'"),
            ({"model": "mlp", "lift": "learned"}, "model='mlp'"),
            ({"model": "mlp", "hidden": ()}, "hidden"),
            ({"readout": "none", "outputs": 3}, "outputs=3"),
            ({"activation": "gelu"}, "activation='gelu'"),
            ({"time": "late"}, "time='late'"),
            ({"solver": {"method": "rk5"}}, "rk5"),
            ({"levels": 256, "data": torch.zeros(5, 2)}, "leave out data"),
            ({"data": torch.zeros(5, 3)}, "(5, 3) do not fit"),
            ({"field": "conv"}, "images (C, H, W), not shape=(2,)"),
            ({"stem": "conv"}, "images (C, H, W)"),
            ({**IMAGE, "readout": "pool"}, "averages over a map"),
            ({"shape": (1, 2, 2), "stem": "conv"}, "shape=(1, 2, 2) is too small"),
            ({**IMAGE, "stem": "conv"}, "shape=(1, 8, 8) is too small"),  # to one pixel, normalised to 0
            ({"shape": (1, 6, 6), "stem": "residual"}, "shape=(1, 6, 6) is too small"),
            ({**IMAGE, "model": "mlp", "stem": "conv"}, "model='mlp' does not convolve"),
            ({**IMAGE, "model": "second-order", "extra": 1, "field": "conv"}, "does not convolve"),
            (
                {**IMAGE, "field": "conv", "time": "squash"},
                "time='squash' is unknown; choose one of none, concat, bias",
            ),
            ({**IMAGE, "hidden": (), "field": "conv"}, "hidden=()"),
            ({**IMAGE, "hidden": (0,), "field": "conv"}, "hidden=(0,)"),
            ({**IMAGE, "levels": 1}, "levels=1"),
            ({"outputs": 3, "classes": ("a", "b")}, "as many different names as outputs=3"),
            ({"outputs": 2, "classes": ("a", "a")}, "as many different names as outputs=2"),
            ({"task": "regression", "classes": ("a", "b")}, "of task='classes'"),
            ({"task": "values"}, "task='values' is unknown; choose one of classes, regression"),
            ({"target": torch.zeros(5)}, "target has an effect with task='regression' only"),
            ({"task": "regression", "target": torch.zeros(5, 2)}, "(5, 2) do not fit"),
            ({"data": [["a", "b"]]}, "data of type list cannot become a tensor (it holds text)"),
        ],
    )
    def test_bad_values_are_named(self, options, words):
        with pytest.raises(InputError) as refusal:
            classifier_model(**{"shape": (2,), "outputs": 1} | options)
        assert words in str(refusal.value)


def test_all_models_learn_what_a_homeomorphism_can(float64):
    x = torch.randn(64, 2)
    y = (x[:, :1] > 0).double() * 2 - 1
    for options in ({}, {"extra": 2}, {"model": "second-order", "extra": 2}, {"model": "resnet"}, {"model": "mlp"}):
        torch.manual_seed(0)
        model = classifier_model((2,), 1, solver=Solver("rk4", step_size=0.5), hidden=(16,), **options)
        assert minimise(lambda model=model: (model(x) - y).square().mean(), model, 60, 2e-2)[-1] < 0.3


def test_second_order_dynamics_pass_where_first_order_cannot():
    """x -> -x on the line without a readout, from rest."""
    x = torch.tensor([[-1.0], [1.0]])
    losses = []
    for options in ({}, {"model": "second-order", "extra": 1}):
        torch.manual_seed(0)
        solver = Solver("rk4", step_size=0.5, gradient="direct")
        model = classifier_model((1,), 1, readout="none", activation="tanh", solver=solver, **options)
        losses += minimise(lambda model=model: (model(x) + x).square().mean(), model, 100, 2e-2)[-1:]
    assert losses[0] > 0.9
    assert losses[1] < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{"field": "conv"}, ODE_NET])
def test_devices_agree(float64, options):
    model = classifier_model((1, 28, 28), 10, extra=2, hidden=(16,), **options)
    x = torch.rand(8, 1, 28, 28)
    torch.testing.assert_close(model.cuda()(x.cuda()).cpu(), model.cpu()(x))
