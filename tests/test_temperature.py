"""Samples at a temperature: the noise of the base times a factor, and nothing else."""

import math

import pytest
import torch

from anode import InputError
from cnf import Conditional, Dequantize, Flow, LiftedFlow, Mixture, Normal, Standardize, density_model

BASES = {
    "normal": Normal((2,)),
    "mixture": Mixture((2,), 3),
    "conditional": Conditional((3,), 1),
    "images": Normal((1, 2, 2)),
}


def test_the_spread_of_a_normal_base(float64):
    z = Normal((3,)).sample(40_000, temperature=0.7)
    assert (z.std(0) - 0.7).abs().max() < 4 * 0.7 / math.sqrt(2 * 40_000)


def test_a_mixture_keeps_its_modes_and_weights(float64):
    base = Mixture((1,), 2)
    with torch.no_grad():
        base.means.copy_(torch.tensor([[-10.0], [10.0]]))
        base.log_scales.copy_(torch.tensor([[0.5], [2.0]]).log())
        base.logits.copy_(torch.tensor([0.25, 0.75]).log())
    z = base.sample(40_000, temperature=0.5)[:, 0]
    for sign, weight, scale in ((-1, 0.25, 0.5), (1, 0.75, 2.0)):
        near = z[sign * z > 0]
        assert abs(len(near) / 40_000 - weight) < 4 * math.sqrt(0.25 * 0.75 / 40_000)
        assert abs(near.mean() - sign * 10) < 4 * scale * 0.5 / math.sqrt(len(near))
        assert abs(near.std() - scale * 0.5) < 4 * scale * 0.5 / math.sqrt(2 * len(near))


@torch.no_grad()
def test_both_parts_of_a_conditional_base_cool(float64):
    base = Conditional((3,), 1)
    for parameter in base.moments.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    z, a = base.sample(40_000, temperature=0.6).split([2, 1], 1)
    mean, log_scale = base.moments(a).chunk(2, 1)
    for noise in (a, (z - mean) * torch.exp(-log_scale)):
        assert (noise.std(0) - 0.6).abs().max() < 4 * 0.6 / math.sqrt(2 * 40_000)


@pytest.mark.parametrize("name", BASES)
def test_at_one_it_changes_nothing(name):
    torch.manual_seed(1)
    z = BASES[name].sample(5)
    torch.manual_seed(1)
    assert torch.equal(BASES[name].sample(5, temperature=1.0), z)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Flow(Standardize((2,)), Normal((2,))), 0.5),
        (density_model((2,), extra=2), 0.5),
        (density_model((2,), extra=3, augmentation="categorical"), 0.5),
    ],
    ids=["flow", "lifted", "categorical"],
)
def test_densities_pass_it_on(model, expected):
    """Where the field is zero, samples differ from the modes by the temperature times what they do otherwise."""
    torch.manual_seed(1)
    warm = model.sample(50)
    torch.manual_seed(1)
    mode = model.sample(50, temperature=1e-30)
    torch.manual_seed(1)
    torch.testing.assert_close(model.sample(50, temperature=expected) - mode, expected * (warm - mode))


def test_cold_images_are_alike():
    model = LiftedFlow(Dequantize(17), density_model((1, 2, 2)))
    assert len(model.sample(20, temperature=1e-6).unique(dim=0)) == 1


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", BASES)
def test_no_such_temperature(name, temperature):
    with pytest.raises(InputError, match=f"temperature={temperature} must be a positive number"):
        BASES[name].sample(5, temperature=temperature)
