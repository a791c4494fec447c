"""Folders of images, with a subfolder for each class.

Either ``FOLDER/CLASS/*``, or ``FOLDER/train/CLASS/*`` with ``FOLDER/test/CLASS/*`` or, failing that,
``FOLDER/val/CLASS/*``. Images may lie deeper in the folder of their class; what begins with a dot is passed over, and
so are links to folders below those of the classes.

Where no classes are asked for, the folder or its parts may also hold the images themselves.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from anode import InputError
from train_flows.data.labelled import Pairs, in_order

TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")  # in order of preference
GREY, DEEP = ("1", "L", "LA"), ("I", "F")  # modes; the second kind has more than eight bits a pixel
LARGEST = 2048  # side of an image
LAYOUT = "put the images in FOLDER/CLASS/ or FOLDER/train/CLASS/ and FOLDER/test/CLASS/, a folder for each class"
CHUNK = 64  # images to a task: a small one takes no longer than its task would
TINY_IMAGENET = 100_000  # its training images


class Header(NamedTuple):
    """What an image file says of itself.

    Attributes:
        size: width and height.
        mode: Pillow's name of what its pixels are.
    """

    size: tuple[int, int]
    mode: str


def read(
    folder: str | Path, size: int | None = None, classified: bool = True
) -> tuple[Pairs, Pairs | None, tuple[str, ...], tuple[str, ...]]:
    """Training part or all images, test part if there is one, class names and notes.

    Images are uint8 (N, C, H, W), with one channel when all are grey and else three; classes int64 (N,), the names in
    order of their values if they are numbers and before words, which are in order of the alphabet.

    Args:
        folder: laid out as described above.
        size: height and width to resize to, with what is too wide or too high cut off evenly; without it all images
            must be of one size.
        classified: whether there have to be classes. If not, and there are less than two, all images of a part are
            taken, with no names of classes, and y (N, 0).

    Raises:
        InputError: when the folder is laid out otherwise, a file is no image or a damaged one, or sizes differ; or,
            where there need not be classes, if some are grey and others in colour.
    """
    folder = Path(folder)
    if size is not None and not 1 <= size <= LARGEST:
        raise InputError(f"--image-size {size} must be from 1 to {LARGEST}")
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder of images: pass the path of one, or make it by train-flows unpack ARCHIVE"
        )
    training, testing, notes = _parts(folder)
    classes = tuple(sorted(_subfolders(training), key=in_order))
    if classified or len(classes) > 1:
        _check_classes(training, testing, classes)
        notes += () if classified else _unused(training, testing)
    else:
        classes = ()
    train, test = (_files(part, classes) if part else [] for part in (training, testing))
    x = _images([path for path, _ in train + test], size, alike=not classified)
    y = torch.tensor([label for _, label in train + test])
    if not classes:
        y = torch.empty(len(x), 0)
    first, second = (Pairs(x[rows], y[rows]) for rows in (slice(len(train)), slice(len(train), None)))
    return first, second if testing else None, classes, notes + _origin(folder, len(train))


def _subfolders(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir() and _shown(path)]


def _shown(path: Path) -> bool:
    return not path.name.startswith(".")


def _parts(folder: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """The folder of the training part or of all images, that of the test part if there is one, and notes."""
    names = {name.lower(): name for name in _subfolders(folder)}
    trains, tests = ([folder / names[part] for part in parts if part in names] for parts in (TRAIN, TEST))
    if trains and (tests or len(names) == 1):
        spare = [
            f"{path.name} is not used: images to validate on are drawn from the training part" for path in tests[1:]
        ]
        return trains[0], tests[0] if tests else None, tuple(spare)
    if trains and _subfolders(trains[0]):  # else it is a class, of railways
        other = min(set(names.values()) - {trains[0].name})
        raise InputError(f"{folder} holds {trains[0].name} and {other}, which is no part to test on: {LAYOUT}")
    if tests and len(tests) == len(names):
        raise InputError(f"{folder} holds {tests[0].name} but no folder {TRAIN[0]}: {LAYOUT}")
    return folder, None, ()


def _check_classes(training: Path, testing: Path | None, classes: tuple[str, ...]) -> None:
    for part in (training, testing):
        if part and not _subfolders(part):
            raise InputError(f"{part} holds no folders of images: {LAYOUT}")
    if len(classes) < 2:
        raise InputError(f"{training} holds one class only ({classes[0]}): at least 2 are needed; {LAYOUT}")
    unknown = sorted(set(_subfolders(testing)) - set(classes)) if testing else []
    if unknown:
        raise InputError(f"{testing} holds the class {unknown[0]}, which {training} lacks: add or remove it")


def _unused(*parts: Path | None) -> tuple[str, ...]:
    """Notes on files that lie beside the folders of classes."""
    found = {part: [path for path in part.iterdir() if _shown(path) and not path.is_dir()] for part in parts if part}
    return tuple(f"{len(paths)} file(s) in {part}, in no class, are not used" for part, paths in found.items() if paths)


def _files(part: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """The images of a part, in order of their classes and paths, with their class; a test part may lack classes."""
    found = []
    for label, folder in enumerate([part / name for name in classes] or [part]):
        if not folder.is_dir():
            continue
        paths = sorted(_walk(folder))
        if not paths:
            raise InputError(f"{folder} holds no images: add some, or remove the folder")
        found += [(path, label) for path in paths]
    return found


def _walk(folder: Path) -> Iterator[str]:
    for path, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(path, name) for name in files if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _images(paths: list[str], size: int | None, alike: bool) -> Tensor:
    """All images (N, C, H, W); their headers are read first, for one array to take the pixels as they come.

    Where they are not all grey, those that are get three equal channels; not if they have to be alike, for these have
    no density.
    """
    chunks = [range(start, min(start + CHUNK, len(paths))) for start in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor() as pool:  # images of some size are decoded side by side
        headers = [h for part in pool.map(lambda rows: [_header(paths[i]) for i in rows], chunks) for h in part]
        grey = [header.mode in GREY for header in headers]
        if alike and any(grey) and not all(grey):
            raise InputError(
                f"{paths[grey.index(True)]} is grey, {paths[grey.index(False)]} in colour: convert them to one mode"
            )
        mode = "L" if all(grey) else "RGB"
        width, height = (size, size) if size else _common_size(paths, headers)
        x = np.empty((len(paths), len(mode), height, width), np.uint8)

        def decode(rows: range) -> None:
            for i in rows:
                x[i] = _pixels(paths[i], mode, size)

        list(pool.map(decode, chunks))  # raises what any of them raised
    return torch.from_numpy(x)


def _common_size(paths: list[str], headers: list[Header]) -> tuple[int, int]:
    first = headers[0].size
    for path, header in zip(paths, headers, strict=True):
        if header.size != first:
            sizes = " but ".join(f"{p} is {w}x{h}" for p, (w, h) in ((paths[0], first), (path, header.size)))
            raise InputError(f"images differ in size, {sizes} pixels: bring them to one by --image-size")
    return first


def _header(path: str) -> Header:
    if not os.path.isfile(path):  # a pipe would wait for ever
        raise InputError(f"{path} is no image: remove or restore it")
    with _readable(path), Image.open(path) as image:
        header = Header(image.size, image.mode)
    if header.mode.startswith(DEEP):
        raise InputError(f"{path} has more than 8 bits a pixel (mode {header.mode}): convert it to 8 bits")
    return header


def _pixels(path: str, mode: str, size: int | None) -> np.ndarray:
    """One image (C, H, W)."""
    with _readable(path), Image.open(path) as image:
        pixels = image.convert(mode)
        if size is not None:
            pixels = ImageOps.fit(pixels, (size, size))
        array = np.asarray(pixels)
    return array[None] if mode == "L" else array.transpose(2, 0, 1)


@contextlib.contextmanager
def _readable(path: str) -> Generator[None]:
    try:
        yield
    except Exception as error:  # Pillow raises many kinds
        if isinstance(error, OSError) and error.errno is not None:  # of the system
            raise
        if isinstance(error, Image.DecompressionBombError):
            raise InputError(f"{path} is too large: make it smaller") from error
        reason = "no image that can be read" if isinstance(error, UnidentifiedImageError) else f"damaged ({error})"
        raise InputError(f"{path} is {reason}: remove or restore it") from error


def _origin(folder: Path, images: int) -> tuple[str, ...]:
    """A note on data that are known by the folder's name not to be what was published."""
    name = folder.resolve().name.lower()
    if name.startswith("tiny-imagenet") and images < TINY_IMAGENET:
        return (f"{images:,} of the {TINY_IMAGENET:,} training images of Tiny-ImageNet",)
    if name.startswith("cifar10") and "jpeg" in name:
        return ("CIFAR-10 re-compressed as JPEG",)
    return ()
