"""Programs on densities of images, from a folder or a published set to samples, and what they refuse."""

import gzip
import json
import struct

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cnf
from anode import storage
from train_flows import recipes

TINY = ["--steps", "4", "--validate-every", "2", "--hidden", "8", "8", "--batch-size", "8"]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Train by the defaults: recipes of images are for larger ones."""
    monkeypatch.setattr(recipes, "density", lambda *_: {})


def pictures(folder, n=20, size=(4, 3), mode="RGB", seed=0):
    """Write images of noise, named in order; returns them (n, C, H, W)."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (n, size[1], size[0]) + ((3,) if mode == "RGB" else ())
    pixels = np.random.default_rng(seed).integers(256, size=shape).astype(np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return pixels.transpose(0, 3, 1, 2) if mode == "RGB" else pixels[:, None]


def published(root, n=40, size=28):
    """Write MNIST's files with few images of noise."""
    (root / "MNIST" / "raw").mkdir(parents=True)
    for part, count in (("train", n), ("t10k", n // 2)):
        x = np.random.default_rng(count).integers(256, size=(count, size, size)).astype(np.uint8)
        for kind, array in (("images-idx3", x), ("labels-idx1", (np.arange(count) % 10).astype(np.uint8))):
            head = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
            path = root / "MNIST" / "raw" / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes(), 1))


def test_from_a_folder_to_samples(run, tmp_path):
    pictures(tmp_path / "photos", n=40)
    pictures(tmp_path / "others", n=5, seed=1)
    status, out, err = run("density", "photos", *TINY)
    assert (status, err) == (0, "")
    assert "32 samples to train on, 4 to validate on" in out
    assert (tmp_path / "runs" / "photos" / "samples.png").read_bytes()[:4] == b"\x89PNG"
    model = cnf.load("runs/photos")
    assert (model.event_shape, model.levels) == ((3, 3, 4), 256)

    result = json.loads((tmp_path / "runs" / "photos" / "result.json").read_text())
    own = json.loads(run("evaluate", "runs/photos", "--json")[1])
    again = json.loads(run("evaluate", "runs/photos", "photos", "--json")[1])
    other = json.loads(run("evaluate", "runs/photos", "others", "--json")[1])
    assert own["nll"] == result["nll"] == again["nll"]
    assert own["nll"]["kind"] == "bound"
    assert other["nll"]["value"] != own["nll"]["value"]

    assert run("sample", "runs/photos", "-n", 7, "--out", "new.csv")[0] == 0
    frame = pd.read_csv("new.csv")
    assert frame.shape == (7, 36)
    assert set(np.unique(frame)) <= set(range(256))
    assert json.loads(run("evaluate", "runs/photos", "new.csv", "--json", "--samples", 1)[1])["nll"]["value"] > 0
    frame.iloc[0, 0] = 256
    frame.to_csv("new.csv", index=False)
    status, _, err = run("evaluate", "runs/photos", "new.csv")
    assert status == 2
    assert "x must hold whole numbers from 0 to 255" in err


def test_a_published_set(run, undrawn, tmp_path):
    published(tmp_path / "root")
    options = ["--data-root", "root", "--image-size", 4, "--train-size", 20, "--test-size", 10]
    status, out, _ = run("density", "mnist", *TINY, *options)
    assert status == 0
    assert "note: 20 of 40 training images" in out
    assert storage.read_config("runs/mnist", "density")["settings"]["data"]["test_size"] == 10
    own = json.loads(run("evaluate", "runs/mnist", "--json")[1])
    assert own["nll"]["value"] > 0
    status, out, _ = run("density", "--resume", "runs/mnist")
    assert status == 0


def test_other_images(run, undrawn, tmp_path):
    published(tmp_path / "root", size=8)
    for name, options in (("photos", {"size": (8, 8), "mode": "L"}), ("colours", {})):
        pictures(tmp_path / name, **options)
    assert run("density", "photos", *TINY, "--data-root", "root")[0] == 0
    named = json.loads(run("evaluate", "runs/photos", "mnist", "--json", "--samples", 1)[1])
    assert named["nll"]["kind"] == "bound"
    for source, message in (
        ("digits", "digits has images 1x8x8 with 17 levels, runs/photos was trained on 1x8x8 with 256 levels"),
        ("colours", "colours has images 3x3x4 with 256 levels, runs/photos was trained on 1x8x8"),
        ("moons", "moons has 2 columns, runs/photos was trained on 64"),
    ):
        status, _, err = run("evaluate", "runs/photos", source)
        assert status == 2
        assert message in err
        assert err.count("\n") == 1


def test_images_are_no_rows_of_a_table(run, undrawn, tmp_path):
    pictures(tmp_path / "photos")
    assert run("density", "moons", *TINY)[0] == 0
    status, _, err = run("evaluate", "runs/moons", "photos")
    assert status == 2
    assert "photos has images 3x3x4 with 256 levels, runs/moons was trained on numbers" in err
