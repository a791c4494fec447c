"""Images to learn the density of: published sets, folders in classes and without, and what is refused."""

import gzip
import json
import struct

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import cnf
from anode import InputError, storage
from train_flows import data, recipes
from train_flows.data import images
from train_flows.data.dataset import split

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


def rows(x):
    return sorted(bytes(image.flatten().tolist()) for image in np.asarray(x))


class TestLoad:
    def test_digits_are_split_as_ever(self):
        found = data.load("digits", seed=4)
        bunch = load_digits()
        pixels = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(bunch.target)
        for name, x, y in zip(("train", "validation", "test"), split(pixels, 4), split(labels, 4), strict=True):
            assert torch.equal(getattr(found, name), x)
            assert torch.equal(getattr(found.classes, name), y)
        assert (found.columns[0], found.columns[-1]) == ("pixel_0_0", "pixel_7_7")
        assert found.classes.names == tuple("0123456789")
        assert data.load("digits", image_size=4).shape == (1, 4, 4)

    def test_published(self, tmp_path):
        published(tmp_path)
        options = {"data_root": tmp_path, "image_size": 14, "train_size": 20, "test_size": 5}
        found, labelled = data.load("mnist", 3, **options), images.labelled("mnist", 3, **options)
        assert (found.shape, found.levels, found.table, len(found.columns)) == ((1, 14, 14), 256, False, 196)
        for part in ("train", "validation", "test"):
            assert torch.equal(getattr(found, part), getattr(labelled, part).x)
            assert torch.equal(getattr(found.classes, part), getattr(labelled, part).y)
        assert found.notes == labelled.notes
        assert found.train.dtype == torch.uint8

    def test_a_folder_without_classes(self, tmp_path):
        pixels = pictures(tmp_path / "photos", n=30)
        found = data.load(str(tmp_path / "photos"), seed=1)
        assert (found.name, found.levels, found.classes, found.notes) == ("photos", 256, None, ())
        parts = (found.train, found.validation, found.test)
        assert [len(part) for part in parts] == [24, 3, 3]
        assert all(torch.equal(*pair) for pair in zip(parts, split(torch.from_numpy(pixels), 1), strict=True))
        flat = found.train[0].flatten().tolist()
        assert flat[found.columns.index("green_2_1")] == found.train[0, 1, 2, 1]

    def test_parts_without_classes(self, tmp_path):
        train, test = pictures(tmp_path / "train"), pictures(tmp_path / "test", n=4, seed=1)
        found = data.load(str(tmp_path))
        assert rows(torch.cat([found.train, found.validation])) == rows(train)
        assert rows(found.test) == rows(test)
        assert found.classes is None

    def test_one_class_is_none(self, tmp_path):
        pictures(tmp_path / "cat")
        assert data.load(str(tmp_path)).classes is None

    def test_a_folder_of_classes(self, tmp_path):
        pixels = {name: pictures(tmp_path / name, seed=i) for i, name in enumerate(("cat", "dog"))}
        (tmp_path / "README.txt").write_text("?")
        found = data.load(str(tmp_path))
        assert found.classes.names == ("cat", "dog")
        for i, name in enumerate(found.classes.names):
            mine = [getattr(found, part)[getattr(found.classes, part) == i] for part in ("train", "validation", "test")]
            assert rows(torch.cat(mine)) == rows(pixels[name])
        assert found.notes == (f"1 file(s) in {tmp_path}, in no class, are not used",)

    def test_real_sets(self, real_data):
        found = data.load("mnist", data_root=real_data, image_size=7)
        assert [len(part) for part in (found.train, found.validation, found.test)] == [54_000, 6_000, 10_000]
        assert torch.bincount(found.classes.test)[:3].tolist() == [980, 1135, 1032]


class TestRefused:
    def refuse(self, message, *args, **kwargs):
        with pytest.raises(InputError, match=message) as caught:
            data.load(*map(str, args), **kwargs)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("source", ["moons", "power", "t.csv"])
    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"image_size": 0}, "--image-size 0"),
            ({"train_size": 10}, "--train-size 10"),
            ({"test_size": 10}, "--test-size 10"),
            ({"download": True}, "--download"),
        ],
    )
    def test_options_of_images_elsewhere(self, source, option, message):
        self.refuse(f"^{message} is for images, not for {source}: drop it", source, **option)

    def test_options_of_others(self, tmp_path):
        pictures(tmp_path)
        self.refuse("--download is for mnist.*not for", tmp_path, download=True)
        self.refuse("--jitter is for tables", tmp_path, jitter=True)
        self.refuse("--jitter is for tables", "mnist", jitter=True)

    def test_images_of_several_sizes(self, tmp_path):
        pictures(tmp_path)
        pictures(tmp_path / "more", n=1, size=(5, 3))
        self.refuse(r"000\.png is 4x3 but .*more/000\.png is 5x3 pixels: bring them to one by --image-size", tmp_path)
        assert data.load(str(tmp_path), image_size=2).shape == (3, 2, 2)

    def test_images_of_several_modes(self, tmp_path):
        pictures(tmp_path)
        pictures(tmp_path / "more", n=1, mode="L")
        self.refuse(r"more/000\.png is grey, .*000\.png in colour: convert them to one mode", tmp_path)

    def test_what_is_no_image(self, tmp_path):
        pictures(tmp_path)
        (tmp_path / "table.csv").write_text("1,2")
        self.refuse(r"table\.csv is no image .*remove or restore it", tmp_path)

    def test_nothing(self, tmp_path):
        self.refuse("holds no images: add some, or remove the folder", tmp_path)
        pictures(tmp_path / "train")
        (tmp_path / "test").mkdir()
        self.refuse("test holds no images", tmp_path)

    def test_few(self, tmp_path):
        pictures(tmp_path / "few", n=19)
        self.refuse("few has 19 images .*at least 20", tmp_path / "few")
        pictures(tmp_path / "all" / "train")
        pictures(tmp_path / "all" / "test", n=1)
        self.refuse("all has one image to test on: at least 2", tmp_path / "all")

    def test_a_test_part_in_other_classes(self, tmp_path):
        for name in ("cat", "dog"):
            pictures(tmp_path / "train" / name)
        pictures(tmp_path / "test")
        self.refuse("test holds no folders of images: put the images", tmp_path)


class TestPrograms:
    def test_from_a_folder_to_samples(self, run, tmp_path):
        pictures(tmp_path / "photos", n=40)
        pictures(tmp_path / "others", n=5, seed=1)
        status, out, err = run("density", "photos", *TINY)
        assert (status, err) == (0, "")
        assert "32 samples to train on, 4 to validate on" in out
        assert (tmp_path / "runs" / "photos" / "samples.png").read_bytes()[:4] == b"\x89PNG"
        model = cnf.load("runs/photos")
        assert (model.config["shape"], model.config["levels"]) == ([3, 3, 4], 256)

        result = json.loads((tmp_path / "runs" / "photos" / "result.json").read_text())
        own = json.loads(run("evaluate", "runs/photos", "--json")[1])
        again = json.loads(run("evaluate", "runs/photos", "photos", "--json")[1])
        other = json.loads(run("evaluate", "runs/photos", "others", "--json")[1])
        assert own["nll"] == result["nll"] == again["nll"]
        assert own["nll"]["kind"] == "bound"
        assert other["nll"]["value"] != own["nll"]["value"]

        assert run("sample", "runs/photos", "-n", 7, "--out", "new.csv")[0] == 0
        frame = pd.read_csv("new.csv")
        assert list(frame.columns) == list(data.load("photos").columns)
        assert set(np.unique(frame)) <= set(range(256))
        assert json.loads(run("evaluate", "runs/photos", "new.csv", "--json", "--samples", 1)[1])["nll"]["value"] > 0
        frame.iloc[0, 0] = 256
        frame.to_csv("new.csv", index=False)
        status, _, err = run("evaluate", "runs/photos", "new.csv")
        assert status == 2
        assert "x must hold whole numbers from 0 to 255" in err

    def test_a_published_set(self, run, undrawn, tmp_path):
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

    def test_other_images(self, run, undrawn, tmp_path):
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

    def test_images_are_no_rows_of_a_table(self, run, undrawn, tmp_path):
        pictures(tmp_path / "photos")
        assert run("density", "moons", *TINY)[0] == 0
        status, _, err = run("evaluate", "runs/moons", "photos")
        assert status == 2
        assert "photos has images 3x3x4 with 256 levels, runs/moons was trained on numbers" in err
