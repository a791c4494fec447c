"""Fields compiled before training, for ``--compile``."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from anode import Field, InputError


def compile_fields(
    model: nn.Module, objective: nn.Module, batches: Iterable[Any], validate: Callable[[], dict[str, float]]
) -> float:
    """Compile the vector fields of a model in place, and use them once, so that training does not wait for it later.

    Weights, random generators and the state of the objective stay as they are.

    Args:
        model: what is validated.
        objective: what is trained.
        batches: one for each kind that the objective takes.
        validate: figures of the current weights.

    Returns:
        The seconds it took.

    Raises:
        InputError: when there is no field.
    """
    started = time.monotonic()
    fields = dict.fromkeys(part for part in (*objective.modules(), *model.modules()) if isinstance(part, Field))
    if not fields:
        raise InputError("--compile finds no vector field in this model: drop it")
    for field in fields:
        field.compile()
    before = copy.deepcopy(objective.state_dict())
    with torch.random.fork_rng():
        for batch in batches:
            objective(batch).backward()
        validate()
    objective.zero_grad()
    objective.load_state_dict(before)
    return time.monotonic() - started
