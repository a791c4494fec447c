"""Named settings: for each data set the values that differ from the defaults; the command line overrides both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train_flows.data import images, paper, toy
from train_flows.unused import OF_LIKELIHOOD

SMALL: dict[str, Any] = {"gradient": "direct"}  # of data whose solves fit into memory
MATCHED: dict[str, Any] = {  # flow matching, then likelihood; tanh first, for outliers
    **SMALL,
    "activation": ("tanh", "silu"),
    "objective": "flow-matching+likelihood",
    "loosen": 100.0,
    "restart_lr": 5e-3,
}
DENSITY: dict[str, dict[str, Any]] = {
    "toy": {**SMALL, "hidden": (64, 64), "steps": 1200},
    "table": {**MATCHED, "whiten": True, "acceleration": 1e-2, "steps": 30000, "validate_every": 1000},
    "digits": {
        **MATCHED,
        "acceleration": 0.1,
        "steps": 12000,
        "validate_every": 500,
        "weight_decay": 1e-4,
        "ema": 0.99,
    },
    "small images": {
        **MATCHED,
        "hidden": (512, 512),
        "acceleration": 0.02,
        "steps": 9000,
        "validate_every": 1000,
        "batch_size": 256,
        "lr": 5e-3,
        "restart_lr": 2e-3,
        "ema": 0.99,
        "solver": "rk4",
    },
}
SMALL_SIZE = 16  # pixels a side, for which a perceptron trains within minutes
MULTISCALE: dict[str, Any] = {  # of RNODE, whose weights of energies are 0.01 in means and bits: 0.01 log 2 here
    "field": "stack",
    "hidden": (64, 64, 64),
    "activation": ("softplus",),
    "time": "concat",
    "blocks": 2,
    "multiscale": True,
    "divergence": "hutchinson",
    "kinetic": 0.0069,
    "frobenius": 0.0069,
    "solver": "rk4",
    "steps": 60000,
    "batch_size": 200,
    "lr": 1e-3,
    "lr_warm_up": 500,  # first steps of ten fields at once are too long else
    "validate_every": 500,
}
MATCHED_IMAGES: dict[str, Any] = {  # by flow matching, of one ODE
    "field": "unet",
    "hidden": (32, 64),
    "divergence": "hutchinson",
    "steps": 60000,
    "batch_size": 128,
    "lr": 1e-3,
    "ema": 0.999,
    "validate_every": 1000,
}
DARK = ("mnist", "fashion")  # whose many black pixels a larger alpha would spread over much of the line
FFJORD: dict[str, Any] = {  # of its published code for two dimensions, to compare with
    "hidden": (64, 64, 64),
    "time": "squash",
    "gradient": "adjoint",
    "loosen": 1.0,
    "steps": 2500,
    "lr": 1e-3,
    "schedule": "constant",
}


PAIRS: dict[str, dict[str, dict[str, int]]] = {  # NODE and ANODE of as many parameters nearly, of the ANODE paper
    "mnist": {"NODE": {"filters": 92}, "ANODE": {"filters": 64, "extra": 5}},
    "cifar10": {"NODE": {"filters": 125}, "ANODE": {"filters": 64, "extra": 10}},
    "svhn": {"NODE": {"filters": 125}, "ANODE": {"filters": 64, "extra": 10}},
    "imagenet64": {"NODE": {"filters": 164}, "ANODE": {"filters": 64, "extra": 5}},
}
IMAGES: dict[str, Any] = {"field": "conv", "time": "none", "epochs": 20, "batch_size": 256, **PAIRS["mnist"]["ANODE"]}
KINDS: dict[str, dict[str, Any]] = {"paper": SMALL, "table": {**SMALL, "epochs": 100, "extra": 5}, "images": IMAGES}
CLASSIFY: dict[str, dict[str, Any]] = {
    "cifar10": {**IMAGES, **PAIRS["cifar10"]["ANODE"]},
    "svhn": {**IMAGES, **PAIRS["svhn"]["ANODE"]},
    "digits": {**IMAGES, **SMALL, "filters": 48, "epochs": 12, "batch_size": 32, "lr": 5e-3, "schedule": "cosine"},
}
OF_NODES = ("extra", "field")  # what recipes say of these is not for other networks
ODENET = {"field": "norm-conv", "stem": "conv", "readout": "pool"}


def density(source: str, objective: str = "likelihood", image_size: int | None = None) -> dict[str, Any]:
    """The recipe of a data set of ``train-flows density`` and an objective: its own, or that of its kind.

    Args:
        source: a name or a path.
        objective: what is typed.
        image_size: height and width that images are brought to.
    """
    if source in DENSITY or not _pictured(source):
        recipe = DENSITY.get(source, DENSITY["toy" if source in toy.DENSITIES else "table"])
    else:
        small = image_size is not None and image_size <= SMALL_SIZE
        recipe = DENSITY["small images"] if small else MULTISCALE if objective == "likelihood" else MATCHED_IMAGES
        recipe = {**recipe, "alpha": 1e-6} if source in DARK else recipe
    return {name: x for name, x in recipe.items() if objective != "flow-matching" or name not in OF_LIKELIHOOD}


def classify(source: str, model: str = "node") -> dict[str, Any]:
    """The recipe of a data set of ``train-flows classify`` and a kind of network: its own, or that of its kind."""
    kind = "paper" if paper.known(source) else "images" if _pictured(source) else "table"
    recipe = CLASSIFY.get(source, KINDS[kind])
    return {name: x for name, x in recipe.items() if model in ("node", "resnet") or name not in OF_NODES}


def _pictured(source: str) -> bool:
    """Whether data are images."""
    return images.known(source) or Path(source).is_dir()
