"""How large image experiments are: as in the paper, small enough for a CPU, or only to see that they run."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from anode import InputError, classifier
from train_flows import recipes
from train_flows.data import images
from train_flows.paper.image_trials import ImageTrial

DIGITS: dict[str, Any] = {"epochs": 12, "batch_size": 32, "lr": 5e-3, "schedule": "cosine"}
SMALL: dict[str, Any] = {"batch_size": 64, "train_size": 2000, "test_size": 1000}
QUICK: dict[str, Any] = {"batch_size": 16, "train_size": 40, "test_size": 20, "epochs": 2}
SMALLER = {"full": 1, "small": 2, "quick": 8}  # how many times fewer filters
CLASSES = 10  # of every set
MOST_FILTERS = 4096


class Family(NamedTuple):
    """Sets of images for which the paper has the same settings.

    Attributes:
        shape: of an image, (C, H, W).
        extra: channels the paper augments by.
        classes: the first so many are told apart; all of them when None.
        filters: of an ANODE.
    """

    shape: tuple[int, int, int]
    extra: int
    classes: int | None = None
    filters: int = 64


FAMILIES = {
    "mnist": Family((1, 28, 28), recipes.PAIRS["mnist"]["ANODE"]["extra"]),
    "fashion": Family((1, 28, 28), recipes.PAIRS["mnist"]["ANODE"]["extra"]),
    "cifar10": Family((3, 32, 32), recipes.PAIRS["cifar10"]["ANODE"]["extra"]),
    "svhn": Family((3, 32, 32), recipes.PAIRS["svhn"]["ANODE"]["extra"]),
    # the paper's numbers of parameters are those of ten outputs
    "imagenet64": Family((3, 64, 64), recipes.PAIRS["imagenet64"]["ANODE"]["extra"], classes=CLASSES),
    "digits": Family((1, 8, 8), recipes.IMAGES["extra"], filters=48),
}


def family(data: str) -> str:
    """The family of a set or folder by its name, such as ``cifar10`` for ``cifar10-jpeg``.

    Raises:
        InputError: for a name of no family.
    """
    for name in FAMILIES:
        if data.startswith(name):
            return name
    if "imagenet" in data:
        return "imagenet64"
    raise InputError(
        f"--data {data} does not begin with {', '.join(FAMILIES)}, nor is it an imagenet: rename the folder"
    )


@dataclass(frozen=True)
class Scale:
    """The size of image experiments."""

    size: Literal["full", "small", "quick"] = "full"

    def trial(self, name: str, data: str, model: dict[str, Any], **settings: Any) -> ImageTrial:
        """A trial of this size, for the settings of a full one.

        A small one has 2,000 images to train on, 1,000 to test on, of at most 16 pixels a side, half the epochs, and
        batches of 64 where ``settings`` say nothing else. The digits are small already.
        """
        kind = family(data)
        if not images.known(data):
            settings["image_size"] = self.shape(data)[-1]
        if kind == "digits":
            settings = DIGITS | settings
        elif self.size == "small":
            epochs = settings.pop("epochs", ImageTrial.epochs) // 2
            settings = {"image_size": self.shape(data)[-1], "epochs": epochs, **SMALL, **settings}
        if self.size == "quick":
            settings |= {"image_size": self.shape(data)[-1], **QUICK}
        return ImageTrial(name, data, model, classes=FAMILIES[kind].classes, **settings)

    def shape(self, data: str) -> tuple[int, int, int]:
        """The shape of an image."""
        channels, side, _ = FAMILIES[family(data)].shape
        if side > 8 and self.size != "full":
            side = side // 4 if self.size == "quick" else min(16, side // 2)
        return channels, side, side

    def conv(self, data: str, extra: int, filters: int | None = None) -> dict[str, Any]:
        """The paper's network of time-independent convolutions; ``filters`` are those of the full size."""
        filters = self.filters(data, filters or FAMILIES[family(data)].filters)
        return {"field": "conv", "time": "none", "filters": filters, "extra": extra}

    def filters(self, data: str, full: int) -> int:
        """How many filters a network has that has so many at full size; the digits are small already."""
        small = family(data) == "digits" and self.size == "small"
        return full if small else full // SMALLER[self.size]

    def pair(self, data: str, filters: int | None = None) -> dict[str, dict[str, Any]]:
        """NODE and ANODE of as many parameters, nearly: where the size is full, those of the paper."""
        kind = family(data)
        extra = FAMILIES[kind].extra
        anode, node = self.conv(data, extra, filters), self.conv(data, 0)
        if kind in recipes.PAIRS and (self.size, filters) == ("full", None):
            node["filters"] = recipes.PAIRS[kind]["NODE"]["filters"]
        else:
            node["filters"] = matched_filters(self.shape(data), parameters(self.shape(data), anode), node)
        return {"NODE": node, f"ANODE p={extra}": anode}


def shape_of(trial: ImageTrial) -> tuple[int, int, int]:
    """The shape of an image of a trial."""
    channels, side, _ = FAMILIES[family(trial.data)].shape
    side = trial.image_size or side
    return channels, side, side


def parameters(shape: tuple[int, ...], model: dict[str, Any], outputs: int = CLASSES) -> int:
    """How many parameters a model has."""
    with torch.device("meta"):
        return sum(each.numel() for each in classifier(shape, outputs, **model).parameters())


def matched_filters(shape: tuple[int, ...], wanted: int, model: dict[str, Any]) -> int:
    """The number of filters with which a model comes nearest to as many parameters as wanted."""

    def count(filters: int) -> int:
        return parameters(shape, {**model, "filters": filters})

    above = bisect.bisect_left(range(MOST_FILTERS), wanted, lo=1, key=count)
    return min((max(1, above - 1), above), key=lambda filters: abs(count(filters) - wanted))
