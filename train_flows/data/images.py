"""Image data: scikit-learn's digits, published sets and folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from anode import InputError
from train_flows.data import image_folders, image_sets
from train_flows.data import labelled as pairs
from train_flows.data.dataset import Classes, Dataset
from train_flows.data.labelled import Labelled, Pairs

NAMES = ("digits", *image_sets.PUBLISHED)
DIGITS_LEVELS, LEVELS = 17, 256  # values of a pixel
LEAST_IMAGES = 20  # as many as a split into three parts needs
CHUNK = 4096  # images averaged together


class Images(NamedTuple):
    """Images as they are published.

    Attributes:
        name: what to call them.
        train: the training part, or all of them.
        test: the test part, if there is one.
        classes: their names; none where images are in no classes, whose targets are (N, 0).
        notes: sentences worth printing.
        levels: number of values a pixel takes.
    """

    name: str
    train: Pairs
    test: Pairs | None
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    levels: int


def load(
    source: str,
    seed: int = 0,
    data_root: str | Path = "data",
    download: bool = False,
    image_size: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    conditional: bool = False,
) -> Dataset:
    """Load images to learn the density of, uint8 (N, C, H, W), in classes or not.

    Args:
        source: see :func:`labelled`, and so for the others.
        seed: of the split and of subsets.
        data_root: the folder of the published sets.
        download: fetch a published set that is not there.
        image_size: height and width.
        train_size: how many images to train on.
        test_size: how many images to test on.
        conditional: of the density given the class.

    Raises:
        InputError: when there are no such images, they cannot be used, or they are too few; or when they are in no
            classes that could be given.
    """
    images = read(source, data_root, download, image_size, classified=False)
    found = arranged(images, seed, train_size, test_size)
    if len(found.test.x) < 2:  # as many as a standard error needs
        raise InputError(f"{found.name} has one image to test on: at least 2 are needed, pass or add more")
    if conditional and not images.classes:
        raise InputError(f"--conditional is for images in classes, {found.name} has none: {image_folders.LAYOUT}")
    parts = (found.train, found.validation, found.test)
    classes = Classes(images.classes, *(part.y for part in parts)) if images.classes else None
    return Dataset(
        found.name,
        *(part.x for part in parts),
        _pixels(found.shape),
        levels=found.levels,
        notes=found.notes,
        classes=classes,
        conditional=conditional,
    )


def _pixels(shape: torch.Size) -> tuple[str, ...]:
    """Names of the pixels of an image, flattened."""
    channels, height, width = shape
    kinds = ("pixel",) if channels == 1 else ("red", "green", "blue")
    return tuple(f"{kind}_{row}_{column}" for kind in kinds for row in range(height) for column in range(width))


def known(source: str) -> bool:
    """Whether a set of labelled images is one by name, not a folder."""
    return source in NAMES


def labelled(
    source: str,
    seed: int = 0,
    data_root: str | Path = "data",
    download: bool = False,
    image_size: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
) -> Labelled:
    """Load images to classify, uint8 (N, C, H, W), without names of their many columns.

    Where a test part is published, a tenth of the training images are for validation; else all are split 80/10/10.

    Args:
        source: ``mnist``, ``fashion``, ``cifar10``, ``svhn``, ``digits``, or the path of a folder of images.
        seed: of the split and of subsets.
        data_root: the folder of the published sets.
        download: fetch a published set that is not there.
        image_size: height and width to bring images to: those of a folder by resizing, others by averaging whole
            squares of pixels.
        train_size: how many images to train on; a tenth as many validate.
        test_size: how many images to test on.

    Raises:
        InputError: when there are no such images, they cannot be used, or they are too few.
    """
    return arranged(read(source, data_root, download, image_size), seed, train_size, test_size)


def arranged(images: Images, seed: int, train_size: int | None = None, test_size: int | None = None) -> Labelled:
    """Images in three parts; see :func:`labelled`."""
    name, train, test, classes, notes, levels = images
    parts = _split(name, train, test, seed)
    sizes = {"--train-size": (train_size, parts[0]), "--test-size": (test_size, parts[2])}
    for argument, (size, part) in sizes.items():
        _check_size(name, argument, size, len(part.x))
    (train, validation, test), subsets = _subsets(parts, train_size, test_size, seed)
    notes += subsets + (pairs.missing_classes(train, classes) if classes else ())
    return Labelled(name, train, validation, test, (), classes, notes, levels)


def _digits() -> Pairs:
    bunch = load_digits()
    return Pairs(torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1), torch.from_numpy(bunch.target).long())


def read(
    source: str,
    data_root: str | Path = "data",
    download: bool = False,
    size: int | None = None,
    classified: bool = True,
) -> Images:
    """All images as they are published; see :func:`labelled`, and for those of a folder, :mod:`image_folders`."""
    if source in image_sets.PUBLISHED:
        train, test, classes = image_sets.read(source, data_root, download)
        return Images(source, _averaged(source, train, size), _averaged(source, test, size), classes, (), LEVELS)
    if download:
        raise InputError(f"--download is for {', '.join(image_sets.PUBLISHED)}, not for {source}: drop it")
    if source == "digits":
        return Images(source, _averaged(source, _digits(), size), None, image_sets.DIGITS, (), DIGITS_LEVELS)
    return Images(Path(source).resolve().name, *image_folders.read(source, size, classified), LEVELS)


def _averaged(name: str, images: Pairs, size: int | None) -> Pairs:
    """Images whose pixels are the rounded means of squares of theirs."""
    now = images.x.shape[-1]
    if size is None or size == now:
        return images
    if size < 1 or now % size:
        sizes = ", ".join(str(i) for i in range(1, now + 1) if now % i == 0)
        raise InputError(f"--image-size {size} does not divide the {now} pixels of {name}: choose one of {sizes}")
    chunks = (functional.avg_pool2d(chunk.float(), now // size) for chunk in images.x.split(CHUNK))
    return Pairs(torch.cat([chunk.round().to(torch.uint8) for chunk in chunks]), images.y)


def _split(name: str, train: Pairs, test: Pairs | None, seed: int) -> tuple[Pairs, Pairs, Pairs]:
    n = len(train.x)
    if n < LEAST_IMAGES:
        raise InputError(f"{name} has {n} images to train on: at least {LEAST_IMAGES} are needed, add some")
    if test is None:
        return pairs.split(train, seed)
    validation, rest = _shuffled(n, seed).split((n // 10, n - n // 10))
    return _at(train, rest), _at(train, validation), test


def _check_size(name: str, argument: str, size: int | None, images: int) -> None:
    if size is not None and not 1 <= size <= images:
        part = "test on" if argument == "--test-size" else "train on, besides those for validation"
        raise InputError(f"{argument} {size} must be from 1 to {images}, for {name} has so many images to {part}")


def _subsets(
    parts: tuple[Pairs, Pairs, Pairs], train_size: int | None, test_size: int | None, seed: int
) -> tuple[tuple[Pairs, Pairs, Pairs], tuple[str, ...]]:
    """As many images as asked for, with notes; training and validation images are in random order already."""
    train, validation, test = parts
    notes = []
    if train_size not in (None, len(train.x)):
        notes.append(f"{train_size:,} of {len(train.x) + len(validation.x):,} training images")
        train, validation = (
            Pairs(part.x[:size], part.y[:size])
            for part, size in ((train, train_size), (validation, max(1, train_size // 10)))
        )
    if test_size not in (None, len(test.x)):
        notes.append(f"{test_size:,} of {len(test.x):,} test images")
        test = _at(test, _shuffled(len(test.x), seed)[:test_size])
    return (train, validation, test), tuple(notes)


def _shuffled(n: int, seed: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _at(images: Pairs, rows: torch.Tensor) -> Pairs:
    return Pairs(images.x[rows], images.y[rows])
