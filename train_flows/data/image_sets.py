"""MNIST, Fashion-MNIST, CIFAR-10 and SVHN from the files they are published in.

The files lie under ``--data-root``, where torchvision puts them too:

    MNIST/raw/             train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-..., or these unpacked
    FashionMNIST/raw/      the same names
    cifar-10-batches-py/   data_batch_1 to data_batch_5, test_batch, batches.meta
    train_32x32.mat, test_32x32.mat    of SVHN

References:
    LeCun, Bottou, Bengio, Haffner 1998, Proc. IEEE 86(11); Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747;
    Krizhevsky 2009, "Learning multiple layers of features from tiny images"; Netzer et al. 2011, NIPS workshop.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import math
import socket
import struct
import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from anode import InputError
from train_flows.data.labelled import Pairs

Array = np.ndarray
UNSIGNED_BYTES = 0x0800  # magic number of an IDX file of them, less its number of axes
PATIENCE = 30  # seconds a server may keep silent
REMEDY = "remove those files and pass --download, or put them there anew"
DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Published(NamedTuple):
    """Where a set of images is found.

    Attributes:
        folder: under the data root.
        files: the names it needs there; one that ends in ``.gz`` may lie unpacked instead.
        classes: their names.
        read: images (N, C, H, W) and labels (N,) of a part, from the folder and whether the part is for training.
        loader: torchvision's, which downloads it.
    """

    folder: str
    files: tuple[str, ...]
    classes: tuple[str, ...]
    read: Callable[[Path, bool], tuple[Array, Array]]
    loader: str


def read(name: str, data_root: str | Path = "data", download: bool = False) -> tuple[Pairs, Pairs, tuple[str, ...]]:
    """Training part, test part and class names of a published set: x uint8 (N, C, H, W), y int64 (N,).

    Args:
        name: one of ``PUBLISHED``.
        data_root: the folder above its files.
        download: fetch the files where some are missing.

    Raises:
        InputError: when the name is unknown, and when files are missing, damaged, or cannot be downloaded.
    """
    if name not in PUBLISHED:
        raise InputError(f"image set {name!r} is unknown; choose one of {', '.join(PUBLISHED)}")
    published, root = PUBLISHED[name], Path(data_root)
    if download and _missing(published, root):
        _download(name, root)
    if missing := _missing(published, root):
        raise InputError(
            f"{name} needs {', '.join(missing)} in {root / published.folder}: put them there, pass another --data-root "
            f"(now {root}), or --download"
        )
    train, test = (_part(name, root, training) for training in (True, False))
    if train.x.shape[1:] != test.x.shape[1:]:
        shapes = " and ".join(str(tuple(part.x.shape[1:])) for part in (train, test))
        raise InputError(f"{name}: training and test images in {root / published.folder} differ in shape, {shapes}")
    return train, test, published.classes


def _missing(published: Published, root: Path) -> list[str]:
    return [file for file in published.files if _found(root / published.folder / file) is None]


def _found(path: Path) -> Path | None:
    """The file, or the unpacked one where there is no ``.gz``."""
    unpacked = path.with_suffix("") if path.suffix == ".gz" else path
    return path if path.is_file() else unpacked if unpacked.is_file() else None


def _part(name: str, root: Path, training: bool) -> Pairs:
    published = PUBLISHED[name]
    folder, part = root / published.folder, "training" if training else "test"
    x, y = published.read(folder, training)
    if len(x) == 0 or len(x) != len(y):
        raise InputError(f"{name}: {folder} holds {len(x)} images and {len(y)} labels of the {part} part: {REMEDY}")
    wrong = y[(y < 0) | (y >= len(published.classes))]
    if len(wrong):
        known = f"0 to {len(published.classes) - 1}"
        raise InputError(f"{name}: a label of the {part} part in {folder} is {wrong[0]}, not of {known}: {REMEDY}")
    return Pairs(torch.from_numpy(x), torch.from_numpy(y))


def _read_idx(folder: Path, training: bool) -> tuple[Array, Array]:
    part = "train" if training else "t10k"
    x = _idx(folder / f"{part}-images-idx3-ubyte.gz", axes=3)
    y = _idx(folder / f"{part}-labels-idx1-ubyte.gz", axes=1)
    return x[:, None], y.astype(np.int64)


def _idx(path: Path, axes: int) -> Array:
    """The array of an IDX file: a magic number and the length of every axis, big-endian, then the bytes."""
    path = _found(path) or path
    content = _content(path)
    start = 4 * (1 + axes)
    magic, *shape = struct.unpack_from(f">{1 + axes}I", content.ljust(start, b"\0"))
    if magic != UNSIGNED_BYTES + axes or len(content) < start:
        raise InputError(f"{path} is no IDX file of {axes} {'axis' if axes == 1 else 'axes'}: {REMEDY}")
    if math.prod(shape) != len(content) - start:
        sizes = " x ".join(map(str, shape))
        raise InputError(f"{path} holds {len(content) - start:,} bytes where {sizes} are announced: {REMEDY}")
    return np.frombuffer(content, np.uint8)[start:].reshape(shape)


def _content(path: Path) -> bytearray:
    """The unpacked bytes, writable as tensors want them."""
    if path.suffix != ".gz":
        return bytearray(path.read_bytes())
    try:
        with gzip.open(path) as file:
            return bytearray(file.read())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged ({error}): {REMEDY}") from error


# torchvision is imported where it is needed: it takes a second, which programs without such images need not wait


def _read_cifar10(folder: Path, training: bool) -> tuple[Array, Array]:
    from torchvision.datasets import CIFAR10

    meta = CIFAR10.meta["filename"], CIFAR10.meta["md5"]
    with _checksum(folder, [*CIFAR10.train_list, *CIFAR10.test_list, meta]):
        part = CIFAR10(folder.parent, train=training)
    return np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.array(part.targets, np.int64)


def _read_svhn(folder: Path, training: bool) -> tuple[Array, Array]:
    from torchvision.datasets import SVHN

    split = "train" if training else "test"
    with _checksum(folder, [SVHN.split_list[split][1:]]):
        part = SVHN(folder, split=split)
    return np.ascontiguousarray(part.data), part.labels


@contextlib.contextmanager
def _checksum(folder: Path, files: Iterable[Sequence[str]]) -> Generator[None]:
    """Name the first damaged one of some files with their MD5 checksums, where torchvision complains."""
    try:
        yield
    except RuntimeError as error:
        for name, checksum in files:
            if hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest() != checksum:
                raise InputError(
                    f"{folder / name} is damaged, or not as it was published (its checksum differs): {REMEDY}"
                ) from error
        raise


def _download(name: str, root: Path) -> None:
    published = PUBLISHED[name]
    print(f"downloading {name} into {root}")
    patience, quiet = socket.getdefaulttimeout(), io.StringIO()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            _fetch(published.loader, root)
    except (OSError, RuntimeError, EOFError, HTTPException) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{name} could not be downloaded, is there a network? ({reason[-1]}); or put {', '.join(published.files)} "
            f"in {root / published.folder}, under --data-root (now {root})"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def _fetch(loader: str, root: Path) -> None:
    from torchvision import datasets

    if loader == "SVHN":
        for split in ("train", "test"):
            datasets.SVHN(root, split=split, download=True)
    else:
        getattr(datasets, loader)(root, download=True)


IDX = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
MATLAB = ("train_32x32.mat", "test_32x32.mat")
PUBLISHED = {
    "mnist": Published("MNIST/raw", IDX, DIGITS, _read_idx, "MNIST"),
    "fashion": Published("FashionMNIST/raw", IDX, CLOTHES, _read_idx, "FashionMNIST"),
    "cifar10": Published("cifar-10-batches-py", BATCHES, THINGS, _read_cifar10, "CIFAR10"),
    "svhn": Published("", MATLAB, DIGITS, _read_svhn, "SVHN"),
}
