"""Recipes: named sets of options that suit a kind of data; typed options win over them, they win over defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from train_flows.data import is_images, paper_functions, toy
from train_flows.settings import BOTH, ENERGIES, LIKELIHOOD_SHARE

Recipe = dict[str, Any]

SOLVES_IN_MEMORY: Recipe = {"gradient": "direct"}
TWO_STAGES: Recipe = {  # tanh first, for outliers
    **SOLVES_IN_MEMORY,
    "activation": ("tanh", "silu"),
    "objective": "flow-matching+likelihood",
    "loosen": 100.0,
    "restart_lr": 5e-3,
}
DENSITY: dict[str, Recipe] = {
    "points": {**SOLVES_IN_MEMORY, "hidden": (64, 64), "steps": 1200},
    "table": {
        **TWO_STAGES,
        "whiten": True,
        "acceleration": 1e-2,
        "steps": 30000,
        "validate_every": 1000,
        "patience": 5,
    },
    "small table": {  # with smoothing and steps by the numbers of rows and columns
        **SOLVES_IN_MEMORY,
        "whiten": True,
        "hidden": (32, 32),
        "activation": ("tanh", "silu"),
        "acceleration": 0.1,
        "loosen": 100.0,
        "batch_size": 128,
        "lr": 5e-3,
        "ema": 0.99,
    },
    "digits": {
        **TWO_STAGES,
        "acceleration": 0.1,
        "steps": 12000,
        "validate_every": 500,
        "weight_decay": 1e-4,
        "ema": 0.99,
    },
    "small images": {
        **TWO_STAGES,
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
    "multiscale images": {  # of RNODE, whose weight of 0.01 on means and bits is 0.01 log 2 here
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
        "lr_warm_up": 500,  # the first steps of ten fields at once are too long otherwise
        "validate_every": 500,
    },
    "matched images": {
        "field": "unet",
        "hidden": (32, 64),
        "divergence": "hutchinson",
        "steps": 60000,
        "batch_size": 128,
        "lr": 1e-3,
        "ema": 0.999,
        "validate_every": 1000,
    },
}
OF_KINDS: Recipe = {"steps": 12000, "restart_lr": 2e-3}  # of large tables, whose categories are fitted beforehand
IN_A_MIXTURE: Recipe = {  # whose steps are short, and seldom fold
    "activation": ("tanh", "silu"),
    "augmentation": "categorical",
    "extra": 8,
    "posterior": "fitted",
}
RESIDUAL_STEPS: dict[str, Recipe] = {  # in place of an ODE
    "points": {**IN_A_MIXTURE, "lr": 5e-3},
    "table": {
        **IN_A_MIXTURE,
        "whiten": True,
        "objective": "flow-matching+likelihood",
        "restart_lr": 1e-3,
        "steps": 12000,
        "validate_every": 500,
        "patience": 5,
    },
}
OF_ODES = (*ENERGIES, "gradient", "loosen", "solver")  # options that residual steps do not have
FEW_ROWS = 1000  # of a training part; with more, flow matching needs no smoothing
SMALL_SIZE = 16  # pixels per side; a perceptron for such images trains within minutes
DARK_IMAGES = ("mnist", "fashion")  # a larger alpha would spread their many black pixels over much of the line
FFJORD: Recipe = {  # the published settings for two dimensions, to compare with
    "hidden": (64, 64, 64),
    "time": "squash",
    "gradient": "adjoint",
    "loosen": 1.0,
    "steps": 2500,
    "lr": 1e-3,
    "schedule": "constant",
}

PAIRS: dict[str, dict[str, Recipe]] = {  # NODE and ANODE with nearly the same number of parameters (ANODE paper)
    "mnist": {"NODE": {"hidden": (92,)}, "ANODE": {"hidden": (64,), "extra": 5}},
    "cifar10": {"NODE": {"hidden": (125,)}, "ANODE": {"hidden": (64,), "extra": 10}},
    "svhn": {"NODE": {"hidden": (125,)}, "ANODE": {"hidden": (64,), "extra": 10}},
    "imagenet64": {"NODE": {"hidden": (164,)}, "ANODE": {"hidden": (64,), "extra": 5}},
}
IMAGES: Recipe = {"field": "conv", "time": "none", "epochs": 20, "batch_size": 256, **PAIRS["mnist"]["ANODE"]}
CLASSIFY: dict[str, Recipe] = {
    "function": SOLVES_IN_MEMORY,
    "table": {**SOLVES_IN_MEMORY, "epochs": 100, "batch_size": 64, "extra": 5},
    "images": IMAGES,
    "cifar10": {**IMAGES, **PAIRS["cifar10"]["ANODE"]},
    "svhn": {**IMAGES, **PAIRS["svhn"]["ANODE"]},
    "digits": {
        **IMAGES,
        **SOLVES_IN_MEMORY,
        "hidden": (48,),
        "epochs": 12,
        "batch_size": 32,
        "lr": 5e-3,
        "schedule": "cosine",
    },
}
MANY_SERIES: Recipe = {  # of the literature, a fifth of which is held out
    **SOLVES_IN_MEMORY,
    "test_series": 0.2,
    "hidden": (64, 64),
    "encoder": 64,
    "batch_size": 100,
    "steps": 6000,
    "validate_every": 500,
    "ema": 0.99,
}
FORECAST: dict[str, Recipe] = {
    "spirals": {**MANY_SERIES, "kind": "node", "latent": 4},
    "sines": {**MANY_SERIES, "kind": "anode", "extra": 3, "latent": 10, "steps": 4000, "horizon_warm_up": 2000},
    "table": {**SOLVES_IN_MEMORY, "kind": "anode"},
}
ODENET: Recipe = {"field": "norm-conv", "stem": "conv", "readout": "pool", "hidden": (64,)}


def density(
    typed: Mapping[str, Any], rows: int | None = None, columns: int = 1, of_kinds: bool = False
) -> tuple[str, Recipe]:
    """Choose the recipe of ``train-flows density``.

    Args:
        typed: typed options by name, among them the ``source`` of the data, unless these are a table in memory.
        rows: number of training samples, once the data are read; a table is taken for a large one before.
        columns: number of dimensions of a sample.
        of_kinds: the columns are of several kinds.

    Returns:
        The name of the recipe and its options.
    """
    source, objective = typed.get("source"), typed.get("objective", "likelihood")
    if source in toy.DENSITIES:
        name = "points"
    elif source is None or not is_images(source):
        name = "table" if rows is None or rows >= FEW_ROWS else "small table"
    elif source == "digits":
        name = "digits"
    elif typed.get("image_size", SMALL_SIZE + 1) <= SMALL_SIZE:
        name = "small images"
    else:
        name = "multiscale images" if objective == "likelihood" else "matched images"
    recipe = dict(DENSITY[name]) | (OF_KINDS if of_kinds and name == "table" else {})
    if name == "small table":
        recipe |= _by_size(rows or 1, columns)
    if typed.get("residual_steps") and name in RESIDUAL_STEPS:
        recipe = _of_residual_steps(name, recipe, typed)
    if "validate_every" in recipe and typed.get("steps", recipe["steps"]) < recipe["steps"]:
        recipe["validate_every"] = min(recipe["validate_every"], math.ceil(typed["steps"] / 10))
    if "patience" in recipe and "validate_every" in typed:  # for the same number of steps
        often = recipe["validate_every"] / max(1, typed["validate_every"])
        recipe["patience"] = math.ceil(recipe["patience"] * often)
    if source in DARK_IMAGES:
        recipe["alpha"] = 1e-6
    mixes = typed.get("augmentation") == "categorical" or typed.get("base") == "mixture"
    if mixes and typed.get("whiten", recipe.get("whiten")):
        recipe["correlated"] = True  # components of whitened data have full covariances, too
    if objective == "flow-matching":
        recipe = {option: value for option, value in recipe.items() if option not in ENERGIES}  # it solves no paths
    if typed.get("residual_steps"):
        recipe = {option: value for option, value in recipe.items() if option not in OF_ODES}
    if "init" in typed and recipe.get("objective") == BOTH and "objective" not in typed:
        steps, lr = math.ceil(LIKELIHOOD_SHARE * recipe["steps"]), recipe["restart_lr"]
        recipe = {o: v for o, v in recipe.items() if o not in ("objective", "restart_lr")}
        recipe |= {"steps": steps, "lr": lr}  # the second stage alone: the weights have had the first one
    return name, recipe


def _of_residual_steps(name: str, recipe: Recipe, typed: Mapping[str, Any]) -> Recipe:
    """Return the options of a recipe with residual steps in place of the ODE."""
    kept = {option: recipe[option] for option in ("hidden", "steps") if name == "points"}
    unmixed = typed.get("base") == "mixture" or typed.get("extra") == 0 or typed.get("augmentation") == "joint"
    left_out = ("augmentation", "extra", "posterior") if unmixed else ()
    return {option: value for option, value in (kept | RESIDUAL_STEPS[name]).items() if option not in left_out}


def _by_size(rows: int, columns: int) -> Recipe:
    """Return the options of a small table that follow its size.

    The squared smoothing is D / (N + D) for D columns and N rows: the variance of the noise falls like 1 / N.
    """
    every = 25 * math.ceil((200 + rows) / 500)
    return {
        "smoothing": round(math.sqrt(columns / (rows + columns)), 3),
        "steps": every * math.ceil((200 + rows) / every),
        "validate_every": every,
        "patience": 6,
    }


def classify(typed: Mapping[str, Any], rows: int | None = None) -> tuple[str, Recipe]:
    """Choose the recipe of ``train-flows classify``; see :func:`density`.

    The batches of few rows are smaller, so that an epoch has four steps or more, from 32 rows on.
    """
    source = typed.get("source", "")
    kind = "function" if paper_functions.is_function(source) else "images" if is_images(source) else "table"
    name = source if source in CLASSIFY else kind
    recipe, unsuitable = dict(CLASSIFY[name]), set()
    if name == "table" and rows is not None:
        recipe["batch_size"] = min(recipe["batch_size"], 8 * max(1, rows // 32))
    if typed.get("model") in ("second-order", "mlp"):
        unsuitable = {"extra", "field", "hidden"}
    elif typed.get("field") == "mlp":
        unsuitable = {"hidden"}  # a number of filters
    return name, {option: value for option, value in recipe.items() if option not in unsuitable}


def forecast(typed: Mapping[str, Any]) -> tuple[str, Recipe]:
    """Choose the recipe of ``train-flows forecast``; see :func:`density`."""
    name = typed["source"] if typed.get("source") in FORECAST else "table"
    recipe = dict(FORECAST[name])
    kind = typed.get("kind", recipe["kind"])
    if kind == "anode":
        recipe.setdefault("extra", 2)
    else:
        recipe.pop("extra", None)
    if kind not in ("latent", "ode-rnn"):
        recipe.pop("latent", None)
    if typed.get("steps", math.inf) < 10 * recipe.get("validate_every", 100):
        recipe["validate_every"] = math.ceil(typed["steps"] / 10)
    if "horizon_warm_up" in recipe and "steps" in typed:
        recipe["horizon_warm_up"] = min(recipe["horizon_warm_up"], typed["steps"] // 2)
    return name, recipe
