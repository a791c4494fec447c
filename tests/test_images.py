"""Published images on small files of their true formats, and folders of images; each true to the pixel."""

import gzip
import hashlib
import pickle
import re
import struct
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, SVHN

from anode import InputError
from train_flows.data import images, load_density_data, load_labelled_data

COUNTS = {"train": 40, "test": 12}


def refused(message, call, *args, **kwargs):
    with pytest.raises(InputError, match=message) as caught:
        call(*map(str, args), **kwargs)
    assert "\n" not in str(caught.value)


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


def picture(path, value, size=(6, 4), mode="RGB"):
    """Write a picture whose pixels all differ, to notice exchanged rows, columns or channels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(size[0] * size[1] * len(mode)).reshape(size[1], size[0], len(mode)) + value
    pixels = pixels.astype(np.uint8).squeeze()
    Image.fromarray(pixels).save(path, quality=95)
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def folder_of(root, classes=("cat", "dog"), n=10, **kwargs):
    return {
        (picture(root / name / f"{i}.png", 11 * k + i, **kwargs).tobytes(), k)
        for k, name in enumerate(classes)
        for i in range(n)
    }


def labelled(folder, **kwargs):
    return load_labelled_data(str(folder), **kwargs)


class TestFolders:
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_pixel_by_pixel(self, tmp_path, monkeypatch, mode):
        pixels = folder_of(tmp_path / "pets", mode=mode)
        monkeypatch.chdir(tmp_path / "pets")
        data = labelled(".")
        assert (data.name, data.levels, data.classes, data.notes) == ("pets", 256, ("cat", "dog"), ())
        assert data.shape == (len(mode), 4, 6)
        assert [len(part) for part in (data.train, data.validation, data.test)] == [16, 2, 2]
        assert by_pixels(data, "train", "validation", "test") == pixels
        whole = labelled(".", split=False)
        assert (len(whole.train), by_pixels(whole, "test")) == (0, pixels)

    @pytest.mark.parametrize("name", ["test", "val", "validation", "Valid"])
    def test_with_a_test_part(self, tmp_path, name):
        pixels = folder_of(tmp_path / "train", ("cat", "dog", "eel"))
        folder_of(tmp_path / name, ("cat", "eel"), n=2)
        data = labelled(tmp_path)
        assert (len(data.validation), data.classes) == (3, ("cat", "dog", "eel"))
        assert data.notes[-1] == "no test sample of class dog"
        assert by_pixels(data, "train", "validation") == pixels
        assert data.test.y.tolist() == [0, 0, 2, 2]
        assert labelled(tmp_path, split=False).test.y.tolist() == [0, 0, 2, 2]

    def test_test_before_val(self, tmp_path):
        for part, n in (("train", 10), ("val", 2), ("test", 1)):
            folder_of(tmp_path / part, n=n)
        data = labelled(tmp_path)
        assert (len(data.train) + len(data.validation), len(data.test)) == (20, 2)
        assert re.search("val is not used", data.notes[0])
        assert len(labelled(tmp_path / "train").test) == 2

    def test_grey_among_coloured(self, tmp_path):
        coloured = folder_of(tmp_path, ("cat",))
        grey = picture(tmp_path / "dog" / "0.png", 0, mode="L")
        data = labelled(tmp_path, split=False)
        assert by_pixels(data, "test") == coloured | {(np.stack([grey] * 3).tobytes(), 1)}
        refused("dog/0.png is grey, .*cat/0.png in colour", load_density_data, tmp_path)

    def test_resized(self, tmp_path):
        flat = {"a": ((40, 10), 10), "b": ((8, 32), 200)}
        for name, ((width, height), value) in flat.items():
            (tmp_path / name).mkdir()
            array = np.full((height, width), 255, np.uint8)
            y, x = (5 * (length > 10) for length in array.shape)
            array[y : height - y, x : width - x] = value  # squeezing would mix in the ends, cutting leaves them out
            Image.fromarray(array).save(tmp_path / name / "0.png")
        x = labelled(tmp_path, image_size=4, split=False).test.x
        np.testing.assert_array_equal(x, np.stack([np.full((1, 4, 4), value) for _, value in flat.values()]))

    def test_classes_deeper_hidden_and_in_order(self, tmp_path):
        folder_of(tmp_path, ("b", "10", "9", "a", "-1"))
        picture(tmp_path / "a" / "images" / "0.JPEG", 7)
        picture(tmp_path / ".cache" / "0.png", 0)
        picture(tmp_path / "b" / ".thumbnails" / "0.png", 0)
        (tmp_path / "b" / ".hidden.png").write_text("hidden")
        (tmp_path / "README.txt").write_text("next to the classes")
        data = labelled(tmp_path, split=False)
        assert data.classes == ("-1", "9", "10", "a", "b")
        assert torch.bincount(data.test.y).tolist() == [10, 10, 10, 11, 10]

    @pytest.mark.parametrize("layout", ["", "train", "train/all"])
    def test_without_classes(self, tmp_path, layout):
        for i in range(30):
            picture(tmp_path / layout / f"{i}.png", i)
        data = load_density_data(str(tmp_path))
        assert [len(part) for part in (data.train, data.validation, data.test)] == [24, 3, 3]
        refused("--conditional is for images in classes", load_density_data, tmp_path, conditional=True)
        refused("at least 2 classes are needed", load_labelled_data, tmp_path)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (
                lambda f: picture(f / "dog" / "1.png", 0, (4, 6)),
                "cat/0.png is 6x4 but .*dog/1.png is 4x6.*--image-size",
            ),
            (lambda f: (f / "dog" / "1.png").write_bytes(b""), "1.png cannot be used as an image .* restore it"),
            (lambda f: (f / "dog" / "1.png").write_bytes((f / "dog" / "2.png").read_bytes()[:-30]), "1.png cannot be"),
            (lambda f: (f / "dog" / "x.png").symlink_to(f / "y.png"), "x.png cannot be used as an image"),
            (lambda f: Image.fromarray(np.zeros((4, 6), np.uint16)).save(f / "dog" / "1.png"), "more than 8 bits"),
        ],
    )
    def test_bad_files(self, tmp_path, spoil, message):
        folder_of(tmp_path)
        spoil(tmp_path)
        refused(message, labelled, tmp_path)

    @pytest.mark.parametrize(
        ("layout", "message"),
        [
            ((), "holds 0 folders of images: at least 2 classes are needed; put the images into FOLDER/CLASS/"),
            (("cat",), "holds 1 folders of images"),
            (("test/a", "test/b", "val/a", "val/b"), "holds test but no folder train"),
            (("train/a", "train/b", "more/a", "more/b"), "holds train and more, which is not a part to test on"),
            (("train/a", "train/b", "test/a", "test/c"), "test holds the class c, which .*train lacks"),
        ],
    )
    def test_bad_layouts(self, tmp_path, layout, message):
        for name in layout:
            picture(tmp_path / name / "0.png", 0)
        refused(message, labelled, tmp_path)

    def test_empty_and_few(self, tmp_path):
        for name in ("bus", "train"):  # a class of railways
            (tmp_path / name).mkdir()
        refused("holds no images", labelled, tmp_path)
        folder_of(tmp_path, ("bus", "train"), n=9)
        refused("has 18 images to train on: at least 20", labelled, tmp_path)
        assert labelled(tmp_path, split=False).classes == ("bus", "train")
