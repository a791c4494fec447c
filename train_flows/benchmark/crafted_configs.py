"""Configurations that no program has written, with the digests that belong to them: who edits a file adds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from anode.reading import read_tensors
from anode.storage import CONFIG, WEIGHTS
from train_flows.benchmark.damage import one_of

Craft = Callable[[Path, np.random.Generator], None]

VALUES: tuple[Any, ...] = (
    None,
    -1,
    10**9,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "\n\x1b[31m" * 1000,
    "x",
    [],
    {},
    [[]],
    [None],
    [-1],
    [10**9],
    [10**9, 10**9],
    [10**30],
    [8] * 50_000,
    {"x": 1},
    ["x"],
    "\ud800",
)
NEEDED = ("data", "model", "objective", "numerics", "training", "run")  # sections of the settings of any density
OUT_OF_RANGE: tuple[tuple[str, str, Any], ...] = (
    ("data", "source", None),
    ("data", "source", "\ud800"),
    ("data", "source", "\0"),
    ("run", "seed", -1),
    ("run", "seed", 10**30),
    ("run", "data_seed", -1),
    ("training", "steps", 0),
    ("training", "validate_every", 0),
    ("training", "lr", -1),
    ("training", "ema", 1),
    ("training", "precision", "x"),
    ("guards", "max_skipped", -1),
)


def _sign(folder: Path, config: dict[str, Any]) -> None:
    """Write a configuration with its digest, also into the header of the weights."""
    config.pop("sha256", None)
    config["sha256"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    (folder / CONFIG).write_text(json.dumps(config))
    tensors, header = read_tensors(folder / WEIGHTS)
    header["config_sha256"] = config["sha256"]
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors, header))


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_bytes())


def _argument(folder: Path, rng: np.random.Generator) -> None:
    """An argument of the model, or of its solver, that does not serve."""
    config = _config(folder)
    arguments = config["model"] if rng.random() < 0.8 else config["model"]["solver"]
    name = one_of(rng, arguments)
    arguments[name] = one_of(rng, [value for value in VALUES if not _serves(name, value)])
    _sign(folder, config)


def _serves(name: str, value: Any) -> bool:
    """Whether the value makes another model, or the same, that could be meant."""
    allowed = {
        "filters": (-1, 10**9, 10**30),
        "components": (-1, 10**9, 10**30),
        "probes": (10**9, 10**30),
        "levels": (None,),
        "alpha": (0.5, -1, 10**9, 10**30),
        "step_size": (None,),
        "first_step": (None, 0.5, 10**9, 10**30),
        "gradient": (None,),
        "max_steps": (10**9, 10**30),
        "rtol": (0.5, 10**9, 10**30),
        "atol": (0.5, 10**9, 10**30),
        "solver": ({},),
    }
    return any(type(value) is type(each) and value == each for each in allowed.get(name, ()))


def _size(folder: Path, rng: np.random.Generator) -> None:
    """A size beyond all memory, or more layers than anyone has."""
    config = _config(folder)
    name, value = one_of(
        rng,
        [
            ("shape", [10**9]),
            ("shape", [1, 10**9, 10**9]),
            ("hidden", [10**9]),
            ("hidden", [10**9, 10**9]),
            ("hidden", [10**6] * 3),
            ("hidden", [8] * 10**6),
            ("hidden", []),
            ("extra", 10**9),
            ("context", 10**12),
            ("activation", ["tanh"] * 10**5 + ["x"]),
        ],
    )
    config["model"][name] = value
    _sign(folder, config)


def _missing(folder: Path, rng: np.random.Generator) -> None:
    """A part of the configuration that is not there, or one that should not."""
    config = _config(folder)
    section = one_of(rng, [config, config["model"], config["settings"]])
    if section is config["model"] and rng.random() < 0.5:
        section["unknown"] = 1
    else:
        needed = {"schema", "kind", "settings", "data", "shape", "hidden"}
        needed |= {"model"} if section is config else set(NEEDED) if section is config["settings"] else set()
        del section[one_of(rng, sorted(needed & set(section)))]
    _sign(folder, config)


def _section(folder: Path, rng: np.random.Generator) -> None:
    """A section of the configuration of another kind."""
    config = _config(folder)
    section = one_of(rng, [config, config, config["settings"]])
    name = one_of(rng, ["schema", "kind", "model", "settings", "data"] if section is config else section)
    section[name] = one_of(rng, [value for value in VALUES if section is config or value != {}])
    _sign(folder, config)


def _setting(folder: Path, rng: np.random.Generator) -> None:
    """A setting that no program stores."""
    config = _config(folder)
    settings = config["settings"]
    section = one_of(rng, settings)
    kind = one_of(rng, ["value", "value", "unknown", "range", "further"])
    if kind == "value":
        settings[section][one_of(rng, settings[section])] = one_of(rng, ({"x": 1}, [None], [[]], [{}]))
    elif kind == "unknown":
        settings[section][one_of(rng, ["unknown", "target", "", "x" * 10**5, "self", "\ud800"])] = one_of(rng, VALUES)
    elif kind == "range":
        section, name, value = one_of(rng, OUT_OF_RANGE)
        settings[section][name] = value
    else:
        settings[one_of(rng, ["further", "network", "", "x" * 10**5])] = one_of(rng, VALUES)
    _sign(folder, config)


CONFIGS: dict[str, Craft] = {
    "an argument that does not serve": _argument,
    "a size beyond all memory": _size,
    "a part too few or too many": _missing,
    "a section of another kind": _section,
    "a setting that no program stores": _setting,
}
