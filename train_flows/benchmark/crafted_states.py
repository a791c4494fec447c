"""States to resume from that no training has kept, with the digests and the pointers that belong to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train_flows.benchmark.crafted_configs import VALUES, Craft
from train_flows.benchmark.damage import one_of
from train_flows.checkpoint import POINTER, STATE, STATE_FILE
from train_flows.state import pack, unpack

Change = Callable[[dict[str, Any], np.random.Generator], Any]


def _rewritten(change: Change) -> Craft:
    """What changes a state and stores it under its step."""

    def craft(folder: Path, rng: np.random.Generator) -> None:
        (path,) = folder.glob(f"{STATE}/*/{STATE_FILE}")
        state, pointer = unpack(path), folder / STATE / POINTER
        change(state, rng)
        path.write_bytes(pack(state))
        if type(state.get("step")) is int:
            path.parent.rename(folder / STATE / str(state["step"]))
            pointer.write_text(json.dumps(json.loads(pointer.read_bytes()) | {"step": state["step"]}))

    craft.__doc__ = change.__doc__
    return craft


def _progress(state: dict[str, Any], rng: np.random.Generator) -> None:
    """A training that stands where none can."""
    odd: dict[str, tuple[Any, ...]] = {
        "step": (-3, 7, 10**30, None),
        "recorded": (-2, 7, 10**30, None),
        "skipped": (-1, 5, 10**30, None),
        "sums": ([{"loss": 1.0}], [{"loss": "x"}], None, [None]),
        "seconds": (-1.0, float("inf"), float("nan"), None),
        "validating": (-1.0, float("inf"), float("nan"), None),
        "best": ("x", None),
        "in_a_row": (0.5, None),
    }
    name = one_of(rng, odd)
    state[name] = one_of(rng, odd[name])


def _form(state: dict[str, Any], rng: np.random.Generator) -> None:
    """A part of the state, at any depth, that is missing, too many or something else."""
    part: Any = state
    name: Any = one_of(rng, ("objective", "optimizer", "schedule", "average"))
    while isinstance(part[name], dict | list) and len(part[name]) and rng.random() < 0.8:
        part = part[name]
        name = one_of(rng, part if isinstance(part, dict) else range(len(part)))
    kind = rng.random()
    if kind < 0.3 and not _optional(part):
        del part[name]
    elif kind < 0.5 and isinstance(part, dict) and part is not state:
        part[one_of(rng, ["step", "further", 10**6])] = one_of(rng, [3, None, torch.zeros(3)])
    else:
        odd = [value for value in VALUES if type(value) is not type(part[name])]
        part[name] = one_of(rng, [*odd, torch.zeros(7), torch.zeros(2, 0), torch.zeros((), dtype=torch.int64)])


def _optional(part: Any) -> bool:
    """Whether it is what the optimizer keeps of its parameters, of which some may have had no gradient yet."""
    return isinstance(part, dict) and all(isinstance(name, int) for name in part)


def _numbers(state: dict[str, Any], rng: np.random.Generator) -> None:
    """Numbers that stop a step, or another one after it."""
    (group,), schedule = state["optimizer"]["param_groups"], state["schedule"]
    changes: list[Callable[[], Any]] = [
        lambda: group.update(betas=(2.0, 2.0)),
        lambda: group.update(lr=float("nan")),
        lambda: group.update(lr=-1.0),
        lambda: group.update(eps=-1.0),
        lambda: group.update(params=[5] * len(group["params"])),
        lambda: schedule.update(last_epoch=10**400),
        lambda: schedule.update(last_epoch=-1),
        lambda: schedule.update(lr_lambdas=[]),
        lambda: schedule.update(lr_lambdas=[{"func": 3}]),
        lambda: schedule.update(step=3),
        lambda: schedule.update(base_lrs=5),
        lambda: schedule.update(base_lrs=[]),
        lambda: state["optimizer"]["state"][0].pop("exp_avg"),
        lambda: state["optimizer"]["state"][0]["step"].zero_(),
        lambda: state["average"]["values"].pop(),
        lambda: state.update(random=7),
        lambda: state.update(random=[{"cpu": torch.zeros(3)}]),
    ]
    one_of(rng, changes)()


STATES: dict[str, Craft] = {
    "a training that stands nowhere": _rewritten(_progress),
    "a state of another form": _rewritten(_form),
    "numbers that no training has": _rewritten(_numbers),
}
