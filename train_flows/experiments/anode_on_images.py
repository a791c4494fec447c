"""Figures of Augmented Neural ODEs, and table 1 of Neural ODEs, on images.

Runs are those of ``train-flows classify`` without clipping, and figures those of the last epoch: nothing is chosen by
validation. The program keeps a tenth of the training images to validate on; the papers train on these as well.
``--small`` is for CPUs: 2,000 images to train on and 1,000 to test on, of at most 16 pixels a side, half the filters
and epochs. The digits are small already.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anode import InputError, classifier_model
from train_flows import recipes
from train_flows.data import LABELLED_NAMES
from train_flows.experiments.grid import Experiment, Scale, words
from train_flows.experiments.results import SUCCESS, Results, by_data, spread
from train_flows.figures import plots

CLASSES = 10  # of all sets; the numbers of parameters in the paper are those of ten outputs
MOST_FILTERS = 4096
SMALLER = {"full": 1, "small": 2, "quick": 8}  # divisors of the number of filters
SMALL: dict[str, Any] = {"batch_size": 64, "train_size": 2000, "test_size": 1000}
QUICK: dict[str, Any] = {"batch_size": 16, "train_size": 40, "test_size": 20, "epochs": 2}
DIGITS: dict[str, Any] = {"epochs": 12, "batch_size": 32, "lr": 5e-3, "schedule": "cosine"}
LABELS = {
    "loss": "training loss",
    "nfe_forward": "evaluations per solve",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
}
FEW = 5  # labels, whose legend fits into every panel


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


def training(data: str, scale: Scale, model: Mapping[str, Any], **settings: Any) -> str:
    """Return the command line that trains a network: fields of its configuration, and settings other than usual."""
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
    """Return NODE and ANODE with nearly the same number of parameters: at full size the paper's."""
    name = family(data)
    extra = FAMILIES[name].extra
    anode, node = convolutions(data, scale, extra), convolutions(data, scale, 0)
    if name in recipes.PAIRS and scale.size == "full":
        node["hidden"] = recipes.PAIRS[name]["NODE"]["hidden"]
    else:
        node["hidden"] = (matched_filters(shape(data, scale), parameters(shape(data, scale), anode), node),)
    return {"NODE": node, f"ANODE p={extra}": anode}


def parameters(shape: Sequence[int], model: Mapping[str, Any]) -> int:
    """Return the number of parameters of a network."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in classifier_model(shape, CLASSES, **model).parameters())


def matched_filters(shape: Sequence[int], wanted: int, model: Mapping[str, Any]) -> int:
    """Return the number of filters with which a network has most nearly a number of parameters."""

    def count(filters: int) -> int:
        return parameters(shape, {**model, "hidden": (filters,)})

    above = bisect.bisect_left(range(MOST_FILTERS), wanted, lo=1, key=count)
    return min((max(1, above - 1), above), key=lambda filters: abs(count(filters) - wanted))


def draw_rows(results: Results, *panels: str | tuple[str, str]) -> Figure:
    """Draw a row for each set of images: figures of the records by epoch, or one of a pair against the other."""
    sets = results.data
    figure = Figure(figsize=(4.2 * len(panels), 3.4 * len(sets)), layout="constrained")
    for row, data in zip(figure.subplots(len(sets), len(panels), squeeze=False), sets, strict=True):
        groups = {label: results.of(label, data) for label in _in_order(results.of(data=data).labels)}
        for axes, panel in zip(row, panels, strict=True):
            if isinstance(panel, tuple):
                _draw_against(axes, groups, *panel)
            else:
                values = {label: group.curves(panel) for label, group in groups.items()}
                for each in values.values():
                    each[:, :1] = np.nan  # before training, which would hide the rest
                plots.bands(axes, values, "", LABELS[panel], log=panel == "loss")
            axes.set_title(data)
            if len(groups) > FEW and axes is not row[0]:
                axes.get_legend().remove()
    return figure


def _in_order(labels: Sequence[str]) -> list[str]:
    """Return labels such as p=5 by their number, others as they are."""
    return sorted(labels, key=lambda label: int(label[2:]) if label.startswith("p=") else 0)


def _draw_against(axes: Axes, groups: Mapping[str, Results], x: str, y: str) -> None:
    """Draw means over seeds, epoch by epoch."""
    for (label, group), color in zip(groups.items(), plots.line_colors(len(groups)), strict=True):
        across, up = (np.ma.masked_invalid(group.curves(metric)).mean(0).filled(np.nan) for metric in (x, y))
        axes.plot(across, up, ".-", lw=0.8, ms=4, label=label, color=color)
    axes.set(xlabel=LABELS[x], ylabel=LABELS[y])
    if y == "loss":
        plots.log_y(axes)
    axes.legend()


# Figures 10 and 11

EXCESSIVE = 100  # channels, on grey images
EXTRAS = (0, 5, 10, EXCESSIVE, 1, 2)  # the most telling first
CURVES_PUBLISHED = {
    "mnist": "p=10 has a loss in about 10 times fewer iterations",
    "cifar10": "p=10 has a loss in about 5 times fewer iterations, and 0.8 at about 50 evaluations instead of 100",
}


def _extras(data: str, scale: Scale) -> Mapping[str, str]:
    extras = [extra for extra in EXTRAS if extra != EXCESSIVE or FAMILIES[family(data)].shape[0] == 1]
    return {f"p={extra}": training(data, scale, convolutions(data, scale, extra)) for extra in extras}


def _compare_extras(results: Results, data: str) -> dict[str, Any]:
    published = CURVES_PUBLISHED.get(family(data))
    findings: dict[str, Any] = {} if published is None else {"published, full size": published}
    for label in results.labels:
        augmented, plain = results.shared(label, "p=0")
        if label == "p=0" or not len(plain):
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


# Table 1, figures 12 and 14

TABLE1_PUBLISHED = {  # accuracy in per cent: by the paper, and by its reproduction for the NeurIPS 2019 challenge
    ("mnist", "NODE"): "96.4 +- 0.5, reproduced 95.57 +- 0.32",
    ("mnist", "ANODE"): "98.2 +- 0.1, reproduced 97.25 +- 0.54",
    ("cifar10", "NODE"): "53.7 +- 0.2, reproduced 51.72 +- 0.57",
    ("cifar10", "ANODE"): "60.6 +- 0.4, reproduced 52.42 +- 1.19",
    ("svhn", "NODE"): "81.0 +- 0.6",
    ("svhn", "ANODE"): "83.5 +- 0.5",
}


def _accuracies(results: Results, data: str) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for label in results.labels:
        published = TABLE1_PUBLISHED.get((family(data), label.split()[0]))
        said = "" if published is None else f" (published, full size of {family(data)}: {published})"
        accuracies = 100 * results.of(label).last("test_accuracy")
        findings[f"{label}, test accuracy in %{said}"] = spread(accuracies) if len(accuracies) else None
        findings[f"{label}, parameters"] = results.of(label).parameters()
    anode = f"ANODE p={FAMILIES[family(data)].extra}"
    return findings | {"NFE of the last epoch, ANODE / NODE": results.ratio(anode, "NODE", "nfe_forward")}


# Figure 13


def _few_images(data: str, scale: Scale) -> Mapping[str, str]:
    few = {"train_size": 500, "epochs": 200, "batch_size": 50, "max_steps": 166}  # 998 evaluations
    extras = {"NODE": 0, f"ANODE p={FAMILIES[family(data)].extra}": FAMILIES[family(data)].extra}
    return {label: training(data, scale, convolutions(data, scale, extra), **few) for label, extra in extras.items()}


def _jumps(results: Results, data: str) -> dict[str, Any]:
    findings: dict[str, Any] = {"published, full mnist": "NODE exceeds 1,000 evaluations and is unstable"}
    for label in results.labels:
        group = results.of(label)
        failed = ", ".join(o.status for o in group if o.status != SUCCESS) or "none"
        findings[f"{label}, runs ended by their evaluations or otherwise"] = failed
        begun = Results([o for o in group if len(o.records) > 1])
        if len(begun):
            nfe, loss = begun.curves("nfe_forward"), begun.curves("loss")[:, 1:]
            ratios = loss / np.fmin.accumulate(loss, axis=1)
            highest = np.unravel_index(np.nanargmax(ratios), ratios.shape)
            most = f"{nfe[:, 1].mean():.0f}, {np.nanmax(nfe):.0f}"
            findings[f"{label}, NFE of the first epoch, and the most of any"] = most
            findings[f"{label}, largest loss of an epoch over the least before it"] = float(ratios[highest])
            findings[f"{label}, the loss of that epoch"] = float(loss[highest])
    return findings


# Table 1 of Neural ODEs

ODENET_PUBLISHED = {"ODE-Net": "0.42, 0.22M parameters", "ResNet": "0.41, 0.60M", "MLP": "1.60, 0.24M"}
LEAST_SIDE = 12  # of an image for the stem


def _networks(data: str, scale: Scale) -> Mapping[str, str]:
    """Train all three by Adam, without the random crops and the 160 epochs of the public code."""
    filters, (channels, side, _) = scaled_filters(data, scale, 64), shape(data, scale)
    net: dict[str, Any] = {**recipes.ODENET, "hidden": (filters,), "extra": 0}
    if side < LEAST_SIDE:
        net |= {"stem": "none", "lift": "learned", "extra": filters - channels}
    models = {
        "ODE-Net": {**net, "time": "concat"},
        "ResNet": {**net, "model": "resnet", "blocks": 6},
        "MLP": {"model": "mlp", "field": "mlp", "hidden": (300,), "extra": 0},
    }
    usual = {"epochs": 40, "batch_size": 128, "schedule": "cosine"}
    return {label: training(data, scale, model, **usual) for label, model in models.items()}


def _errors(results: Results, data: str) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for label, published in ODENET_PUBLISHED.items():
        errors = ", ".join(f"{error:.2f}" for error in 100 - 100 * results.of(label).last("test_accuracy")) or "-"
        findings[f"{label}, test error in % (published, full size of mnist: {published})"] = errors
        findings[f"{label}, parameters"] = results.of(label).parameters()
    return findings | {"NFE of the ODE-Net in the last epoch": results.of("ODE-Net").mean("nfe_forward")}


EXPERIMENTS = {
    "image-curves": Experiment(
        "losses, evaluations and accuracy by the number of extra channels (fig. 10, 11)",
        ("mnist", "cifar10"),
        "images",
        _extras,
        lambda r: draw_rows(r, "loss", "nfe_forward", ("nfe_forward", "loss"), ("nfe_forward", "test_accuracy")),
        lambda r: by_data(r, _compare_extras),
    ),
    "table1": Experiment(
        "test accuracy of NODE and ANODE with as many parameters (table 1, fig. 12, 14)",
        ("mnist", "cifar10", "svhn"),
        "images",
        lambda data, scale: {label: training(data, scale, model) for label, model in pair(data, scale).items()},
        lambda r: draw_rows(r, "test_accuracy", "test_loss", "loss", "nfe_forward"),
        lambda r: by_data(r, _accuracies),
    ),
    "stability": Experiment(
        "loss and evaluations when few images are overfitted (fig. 13)",
        ("mnist",),
        "images",
        _few_images,
        lambda r: draw_rows(r, "loss", "nfe_forward", "test_loss", "test_accuracy"),
        lambda r: by_data(r, _jumps),
    ),
    "odenet": Experiment(
        "test error of ODE-Net, residual network and perceptron (Neural ODEs, table 1)",
        ("mnist",),
        "images",
        _networks,
        lambda r: draw_rows(r, "loss", "test_accuracy", "nfe_forward"),
        lambda r: by_data(r, _errors),
    ),
}
