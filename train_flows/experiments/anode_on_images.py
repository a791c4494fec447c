"""Figures of Augmented Neural ODEs, and table 1 of Neural ODEs, on images.

Runs are those of ``train-flows classify`` without clipping, and figures those of the last epoch: nothing is chosen by
validation. The program trains on 90% of the training images and validates on the others; the papers train on all.
``--small`` is for CPUs: 2,000 images to train on and 1,000 to test on, of at most 16 pixels a side, half the filters
and epochs. The digits are small already.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from anode import InputError, classifier_model
from train_flows import recipes
from train_flows.data import LABELLED_NAMES
from train_flows.data.image_folders import TRAIN_NAMES
from train_flows.experiments.grid import Experiment, Scale, words
from train_flows.experiments.panels import against, by_epoch, draw_panels
from train_flows.experiments.results import SUCCESS, Results, by_data, in_words, spread

CLASSES = 10  # of all sets: networks of equal numbers of parameters have ten outputs
MAX_FILTERS = 4096
SMALLER = {"full": 1, "small": 2, "quick": 8}  # divisors of the number of filters
SMALL: dict[str, Any] = {"batch_size": 64, "train_size": 2000, "test_size": 1000}
QUICK: dict[str, Any] = {"batch_size": 16, "train_size": 40, "test_size": 20, "epochs": 2}
DIGITS: dict[str, Any] = {"epochs": 12, "batch_size": 32, "lr": 5e-3, "schedule": "cosine"}


class Family(NamedTuple):
    """Sets of images with the same settings: shape (C, H, W), augmented channels, filters of an ANODE."""

    shape: tuple[int, int, int]
    extra: int
    filters: int = 64


FAMILIES = {
    "mnist": Family((1, 28, 28), 5),
    "fashion": Family((1, 28, 28), 5),
    "cifar10": Family((3, 32, 32), 10),
    "svhn": Family((3, 32, 32), 10),
    "digits": Family((1, 8, 8), 5, filters=48),
    "imagenet64": Family((3, 64, 64), 5),  # a folder with ten of its classes
}


def family(data: str) -> str:
    """Return the family of a set or a folder by its name, such as ``cifar10`` for ``cifar10-jpeg``."""
    found = [name for name in FAMILIES if data.startswith(name)] + ["imagenet64"] * ("imagenet" in data)
    if not found:
        raise InputError(f"--data {data} does not begin with {', '.join(FAMILIES)}: rename the folder")
    return found[0]


def shape(data: str, scale: Scale) -> tuple[int, int, int]:
    """Return the shape of an image."""
    channels, side, _ = FAMILIES[family(data)].shape
    if side > 8 and scale.size != "full":
        side = side // 4 if scale.size == "quick" else min(16, side // 2)
    return channels, side, side


def check_classes(data: str, scale: Scale) -> None:
    """Refuse a folder of images with another number of classes than ten."""
    folder = Path(scale.source(data))
    if data in LABELLED_NAMES or not folder.is_dir():  # the program explains a missing folder
        return
    training = next((part for part in folder.iterdir() if part.name.lower() in TRAIN_NAMES), folder)
    count = sum(path.is_dir() and not path.name.startswith(".") for path in training.iterdir())
    if count != CLASSES:
        raise InputError(f"--data {data} has {count} classes, the experiments compare networks for {CLASSES}: keep ten")


def training(data: str, scale: Scale, model: Mapping[str, Any], **settings: Any) -> str:
    """Return the command line that trains a network: fields of its configuration, and settings other than usual."""
    check_classes(data, scale)
    if data == "digits":
        settings = DIGITS | settings
    elif scale.size == "small":
        settings = SMALL | settings | {"epochs": settings.get("epochs", 20) // 2}
    settings = {"epochs": 20, "batch_size": 256} | settings | (QUICK if scale.size == "quick" else {})
    if data != "digits" and (scale.size != "full" or data not in LABELLED_NAMES):
        settings["image_size"] = shape(data, scale)[-1]
    if model.get("model", "node") == "node":
        settings["gradient"] = "direct"
    return words("classify {data} --keep last --clip 1e9", {**model, **settings})


def convolutions(data: str, scale: Scale, extra: int) -> dict[str, Any]:
    """Return the paper's network of time-independent convolutions."""
    filters = scaled_filters(data, scale, FAMILIES[family(data)].filters)
    return {"field": "conv", "time": "none", "hidden": (filters,), "extra": extra}


def scaled_filters(data: str, scale: Scale, full: int) -> int:
    """Return the number of filters of a network that has ``full`` of them at full size."""
    return full if data == "digits" and scale.size == "small" else full // SMALLER[scale.size]


def pair(data: str, scale: Scale) -> dict[str, dict[str, Any]]:
    """Return NODE and ANODE with nearly the same number of parameters: at full size those of the paper."""
    extra, of = FAMILIES[family(data)].extra, shape(data, scale)
    anode, node = convolutions(data, scale, extra), convolutions(data, scale, 0)
    return {"NODE": {**node, "hidden": matched_filters(of, node, parameters(of, anode))}, f"ANODE p={extra}": anode}


def parameters(shape: Sequence[int], model: Mapping[str, Any]) -> int:
    """Return the number of parameters of a network."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in classifier_model(shape, CLASSES, **model).parameters())


def matched_filters(shape: Sequence[int], model: Mapping[str, Any], wanted: int) -> tuple[int]:
    """Return the number of filters with which a network has most nearly a number of parameters."""

    def count(filters: int) -> int:
        return parameters(shape, {**model, "hidden": (filters,)})

    above = bisect.bisect_left(range(MAX_FILTERS), wanted, lo=1, key=count)
    return (min((max(1, above - 1), above), key=lambda filters: abs(count(filters) - wanted)),)


# Figures 10 and 11

EXTRAS = (0, 5, 10, 100, 1, 2)  # the most telling first; 100 channels on grey images
CURVES_PUBLISHED = {
    "mnist": "p=10 has a loss in about 10 times fewer iterations",
    "cifar10": "p=10 has a loss in about 5 times fewer iterations, and 0.8 at about 50 evaluations instead of 100",
}


def _extras(data: str, scale: Scale) -> Mapping[str, str]:
    extras = [extra for extra in EXTRAS if extra < 100 or shape(data, scale)[0] == 1]
    return {f"p={extra}": training(data, scale, convolutions(data, scale, extra)) for extra in extras}


def _compare_extras(results: Results, data: str) -> dict[str, Any]:
    published = CURVES_PUBLISHED.get(family(data))
    findings: dict[str, Any] = {} if published is None else {"published, full size": published}
    for label in results.labels:
        augmented, plain = results.shared(label, "p=0")
        if label == "p=0" or not plain:
            continue
        losses = augmented.curves("loss").mean(0)
        below = np.flatnonzero(losses <= plain.mean("loss"))
        at = int(below[0]) if len(below) else None
        then = None if at is None else augmented.mean("nfe_forward", at) / plain.mean("nfe_forward")
        until = f"{'never' if at is None else at} of {len(losses) - 1}"
        findings[f"{label}, epochs until p=0's final loss"] = until
        findings[f"{label}, NFE at p=0's final loss over p=0's"] = then
        findings[f"{label}, NFE of the last epoch over p=0's"] = results.ratio(label, "p=0", "nfe_forward")
    return findings


# Table 1, figures 12 and 14; table 1 of Neural ODEs

ACCURACIES_PUBLISHED = {  # in per cent: by the papers, and by the reproduction for the NeurIPS 2019 challenge
    ("mnist", "NODE"): "96.4 +- 0.5, reproduced 95.57 +- 0.32",
    ("mnist", "ANODE"): "98.2 +- 0.1, reproduced 97.25 +- 0.54",
    ("cifar10", "NODE"): "53.7 +- 0.2, reproduced 51.72 +- 0.57",
    ("cifar10", "ANODE"): "60.6 +- 0.4, reproduced 52.42 +- 1.19",
    ("svhn", "NODE"): "81.0 +- 0.6",
    ("svhn", "ANODE"): "83.5 +- 0.5",
    ("mnist", "ODE-Net"): "99.58, 0.22M parameters",
    ("mnist", "ResNet"): "99.59, 0.60M parameters",
    ("mnist", "MLP"): "98.40, 0.24M parameters",
}
MIN_SIDE = 12  # of an image for the stem


def _accuracies(results: Results, data: str) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for label in results.labels:
        group, published = results.of(label), ACCURACIES_PUBLISHED.get((family(data), label.split()[0]))
        said = "" if published is None else f" (published, full size of {family(data)}: {published})"
        accuracies = 100 * group.last("test_accuracy")
        findings[f"{label}, test accuracy in %{said}"] = in_words(spread(accuracies)) if len(accuracies) else "-"
        findings[f"{label}, parameters"] = group.parameters()
        if label == "ODE-Net":
            findings["NFE of the ODE-Net in the last epoch"] = group.mean("nfe_forward")
        if label.startswith("ANODE"):
            findings["NFE of the last epoch, ANODE / NODE"] = results.ratio(label, "NODE", "nfe_forward")
    return findings


def _networks(data: str, scale: Scale) -> Mapping[str, str]:
    """Train all three by Adam, without the random crops and the 160 epochs of the public code."""
    filters, (channels, side, _) = scaled_filters(data, scale, 64), shape(data, scale)
    net: dict[str, Any] = {**recipes.ODENET, "hidden": (filters,), "extra": 0}
    if side < MIN_SIDE:
        net |= {"stem": "none", "lift": "learned", "extra": filters - channels}
    models = {
        "ODE-Net": {**net, "time": "concat"},
        "ResNet": {**net, "model": "resnet", "blocks": 6},
        "MLP": {"model": "mlp", "field": "mlp", "hidden": (300,), "extra": 0},
    }
    usual = {"epochs": 40, "batch_size": 128, "schedule": "cosine"}
    return {label: training(data, scale, model, **usual) for label, model in models.items()}


# Figure 13


def _few_images(data: str, scale: Scale) -> Mapping[str, str]:
    few = {"train_size": 500, "epochs": 200, "batch_size": 50, "max_steps": 166}  # 998 evaluations
    extra = FAMILIES[family(data)].extra
    models = {"NODE": convolutions(data, scale, 0), f"ANODE p={extra}": convolutions(data, scale, extra)}
    return {label: training(data, scale, model, **few) for label, model in models.items()}


def _jumps(results: Results, data: str) -> dict[str, Any]:
    findings: dict[str, Any] = {"published, full mnist": "NODE exceeds 1,000 evaluations and is unstable"}
    for label in results.labels:
        group = results.of(label)
        failed = ", ".join(o.status for o in group if o.status != SUCCESS) or "none"
        findings[f"{label}, runs ended by their evaluations or otherwise"] = failed
        if begun := Results(o for o in group if len(o.records) > 1):
            nfe, loss = begun.curves("nfe_forward"), begun.curves("loss")[:, 1:]
            ratios = loss / np.fmin.accumulate(loss, axis=1)
            highest = np.unravel_index(np.nanargmax(ratios), ratios.shape)
            most = f"{nfe[:, 1].mean():.0f}, {np.nanmax(nfe):.0f}"
            findings[f"{label}, NFE of the first epoch, and the most of any"] = most
            findings[f"{label}, largest loss of an epoch over the least before it"] = float(ratios[highest])
            findings[f"{label}, the loss of that epoch"] = float(loss[highest])
    return findings


EXPERIMENTS = {
    "image-curves": Experiment(
        "losses, evaluations and accuracy by the number of extra channels (fig. 10, 11)",
        ("mnist", "cifar10"),
        "images",
        _extras,
        lambda r: draw_panels(
            Results(sorted(r, key=lambda o: int(o.label.removeprefix("p=")))),
            by_epoch("loss"),
            by_epoch("nfe_forward"),
            against("nfe_forward", "loss", ".-", mean=True),
            against("nfe_forward", "test_accuracy", ".-", mean=True),
        ),
        lambda r: by_data(r, _compare_extras),
    ),
    "table1": Experiment(
        "test accuracy of NODE and ANODE with equally many parameters (table 1, fig. 12, 14)",
        ("mnist", "cifar10", "svhn"),
        "images",
        lambda data, scale: {label: training(data, scale, model) for label, model in pair(data, scale).items()},
        lambda r: draw_panels(r, *map(by_epoch, ("test_accuracy", "test_loss", "loss", "nfe_forward"))),
        lambda r: by_data(r, _accuracies),
    ),
    "stability": Experiment(
        "loss and evaluations when few images are overfitted (fig. 13)",
        ("mnist",),
        "images",
        _few_images,
        lambda r: draw_panels(r, *map(by_epoch, ("loss", "nfe_forward", "test_loss", "test_accuracy"))),
        lambda r: by_data(r, _jumps),
    ),
    "odenet": Experiment(
        "test accuracy of ODE-Net, residual network and perceptron (Neural ODEs, table 1)",
        ("mnist",),
        "images",
        _networks,
        lambda r: draw_panels(r, *map(by_epoch, ("loss", "test_accuracy", "nfe_forward"))),
        lambda r: by_data(r, _accuracies),
    ),
}
