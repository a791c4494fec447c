"""Published sets on small files of their true formats, folders of images, and archives; each true to the pixel."""

import gzip
import hashlib
import importlib
import io
import pickle
import re
import struct
import tarfile
import urllib.request
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, SVHN

from anode import InputError
from train_flows import unpack
from train_flows.data import image_folders, image_sets, images

COUNTS = {"train": 40, "test": 12}


def refused(message, call, *args, **kwargs):
    with pytest.raises(InputError, match=message) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def drawn(part, *shape):
    rng = np.random.default_rng(len(part))
    x = rng.integers(256, size=(COUNTS[part], *shape)).astype(np.uint8)
    return x, np.arange(COUNTS[part]) % 10


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(root, folder="MNIST", packed=True):
    (root / folder / "raw").mkdir(parents=True)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        x, y = drawn(part, 28, 28)
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            path = root / folder / "raw" / f"{prefix}-{kind}-ubyte"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx(array), 1))
            else:
                path.write_bytes(idx(array))


class Python2(pickle._Pickler):
    """Writes pickles as Python 2 did, as those of CIFAR-10 are: its strings are neither bytes nor text of Python 3."""

    def save_string(self, value):
        content = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {str: save_string, bytes: save_string}


def write_pickle(path, content):
    with path.open("wb") as file:
        Python2(file, protocol=2).dump(content)


def write_cifar10(root, monkeypatch):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (x, y), (test_x, test_y) = (drawn(part, 3072) for part in COUNTS)
    batches = {f"data_batch_{i + 1}": (x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8]) for i in range(5)}
    for name, (data, labels) in (batches | {"test_batch": (test_x, test_y)}).items():
        write_pickle(folder / name, {"data": data, "labels": labels.tolist()})
    write_pickle(folder / "batches.meta", {"label_names": list(image_sets.THINGS)})
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


class TestPublished:
    @pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion", "FashionMNIST")])
    @pytest.mark.parametrize("packed", [True, False])
    def test_idx(self, tmp_path, name, folder, packed):
        write_idx(tmp_path, folder, packed)
        *parts, classes = image_sets.read(name, tmp_path)
        for part, (x, y) in zip(COUNTS, parts, strict=True):
            assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
            np.testing.assert_array_equal(x[:, 0], drawn(part, 28, 28)[0])
            np.testing.assert_array_equal(y, drawn(part, 28, 28)[1])
        assert classes[9] == {"mnist": "9", "fashion": "Ankle boot"}[name]

    def test_cifar10(self, tmp_path, monkeypatch):
        write_cifar10(tmp_path, monkeypatch)
        *parts, classes = image_sets.read("cifar10", tmp_path)
        for part, (x, y) in zip(COUNTS, parts, strict=True):
            assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
            # a row is all of red, then green, then blue, each from the top left
            np.testing.assert_array_equal(x, drawn(part, 3072)[0].reshape(-1, 3, 32, 32))
            np.testing.assert_array_equal(y, drawn(part, 3072)[1])
        assert classes[:2] == ("airplane", "automobile")

    def test_svhn(self, tmp_path, monkeypatch):
        write_svhn(tmp_path, monkeypatch)
        *parts, classes = image_sets.read("svhn", tmp_path)
        for part, (x, y) in zip(COUNTS, parts, strict=True):
            assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
            np.testing.assert_array_equal(x, drawn(part, 32, 32, 3)[0].transpose(0, 3, 1, 2))
            np.testing.assert_array_equal(y, drawn(part, 32, 32, 3)[1])
        assert classes == tuple("0123456789")

    def test_the_true_mnist(self, real_data):
        train, test, _ = image_sets.read("mnist", real_data)
        assert train.x.shape == (60_000, 1, 28, 28)
        assert test.x.shape == (10_000, 1, 28, 28)
        assert train.y[:5].tolist() == [5, 0, 4, 1, 9]
        assert train.x.numpy().mean() == pytest.approx(33.3184, abs=1e-4)

    def test_unknown(self, tmp_path):
        refused("'kmnist' is unknown; choose one of mnist", image_sets.read, "kmnist", tmp_path)

    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte.gz"),
            ("cifar10", "cifar-10-batches-py/data_batch_3"),
            ("cifar10", "cifar-10-batches-py/batches.meta"),
            ("svhn", "test_32x32.mat"),
        ],
    )
    def test_missing_and_damaged(self, tmp_path, monkeypatch, name, file):
        write_idx(tmp_path)
        write_cifar10(tmp_path, monkeypatch)
        write_svhn(tmp_path, monkeypatch)
        path = tmp_path / file
        path.write_bytes(path.read_bytes()[:-20])
        damaged = rf"{re.escape(str(path))} is damaged.*remove those files and pass --download"
        refused(damaged, image_sets.read, name, tmp_path)
        path.unlink()
        place = re.escape(str(path.parent))
        refused(rf"needs {path.name} in {place}: .* --data-root .* --download", image_sets.read, name, tmp_path)

    def test_no_data_root(self, tmp_path):
        refused("needs train-images-idx3-ubyte.gz, .*nowhere", image_sets.read, "mnist", tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("train-images-idx3-ubyte", b"garbage" * 9, "no IDX file of 3 axes"),
            ("train-images-idx3-ubyte", idx(np.zeros((40, 28, 28)))[:-1], "31,359 bytes where 40 x 28 x 28"),
            ("train-images-idx3-ubyte", idx(np.zeros((39, 28, 28))), "39 images and 40 labels of the training part"),
            ("train-images-idx3-ubyte", idx(np.zeros((40, 14, 14))), "differ in shape"),
            ("t10k-images-idx3-ubyte", idx(np.zeros((12, 28)))[:-1], "no IDX file of 3 axes"),
            ("t10k-labels-idx1-ubyte", b"", "no IDX file of 1 axis"),
            ("t10k-labels-idx1-ubyte", struct.pack(">2I", 0x0803, 0), "no IDX file of 1 axis"),
            ("t10k-labels-idx1-ubyte", idx(np.full(12, 10)), "label of the test part in .* is 10, not of 0 to 9"),
        ],
    )
    def test_other_content(self, tmp_path, file, content, message):
        write_idx(tmp_path, packed=False)
        (tmp_path / "MNIST" / "raw" / file).write_bytes(content)
        refused(message, image_sets.read, "mnist", tmp_path)

    def test_no_images_at_all(self, tmp_path):
        write_idx(tmp_path, packed=False)
        (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((0, 28, 28))))
        (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(0)))
        refused("0 images and 0 labels", image_sets.read, "mnist", tmp_path)

    def test_foreign_gzip(self, tmp_path):
        write_idx(tmp_path)
        (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(b"garbage" * 9)
        refused("damaged", image_sets.read, "mnist", tmp_path)

    def test_label_out_of_range_in_svhn(self, tmp_path, monkeypatch):
        write_svhn(tmp_path, monkeypatch)
        path = tmp_path / "train_32x32.mat"
        savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [11]], np.uint8)})
        SVHN.split_list["train"][2] = md5(path)
        refused("svhn: a label of the training part .* is 11", image_sets.read, "svhn", tmp_path)


class TestDownload:
    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch):
        def no_network(*args, **kwargs):
            raise urllib.request.URLError("no route to host")

        monkeypatch.setattr(urllib.request, "urlopen", no_network)

    @pytest.mark.parametrize("name", image_sets.PUBLISHED)
    def test_without_network(self, tmp_path, capsys, name):
        published = image_sets.PUBLISHED[name]
        files, place = ", ".join(published.files), tmp_path / published.folder
        message = rf"is there a network\? \(.*no route to host>\); or put {re.escape(f'{files} in {place}')}"
        refused(message, image_sets.read, name, tmp_path, download=True)
        assert capsys.readouterr() == (f"downloading {name} into {tmp_path}\n", "")

    def test_nothing_that_is_there(self, tmp_path):
        write_idx(tmp_path)
        train, *_ = image_sets.read("mnist", tmp_path, download=True)
        assert len(train.x) == COUNTS["train"]

    def test_what_is_missing(self, tmp_path, monkeypatch, capsys):
        write_svhn(tmp_path / "there", monkeypatch)

        def respond(request):
            file = io.BytesIO((tmp_path / "there" / request.full_url.split("/")[-1]).read_bytes())
            file.url, file.length = request.full_url, file.getbuffer().nbytes
            return file

        monkeypatch.setattr(urllib.request, "urlopen", respond)
        train, test, _ = image_sets.read("svhn", tmp_path / "here", download=True)
        np.testing.assert_array_equal(train.x, drawn("train", 32, 32, 3)[0].transpose(0, 3, 1, 2))
        assert len(test.x) == COUNTS["test"]
        assert capsys.readouterr().err == ""


def picture(path, value, size=(6, 4), mode="RGB"):
    """A picture whose pixels all differ: rows, columns and channels are told apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(size[0] * size[1] * len(mode)).reshape(size[1], size[0], len(mode)) + value
    pixels = pixels.astype(np.uint8).squeeze()
    Image.fromarray(pixels).save(path, quality=95)
    return pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def folder_of(root, classes=("cat", "dog"), n=3, **kwargs):
    return {c: [picture(root / c / f"{i}.png", 40 * k + i, **kwargs) for i in range(n)] for k, c in enumerate(classes)}


class TestFolders:
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_pixel_by_pixel(self, tmp_path, mode):
        pixels = folder_of(tmp_path, mode=mode)
        train, test, classes, notes = image_folders.read(tmp_path)
        assert (test, classes, notes) == (None, ("cat", "dog"), ())
        assert (train.x.dtype, train.y.dtype) == (torch.uint8, torch.int64)
        assert train.x.shape == (6, len(mode), 4, 6)
        np.testing.assert_array_equal(train.x, np.reshape([*pixels["cat"], *pixels["dog"]], (6, len(mode), 4, 6)))
        assert train.y.tolist() == [0, 0, 0, 1, 1, 1]

    @pytest.mark.parametrize("name", ["test", "val", "validation", "Valid"])
    def test_with_a_test_part(self, tmp_path, name):
        folder_of(tmp_path / "train", ("cat", "dog", "eel"))
        pixels = folder_of(tmp_path / name, ("cat", "eel"), n=2)
        train, test, classes, notes = image_folders.read(tmp_path)
        assert (len(train.x), classes, notes) == (9, ("cat", "dog", "eel"), ())
        np.testing.assert_array_equal(test.x, np.stack([*pixels["cat"], *pixels["eel"]]))
        assert test.y.tolist() == [0, 0, 2, 2]

    def test_test_before_val(self, tmp_path):
        for part, n in (("train", 3), ("val", 2), ("test", 1)):
            folder_of(tmp_path / part, n=n)
        train, test, _, notes = image_folders.read(tmp_path)
        assert (len(train.x), len(test.x)) == (6, 2)
        assert re.search("val is not used", notes[0])

    def test_only_a_training_part(self, tmp_path):
        folder_of(tmp_path / "train")
        train, test, *_ = image_folders.read(tmp_path)
        assert (len(train.x), test) == (6, None)

    def test_grey_among_coloured(self, tmp_path):
        coloured = picture(tmp_path / "a" / "0.png", 0)
        grey = picture(tmp_path / "b" / "0.png", 0, mode="L")
        x = image_folders.read(tmp_path)[0].x
        np.testing.assert_array_equal(x[0], coloured)
        np.testing.assert_array_equal(x[1], np.stack([grey] * 3))

    def test_jpeg_as_pillow_decodes_it(self, tmp_path):
        for name in ("a", "b"):
            pixels = picture(tmp_path / name / "0.JPEG", 10, size=(16, 16))
        x = image_folders.read(tmp_path)[0].x
        with Image.open(tmp_path / "b" / "0.JPEG") as image:
            np.testing.assert_array_equal(x[1].permute(1, 2, 0), np.asarray(image))
        assert np.abs(x[1].numpy() - pixels.astype(float)).mean() < 30

    def test_resized(self, tmp_path):
        flat = {"a": ((40, 10), 10), "b": ((8, 32), 200)}
        for name, ((width, height), value) in flat.items():
            (tmp_path / name).mkdir()
            array = np.full((height, width), 255, np.uint8)
            y, x = (5 * (length > 10) for length in array.shape)
            array[y : height - y, x : width - x] = value  # squeezing would mix in the ends, cutting leaves them out
            Image.fromarray(array).save(tmp_path / name / "0.png")
        x = image_folders.read(tmp_path, size=4)[0].x
        np.testing.assert_array_equal(x, np.stack([np.full((1, 4, 4), value) for _, value in flat.values()]))

    def test_sizes_that_fit_already_are_left_alone(self, tmp_path):
        pixels = folder_of(tmp_path, size=(5, 5))
        x = image_folders.read(tmp_path, size=5)[0].x
        np.testing.assert_array_equal(x, np.stack([*pixels["cat"], *pixels["dog"]]))

    def test_order_of_classes(self, tmp_path):
        folder_of(tmp_path, ("b", "10", "9", "a", "-1"), n=1)
        assert image_folders.read(tmp_path)[2] == ("-1", "9", "10", "a", "b")

    def test_deeper_and_hidden(self, tmp_path):
        folder_of(tmp_path)
        deep = picture(tmp_path / "cat" / "images" / "0.png", 7)
        picture(tmp_path / ".cache" / "0.png", 0)
        picture(tmp_path / "dog" / ".thumbnails" / "0.png", 0)
        (tmp_path / "dog" / ".DS_Store").write_text("hidden")
        (tmp_path / "README.txt").write_text("beside the classes")
        (tmp_path / "cat" / "round").symlink_to(tmp_path)
        (tmp_path / "itself").symlink_to(tmp_path / "itself")
        train, _, classes, _ = image_folders.read(tmp_path)
        assert classes == ("cat", "dog")
        assert train.y.tolist() == [0] * 4 + [1] * 3
        np.testing.assert_array_equal(train.x[3], deep)

    @pytest.mark.parametrize(
        ("name", "note"),
        [
            ("tiny-imagenet-200", "6 of the 100,000 training images of Tiny-ImageNet"),
            ("cifar10-jpeg", "CIFAR-10 re-compressed as JPEG"),
        ],
    )
    def test_notes(self, tmp_path, name, note):
        folder_of(tmp_path / name)
        assert image_folders.read(tmp_path / name)[3] == (note,)


def truncated(root):
    path = root / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:-30])


def deep(root):
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(root / "dog" / "1.png")


BAD_FOLDERS = {
    "other size": (
        lambda f: picture(f / "dog" / "1.png", 0, (4, 6)),
        r"cat/0.png is 6x4 but .*dog/1.png is 4x6.*--ima",
    ),
    "text": (lambda f: (f / "dog" / "a.txt").write_text("no image"), "a.txt is no image .* remove or restore it"),
    "empty file": (lambda f: (f / "dog" / "1.png").write_bytes(b""), "1.png is no image .* remove or restore it"),
    "truncated": (truncated, r"1.png is damaged \(.*: remove or restore it"),
    "broken link": (lambda f: (f / "dog" / "x.png").symlink_to(f / "y.png"), "x.png is no image: remove or restore it"),
    "16 bits": (deep, r"1.png has more than 8 bits a pixel \(mode I;16\): convert"),
    "no images": (lambda f: (f / "eel").mkdir(), "eel holds no images: add some, or remove the folder"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_files(tmp_path, case):
    folder_of(tmp_path)
    spoil, message = BAD_FOLDERS[case]
    spoil(tmp_path)
    refused(message, image_folders.read, tmp_path)


class TestBadLayouts:
    def test_empty(self, tmp_path):
        refused("holds no folders of images: put the images in FOLDER/CLASS/", image_folders.read, tmp_path)

    def test_images_in_the_folder(self, tmp_path):
        picture(tmp_path / "0.png", 0)
        refused("holds no folders of images: put the images in FOLDER/CLASS/", image_folders.read, tmp_path)

    def test_missing(self, tmp_path):
        refused("is no folder of images", image_folders.read, tmp_path / "nowhere")

    def test_one_class(self, tmp_path):
        folder_of(tmp_path, ("cat",))
        refused(r"one class only \(cat\)", image_folders.read, tmp_path)

    def test_no_training_part(self, tmp_path):
        folder_of(tmp_path / "test")
        folder_of(tmp_path / "val")
        refused("holds test but no folder train", image_folders.read, tmp_path)

    def test_a_part_of_neither_kind(self, tmp_path):
        folder_of(tmp_path / "train")
        folder_of(tmp_path / "more")
        refused("holds train and more, which is no part to test on", image_folders.read, tmp_path)

    def test_a_class_of_trains(self, tmp_path):
        folder_of(tmp_path, ("bus", "train"))
        assert image_folders.read(tmp_path)[2] == ("bus", "train")

    def test_empty_test_part(self, tmp_path):
        folder_of(tmp_path / "train")
        (tmp_path / "test").mkdir()
        refused("test holds no folders of images", image_folders.read, tmp_path)

    def test_class_unknown_to_training(self, tmp_path):
        folder_of(tmp_path / "train")
        folder_of(tmp_path / "test", ("cat", "eel"))
        refused("test holds the class eel, which .*train lacks", image_folders.read, tmp_path)

    def test_size(self, tmp_path):
        refused("--image-size 0 must be from 1 to 2048", image_folders.read, tmp_path, size=0)


def rows(x):
    return {bytes(image.tolist()) for image in x.flatten(1)}


class TestLabelled:
    @pytest.fixture
    def root(self, tmp_path):
        write_idx(tmp_path)
        return tmp_path

    def test_published_parts(self, root):
        data = images.labelled("mnist", seed=3, data_root=root)
        assert (data.name, data.columns, data.levels, data.notes) == ("mnist", (), 256, ())
        assert data.classes == tuple("0123456789")
        x, y = drawn("train", 28, 28)
        assert rows(data.train.x) | rows(data.validation.x) == rows(torch.from_numpy(x))
        assert (len(data.train.x), len(data.validation.x)) == (36, 4)
        np.testing.assert_array_equal(data.test.x[:, 0], drawn("test", 28, 28)[0])
        labels = {image.tobytes(): label for image, label in zip(x, y, strict=True)}
        for part in (data.train, data.validation):
            assert [labels[image.numpy().tobytes()] for image in part.x] == part.y.tolist()

    def test_seed(self, root):
        first, again, other = (images.labelled("mnist", seed, root).digest() for seed in (1, 1, 2))
        assert first == again != other

    def test_subsets(self, root):
        whole = images.labelled("mnist", 0, root)
        data = images.labelled("mnist", 0, root, train_size=20, test_size=5)
        assert [len(part.x) for part in (data.train, data.validation, data.test)] == [20, 2, 5]
        assert data.notes == ("20 of 40 training images", "5 of 12 test images", "no training sample of class 3")
        for part in ("train", "validation", "test"):
            assert rows(getattr(data, part).x) < rows(getattr(whole, part).x)
        assert len(images.labelled("mnist", 0, root, train_size=3).validation.x) == 1
        all_of_them = images.labelled("mnist", 0, root, train_size=36, test_size=12)
        assert all_of_them.digest() == whole.digest()
        assert all_of_them.notes == ()

    def test_averaged(self, root):
        whole, halved = (images.labelled("mnist", 0, root, image_size=size).test.x for size in (28, 14))
        assert halved.shape == (12, 1, 14, 14)
        means = whole.numpy().reshape(12, 1, 14, 2, 14, 2).mean((3, 5))
        np.testing.assert_array_equal(halved, np.round(means))

    def test_digits(self):
        data = images.labelled("digits", seed=5)
        assert (data.name, data.levels, data.shape, data.outputs) == ("digits", 17, (1, 8, 8), 10)
        assert [len(part.x) for part in (data.train, data.validation, data.test)] == [1439, 179, 179]
        assert torch.equal(data.train.x, images.load("digits", seed=5).train)
        assert images.labelled("digits", image_size=4).shape == (1, 4, 4)

    def test_folder(self, tmp_path, monkeypatch):
        folder_of(tmp_path / "pets", n=20)
        monkeypatch.chdir(tmp_path / "pets")
        data = images.labelled(".", train_size=10)
        assert (data.name, data.levels, data.classes) == ("pets", 256, ("cat", "dog"))
        assert [len(part.x) for part in (data.train, data.validation, data.test)] == [10, 1, 4]
        assert data.notes == ("10 of 36 training images",)

    def test_folder_with_a_test_part(self, tmp_path):
        folder_of(tmp_path / "train", n=20)
        folder_of(tmp_path / "test", n=2)
        data = images.labelled(str(tmp_path), image_size=5)
        assert [len(part.x) for part in (data.train, data.validation, data.test)] == [36, 4, 4]
        assert data.shape == (3, 5, 5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"train_size": 37}, "--train-size 37 must be from 1 to 36"),
            ({"train_size": 0}, "--train-size 0 must be from 1 to 36"),
            ({"test_size": 13}, "--test-size 13 must be from 1 to 12"),
            ({"test_size": -1}, "--test-size -1 must be"),
            ({"image_size": 13}, "--image-size 13 does not divide the 28 pixels of mnist: choose one of 1, 2, 4, 7"),
            ({"image_size": 56}, "--image-size 56 does not divide"),
            ({"image_size": 0}, "--image-size 0 does not divide"),
        ],
    )
    def test_bad_sizes(self, root, options, message):
        refused(message, images.labelled, "mnist", 0, root, **options)

    def test_download_of_what_nobody_publishes(self, tmp_path):
        refused("--download is for mnist.*not for digits", images.labelled, "digits", download=True)

    def test_few(self, tmp_path):
        folder_of(tmp_path / "pets", n=9)
        refused("pets has 18 images .*at least 20", images.labelled, str(tmp_path / "pets"))

    def test_known(self):
        assert all(map(images.known, ("mnist", "fashion", "cifar10", "svhn", "digits")))
        assert not images.known("pets")


def packed(path, members):
    """An archive of files: names and contents."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, {".xz": "w:xz", ".tar": "w"}.get(path.suffix, "w:gz")) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


MEMBERS = {"./set/train/a.txt": b"a" * 5000, "set/b.txt": b"b", "notes.txt": b"c"}


class TestUnpack:
    @pytest.mark.parametrize("suffix", unpack.SUFFIXES)
    def test_every_format(self, tmp_path, capsys, suffix):
        archive = packed(tmp_path / f"set{suffix}", MEMBERS)
        unpack.main([str(archive), str(tmp_path / "new" / "data")])
        folder = tmp_path / "new" / "data"
        found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert found == {name.removeprefix("./"): content for name, content in MEMBERS.items()}
        assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "set"]
        assert capsys.readouterr().out == f"3 files of {archive} unpacked: {folder / 'notes.txt'}, {folder / 'set'}\n"

    def test_into_data(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        unpack.main([str(packed(tmp_path / "set.tar", MEMBERS))])
        assert (tmp_path / "data" / "set" / "b.txt").read_bytes() == b"b"

    @pytest.mark.parametrize("suffix", [".tar.xz", ".zip"])
    @pytest.mark.parametrize("name", ["../out.txt", "set/../../out.txt", "/out.txt"])
    def test_outside(self, tmp_path, suffix, name):
        archive = packed(tmp_path / f"set{suffix}", MEMBERS | {name: b"out"})
        refused("leads out of the folder", unpack.main, [str(archive), str(tmp_path / "data")])
        assert list(tmp_path.iterdir()) == [archive]

    def test_link_outside(self, tmp_path):
        archive = tmp_path / "set.tar"
        with tarfile.open(archive, "w") as file:
            info = tarfile.TarInfo("set/link")
            info.type, info.linkname = tarfile.SYMTYPE, "../../.."
            file.addfile(info)
        refused("not safe to unpack", unpack.main, [str(archive), str(tmp_path / "data")])
        assert list((tmp_path / "data").iterdir()) == []

    @pytest.mark.parametrize("suffix", unpack.SUFFIXES)
    @pytest.mark.parametrize("spoil", [lambda content: content[: len(content) // 2], lambda content: b"garbage" * 99])
    def test_damaged(self, tmp_path, suffix, spoil):
        archive = packed(tmp_path / f"set{suffix}", MEMBERS)
        archive.write_bytes(spoil(archive.read_bytes()))
        refused(f"set{suffix} cannot be unpacked", unpack.main, [str(archive), str(tmp_path / "data")])
        assert list(tmp_path.iterdir()) == [archive]

    def test_damaged_content_leaves_nothing(self, tmp_path):
        archive = packed(tmp_path / "set.zip", MEMBERS)
        content = bytearray(archive.read_bytes())
        content[50] ^= 0xFF  # in the first member, which the directory at the end does not tell
        archive.write_bytes(content)
        refused("cannot be unpacked", unpack.main, [str(archive), str(tmp_path / "data")])
        assert list((tmp_path / "data").iterdir()) == []

    def test_existing(self, tmp_path):
        archive = packed(tmp_path / "set.tar.gz", MEMBERS)
        kept = tmp_path / "data" / "set" / "b.txt"
        kept.parent.mkdir(parents=True)
        kept.write_text("kept")
        refused("data/set exists .* pass another folder", unpack.main, [str(archive), str(tmp_path / "data")])
        assert kept.read_text() == "kept"
        assert list((tmp_path / "data").iterdir()) == [kept.parent]

    @pytest.mark.parametrize(
        ("name", "message"), [("set.rar", "no archive that can be unpacked.*.tar.xz"), ("set.zip", "does not exist")]
    )
    def test_no_archive(self, tmp_path, name, message):
        refused(message, unpack.main, [str(tmp_path / name)])

    def test_no_folder(self, tmp_path):
        archive = packed(tmp_path / "set.zip", MEMBERS)
        refused("set.zip is a file", unpack.main, [str(archive), str(archive)])

    def test_a_python_without_safe_unpacking(self, tmp_path, monkeypatch):
        monkeypatch.delattr(tarfile, "data_filter")
        archive = packed(tmp_path / "set.tar", MEMBERS)
        refused("needs Python 3.11.4", unpack.main, [str(archive), str(tmp_path / "data")])
        monkeypatch.delattr(tarfile, "FilterError")
        importlib.reload(unpack)
        archive = packed(tmp_path / "set.zip", MEMBERS)
        archive.write_bytes(b"garbage")
        refused("cannot be unpacked", unpack.main, [str(archive), str(tmp_path / "data")])
        monkeypatch.undo()
        importlib.reload(unpack)

    @pytest.mark.parametrize("suffix", [".tar", ".zip"])
    def test_empty(self, tmp_path, suffix):
        archive = packed(tmp_path / f"set{suffix}", {})
        refused("holds no files", unpack.main, [str(archive), str(tmp_path / "data")])
