"""A state to resume from, held against a fresh one: whoever edits its file can give it the digest it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR


def check_progress(progress: Mapping[str, Any], steps: int) -> None:
    """Raise a ValueError unless a training of so many steps can stand there.

    Args:
        progress: values of a :class:`~train_flows.loop.Progress`, of its types.
        steps: of the whole training.
    """
    step, recorded, skipped = (progress[name] for name in ("step", "recorded", "skipped"))
    if not 0 <= step <= steps:
        raise ValueError(f"it is of step {step}, of {steps}")
    if not -1 <= recorded <= step:
        raise ValueError(f"its last record is of step {recorded}, after step {step}")
    taken = step - max(recorded, 0) - skipped
    if skipped < 0 or taken < (1 if progress["sums"] else 0):
        raise ValueError(f"it skipped {skipped} of the steps from {recorded} to {step}")
    if not all(0 <= progress[name] < math.inf for name in ("seconds", "validating")):
        raise ValueError("its seconds are not finite")


def check_parts(state: Mapping[str, Any], parts: Mapping[str, Any], step: int) -> None:
    """Raise a ValueError unless the state of every part has the form of its fresh one.

    Args:
        state: of the parts, by name.
        parts: each with a ``state_dict()``, as they are before the first step; among them ``"optimizer"``, an Adam,
            which keeps nothing of a parameter until then, and its ``"schedule"``.
        step: of the state.
    """
    for name in ("objective", "schedule", "average"):
        _check_alike(name, parts[name].state_dict(), state[name])
    if isinstance(parts["schedule"], LambdaLR) and state["schedule"]["last_epoch"] != step:
        raise ValueError(f"schedule is of step {state['schedule']['last_epoch']}, not {step}")
    _check_adam(parts["optimizer"], state["optimizer"])


def _check_adam(optimizer: torch.optim.Optimizer, state: Any) -> None:
    groups = optimizer.state_dict()["param_groups"]
    if not isinstance(state, dict) or set(state) != {"state", "param_groups"} or not isinstance(state["state"], dict):
        raise ValueError("optimizer is of another form")
    _check_alike("optimizer", groups, state["param_groups"])
    for own, stored in zip(groups, state["param_groups"], strict=True):
        fixed = own | {name: stored[name] for name in ("lr", "fused")}  # another device may have no fused one
        if stored != fixed or not 0 <= stored["lr"] < math.inf:
            raise ValueError("optimizer has other settings")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, kept in state["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError(f"optimizer knows no parameter {number}")
        moments = dict.fromkeys(("exp_avg", "exp_avg_sq"), parameters[number])
        _check_alike(f"optimizer of parameter {number}", {"step": torch.zeros(()), **moments}, kept)
        if not kept["step"] >= 1:
            raise ValueError(f"optimizer took no step of parameter {number}")


def _check_alike(name: str, own: Any, stored: Any) -> None:
    """Raise a ValueError unless a stored value has the names, lengths, types and shapes of a fresh one.

    Texts have to be the same: they say what to do, and nothing is counted in them.
    """
    if isinstance(own, Tensor):
        if not isinstance(stored, Tensor) or (own.shape, own.dtype) != (stored.shape, stored.dtype):
            raise ValueError(f"{name} has another shape or type")
    elif isinstance(own, Mapping):
        if not isinstance(stored, Mapping) or set(own) != set(stored):
            raise ValueError(f"{name} has other names: {_differing(own, stored)}")
        for each in own:
            _check_alike(f"{name}.{each}", own[each], stored[each])
    elif type(own) is not type(stored) or (isinstance(own, str) and own != stored):
        raise ValueError(f"{name} is something else")
    elif isinstance(own, list | tuple):
        if len(own) != len(stored):
            raise ValueError(f"{name} has another length")
        for number, (mine, other) in enumerate(zip(own, stored, strict=True)):
            _check_alike(f"{name}.{number}", mine, other)


def _differing(own: Mapping[Any, Any], stored: Any) -> str:
    names = set(own) ^ set(stored) if isinstance(stored, Mapping) else set(own)
    return ", ".join(sorted(map(str, names))[:3])
