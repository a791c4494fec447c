"""Densities of images by every field and at several scales, against enumeration and the Jacobian."""

import math

import pytest
import torch
from fields import jacobians

from anode import ConvField, ConvStackField, UNetField, count_evals
from cnf import Continuous, FlowMatching, density_model, exact_divergence, hutchinson_divergence
from cnf.divergence import probe_noise

KINDS = {
    "perceptron": {"hidden": (6, 6)},
    "convolutions": {"field": "conv", "hidden": (4,), "activation": "tanh"},
    "stack": {"field": "stack", "hidden": (4,), "activation": "softplus"},
    "scales": {"field": "stack", "hidden": (4,), "blocks": 2, "multiscale": True},
    "augmented": {"field": "conv", "hidden": (4,), "extra": 1, "blocks": 2},
}


def disturbed(model, std=0.3):
    """The model with random weights in place of its start."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


@torch.no_grad()
@pytest.mark.parametrize("dequantization", ["uniform", "learned"])
@pytest.mark.parametrize("kind", KINDS)
def test_masses_of_all_images_sum_to_one(float64, kind, dequantization):
    """Importance weights are unbiased estimates of the mass of an image."""
    pixels = (2, 2) if kind == "scales" else (1, 2)
    options = {"levels": 2, "dequantization": dequantization, "alpha": 1e-6, **KINDS[kind]}
    model = disturbed(density_model((1, *pixels), **options), 0.15 if kind == "augmented" else 0.3)
    for parameter in model.lift.parameters():
        parameter.mul_(0.2)  # weights of a q far from the posterior scatter
    x = torch.cartesian_prod(*[torch.arange(2)] * math.prod(pixels)).view(-1, 1, *pixels)
    sums = torch.stack([model.log_prob(x, samples=60).exp().sum() for _ in range(12)])
    error = sums.std() / math.sqrt(len(sums))
    assert error < 0.05
    assert abs(sums.mean() - 1) < 4 * error + 1e-3  # logits beyond those of 1e-6 hold next to no mass


@pytest.mark.parametrize(
    "field",
    [ConvField(2, 4, "softplus"), ConvStackField(2, (4, 4)), UNetField(2, (4, 8))],
    ids=lambda f: type(f).__name__,
)
def test_the_mean_of_probes_is_the_trace_of_the_jacobian(float64, field):
    field, t, x = disturbed(field.double()), torch.tensor(0.4), torch.randn(2, 2, 4, 4)
    trace = jacobians(field, t, x).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(exact_divergence(field, t, x).divergence, trace)
    copies = x.repeat(1000, 1, 1, 1)
    estimates = hutchinson_divergence(field, t, copies, probe_noise(copies)).divergence.view(-1, 2)
    assert ((estimates.mean(0) - trace).abs() < 4 * estimates.std(0) / math.sqrt(1000)).all()


def test_u_nets_are_trained_by_flow_matching():
    model = density_model((1, 4, 4), field="unet", hidden=(4, 8), levels=17, divergence="hutchinson")
    FlowMatching(model)(torch.randint(17, (6, 1, 4, 4))).backward()
    field = next(part for part in model.modules() if isinstance(part, UNetField))
    assert field.network.conv_out.weight.grad.abs().max() > 0


def test_blocks_follow_each_other(float64):
    model = disturbed(density_model((1, 4, 4), field="conv", hidden=(3,), blocks=3))
    x = torch.randn(2, 1, 4, 4)
    z = model.encode(x)
    torch.testing.assert_close(model.decode(z), x, atol=1e-4, rtol=1e-4)
    with count_evals(model) as nfe, torch.no_grad():
        model.log_prob(x)
    assert nfe.solves == 3
    jacobian = torch.autograd.functional.jacobian(model.encode, x[:1]).view(16, 16)
    expected = model.base.log_prob(z[:1]) + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(model.log_prob(x[:1]), expected, atol=1e-4, rtol=1e-4)


def test_augmented_channels_have_an_error_norm_of_their_own_unless_scales_mix_them():
    apart = density_model((1, 8, 8), field="conv", extra=2, blocks=2)
    mixed = density_model((1, 8, 8), field="conv", extra=2, multiscale=True)
    assert [part.extra for part in apart.modules() if isinstance(part, Continuous)] == [2, 2]
    assert [part.extra for part in mixed.modules() if isinstance(part, Continuous)] == [0, 0, 0]
