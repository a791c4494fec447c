"""Densities from one description: contracts of every variant, stored models, and the choices it refuses."""

import dataclasses
import json

import pytest
import torch
from fields import wild
from torch import nn

from anode import CheckpointError, InputError, MLPField, Solver, classifier_model, storage
from anode import save as save_classifier
from cnf import (
    Continuous,
    DensityConfig,
    Flow,
    LiftedFlow,
    MaximumLikelihood,
    MixtureFlow,
    Normal,
    density_model,
    load,
    save,
)

IMAGE = {"shape": (1, 4, 4), "levels": 17, "hidden": (4,)}
VARIANTS = {
    "plain": {"shape": (2,)},
    "three layers": {"shape": (3,), "hidden": (8, 8, 8), "time": "concat", "activation": ("tanh", "silu")},
    "context": {"shape": (2,), "context": 3},
    "hutchinson": {"shape": (2,), "divergence": "hutchinson", "probes": 2},
    "white": {"shape": (2,), "whiten": True},
    "mixture": {"shape": (2,), "base": "mixture", "components": 3},
    "images": IMAGE,
    "convolutions": IMAGE | {"field": "conv", "time": "concat"},
    "scales": IMAGE | {"shape": (1, 8, 8), "field": "stack", "multiscale": True, "divergence": "hutchinson"},
    "U-Net": IMAGE | {"field": "unet", "dequantization": "learned", "divergence": "hutchinson"},
    "joint": {"shape": (2,), "extra": 1, "posterior": "learned"},
    "momentum": {"shape": (2,), "extra": 2, "augmentation": "momentum"},
    "categorical": {
        "shape": (2,), "extra": 3, "augmentation": "categorical", "posterior": "fitted", "correlated": True
    },
    "solver": {"shape": (2,), "solver": Solver("rk4", step_size=0.25)},
    "residual steps": {"shape": (2,), "residual_steps": 3, "activation": ("tanh", "silu"), "context": 3},
    "certified": {"shape": (3,), "residual_steps": 2, "certify": True, "activation": "silu"},
    "certified mixture": {
        "shape": (2,), "residual_steps": 2, "certify": True, "extra": 3, "augmentation": "categorical"
    },
}  # fmt: skip
LINE = {
    "plain": {},
    "base": {"base": "mixture", "components": 3},
    "joint": {"extra": 1},
    "joint, learned": {"extra": 1, "posterior": "learned"},
    "joint, mixture": {"extra": 1, "base": "mixture", "components": 3},
    "momentum": {"extra": 1, "augmentation": "momentum"},
    "categorical": {"extra": 3, "augmentation": "categorical"},
    "categorical, correlated": {"extra": 3, "augmentation": "categorical", "correlated": True},
    "residual steps": {"residual_steps": 4, "activation": ("tanh", "silu")},
    "residual steps, joint": {"residual_steps": 4, "extra": 1},
    "residual steps, categorical": {"residual_steps": 4, "extra": 3, "augmentation": "categorical"},
    "certified": {"residual_steps": 4, "certify": True, "activation": "relu"},
    "categorical, fitted": {"extra": 3, "augmentation": "categorical", "posterior": "fitted"},
}


def samples_for(options, n=15):
    shape, levels = options["shape"], options.get("levels")
    return torch.randn(n, *shape) if levels is None else torch.randint(levels, (n, *shape))


def model_on_a_line(options, data=None):
    """A density of one dimension whose parameters are far from their start."""
    model = density_model((1,), data, hidden=(6, 6), solver=Solver(rtol=1e-6, atol=1e-6), **options)
    for name, parameter in model.named_parameters():
        if "logits" not in name and "log_scales" not in name:
            nn.init.normal_(parameter, std=0.1 if "head" in name else 0.4)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", LINE)
def test_densities_integrate_to_one_and_agree_with_their_samplers(float64, name):
    model = model_on_a_line(LINE[name])
    axis = torch.arange(-9, 9, 0.06)
    if isinstance(model, LiftedFlow):  # integrate the augmented dimension out by quadrature
        joint = model.flow.log_prob(torch.cartesian_prod(axis, axis)).exp().view(len(axis), -1)
        density = joint.sum(1) * 0.06
    else:
        density = model.log_prob(axis[:, None]).exp()
    assert density.sum().item() * 0.06 == pytest.approx(1, abs=2e-3)
    x, _ = model.sample(20_000)[:, 0].sort()
    below = torch.cumsum(density, 0) * 0.06  # up to the end of a cell, half a step on
    shares = torch.searchsorted(x, axis + 0.03) / len(x)
    assert (shares - below).abs().max() < 0.013  # Kolmogorov and Smirnov: one sample in 500 is further off


@torch.no_grad()
@pytest.mark.parametrize("name", LINE)
def test_log_densities_are_in_the_units_of_the_data(float64, name):
    """Importance weighting is unbiased for the density, whose integral over x is 1 wherever the data are."""
    model = model_on_a_line(LINE[name], data=10 + 5 * torch.randn(400, 1))
    axis = torch.arange(-40, 60, 0.4)[:, None]
    log_p = model.log_prob(axis, samples=200) if model.kind == "bound" else model.log_prob(axis)
    assert log_p.exp().sum().item() * 0.4 == pytest.approx(1, abs=0.02)
    assert abs((log_p.exp() * axis[:, 0]).sum().item() * 0.4 - model.sample(20_000).mean().item()) < 0.4


@pytest.mark.parametrize("name", VARIANTS)
def test_a_stored_model_rebuilds_itself(name, tmp_path):
    options, x = VARIANTS[name], samples_for(VARIANTS[name])
    c = torch.randn(len(x), options["context"]) if "context" in options else None
    model = density_model(data=x, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    save(model, tmp_path / "model", note="kept")
    loaded = load(tmp_path / "model")
    assert (type(loaded), loaded.config, loaded.event_shape) == (type(model), model.config, model.event_shape)
    assert (loaded.context, loaded.levels, loaded.training) == (model.context, model.levels, False)
    config = storage.read_config(tmp_path / "model", "density")
    assert config["note"] == "kept"
    assert config["model"] == json.loads(json.dumps({
        "shape": options["shape"], "context": model.context, "levels": model.levels, **dataclasses.asdict(model.config)
    }))  # fmt: skip
    torch.manual_seed(0)
    expected = model.elbo(x, c).value
    torch.manual_seed(0)
    assert torch.equal(loaded.elbo(x, c).value, expected)


def test_the_config_has_the_present_solver():
    model, tight = density_model((2,), extra=1), Solver(rtol=1e-8, atol=1e-8)
    assert model.config == DensityConfig(extra=1)
    assert model.with_solver(tight).config == DensityConfig(extra=1, solver=tight)
    assert Flow(Continuous(MLPField(2)), Normal((2,))).config is None
    assert density_model((2,), config=DensityConfig(hidden=(4,))).config == DensityConfig(hidden=[4])


def test_loading_reads_classifiers_too(tmp_path):
    network, x = classifier_model((2,), 1), torch.randn(5, 2)
    save_classifier(network, tmp_path / "network")
    assert torch.equal(load(tmp_path / "network")(x), network(x))
    storage.write_config(tmp_path / "other", "table", {})
    with pytest.raises(CheckpointError, match="holds a table"):
        load(tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"hidden": [8, 9]}, "layers"),
        ({"hidden": "88"}, "hidden"),
        ({"residual": True}, "residual=True is unknown"),
        ({"context": "1"}, "context='1'"),
        ({"shape": [3]}, r"mean is \(2,\)"),
        ({"whiten": True}, "missing"),
        ({"levels": True}, "levels=True"),
        ({"data": [1]}, "does not describe"),
        ({"blocks": 10**6}, "blocks=1000000 must be at most 1000"),
    ],
    ids=str,
)
def test_crafted_arguments_are_refused(tmp_path, arguments, names):
    save(density_model((2,), hidden=(8, 8)), tmp_path)
    content, weights = storage.read_config(tmp_path, "density"), storage.read_weights(tmp_path)
    storage.write_config(tmp_path, "density", content["model"] | arguments)
    storage.write_weights(tmp_path, weights)
    with pytest.raises(CheckpointError, match=names) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert torch.is_grad_enabled()


def test_models_keep_their_type_and_take_no_random_numbers(tmp_path):
    save(density_model((2,), extra=1, augmentation="categorical").double(), tmp_path)
    state = torch.get_rng_state()
    model = load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.log_prob(torch.randn(3, 2, dtype=torch.float64)).dtype == torch.float64


def test_classifiers_are_stored_as_classifiers(tmp_path):
    model, x = classifier_model((2,), 3, hidden=(8,)), torch.randn(5, 2)
    save(model, tmp_path)
    assert torch.equal(load(tmp_path)(x), model(x))
    with pytest.raises(InputError, match="model of type Linear is not a density or classifier"):
        save(nn.Linear(2, 2), tmp_path)


def test_a_model_composed_by_hand_is_not_stored(tmp_path):
    with pytest.raises(InputError, match="state_dict"):
        save(Flow(Continuous(MLPField(2)), Normal((2,))), tmp_path)


@pytest.mark.parametrize("whiten", [False, True])
def test_the_untrained_flow_is_the_gaussian_of_the_data(float64, whiten):
    x = torch.randn(500, 3) @ torch.randn(3, 3) + 1
    covariance = x.T.cov(correction=0)
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), covariance if whiten else covariance.diag().diag())
    torch.testing.assert_close(density_model((3,), x, whiten=whiten).log_prob(x), gaussian.log_prob(x))


@pytest.mark.parametrize("field", ["mlp", "conv"])
@pytest.mark.parametrize("options", [{"extra": 2}, {"extra": 2, "augmentation": "categorical"}])
def test_augmented_images_are_dequantised_first(field, options):
    data = torch.randint(5, (60, 1, 3, 3))
    model = density_model((1, 3, 3), data, field=field, hidden=(8,), levels=5, **options)
    assert model.kind == "bound"
    assert isinstance(model.flow, MixtureFlow) == ("augmentation" in options)
    assert set(model.sample(20).unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert torch.isfinite(model.log_prob(data, samples=3)).all()
    MaximumLikelihood(model, samples=2)(data[:7]).backward()


@pytest.mark.parametrize("field", ["mlp", "conv", "stack", "unet"])
def test_every_field_takes_the_context(field):
    more = {"solver": Solver("rk4", step_size=0.5), "divergence": "hutchinson", "multiscale": field == "stack"}
    x = torch.randint(4, (5, 1, 4, 4))
    model = wild(density_model((1, 4, 4), x, field=field, hidden=(4, 4), levels=4, context=2, **more))
    values = []
    for c in torch.eye(2):
        torch.manual_seed(0)
        values.append(model.log_prob(x, c.expand(5, 2), samples=1))
    assert (values[0] != values[1]).all()


@pytest.mark.parametrize("more", [{}, {"extra": 2}, {"extra": 2, "augmentation": "categorical"}])
def test_contexts_that_do_not_fit_are_named_as_they_were_passed(more):
    x, c = torch.randn(4, 2), torch.randn(4, 3)
    with pytest.raises(InputError, match=r"c of shape \(4, 3\) does not fit 4 samples: omit it"):
        density_model((2,), **more).log_prob(x, c)
    with pytest.raises(InputError, match=r"c is missing.*: pass it in shape \(4, 3\)"):
        density_model((2,), context=3, **more).log_prob(x)
    for wrong in (c[:, :2], c[:3]):
        with pytest.raises(InputError, match=r"does not fit 4 samples: pass \(4, 3\)"):
            density_model((2,), context=3, **more).elbo(x, wrong)


@pytest.mark.parametrize("more", [{}, {"extra": 2, "augmentation": "categorical"}])
def test_paths_end_at_samples_of_their_class(more):
    data = torch.randint(4, (200, 1, 2, 1))
    model = wild(density_model((1, 2, 1), data, levels=4, hidden=(8, 8), context=3, **more))
    c, ends = torch.eye(3).repeat(10, 1), []
    for draw in (model.sample, lambda n, c: model.sample_paths(n, [0.0, 0.5, 1.0], c)[-1]):
        torch.manual_seed(3)
        ends.append(draw(30, c))
    assert torch.equal(*ends)
    torch.manual_seed(3)
    assert not torch.equal(model.sample(30, c.roll(1, 0)), ends[0])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"divergence": "guess"}, "divergence='guess' is unknown; choose one of exact, hutchinson"),
        ({"hiden": (8,)}, "hiden=.* is unknown; did you mean hidden"),
        ({"solver": {"rtol": -1.0}}, "rtol"),
        ({"alpha": 0.7}, "alpha=0.7 must be less than 0.5"),
        ({"probes": 0}, "probes=0 must be greater than 0"),
        ({"extra": -1}, "extra=-1"),
        ({"config": DensityConfig(), "hidden": (8,)}, "config and hidden exclude each other"),
        ({"shape": (2, 2)}, r"shape=\(2, 2\) must be"),
        ({"shape": 2.5}, "shape=2.5 must be a whole number"),
        ({"shape": torch.randn(5, 2)}, "shape of type Tensor must be"),
        ({"config": {"hidden": 8}}, "config of type dict is not a DensityConfig"),
        ({"hidden": 0}, "hidden="),
        ({"solver": "rk5"}, "solver.*rk5"),
        ({"base": Normal((2,))}, "base=.* is unknown; choose one of normal, mixture"),
        ({"context": -1}, "context=-1"),
        ({"levels": 1}, "levels=1"),
        ({"levels": 4, "alpha": 0.0}, "alpha=0 makes the logits"),
        ({"field": "conv"}, "field='conv' is for images"),
        ({"shape": (1, 4, 4), "field": "conv", "time": "squash"}, "time='squash' is for field='mlp'"),
        ({"shape": (1, 4, 4), "field": "stack", "hidden": ()}, "number of filters"),
        ({"shape": (1, 4, 4), "multiscale": True}, "multiscale=True needs a field for images of any size"),
        ({"shape": (1, 3, 3), "field": "conv", "multiscale": True}, "3x3"),
        ({"augmentation": "momentum"}, "extra=0 must be at least 1"),
        ({"extra": 2, "augmentation": "categorical", "blocks": 2}, "needs one ODE"),
        ({"posterior": "learned"}, "posterior='learned' has an effect only with extra of at least 1"),
        ({"extra": 2, "posterior": "fitted"}, "posterior='fitted' is for augmentation='categorical'"),
        ({"extra": 2, "augmentation": "categorical", "posterior": "learned"}, "posterior='learned' is for continuous"),
        ({"extra": 2, "augmentation": "categorical", "base": "mixture"}, "leave out base"),
        ({"extra": 3, "augmentation": "momentum"}, "extra=3 must be 2 with augmentation='momentum'"),
        ({"extra": 2, "augmentation": "momentum", "context": 1}, "without context"),
        ({"components": 3}, "components=3 has an effect only with base='mixture'"),
        ({"correlated": True}, "correlated=True has an effect only with"),
        ({"noise": "gaussian"}, "noise='gaussian' has an effect only with divergence='hutchinson'"),
        ({"dequantization": "learned"}, "dequantization='learned' has an effect only with discrete data"),
        ({"certify": True}, "certify=True has an effect only with residual_steps of at least 1"),
        ({"residual_steps": -1}, "residual_steps=-1 must be"),
        ({"residual_steps": 4, "activation": "silu"}, r"bounded field: pass activation=\('tanh', 'silu'\), or certify"),
        ({"residual_steps": 4, "shape": (65,)}, "65 x 65 for each sample and step: at most 64"),
        ({"residual_steps": 4, "shape": (62,), "extra": 3}, "determinant of 65 x 65"),
        ({"residual_steps": 4, "blocks": 2}, "residual_steps=4 is for one field='mlp'"),
        ({"residual_steps": 4, "shape": (1, 4, 4), "field": "conv"}, "residual_steps=4 is for one field='mlp'"),
        ({"residual_steps": 4, "divergence": "hutchinson"}, "not a divergence or momentum"),
        ({"residual_steps": 4, "extra": 2, "augmentation": "momentum"}, "not a divergence or momentum"),
        ({"data": torch.randn(5, 3)}, r"\(5, 3\)"),
        ({"data": torch.tensor([[1.0, float("nan")]])}, "finite"),
        ({"data": torch.zeros(0, 2)}, "one or more"),
        ({"data": [["a", "b"]]}, "data of type list cannot become a tensor"),
        ({"data": torch.randn(9, 2) * torch.tensor([1.0, 0.0])}, r"constant in 1 of 2 dimensions \(first 1\)"),
        ({"context": 2, "context_data": torch.randn(5, 3)}, r"shape \(5, 3\) do not fit.*\(2,\)"),
        ({"context_data": torch.randn(5)}, r"shape \(5,\) do not fit.*\(1,\)"),
        ({"context_data": torch.full((5, 1), float("nan"))}, "finite"),
        ({"levels": 4, "data": torch.randn(5, 2)}, "0 to 3"),
    ],
    ids=lambda part: "" if isinstance(part, str) else ", ".join(part),
)
def test_bad_input_is_named(options, names):
    with pytest.raises(InputError, match=names):
        density_model(**{"shape": (2,)} | options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_models_move_to_the_gpu(tmp_path):
    save(density_model((2,), torch.randn(100, 2)), tmp_path)
    flow = load(tmp_path, "cuda")
    assert flow.sample(5).device.type == "cuda"
    x = torch.randn(50, 2)
    torch.testing.assert_close(flow.log_prob(x.cuda()).cpu(), load(tmp_path).log_prob(x), rtol=1e-4, atol=1e-4)
