"""Images: MNIST, Fashion-MNIST, CIFAR-10 and SVHN through torchvision, scikit-learn's digits, and folders of images.

The files of the published sets lie under ``--data-root``, where torchvision puts them:

    MNIST/raw/             train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., gzipped or not
    FashionMNIST/raw/      files of the same names
    cifar-10-batches-py/   data_batch_1 to data_batch_5, test_batch, batches.meta
    train_32x32.mat, test_32x32.mat    of SVHN

A folder of images has a subfolder for each class, or parts ``train`` and ``test`` (or ``val``) with such folders. For a
density the classes may be missing. Names that begin with a dot are ignored.

References:
    LeCun, Bottou, Bengio, Haffner 1998, Proc. IEEE 86(11); Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747;
    Krizhevsky 2009, "Learning multiple layers of features from tiny images"; Netzer et al. 2011, NIPS workshop.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch.nn import functional as F

from anode import InputError
from train_flows.data.dataset import Dataset, Split, class_contexts, class_order, shuffled, three_splits

DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
TRAIN_NAMES, TEST_NAMES = ("train", "training"), ("test", "testing", "val", "valid", "validation")
DIGITS_LEVELS, LEVELS = 17, 256  # values of a pixel
MIN_IMAGES = 20  # for a split into three parts
CHUNK_IMAGES = 4096  # averaged together
TINY_IMAGENET = 100_000  # its training images
LAYOUT = "put the images into FOLDER/CLASS/, or FOLDER/train/CLASS/ and FOLDER/test/CLASS/, a folder for each class"


class Published(NamedTuple):
    """A published set of images."""

    loader: str  # torchvision's class
    folder: str  # under the data root
    files: tuple[str, ...]
    classes: tuple[str, ...]


Parts = tuple[Split, Split | None, tuple[str, ...]]  # training part or all images, test part if any, class names
PUBLISHED = {
    "mnist": Published("MNIST", "MNIST/raw", IDX, DIGITS),
    "fashion": Published("FashionMNIST", "FashionMNIST/raw", IDX, CLOTHES),
    "cifar10": Published("CIFAR10", "cifar-10-batches-py", BATCHES, THINGS),
    "svhn": Published("SVHN", "", ("train_32x32.mat", "test_32x32.mat"), DIGITS),
}
IMAGE_SETS = ("digits", *PUBLISHED)


def load(
    source: str,
    seed: int = 0,
    data_root: str | Path = "data",
    download: bool = False,
    image_size: int | None = None,
    needs_classes: bool = True,
    split: bool = True,
) -> Dataset:
    """Load images, uint8 (N, C, H, W), with their classes; arguments as in :func:`train_flows.data.load_density_data`.

    If there is a test part, a tenth of the training images validate; otherwise all are split 80/10/10. Images of a
    folder are cropped and resized to ``image_size``, others averaged over squares. Without ``needs_classes``, a folder
    without classes will do, but not one of grey and coloured images.
    """
    if download and source not in PUBLISHED:
        raise InputError(f"--download is for {', '.join(PUBLISHED)}, not for {source}: leave it out")
    name, levels, notes = source, LEVELS, ()
    if source in PUBLISHED:
        parts = _averaged(name, _published(name, Path(data_root), download), image_size)
    elif source == "digits":
        bunch, levels = load_digits(), DIGITS_LEVELS
        x = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
        parts = _averaged(name, (Split(x, torch.from_numpy(bunch.target).long()), None, DIGITS), image_size)
    else:
        folder = Path(source).resolve()
        name, (parts, notes) = folder.name, _folder(folder, image_size, needs_classes)
    train, test, classes = parts
    split = split or source in IMAGE_SETS
    if split and len(train) < MIN_IMAGES:
        raise InputError(f"{name} has {len(train)} images to train on: at least {MIN_IMAGES} are needed, add some")
    splits = three_splits(train, seed, split)
    if test is not None:
        rows, held_out = shuffled(len(train), seed), len(train) // 10
        splits = train.take(rows[held_out:]), train.take(rows[:held_out]), test
    channels, *sides = train.x.shape[1:]
    kinds = ("pixel",) if channels == 1 else ("red", "green", "blue")
    pixels = tuple("_".join(map(str, place)) for place in itertools.product(kinds, *map(range, sides)))
    return Dataset(name, *splits, pixels, levels, classes, notes=notes)


def for_density(dataset: Dataset, conditional: bool) -> Dataset:
    """Return images without their classes, or with their classes as contexts."""
    if len(dataset.test) < 2:  # for a standard error
        raise InputError(f"{dataset.name} has one image to test on: at least 2 are needed, add some")
    if conditional and not dataset.classes:
        raise InputError(f"--conditional is for images in classes, {dataset.name} has none: {LAYOUT}")
    classes, parts = dataset.classes if conditional else (), (dataset.train, dataset.validation, dataset.test)
    train, validation, test = (
        Split(x, y, class_contexts(y, len(classes))) if classes and y is not None else Split(x)
        for x, y in ((part.x, part.y) for part in parts)
    )
    return dataclasses.replace(dataset, train=train, validation=validation, test=test, classes=classes, context=classes)


def _averaged(name: str, parts: Parts, size: int | None) -> Parts:
    """Return images of another size, whose pixels are the rounded means of squares of the original ones."""
    train, test, classes = parts
    now = train.x.shape[-1]
    if size is None or size == now:
        return parts
    if size < 1 or now % size:
        sizes = ", ".join(str(i) for i in range(1, now + 1) if now % i == 0)
        raise InputError(f"--image-size {size} does not divide the {now} pixels of {name}: choose one of {sizes}")
    width = now // size

    def average(part: Split) -> Split:
        chunks = (F.avg_pool2d(chunk.float(), width) for chunk in part.x.split(CHUNK_IMAGES))
        return Split(torch.cat([chunk.round().to(torch.uint8) for chunk in chunks]), part.y)

    return average(train), average(test) if test else None, classes


def _published(name: str, root: Path, download: bool) -> Parts:
    loader, folder, files, classes = PUBLISHED[name]
    place = root / folder
    missing = [file for file in files if not (place / file).is_file() and not (place / f"{file}.gz").is_file()]
    if missing and not download:
        raise InputError(
            f"{name} needs {', '.join(missing)} in {place}: put them there, pass another --data-root (now {root}), "
            "or --download"
        )
    try:
        if missing:
            print(f"downloading {name} into {root}")
            _torchvision(loader, root, download=True)
        with tempfile.TemporaryDirectory() as scratch:
            packed = not all((place / file).is_file() for file in files)
            parts = _torchvision(loader, _unpack(place, files, Path(scratch), folder) if packed else root)
        train, test = (_samples(part) for part in parts)
    except Exception as error:  # urllib, gzip, torchvision, pickle and scipy raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1 if missing else 0]
        raise InputError(
            f"the {name} files could not be downloaded, is there a network? ({reason}); or put {', '.join(files)} into "
            f"{place}, under --data-root (now {root})"
            if missing
            else f"the {name} files in {place} are damaged or not as published ({reason}): remove them and pass "
            "--download, or restore them"
        ) from error
    return train, test, classes


def _unpack(place: Path, files: Iterable[str], root: Path, folder: str) -> Path:
    """Unpack gzipped files into a folder under another data root, and return that root."""
    (root / folder).mkdir(parents=True)
    for file in files:
        if (place / file).is_file():
            (root / folder / file).symlink_to((place / file).resolve())
            continue
        with gzip.open(place / f"{file}.gz") as source, (root / folder / file).open("wb") as target:
            shutil.copyfileobj(source, target)
    return root


def _torchvision(loader: str, root: Path, **options: Any) -> list[Any]:
    """Return the training and the test part of a set as torchvision reads them."""
    from torchvision import datasets  # takes a second, which other data need not wait for

    parts = [{"split": "train"}, {"split": "test"}] if loader == "SVHN" else [{"train": True}, {"train": False}]
    return [getattr(datasets, loader)(root, **part, **options) for part in parts]


def _samples(part: Any) -> Split:
    """Return the images (N, C, H, W) and labels of a data set of torchvision."""
    x = torch.as_tensor(part.data)
    y = torch.as_tensor(part.labels if hasattr(part, "labels") else part.targets).long()
    if x.ndim == 3:
        x = x.unsqueeze(1)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} images with {len(y)} labels")
    return Split((x.permute(0, 3, 1, 2) if x.shape[-1] == 3 else x).contiguous(), y)


def _folder(folder: Path, size: int | None, needs_classes: bool) -> tuple[Parts, tuple[str, ...]]:
    """Return the images of a folder, and notes."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of images: check the path")
    training, testing, notes = _layout(folder)
    classes = tuple(sorted(_subfolders(training), key=class_order))
    if len(classes) < 2 and not needs_classes:
        classes = ()
    elif len(classes) < 2:
        raise InputError(f"{training} holds {len(classes)} folders of images: at least 2 classes are needed; {LAYOUT}")
    elif testing and (unknown := sorted(set(_subfolders(testing)) - set(classes))):
        raise InputError(f"{testing} holds the class {unknown[0]}, which {training} lacks: add or remove it")
    files = _image_files(training, classes)
    n_train = len(files)
    files += _image_files(testing, classes) if testing else []
    x = _read_images([path for path, _ in files], size, one_mode=not needs_classes)
    images = Split(x, torch.tensor([label for _, label in files]) if classes else None)
    train, test = images.take(slice(n_train)), images.take(slice(n_train, None))
    if folder.name.lower().startswith("tiny-imagenet") and n_train < TINY_IMAGENET:
        notes += (f"{n_train:,} of the {TINY_IMAGENET:,} training images of Tiny-ImageNet",)
    if folder.name.lower().startswith("cifar10") and "jpeg" in folder.name.lower():
        notes += ("CIFAR-10 re-compressed as JPEG",)
    return (train, test if testing else None, classes), notes


def read_files(folder: Path, size: int | None = None) -> tuple[list[str], torch.Tensor]:
    """Read all images in a folder and its subfolders: the files, and their pixels, uint8 (N, C, H, W)."""
    files = [str(Path(path)) for path, _ in _image_files(folder, ())]
    return files, _read_images(files, size, one_mode=False)


def _subfolders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _layout(folder: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Return the folder of the training part or of all images, that of the test part if there is one, and notes."""
    names = {name.lower(): name for name in _subfolders(folder)}
    trains, tests = ([folder / names[part] for part in parts if part in names] for parts in (TRAIN_NAMES, TEST_NAMES))
    if trains and (tests or len(names) == 1):
        unused = (f"{path.name} is not used: validation images are drawn from the training part" for path in tests[1:])
        return trains[0], tests[0] if tests else None, tuple(unused)
    if trains and _subfolders(trains[0]):  # otherwise it is a class, of railways
        other = min(set(names.values()) - {trains[0].name})
        raise InputError(f"{folder} holds {trains[0].name} and {other}, which is not a part to test on: {LAYOUT}")
    if tests and len(tests) == len(names):
        raise InputError(f"{folder} holds {tests[0].name} but no folder {TRAIN_NAMES[0]}: {LAYOUT}")
    return folder, None, ()


def _image_files(part: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """Return the images of a part, in order of their classes and paths, with their class."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    def is_image(path: str) -> bool:
        hidden = any(name.startswith(".") for name in Path(path).relative_to(part).parts)
        return path.lower().endswith(IMG_EXTENSIONS) and not hidden

    numbers = {name: i for i, name in enumerate(classes or ["."])}
    found = make_dataset(part, numbers, is_valid_file=is_image, allow_empty=True)
    if not found:
        raise InputError(f"{part} holds no images ({', '.join(IMG_EXTENSIONS)}): {LAYOUT}")
    return found


def _read_images(paths: list[str], size: int | None, one_mode: bool) -> torch.Tensor:
    """Read images (N, C, H, W): with one channel if all are grey, otherwise with three.

    Grey images among coloured ones have three equal channels and so no density: ``one_mode`` refuses them.
    """
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda path: _read_image(path, size), paths))
    grey, first = [image.ndim == 2 for image in images], images[0].shape
    if one_mode and any(grey) and not all(grey):
        raise InputError(
            f"{paths[grey.index(True)]} is grey, {paths[grey.index(False)]} in colour: convert them to one mode"
        )
    for path, image in zip(paths, images, strict=True):
        if image.shape[:2] != first[:2]:
            shapes = " but ".join(f"{p} is {s[1]}x{s[0]}" for p, s in ((paths[0], first), (path, image.shape)))
            raise InputError(f"images differ in size, {shapes} pixels: pass --image-size")
    if all(grey):
        return torch.from_numpy(np.stack(images)).unsqueeze(1)
    coloured = [np.stack([image] * 3, axis=-1) if image.ndim == 2 else image for image in images]
    return torch.from_numpy(np.stack(coloured)).permute(0, 3, 1, 2).contiguous()


def _read_image(path: str, size: int | None) -> np.ndarray:
    """Read a grey image (H, W) or a coloured one (H, W, 3), cropped and resized to a square if a size is given."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode} has more than 8 bits a pixel")
            image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
            return np.asarray(image if size is None else ImageOps.fit(image, (size, size)))
    except Exception as error:  # Pillow raises many kinds
        raise InputError(f"{path} cannot be used as an image ({error}): convert, remove or restore it") from error
