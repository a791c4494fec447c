"""Inputs with what to predict from them, in three splits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from train_flows.data.dataset import split_rows


class Pairs(NamedTuple):
    """Inputs and what to predict from them.

    Attributes:
        x: inputs (N, *S).
        y: targets: values (N, K), or classes (N,), int64.
    """

    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> Pairs:
        """The same on a device."""
        return Pairs(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Labelled:
    """Labelled samples in their original units.

    Attributes:
        name: what to call it.
        train: training samples.
        validation: samples that choose the best weights.
        test: samples for the reported figures.
        columns: names of the dimensions of an input.
        classes: their names; None where targets are values of which the sign is the class.
        notes: sentences worth printing.
        levels: number of values a pixel takes, for images of whole numbers; None for real numbers.
    """

    name: str
    train: Pairs
    validation: Pairs
    test: Pairs
    columns: tuple[str, ...]
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    levels: int | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape S of one input."""
        return torch.Size(self.train.x.shape[1:])

    @property
    def outputs(self) -> int:
        """Number of outputs a network needs: classes, or values."""
        return self.train.y.shape[1] if self.classes is None else len(self.classes)

    def digest(self) -> str:
        """SHA-256 of all samples, to tell whether a data set is the one it was."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            for tensor in part:
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def split(pairs: Pairs, seed: int) -> tuple[Pairs, Pairs, Pairs]:
    """Shuffle by ``seed`` and split into 80% training, 10% validation and 10% test samples."""
    train, validation, test = (Pairs(pairs.x[rows], pairs.y[rows]) for rows in split_rows(len(pairs.x), seed))
    return train, validation, test


def in_order(name: str) -> tuple[float, str]:
    """The key that sorts names of classes: numbers by value, before words by alphabet."""
    value = number(name)
    return math.inf if value is None else value, name


def number(text: str) -> float | None:
    """The finite number that a text is; None for a word."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def missing_classes(train: Pairs, classes: Sequence[str]) -> tuple[str, ...]:
    """A note on classes without training samples."""
    counts = torch.bincount(train.y, minlength=len(classes))
    missing = [name for name, count in zip(classes, counts.tolist(), strict=True) if count == 0]
    return (f"no training sample of class {', '.join(missing)}",) if missing else ()
