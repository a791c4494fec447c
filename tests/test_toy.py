"""Two-dimensional densities: known entropies and geometry."""

import math

import numpy as np
import pytest
import torch

from train_flows.data import load_density_data, toy


@pytest.mark.parametrize("name", toy.DENSITIES)
def test_samples_are_reproducible_and_of_a_sensible_size(name):
    x = toy.sample(name, 4000, seed=1)
    assert x.shape == (4000, 2)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert np.array_equal(x, toy.sample(name, 4000, seed=1))
    assert not np.array_equal(x, toy.sample(name, 4000, seed=2))
    assert 0.5 < x.std() < 4
    assert np.abs(x).max() < 8
    assert np.abs(x.mean(0)).max() < 0.5


def entropy_by_histogram(x, bins):
    """Entropy in nats of a 2-D sample, from the counts of a fine histogram (slightly too low)."""
    counts, *edges = np.histogram2d(*x.T, bins=bins)
    p = counts[counts > 0] / len(x)
    area = (edges[0][1] - edges[0][0]) * (edges[1][1] - edges[1][0])
    return -(p * np.log(p / area)).sum()


@pytest.mark.parametrize(
    ("name", "entropy"),
    [
        ("8gaussians", math.log(8) + math.log(2 * math.pi * math.e) + 2 * math.log(0.5 / 1.414)),
        ("separated-8gaussians", math.log(8) + math.log(2 * math.pi * math.e) + 2 * math.log(0.2)),
        ("checkerboard", math.log(32)),
        ("annulus", 0.5 * math.log(2 * math.pi * math.e * 0.3**2) + math.log(2 * math.pi * 2)),
    ],
)
def test_entropies_are_the_known_ones(name, entropy):
    """For the annulus E log r is log 2 up to (0.3 / 2)^2 / 2 = 0.011."""
    assert entropy_by_histogram(toy.sample(name, 2_000_000), 128) == pytest.approx(entropy, abs=0.03)


def test_checkerboard_alternates():
    x = toy.sample("checkerboard", 5000)
    cells = np.floor((x + 4) / 2).astype(int)
    assert ((cells.sum(1) % 2) == 0).all()
    assert len(np.unique(cells, axis=0)) == 8


def test_splits_and_names():
    moons = load_density_data("moons", seed=3)
    assert (len(moons.train), len(moons.validation), len(moons.test)) == (toy.TRAIN, toy.VALIDATION, toy.TEST)
    assert (moons.shape, moons.levels, moons.columns, moons.is_table) == ((2,), None, ("x", "y"), False)


@pytest.mark.parametrize("name", ["checkerboard", "moons"])
def test_points_can_be_given_their_half_of_the_plane(name):
    plain, given = toy.load(name, 3), toy.load(name, 3, conditional=True)
    assert (plain.context, given.context, given.classes) == ((), toy.HALVES, toy.HALVES)
    for one, other in ((plain.train, given.train), (plain.test, given.test)):
        assert torch.equal(one.x, other.x)
        assert torch.equal(other.c[:, 1] == 1, other.x[:, 1] > 0)
        assert torch.equal(other.c.sum(1), torch.ones(len(other)))
