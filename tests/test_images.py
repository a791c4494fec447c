"""Published images on small files of their true formats, true to the pixel."""

import gzip
import hashlib
import pickle
import re
import struct
import urllib.request

import numpy as np
import pytest
import torch
from refusals import refused
from scipy.io import savemat
from torchvision.datasets import CIFAR10, SVHN

from train_flows.data import images, load_density_data, load_labelled_data

COUNTS = {"train": 40, "test": 12}


def drawn(part, *shape):
    rng = np.random.default_rng(len(part))
    x = rng.integers(256, size=(COUNTS[part], *shape)).astype(np.uint8)
    return x, np.arange(COUNTS[part]) % 10


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(root, folder="MNIST", packed=("train-images", "train-labels", "t10k-images", "t10k-labels")):
    (root / folder / "raw").mkdir(parents=True)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        for kind, array in zip(("images-idx3", "labels-idx1"), drawn(part, 28, 28), strict=True):
            path = root / folder / "raw" / f"{prefix}-{kind}-ubyte"
            if path.name[:-11] in packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx(array), 1))
            else:
                path.write_bytes(idx(array))


def write_cifar10(root, monkeypatch):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (x, y), (test_x, test_y) = (drawn(part, 3072) for part in COUNTS)
    batches = {f"data_batch_{i + 1}": (x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8]) for i in range(5)}
    for name, (data, labels) in (batches | {"test_batch": (test_x, test_y)}).items():
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels.tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(images.THINGS)}))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(folder / name)] for name in batches])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(folder / "batches.meta")})


def write_svhn(root, monkeypatch):
    root.mkdir(exist_ok=True)
    found = {}
    for part in COUNTS:
        x, y = drawn(part, 32, 32, 3)
        path = root / f"{part}_32x32.mat"
        savemat(path, {"X": x.transpose(1, 2, 3, 0), "y": np.where(y == 0, 10, y).astype(np.uint8)[:, None]})
        found[part] = ["http://nowhere.invalid/" + path.name, path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", found)


def by_pixels(data, *parts):
    """Pairs of an image and its class, in any order."""
    splits = [getattr(data, part) for part in parts]
    return {(x.numpy().tobytes(), int(y)) for split in splits for x, y in zip(split.x, split.y, strict=True)}


class TestPublished:
    def check(self, data, shape, *arrays):
        """Compare with arrays (N, C, H, W) of the training and the test part."""
        assert (data.shape, data.levels, data.outputs) == (shape, 256, 10)
        assert all("no validation sample of class" in note for note in data.notes)  # of the 4 images
        assert (data.test.x.dtype, data.test.y.dtype) == (torch.uint8, torch.int64)
        assert [len(part) for part in (data.train, data.validation, data.test)] == [36, 4, 12]
        for parts, (x, y) in zip((("train", "validation"), ("test",)), arrays, strict=True):
            assert by_pixels(data, *parts) == {(a.tobytes(), b) for a, b in zip(x, y.tolist(), strict=True)}

    @pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion", "FashionMNIST")])
    @pytest.mark.parametrize(
        "packed", [("train-images", "train-labels", "t10k-images", "t10k-labels"), ("t10k-images",), ()]
    )
    def test_idx(self, tmp_path, name, folder, packed):
        write_idx(tmp_path, folder, packed)
        before = sorted(tmp_path.rglob("*"))
        data = load_labelled_data(name, data_root=tmp_path, download=True)  # of nothing that is there
        self.check(data, (1, 28, 28), *(drawn(part, 28, 28) for part in COUNTS))
        assert data.classes[9] == {"mnist": "9", "fashion": "Ankle boot"}[name]
        assert sorted(tmp_path.rglob("*")) == before

    def test_cifar10(self, tmp_path, monkeypatch):
        write_cifar10(tmp_path, monkeypatch)
        data = load_labelled_data("cifar10", data_root=tmp_path)
        # a row is all of red, then green, then blue, each from the top left
        arrays = ((x.reshape(-1, 3, 32, 32), y) for x, y in (drawn(part, 3072) for part in COUNTS))
        self.check(data, (3, 32, 32), *arrays)
        assert data.classes[:2] == ("airplane", "automobile")
        assert data.columns[1023:1025] == ("red_31_31", "green_0_0")

    def test_svhn(self, tmp_path, monkeypatch):
        write_svhn(tmp_path, monkeypatch)
        data = load_labelled_data("svhn", data_root=tmp_path)
        arrays = ((np.ascontiguousarray(x.transpose(0, 3, 1, 2)), y) for x, y in (drawn(p, 32, 32, 3) for p in COUNTS))
        self.check(data, (3, 32, 32), *arrays)
        assert data.classes == tuple("0123456789")

    def test_the_true_mnist(self, real_data):
        data = load_labelled_data("mnist", data_root=real_data)
        assert [len(part) for part in (data.train, data.validation, data.test)] == [54_000, 6_000, 10_000]
        assert data.test.y[:5].tolist() == [7, 2, 1, 0, 4]
        mean = (54 * data.train.x.numpy().mean() + 6 * data.validation.x.numpy().mean()) / 60
        assert mean == pytest.approx(33.3184, abs=1e-4)

    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte.gz"),
            ("cifar10", "cifar-10-batches-py/data_batch_3"),
            ("svhn", "test_32x32.mat"),
        ],
    )
    def test_missing_and_damaged(self, tmp_path, monkeypatch, name, file):
        write_idx(tmp_path)
        write_cifar10(tmp_path, monkeypatch)
        write_svhn(tmp_path, monkeypatch)
        path = tmp_path / file
        place = re.escape(str(path.parent))
        path.write_bytes(path.read_bytes()[:-20])
        refused(f"{name} files in {place} are damaged.*--download", load_labelled_data, name, data_root=tmp_path)
        path.unlink()
        missing = rf"{name} needs {path.name.removesuffix('.gz')} in {place}: .* --data-root .* --download"
        refused(missing, load_labelled_data, name, data_root=tmp_path)

    @pytest.mark.parametrize("name", images.PUBLISHED)
    def test_download_without_network(self, tmp_path, monkeypatch, name):
        def no_network(*args, **kwargs):
            raise urllib.request.URLError("no route to host")

        monkeypatch.setattr(urllib.request, "urlopen", no_network)
        files, place = ", ".join(images.PUBLISHED[name].files), tmp_path / images.PUBLISHED[name].folder
        message = rf"is there a network\? \(.*\); or put {re.escape(f'{files} into {place}')}"
        refused(message, load_labelled_data, name, data_root=tmp_path, download=True)

    def test_averaged(self, tmp_path):
        write_idx(tmp_path)
        whole, halved = (load_density_data("mnist", data_root=tmp_path, image_size=size).test.x for size in (28, 14))
        means = whole.numpy().reshape(12, 1, 14, 2, 14, 2).mean((3, 5))
        np.testing.assert_array_equal(halved, np.round(means))

    @pytest.mark.parametrize("size", [13, 56, 0])
    def test_bad_sizes(self, tmp_path, size):
        write_idx(tmp_path)
        message = f"--image-size {size} does not divide the 28 pixels of mnist: choose one of 1, 2, 4, 7"
        refused(message, load_labelled_data, "mnist", data_root=tmp_path, image_size=size)

    def test_digits(self):
        data, density = load_labelled_data("digits", seed=5), load_density_data("digits", seed=5)
        assert (data.name, data.levels, data.shape, data.outputs) == ("digits", 17, (1, 8, 8), 10)
        assert [len(part) for part in (data.train, data.validation, data.test)] == [1439, 179, 179]
        assert torch.equal(data.train.x, density.train.x)
        assert (density.classes, density.context, density.test.y, len(density.columns)) == ((), (), None, 64)
        assert load_labelled_data("digits", image_size=4).shape == (1, 4, 4)
        refused("--download is for mnist.*not for digits", load_labelled_data, "digits", download=True)
