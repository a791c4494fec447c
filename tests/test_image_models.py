"""Densities of images: fields, scales and dequantisation, against enumeration, traces and closed forms."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from anode import ConvField, ConvStack, InputError, UNetField, count_evals
from cnf import (
    Continuous,
    Dequantize,
    FlowMatching,
    LiftedFlow,
    Lifts,
    MaximumLikelihood,
    Multiscale,
    density_model,
    exact,
    hutchinson,
    probe_noise,
)
from train_flows import recipes
from train_flows.checkpoint import Run

PUBLISHED = {"hidden": (64, 64, 64), "activation": "softplus", "time": "concat", "multiscale": True, "blocks": 2}
KINDS = {
    "perceptron": {"hidden": (6, 6)},
    "convolutions": {"field": "conv", "filters": 4, "activation": "tanh"},
    "stack": {"field": "stack", "hidden": (4,), "activation": "softplus"},
    "several": {"field": "stack", "hidden": (4,), "blocks": 2, "multiscale": True},
    "augmented": {"field": "conv", "filters": 4, "extra": 1, "blocks": 2},
}


def disturbed(model, std=0.3):
    """The model with weights that are neither zero nor alike."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def images(values):
    """All images of 2 pixels of so many levels, (levels^2, 1, 1, 2)."""
    return torch.cartesian_prod(torch.arange(values), torch.arange(values)).view(-1, 1, 1, 2)


@pytest.mark.parametrize("dequantization", ["uniform", "learned"])
@pytest.mark.parametrize("kind", [name for name in KINDS if name != "several"])
def test_masses_of_all_images_of_two_pixels_sum_to_one(float64, kind, dequantization):
    model = density_model((1, 1, 2), levels=2, dequantization=dequantization, alpha=1e-6, **KINDS[kind])
    disturbed(model, 0.15 if kind == "augmented" else 0.3)  # weights over augmented variables scatter more
    with torch.no_grad():
        for parameter in model.lift.parameters():
            parameter.mul_(0.2)  # weights of a q far from the posterior scatter
        bound = model.log_prob_with_error(images(2), samples=2000)
    masses = bound.value.exp()  # unbiased estimates
    error = (masses * bound.standard_error).square().sum().sqrt()
    assert error < 0.03
    assert abs(masses.sum() - 1) < 4 * error + 1e-3  # logits beyond those of 1e-6 hold next to nothing


def test_masses_of_all_images_at_several_scales_sum_to_one(float64):
    model = disturbed(density_model((1, 2, 2), levels=2, alpha=1e-6, **KINDS["several"]))
    x = torch.cartesian_prod(*[torch.arange(2)] * 4).view(-1, 1, 2, 2)
    with torch.no_grad():
        bound = model.log_prob_with_error(x, samples=500)
    masses = bound.value.exp()
    error = (masses * bound.standard_error).square().sum().sqrt()
    assert error < 0.05
    assert abs(masses.sum() - 1) < 4 * error + 1e-3


@pytest.mark.parametrize("noise", ["rademacher", "gaussian"])
@pytest.mark.parametrize(
    "field",
    [ConvField(2, 4, "softplus"), ConvStack(2, (4, 4)), UNetField(2, (4, 8))],
    ids=lambda field: type(field).__name__,
)
def test_mean_of_probes_is_the_trace_of_convolutional_fields(float64, field, noise):
    field = disturbed(field.double())
    t, x = torch.tensor(0.4), torch.randn(2, 2, 4, 4)
    trace = exact(field, t, x).divergence
    probes = 2000
    estimates = torch.stack(
        [hutchinson(field, t, x.repeat(50, 1, 1, 1), eps).divergence for eps in _probes(x, probes // 50, noise)]
    ).view(-1, 2)
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert len(estimates) == probes
    assert ((estimates.mean(0) - trace).abs() < 4 * error).all()
    jacobians = torch.func.vmap(torch.func.jacrev(lambda one: field(t, one[None])[0]))(x).reshape(2, 32, 32)
    torch.testing.assert_close(trace, jacobians.diagonal(dim1=1, dim2=2).sum(1))


def _probes(x, n, noise):
    """Noise of n solves of 50 copies of the samples, as one probe each."""
    return (probe_noise(x.repeat(50, 1, 1, 1), 1, noise) for _ in range(n))


class TestUNet:
    @pytest.mark.parametrize("filters", [(2,), (4,), (6, 3), (8, 8), (5, 5)])
    def test_few_filters_see_time(self, filters):
        """The norm of a channel alone would take it out again."""
        field, x = UNetField(1, filters), torch.randn(3, 1, 4, 4)
        assert (field(torch.tensor(0.9), x) - field(torch.tensor(0.1), x)).abs().max() > 1e-4

    def test_keeps_the_shape_and_starts_at_zero(self):
        x = torch.randn(3, 2, 8, 4)
        assert UNetField(2, (4, 8), zero_init=True)(torch.tensor(0.1), x).abs().max() == 0
        assert UNetField(2, (4, 8, 8))(torch.tensor(0.1), x).shape == x.shape

    def test_times_and_contexts_of_samples_are_the_same_as_one_by_one(self, float64):
        field = UNetField(1, (4, 8), context=2).double()
        t, x, c = torch.rand(3), torch.randn(3, 1, 4, 4), torch.randn(3, 2)
        together = field(t, x, c)
        one_by_one = [field(t[i], x[i : i + 1], c[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(together, torch.cat(one_by_one))
        assert not torch.allclose(together, field(t, x, torch.zeros(3, 2)))
        assert not torch.allclose(together, field(torch.zeros(3), x, c))

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: UNetField(0), "channels=0"),
            (lambda: UNetField(1, ()), "filters="),
            (lambda: UNetField(1, (8, 8, 8))(torch.tensor(0.0), torch.randn(1, 1, 6, 6)), "6x6 do not halve 2 times"),
            (lambda: UNetField(1)(torch.tensor(0.0), torch.randn(1, 2, 4, 4)), "channels=1"),
        ],
    )
    def test_refuses(self, make, words):
        with pytest.raises(InputError, match=words):
            make()

    def test_is_trained_by_flow_matching(self):
        model = density_model((1, 4, 4), field="unet", hidden=(4, 8), levels=17, divergence="hutchinson")
        FlowMatching(model)(torch.randint(17, (6, 1, 4, 4))).backward()
        assert model.flow.parts()[1].field.network.conv_out.weight.grad.abs().max() > 0


class TestDequantization:
    def test_learned_noise_starts_as_the_uniform_one(self, float64):
        x = torch.randint(9, (50, 1, 3, 3))
        y, log_q, kl = Dequantize(9, "learned", (1, 3, 3))(x)
        torch.testing.assert_close(log_q, torch.full((50,), 9 * math.log(9)))
        torch.testing.assert_close(kl, torch.zeros(50))
        assert torch.equal(Dequantize(9).project(y), x.double())

    def test_learned_noise_has_the_density_it_says(self, float64):
        """The mean of 1 / q over draws of q is the length of the interval."""
        torch.manual_seed(1)
        lift = Dequantize(4, "learned", (1,))
        torch.nn.init.normal_(lift.moments[-1].weight, std=0.05)
        x = torch.full((200_000, 1), 2)
        with torch.no_grad():
            y, log_q, kl = lift(x)
            inverse = torch.exp(-log_q)
            assert kl.mean() > 0
        assert abs(inverse.mean() - 1 / 4) < 4 * inverse.std() / math.sqrt(len(x))
        assert ((y >= 0.5) & (y < 0.75)).all()

    def test_learned_noise_raises_the_bound(self):
        """Where the density of y is narrower than a level, uniform noise falls beside it."""
        data = torch.randint(2, (64, 2))
        bounds = {}
        for noise in ("uniform", "learned"):
            torch.manual_seed(0)
            model = density_model((2,), hidden=(4,), levels=2, dequantization=noise, data=data)
            objective = MaximumLikelihood(model)
            optimizer = torch.optim.Adam(model.parameters(), 2e-2)
            for _ in range(60):
                optimizer.zero_grad()
                objective(data.repeat(4, 1)).backward()
                optimizer.step()
            with torch.no_grad():
                bounds[noise] = torch.stack([model.elbo(data) for _ in range(20)]).mean()
        assert bounds["learned"] > bounds["uniform"] + 0.01

    def test_augmentation_composes(self):
        model = density_model((1, 4, 4), levels=17, dequantization="learned", extra=2, field="conv", filters=4)
        assert isinstance(model.lift, Lifts)
        x = torch.randint(17, (3, 1, 4, 4))
        assert model.log_prob(x, samples=2).shape == (3,)
        assert model.sample(2).shape == (2, 1, 4, 4)

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: Dequantize(4, "normal"), "noise='normal' is unknown"),
            (lambda: Dequantize(4, "learned"), "pass the shape"),
            (lambda: Dequantize(4)(torch.tensor([[1, 4]])), "from 0 to 3; it holds 4"),
            (lambda: Dequantize(4)(torch.tensor([[1, -2]])), "it holds -2"),
        ],
    )
    def test_refuses(self, make, words):
        with pytest.raises(InputError, match=words):
            make()


class TestScales:
    @pytest.mark.parametrize(
        ("shape", "expected"), [((1, 28, 28), 800_636), ((3, 32, 32), 1_358_868), ((3, 64, 64), 1_996_116)]
    )
    def test_published_models_have_their_parameters(self, shape, expected):
        with torch.device("meta"):
            model = density_model(shape, field="stack", levels=256, divergence="hutchinson", **PUBLISHED)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected

    def test_the_recipe_is_the_published_model(self):
        recipe = recipes.density("mnist")
        assert {name: recipe[name] for name in PUBLISHED} == PUBLISHED | {"activation": ("softplus",)}
        assert recipe["alpha"] == 1e-6
        assert "alpha" not in recipes.density("cifar10")
        assert recipes.density("mnist", "flow-matching")["field"] == "unet"
        assert recipes.density("mnist", image_size=14)["hidden"] == (512, 512)

    def test_the_recipe_trains(self, run, undrawn, tmp_path):
        (tmp_path / "photos").mkdir()
        for i, pixels in enumerate(np.random.default_rng(0).integers(256, size=(40, 20, 20)).astype(np.uint8)):
            Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
        few = ["--hidden", 2, 2, "--blocks", 1, "--steps", 2, "--validate-every", 1, "--batch-size", 8]
        status, out, err = run("density", "photos", *few)
        assert (status, err) == (0, "")
        assert "nll: validation NLL in nats (estimated upper bound, one draw of uniform dequantisation" in out
        records = Run("runs/photos").records()
        assert records[1]["lr"] == pytest.approx(1e-3 * 2 / 500 * 0.5)  # it warms up, along a cosine of two steps
        assert all(record["kinetic"] >= 0 and record["frobenius"] >= 0 for record in records)
        assert records[1]["nfe_forward"] == 5 * 4 * 4  # ODEs, before and after two squeezes and at last; steps; stages
        result = json.loads((tmp_path / "runs" / "photos" / "result.json").read_text())
        assert (result["nll"]["probes"], result["drift"]["step_size"]) == (1, 0.25)

    def test_blocks_follow_each_other(self, float64):
        model = disturbed(density_model((1, 4, 4), field="conv", filters=3, blocks=3))
        x = torch.randn(2, 1, 4, 4)
        z = model.encode(x)
        torch.testing.assert_close(model.decode(z), x, atol=1e-4, rtol=1e-4)
        with count_evals(model) as nfe, torch.no_grad():
            model.log_prob(x)
        assert nfe.solves == 3
        jacobian = torch.autograd.functional.jacobian(model.encode, x[:1]).view(16, 16)
        expected = model.base.log_prob(z[:1]) + torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(model.log_prob(x[:1]), expected, atol=1e-4, rtol=1e-4)

    def test_augmented_channels_are_measured_on_their_own_where_they_keep_their_place(self):
        apart = density_model((1, 8, 8), field="conv", extra=2, blocks=2)
        mixed = density_model((1, 8, 8), field="conv", extra=2, multiscale=True)
        assert [part.extra for part in apart.modules() if isinstance(part, Continuous)] == [2, 2]
        assert [part.extra for part in mixed.modules() if isinstance(part, Continuous)] == [0, 0, 0]

    def test_kinds_of_model(self):
        model = density_model((1, 8, 8), field="stack", hidden=(4,), levels=17, multiscale=True)
        assert isinstance(model, LiftedFlow)
        assert sum(isinstance(part, Multiscale) for part in model.modules()) == 1

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"blocks": 0}, "blocks=0"),
            ({"multiscale": True}, "not for field='mlp'"),
            ({"field": "unet", "multiscale": True}, r"not for field='unet': take one scale \(--no-multiscale\)"),
            ({"field": "conv", "multiscale": True, "shape": (1, 7, 7)}, "7x7 have no scales"),
            ({"blocks": 2, "extra": 2, "augmentation": "categorical"}, "is of one ODE"),
            ({"blocks": 2, "extra": 2, "augmentation": "frozen"}, "is of one ODE"),
            ({"field": "conv", "multiscale": True, "extra": 1, "base": "conditional"}, "scales would mix"),
            ({"field": "stack", "shape": (3,)}, "is for images"),
            ({"field": "unet", "extra": 1, "augmentation": "frozen"}, "context is no image"),
            ({"levels": 2, "dequantization": "normal"}, "noise='normal'"),
            ({"levels": 2, "alpha": 0}, "alpha=0 makes the logits of values at the ends"),
        ],
    )
    def test_refuses(self, options, words):
        with pytest.raises(InputError, match=words):
            density_model(**{"shape": (1, 8, 8), **options})

    def test_several_odes_are_not_matched(self):
        with pytest.raises(InputError, match="no single path"):
            FlowMatching(density_model((1, 8, 8), field="conv", blocks=2))

    def test_alpha_that_makes_the_logit_infinite(self):
        model = density_model((2,), levels=256, alpha=1e-9)
        with pytest.raises(InputError, match=r"alpha=1e-09 makes logits infinite in torch\.float32: pass 1e-6"):
            model.flow.log_prob(torch.tensor([[0.0, 1.0]]))
