"""Data ready for training: three splits of samples, with what a reader of the results should know about them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cnf.objectives import Batch
from train_flows.data.rows import Rows


class Classes(NamedTuple):
    """Classes of the samples of a data set, int64 (N,) of each part.

    Attributes:
        names: of the classes.
        train: of the training samples.
        validation: of the validation samples.
        test: of the test samples.
    """

    names: tuple[str, ...]
    train: Tensor
    validation: Tensor
    test: Tensor


@dataclass(frozen=True)
class Dataset:
    """Samples of a distribution in their original units.

    Attributes:
        name: what to call it.
        train: training samples (N, *S); of a table that stays on disk, as many as stand for all.
        validation: samples that choose the best weights.
        test: samples for the reported figures.
        columns: names of the dimensions of a sample, flattened.
        levels: number of values an element takes, for discrete data; None for real numbers.
        table: whether it is a table, whose columns may have any units.
        notes: sentences worth printing.
        disk: all training rows of a table that stays on disk.
        classes: of the samples; None where they are not known.
        conditional: whether the distribution is that of samples given their class.
    """

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    columns: tuple[str, ...]
    levels: int | None = None
    table: bool = False
    notes: tuple[str, ...] = ()
    disk: Rows | None = None
    classes: Classes | None = None
    conditional: bool = False

    def digest(self) -> str:
        """SHA-256 of all samples and what they are given, or of their file, to tell whether a data set is the same."""
        if self.disk:
            return self.disk.digest()
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            digest.update(part.numpy().tobytes())
        if self.given:
            names, *labels = self.given
            digest.update("\n".join(names).encode())
            for part in labels:
                digest.update(part.numpy().tobytes())
        return digest.hexdigest()

    @property
    def given(self) -> Classes | None:
        """The classes that samples are given; None for a distribution of samples alone."""
        return self.classes if self.conditional else None

    def samples(self, part: str, most: int | None = None) -> Batch:
        """At most so many samples x (N, *S) of a part, or pairs (x, c) with the classes they are given, (N, K)."""
        x: Tensor = getattr(self, part)[:most]
        if self.given is None:
            return x
        return x, indicators(getattr(self.given, part)[:most], len(self.given.names))

    @property
    def size(self) -> int:
        """Number of training samples."""
        return len(self.disk or self.train)

    @property
    def shape(self) -> torch.Size:
        """Shape S of one sample."""
        return torch.Size(self.train.shape[1:])


def indicators(labels: Tensor, classes: int) -> Tensor:
    """Labels (N,) as contexts (N, K) of a density given one of K classes: 1 for that class, 0 for others."""
    return F.one_hot(labels, classes).to(torch.get_default_dtype())


def split(x: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shuffle by ``seed`` and split into 80% training, 10% validation and 10% test samples."""
    train, validation, test = split_rows(len(x), seed)
    return x[train], x[validation], x[test]


def split_rows(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of n samples that :func:`split` puts into each part."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    tenth = n // 10
    return order[2 * tenth :], order[tenth : 2 * tenth], order[:tenth]
