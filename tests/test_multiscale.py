"""Multiscale images: published sizes, where scales end, and which channels leave."""

import pytest
import torch

from anode import ConvStackField, InputError
from cnf import Compose, Continuous, Multiscale, Squeeze, Standardize


@pytest.mark.parametrize(
    ("shape", "expected"), [((1, 28, 28), 800_636), ((3, 32, 32), 1_358_868), ((3, 64, 64), 1_996_116)]
)
def test_published_multiscale_models_have_their_parameters(shape, expected):
    """FFJORD's code has two blocks before and after each squeeze, 64-64-64, time as a channel."""
    model = Multiscale.of_blocks(shape, lambda channels: Continuous(ConvStackField(channels)))
    assert sum(weight.numel() for weight in model.parameters()) == expected


@pytest.mark.parametrize(("size", "scales"), [((8, 8), 2), ((28, 28), 3), ((32, 64), 4), ((6, 6), 1), ((2, 40), 1)])
def test_scales_end_where_images_are_small_or_odd(size, scales):
    built = Multiscale.of_blocks((1, *size), lambda channels: Standardize((channels, 1, 1)), 1)
    assert len(built.scales) == scales
    x = torch.randn(3, 1, *size)
    assert torch.equal(built.decode(built.encode(x)), x)


def test_halves_that_leave_are_those_of_the_channels():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    z = Multiscale([Squeeze(), Compose([])]).encode(x)
    assert z.flatten().tolist() == [*(0, 2, 8, 10), *(1, 3, 9, 11), *(4, 6, 12, 14), *(5, 7, 13, 15)]


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 4, 5)])
def test_odd_images_have_no_scales(shape):
    with pytest.raises(InputError, match="cannot be halved"):
        Multiscale.of_blocks(shape, lambda channels: Compose([]))
    with pytest.raises(InputError, match="even size"):
        Squeeze()(torch.zeros(1, *shape))
    with pytest.raises(InputError, match="at least one"):
        Multiscale([])
