"""The functions of the paper: their geometry, their volumes, and the errors the paper's theorems rest on."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.isotonic import IsotonicRegression

from anode import InputError
from train_flows.data import load_labelled_data
from train_flows.data import paper_functions as paper


@pytest.mark.parametrize("name", [*paper.FUNCTIONS, "spheres-1", "spheres-3", "spheres-7"])
def test_points_come_with_targets(name):
    x, y = paper.sample(name, 301, seed=1)
    assert len(x) == len(y) == 301
    assert y.shape == (301, 1)
    assert set(y.flatten().tolist()) == {-1.0, 1.0}
    assert torch.isfinite(x).all()
    assert torch.equal(paper.sample(name, 301, seed=1)[0], x)
    if name not in ("g1d", "identity"):
        assert not torch.equal(paper.sample(name, 301, seed=2)[0], x)


def test_g1d_swaps_and_the_identity_does_not():
    (x, flipped), (same_x, same) = paper.sample("g1d", 10), paper.sample("identity", 10)
    assert torch.equal(flipped, -x)
    assert torch.equal(same, same_x)
    assert sorted(x.flatten().tolist()) == [-1.0] * 5 + [1.0] * 5


@pytest.mark.parametrize("dim", [1, 2, 3, 6, 400])
def test_spheres_are_uniform_in_volume(dim):
    x, y = paper.sample(f"spheres-{dim}", 30_000)
    radius = x.norm(dim=1)
    inner = y[:, 0] == -1
    assert inner.sum() == 10_000
    for r, low, high in ((radius[inner], 0.0, 0.5), (radius[~inner], 1.0, 1.5)):
        assert low <= r.min()
        assert r.max() <= high
        volume = ((r.double() / high) ** dim - (low / high) ** dim) / (1 - (low / high) ** dim)
        assert stats.kstest(volume.numpy(), "uniform").pvalue > 1e-4
    direction = x / radius[:, None]
    assert direction.mean(0).norm() < 4 / math.sqrt(30_000 / dim)


def test_intervals_are_three_equal_thirds():
    x, y = paper.sample("intervals", 3000)
    x, y = x[:, 0], y[:, 0]
    assert [int(part.sum()) for part in (x <= -1, x.abs() <= 0.5, x >= 1)] == [1000, 1000, 1000]
    assert torch.equal(y == -1, x.abs() <= 0.5)


@pytest.mark.parametrize(("name", "mse"), [("g1d", 1.0), ("intervals", 2 / 3), ("identity", 0.0)])
def test_the_best_increasing_function_is_this_bad(name, mse):
    """No neural ODE on the line can have a smaller error."""
    x, y = (part[:, 0].numpy() for part in paper.sample(name, 3000))
    fit = IsotonicRegression().fit(x, y).predict(x)
    assert np.square(fit - y).mean() == pytest.approx(mse, abs=1e-6)


def test_sines_are_apart():
    x, y = paper.sample("sines", 20_000)
    height = x[:, 1] - torch.sin(math.pi * x[:, 0])
    assert height[y[:, 0] == 1].mean() == pytest.approx(0.7, abs=0.01)
    assert height[y[:, 0] == -1].std() == pytest.approx(0.1, abs=0.01)
    assert (torch.sign(height) == y[:, 0]).all()


def test_removed_slices_are_a_part_of_the_circle():
    points = paper.sample("spheres", 20_000)
    kept, removed = paper.split_slices(points, 3, torch.Generator().manual_seed(0))
    assert len(kept[0]) + len(removed[0]) == 20_000
    assert len(removed[0]) / 20_000 == pytest.approx(0.3, abs=0.02)

    def tenths(x):
        return set(((torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) % 1) * 10).long().tolist())

    assert len(tenths(removed[0])) == 3
    assert tenths(kept[0]).isdisjoint(tenths(removed[0]))
    for _, y in (kept, removed):  # on either circle
        assert set(y.flatten().tolist()) == {-1.0, 1.0}
    other, _ = paper.split_slices(points, 3, torch.Generator().manual_seed(1))[1]
    assert tenths(other) != tenths(removed[0])


@pytest.mark.parametrize("name", ["sphere", "spheres-0", "spheres-", "spheres-x", "spheres-2.5", "spheres-10000", ""])
def test_unknown_functions_list_the_known(name):
    with pytest.raises(InputError, match="choose one of g1d, identity, intervals, spheres, sines, spheres-3"):
        paper.sample(name, 10)


def test_parts_are_apart():
    data = load_labelled_data("spheres-3", seed=1)
    assert (data.shape, data.outputs, data.classes, data.columns) == ((3,), 1, (), ("x0", "x1", "x2"))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [3000, 1000, 1000]
    train, validation, test = ({tuple(x) for x in part.x.tolist()} for part in (data.train, data.validation, data.test))
    assert not train & test
    assert not validation & test
    assert "the same two points" in load_labelled_data("g1d").notes[0]


@pytest.mark.parametrize("removed", [0, 10, -1])
def test_slices_to_remove_must_leave_some(removed):
    with pytest.raises(InputError, match=f"removed={removed}"):
        paper.split_slices(paper.sample("spheres", 10), removed, torch.Generator())
