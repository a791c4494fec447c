"""The image block's benchmark: equal work, and shares that mean what they say."""

import json

import pytest
import torch
from torch import nn

from train_flows.benchmark import image_block


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(image_block, "SIDE", 6)
    monkeypatch.setattr(image_block, "FILTERS", 4)
    monkeypatch.setattr(image_block, "BATCH", 8)


def test_every_contender_is_timed(run, small, tmp_path, monkeypatch):
    monkeypatch.setattr(image_block, "peak_megabytes", lambda *_, **__: 1.0)  # in a process of its own
    status, out, _ = run("benchmark", "image-block", "--repeats", 1, "--threads", 1)
    assert status == 0
    rows = json.loads((tmp_path / "benchmark-image-block.json").read_text())["rows"]
    assert [row["contender"] for row in rows] == list(image_block.CONTENDERS)
    for row in rows:
        assert row["contender"] in out
        assert row["seconds"] > 0
        assert row["images_per_second"] == pytest.approx(8 / row["seconds"])
        assert 0 < row["outside_convolutions"] < 1
    assert rows[0]["times_faster"] == 1


def test_contenders_solve_the_same_ode(small):
    """From equal weights: time as a channel is one field, however it is written."""
    cpu = torch.device("cpu")
    reference, *others = (image_block.Step(name, cpu) for name in image_block.CONTENDERS)
    t, x = torch.tensor(0.3), torch.randn(4, 6, 6, 6)
    for name, step in zip(list(image_block.CONTENDERS)[1:], others, strict=True):
        torch.testing.assert_close(step.x, reference.x)
        found, expected = step.block.field(t, x), reference.block.field(t, x)
        inside = (..., slice(1, -1), slice(1, -1)) if "bias" in name else ...  # they differ along the border
        torch.testing.assert_close(found[inside], expected[inside], rtol=1e-4, atol=1e-5)
        assert ("bias" in name) == bool((found - expected).abs().max() > 1e-3)


def test_the_share_outside_convolutions():
    convolution, x = nn.Conv2d(3, 32, 3), torch.randn(16, 3, 40, 40)
    cpu = torch.device("cpu")
    assert image_block.outside_convolutions(lambda: convolution(x), cpu) < 0.5
    assert image_block.outside_convolutions(lambda: x @ x.mT, cpu) == 1
