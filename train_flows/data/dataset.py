"""Data ready for training: three splits of samples, with their names, labels, contexts and notes."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anode import InputError
from cnf.tables import Column
from train_flows.data.grids import Grid

SEED_STRIDE = 1_000_003  # between the seeds of random streams that belong together
MAX_HEAD = 100_000  # samples of a mapped part that are read into memory together
LETTERS = 60  # of a name in a message


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set, in original units.

    Attributes:
        x: samples (N, *S), real numbers, or uint8 for images. For a mapped table, the whole file: read it by
            :meth:`batch`.
        y: classes (N,), int64, or target values (N, K); None without labels.
        c: contexts (N, K) of a conditional density; None without contexts.
        weights: positive relative weights (N,), float64, of rows that count as more or less than one; None if equal.
        rows: for a mapped table, the rows (N,) of the file that belong to this part; None for samples in memory.
        dtype: precision in which a mapped table is read.
        widths: for a mapped table, the widths (D,) of uniform noise that is drawn whenever rows are read, or None.
    """

    x: Tensor
    y: Tensor | None = None
    c: Tensor | None = None
    weights: Tensor | None = None
    rows: Tensor | None = None
    dtype: torch.dtype = torch.float32
    widths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x if self.rows is None else self.rows)

    @property
    def mapped(self) -> bool:
        """True if the samples are read from disk."""
        return self.rows is not None

    def take(self, rows: Tensor | slice) -> Split:
        """Return some of the samples; those of a mapped table stay on disk."""
        if self.rows is not None:
            return dataclasses.replace(self, rows=self.rows[rows])
        y, c, weights = (None if part is None else part[rows] for part in (self.y, self.c, self.weights))
        return Split(self.x[rows], y, c, weights)

    def head(self, n: int | None = None) -> Split:
        """Return at most n samples in memory; all of them without n, but at most 100,000 of a mapped table.

        A training part is in random order, so these are a random sample.
        """
        if self.rows is None:
            return self.take(slice(n))
        return Split(self._read(self.rows[: MAX_HEAD if n is None else n]))

    def joined(self, other: Split) -> Split:
        """Return the samples of two parts in memory, those of the other one last."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in ("x", "y", "c", "weights")}
        return dataclasses.replace(self, **{name: torch.cat(pair) for name, pair in pairs.items() if None not in pair})

    def evened(self, seed: int = 0) -> Split:
        """Return samples of equal weights with the distribution of the weighted ones, drawn by the seed.

        Each is kept with the probability w / max(w), so that none occurs twice.
        """
        if self.weights is None:
            return self
        drawn = torch.rand(len(self), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        kept = drawn < self.weights / self.weights.max()
        return dataclasses.replace(self.take(kept), weights=None)

    def batch(self, rows: Tensor | slice) -> Tensor | tuple[Tensor, Tensor]:
        """Return samples x (B, *S), or pairs: (x, c) with contexts, otherwise (x, y) with labels."""
        if self.rows is not None:
            return self._read(self.rows[rows])
        given = self.y if self.c is None else self.c
        return self.x[rows] if given is None else (self.x[rows], given[rows])

    def to(self, dtype: torch.dtype) -> Split:
        """Return the samples and contexts in another precision."""
        if self.rows is not None:
            return dataclasses.replace(self, dtype=dtype)
        return dataclasses.replace(self, x=self.x.to(dtype), c=None if self.c is None else self.c.to(dtype))

    def with_noise(self, widths: np.ndarray, rng: np.random.Generator) -> Split:
        """Add uniform noise as wide as ``widths`` (D,), with mean 0, to the samples of a table."""
        if self.rows is not None:
            return dataclasses.replace(self, widths=torch.from_numpy(widths))
        x = self.x.to(torch.float64, copy=True)
        for i in np.flatnonzero(widths):
            x[:, i] += torch.from_numpy(widths[i] * rng.uniform(-0.5, 0.5, size=len(x)))
        return dataclasses.replace(self, x=x.to(self.x.dtype))

    def _read(self, rows: Tensor) -> Tensor:
        x = self.x[rows]
        return (x if self.widths is None else x + self.widths * (torch.rand(x.shape) - 0.5)).to(self.dtype)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of a data set and everything a program has to know about them.

    Attributes:
        name: what to call it in reports.
        train: samples to train on.
        validation: samples that choose the best weights.
        test: samples for the reported figures.
        columns: names of the D dimensions of a sample, flattened.
        levels: number of values a pixel takes; None for real numbers.
        classes: names of the classes; empty if there are none, or if the targets are values.
        context: names of the K contexts: classes, or columns of a table; empty if nothing is given.
        is_table: True for a table, whose columns may have any units.
        named: True if the data name their columns, so that other data match by name; False for x0, x1, ... in order
        grids: grids of the columns to which noise of that width was added, by column.
        features: all columns of the table in order, learned, given or left out, without weights.
        kinds: the kinds of the columns of a table that has others than real numbers; then samples are rows of cells,
            float64, see :class:`cnf.tables.Column`.
        given: the kinds of the contexts of such a table.
        left_out: columns of the file that are not learned, but belong to its rows.
        overview: lines on the kinds of the columns.
        heavy_tailed: columns whose standard deviation is set by a few rows.
        notes: sentences to print once and to keep with the results.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    columns: tuple[str, ...]
    levels: int | None = None
    classes: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    is_table: bool = False
    named: bool = True
    grids: Mapping[str, Grid] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    kinds: tuple[Column, ...] = ()
    given: tuple[Column, ...] = ()
    left_out: tuple[Any, ...] = ()
    overview: str = ""
    heavy_tailed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> torch.Size:
        """Shape S of one sample."""
        return torch.Size(self.test.x.shape[1:])

    @property
    def outputs(self) -> int:
        """Number of outputs of a classifier: classes, or target values."""
        if self.classes:
            return len(self.classes)
        return 0 if self.test.y is None else self.test.y.shape[1]

    def digest(self) -> str:
        """Return the SHA-256 of all samples; of a mapped table, of its shape and the parts in memory."""
        digest = hashlib.sha256("\n".join((*self.classes, *self.context)).encode())
        for part in (self.train, self.validation, self.test):
            if part.mapped:
                digest.update(str((len(part), *part.x.shape)).encode())
                continue
            for tensor in (part.x, part.y, part.c, part.weights):
                if tensor is not None:
                    digest.update(tensor.contiguous().numpy())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return the plain values that a stored model keeps of its data, for :meth:`match` and for its samples."""
        names = {name: list(getattr(self, name)) for name in ("shape", "columns", "features", "classes", "context")}
        grids = {column: dataclasses.asdict(grid) for column, grid in self.grids.items()}
        from_zero: list[str] = []
        if self.is_table and not self.kinds and self.levels is None and len(self.train):
            low = self.train.head().x.flatten(1).amin(dim=0)
            from_zero = [column for column, value in zip(self.columns, low.tolist(), strict=True) if value >= 0]
        about = {"name": self.name, "sha256": self.digest(), "levels": self.levels, "named": self.named}
        left_out = [dataclasses.asdict(each) for each in self.left_out]
        return {**about, **names, "grids": grids, "from_zero": from_zero, "left_out": left_out}

    def jittered(self, grids: Mapping[str, Grid], seed: int) -> Dataset:
        """Return a table with uniform noise, drawn by the seed and as wide as its step, in the columns of grids."""
        rng, widths = np.random.default_rng(seed), np.zeros(len(self.columns))
        for column, grid in grids.items():
            widths[self.columns.index(column)] = grid.step
        if not widths.any():
            return self
        train, validation, test = (part.with_noise(widths, rng) for part in (self.train, self.validation, self.test))
        return dataclasses.replace(self, train=train, validation=validation, test=test, grids=dict(grids))

    def without_test(self) -> Dataset:
        """Return the data set with its test samples among those to train on."""
        return dataclasses.replace(self, train=self.train.joined(self.test), test=self.test.take(slice(0)))

    def evened(self, seed: int = 0) -> Dataset:
        """Return the data set with samples of equal weights, see :meth:`Split.evened`."""
        parts = {name: getattr(self, name).evened(seed) for name in ("train", "validation", "test")}
        return dataclasses.replace(self, **parts)

    def match(self, trained: Mapping[str, Any], model: str) -> Dataset:
        """Return the data with columns and class numbers in the order that a stored model expects.

        Args:
            trained: what :meth:`describe` returned for the data of the model.
            model: name of the model in messages, such as its folder.
        """
        shape, levels, columns = tuple(trained["shape"]), trained["levels"], tuple(trained["columns"])
        order: Tensor | slice = slice(None)
        own_levels, numbers, notes = self.levels, None, self.notes
        if self.levels is None and self.columns != columns and self.named and trained.get("named", True) and columns:
            missing = [name for name in columns if name not in self.columns]
            if missing and len(shape) == 1:
                raise InputError(
                    f"{self.name} lacks the columns {abbreviate(missing)} of {model}; "
                    f"it has {abbreviate(self.columns)}: rename them"
                )
            if not missing:
                order = torch.tensor([self.columns.index(name) for name in columns])
                spare = [name for name in self.columns if name not in columns]
                notes += (f"{abbreviate(spare)}: left out, for {model} was trained without",) if spare else ()
        colours = 3 if levels and self.levels and (self.shape[0], shape[0]) == (1, 3) else 1  # of grey images
        own_shape = (colours * len(self.test.x[0, order]), *self.shape[1:])
        if self.levels is None and math.prod(own_shape) == math.prod(shape) and not self.test.mapped:
            own_shape, own_levels = shape, levels  # such as pixels in columns
        if (own_shape, own_levels) != (shape, levels):
            found, expected = ("x".join(map(str, sizes)) for sizes in (own_shape, shape))
            raise InputError(
                f"{self.name} has samples of shape {found}, levels={own_levels}; {model} was trained on {expected}, "
                f"levels={levels} ({abbreviate(columns)}): pass the same columns or pixels"
            )
        classes = tuple(trained["classes"])
        if classes:
            if self.test.y is None or not self.classes:
                raise InputError(f"{self.name} lacks classes, which {model} needs: pass data in classes")
            if unknown := sorted(set(self.classes) - set(classes)):
                raise InputError(
                    f"{self.name} holds the class {unknown[0]}, {model} knows {abbreviate(classes)}: "
                    "rename or remove it"
                )
            numbers = torch.tensor([classes.index(name) for name in self.classes])

        def matched(part: Split) -> Split:
            y, c = part.y, part.c
            if numbers is not None and y is not None:
                y = numbers[y]
                c = class_contexts(y, len(classes)) if tuple(trained["context"]) == classes else None
            x = part.x if part.mapped else part.x[:, order].repeat_interleave(colours, 1).view(-1, *shape)
            return dataclasses.replace(part, x=x, y=y, c=c)

        parts = {name: matched(getattr(self, name)) for name in ("train", "validation", "test")}
        own = self.columns if isinstance(order, slice) else columns
        name_of = dict(zip(own, columns, strict=False))  # without columns that are left out
        return dataclasses.replace(
            self,
            **parts,
            columns=columns,
            levels=levels,
            classes=classes,
            grids={name_of[name]: grid for name, grid in self.grids.items() if name in name_of},
            heavy_tailed=tuple(name_of[name] for name in self.heavy_tailed if name in name_of),
            notes=notes,
        )

    def limited(self, train_size: int | None, test_size: int | None, seed: int) -> Dataset:
        """Return a data set with fewer training and test samples, drawn by the seed; a tenth as many validate."""
        train, validation, test, notes = self.train, self.validation, self.test, list(self.notes)
        for option, size, part in (("--train-size", train_size, train), ("--test-size", test_size, test)):
            if size is not None and not 1 <= size <= len(part):
                what = "training samples, without those for validation" if part is train else "test samples"
                raise InputError(f"{option} {size} must be from 1 to {len(part)}, the number of {what} of {self.name}")
        if train_size not in (None, len(train)):
            notes.append(f"{train_size:,} of {len(train) + len(validation):,} training samples")
            rows = slice(train_size) if self.levels else shuffled(len(train), seed)[:train_size]  # images are shuffled
            train = train.take(rows)
            validation = validation.take(shuffled(len(validation), seed)[: max(1, train_size // 10)])
        if test_size not in (None, len(test)):
            notes.append(f"{test_size:,} of {len(test):,} test samples")
            test = test.take(shuffled(len(test), seed)[:test_size])
        for name, part in (("training", train), ("validation", validation), ("test", test)):
            if self.classes and part.y is not None and len(train):
                counts = torch.bincount(part.y, minlength=len(self.classes)).tolist()
                missing = [name for name, count in zip(self.classes, counts, strict=True) if count == 0]
                notes += [f"no {name} sample of class {abbreviate(missing)}"] if missing else []
        return dataclasses.replace(self, train=train, validation=validation, test=test, notes=tuple(notes))


def description_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :meth:`Dataset.describe` found for the data of a model, as far as its ``config.json`` knows it."""
    model = config["model"]
    shape = model.get("shape", [len(model.get("columns", []))])
    known = {"shape": shape, "levels": model.get("levels"), "classes": model.get("classes", [])}
    return {"columns": [], "context": [], "grids": {}, "from_zero": [], **known, **config.get("data", {})}


def three_splits(
    samples: Split, seed: int, split: bool = True, max_held_out: int | None = None
) -> tuple[Split, Split, Split]:
    """Shuffle samples by the seed and split them into 80% for training, 10% for validation and 10% for testing.

    Classes are split in these proportions, too, and have a sample in each part as far as they reach: the first trains,
    the second validates, the third tests. At most ``max_held_out`` samples validate, and test; without ``split``, all
    samples are the test part.
    """
    if not split:
        return samples.take(slice(0)), samples.take(slice(0)), samples
    order, tenth = shuffled(len(samples), seed), min(len(samples) // 10, max_held_out or len(samples))
    if samples.y is not None and not samples.y.is_floating_point():
        held_out, rest = _by_class(order, samples.y, tenth)
        order = torch.cat([held_out, rest[shuffled(len(rest), seed)]])  # its first rows are not of all classes
    return samples.take(order[2 * tenth :]), samples.take(order[tenth : 2 * tenth]), samples.take(order[:tenth])


def shuffled(n: int, seed: int) -> Tensor:
    """Return a random permutation of n rows."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _by_class(order: Tensor, y: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return two parts of a size that hold the classes y[rows] in proportion, joined, and the other rows.

    The j-th of n rows of a class has the place j / n; those with the smallest places are held out.
    """
    held_out = []
    for spare in (2, 1):  # rows of a class that are left for the other parts
        labels = y[order]
        counts, grouped = torch.bincount(labels), labels.argsort(stable=True)
        place = torch.empty(len(order), dtype=torch.float64)
        place[grouped] = torch.arange(len(order), dtype=torch.float64) - (counts.cumsum(0) - counts)[labels[grouped]]
        place = torch.where(counts[labels] > spare, place / counts[labels], torch.inf)
        first = place.argsort(stable=True)[:size]
        held_out.append(order[first])
        rest = torch.ones(len(order), dtype=torch.bool).index_fill(0, first, False)
        order = order[rest]
    return torch.cat(held_out), order


def class_contexts(labels: Tensor, n_classes: int) -> Tensor:
    """Return labels (N,) as contexts (N, K) of a density given one of K classes: 1 for that class, 0 for others."""
    return F.one_hot(labels, n_classes).to(torch.get_default_dtype())


def class_order(name: str) -> tuple[float, str]:
    """Return the sort key of a class name: numbers by value, then words by alphabet."""
    value = finite_number(name)
    return math.inf if value is None else value, name


def finite_number(text: str) -> float | None:
    """Return the finite number that a text spells, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def abbreviate(names: Sequence[str]) -> str:
    """Return the first names of a long list, for a message of one line."""
    short = [re.sub(r"\s*[\r\n]\s*", " ", name) for name in names[:8]]
    short = [name if len(name) <= LETTERS else f"{name[: LETTERS - 3]}..." for name in short]
    return ", ".join([*short, *["..."] * (len(names) > 8)])
