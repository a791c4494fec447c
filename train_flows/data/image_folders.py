"""Folders of images: a subfolder for each class, or parts ``train`` and ``test`` (or ``val``) with such folders.

For a density the classes may be missing. Names that begin with a dot are ignored. Images are read as a viewer shows
them: turned by their EXIF orientation, and on white where they are transparent. Images that are all grey have one
channel, however they are stored.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from anode import InputError
from train_flows.data.dataset import Split, class_order

TRAIN_NAMES, TEST_NAMES = ("train", "training"), ("test", "testing", "val", "valid", "validation")
TINY_IMAGENET = 100_000  # its training images
MAX_PIXEL = 255
LAYOUT = "put the images into FOLDER/CLASS/, or FOLDER/train/CLASS/ and FOLDER/test/CLASS/, a folder for each class"
Parts = tuple[Split, Split | None, tuple[str, ...]]  # training part or all images, test part if any, class names


def read(folder: Path, size: int | None, needs_classes: bool) -> tuple[Parts, tuple[str, ...]]:
    """Return the images of a folder, and notes.

    Without ``needs_classes``, as for a density, a folder without classes will do, but not one that holds images of one
    channel next to coloured ones.
    """
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
    x, how = _read_images([path for path, _ in files], size, one_mode=not needs_classes)
    notes += how
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
    return files, _read_images(files, size, one_mode=False)[0]


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

    endings = (*IMG_EXTENSIONS, ".gif")

    def is_image(path: str) -> bool:
        hidden = any(name.startswith(".") for name in Path(path).relative_to(part).parts)
        return path.lower().endswith(endings) and not hidden

    numbers = {name: i for i, name in enumerate(classes or ["."])}
    found = make_dataset(part, numbers, is_valid_file=is_image, allow_empty=True)
    if not found:
        raise InputError(f"{part} holds no images ({', '.join(endings)}): {LAYOUT}")
    return found


class _Picture(NamedTuple):
    """An image of a folder."""

    pixels: np.ndarray  # uint8 (H, W, 3), or (H, W, 1) if all are grey
    stored_grey: bool  # with one channel
    transparent: bool  # in some pixel
    frames: int


def _read_images(paths: list[str], size: int | None, one_mode: bool) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Read images (N, C, H, W), with one channel if all are grey, otherwise with three; also return notes.

    Grey images among coloured ones have three equal channels and so no density. With ``one_mode``, images of one
    channel among coloured ones are refused, and coloured ones that are grey all over have a note.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.filterwarnings("ignore", module="PIL")  # of an EXIF block that is damaged, for example
        pictures = list(pool.map(lambda path: _read_image(path, size), paths))
    grey, first = [picture.pixels.shape[2] == 1 for picture in pictures], pictures[0].pixels.shape
    if one_mode and any(picture.stored_grey for picture in pictures) and not all(grey):
        stored = [picture.stored_grey for picture in pictures]
        raise InputError(
            f"{paths[stored.index(True)]} is grey, {paths[grey.index(False)]} in colour: convert them to one mode"
        )
    for path, picture in zip(paths, pictures, strict=True):
        if picture.pixels.shape[:2] != first[:2]:
            sides = ((paths[0], first), (path, picture.pixels.shape))
            shapes = " but ".join(f"{p} is {s[1]}x{s[0]}" for p, s in sides)
            raise InputError(f"images differ in size, {shapes} pixels: pass --image-size")
    notes = _notes(paths, pictures, all(grey), sum(grey) if one_mode else 0)
    shape = (*first[:2], 1 if all(grey) else 3)
    x = torch.from_numpy(np.stack([np.broadcast_to(picture.pixels, shape) for picture in pictures]))
    return x.permute(0, 3, 1, 2).contiguous(), notes


def _notes(paths: list[str], pictures: list[_Picture], all_grey: bool, grey: int) -> tuple[str, ...]:
    """Return what a reader of the figures should know about images: all grey, or some grey among coloured ones."""
    found, n = [], len(pictures)
    transparent = sum(picture.transparent for picture in pictures)
    framed = [Path(path).name for path, picture in zip(paths, pictures, strict=True) if picture.frames > 1]
    if transparent:
        found.append(f"{transparent:,} of {n:,} images are transparent in places, which are drawn white")
    if framed:
        found.append(f"{len(framed):,} of {n:,} images have several frames, of which the first is used ({framed[0]})")
    if all_grey and not all(picture.stored_grey for picture in pictures):
        found.append("the images are grey, although some are stored in colour: they have one channel")
    elif grey and not all_grey:
        found.append(
            f"{grey:,} of {n:,} images are grey among coloured ones, so the likelihood can grow without limit; "
            "consider leaving them out"
        )
    return tuple(found)


def _read_image(path: str, size: int | None) -> _Picture:
    """Read an image as a viewer shows it, cropped and resized to a square if a size is given."""
    try:
        with Image.open(path) as image:
            if _is_deep(image):
                raise ValueError(f"mode {image.mode} has more than 8 bits a pixel")
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # of phones, with a preview
            stored_grey = image.mode in ("1", "L", "LA")
            image = ImageOps.exif_transpose(image)
            transparent = image.has_transparency_data
            if transparent:
                image = image.convert("RGBA")
                transparent = bool((np.asarray(image)[:, :, 3] < MAX_PIXEL).any())
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if stored_grey else "RGB")
            pixels = np.atleast_3d(np.asarray(image if size is None else ImageOps.fit(image, (size, size))))
    except Exception as error:  # Pillow raises many kinds
        raise InputError(f"{path} cannot be used as an image ({error}): convert, remove or restore it") from error
    channels = 1 if (pixels == pixels[:, :, :1]).all() else 3
    return _Picture(pixels[:, :, :channels], stored_grey, transparent, frames)


def _is_deep(image: Image.Image) -> bool:
    """Return True for an image of more than 8 bits a pixel and channel, of which Pillow would keep 8 or wrap around."""
    stored = [tile.args for tile in getattr(image, "tile", [])]  # "RGB;16B" of a PNG; ("RGB", largest value) of a PPM
    wide = image.format == "PPM" and any(isinstance(args, tuple) and args[-1] > MAX_PIXEL for args in stored)
    return image.mode.startswith(("I", "F")) or ";16" in str(stored) or wide
