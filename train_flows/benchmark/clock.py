"""Training by the clock: for so long and no longer, with as many steps as fit into the time."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from anode import SolverError
from train_flows import density
from train_flows.errors import TrainingError
from train_flows.journal import Memory
from train_flows.loop import train
from train_flows.objectives import BOTH, matching_steps
from train_flows.task import Task

PILOT = 0.1  # of the time, before the clock starts, for a copy to tell its pace
USED = 0.95  # of the time, by plan
VALIDATING = 0.1  # of the time
LEAST, MOST = 10, 200  # validations
MANY = 10**9  # steps: more than fit into any time


class Timed(NamedTuple):
    """What a training by the clock came to.

    Attributes:
        begun: when each of its steps began.
        seconds: how long all took, validations too.
        failure: what ended it early, if anything did.
    """

    begun: list[float]
    seconds: float
    failure: TrainingError | None


def train_for(seconds: float, task: Task, keep_best: Callable[[], None]) -> Timed:
    """Train until the last step, or until time is up.

    Args:
        seconds: how long, validations included; the step under way is finished.
        task: what to train for.
        keep_best: called whenever the validation NLL improves.

    Raises:
        KeyboardInterrupt: when a signal asks to stop.
    """
    begun: list[float] = []

    def batch(step: int) -> Any:
        begun.append(time.monotonic())
        return task.batch(step)

    started, failure = time.monotonic(), None
    deadline = started + seconds
    try:
        finished = train(
            task.objective,
            task.training,
            batch,
            task.validate,
            keep_best,
            Memory(),
            torch.device("cpu"),
            quiet=True,
            deadline=deadline,
            growth=task.growth,
        )
        if not finished and time.monotonic() < deadline:
            raise KeyboardInterrupt
    except TrainingError as error:
        failure = error
    return Timed(begun, time.monotonic() - started, failure)


def fit_into(
    seconds: float, settings: density.Settings, task_of: Callable[[density.Settings], Task]
) -> density.Settings:
    """The settings with as many steps as fit into the time, and validations that take a tenth of it.

    A copy is trained first for a tenth of the time, since solves grow longer with the first steps. Where flow matching
    goes before likelihood, each keeps its share of the steps. A constant schedule has no end to plan for: its steps are
    counted to space the validations, and do not end.

    Args:
        seconds: of the training to plan, which the pilot is not part of.
        settings: of the density.
        task_of: the task of a copy of the density under some settings; the copy is trained.
    """
    shares, stages = zip(*_stages(settings), strict=True)
    tasks = [task_of(stage) for stage in stages]
    pace = sum(share * _pace(PILOT * seconds / len(tasks), task) for share, task in zip(shares, tasks, strict=True))
    started = time.monotonic()
    with contextlib.suppress(SolverError):  # after a pilot that failed; it took its time all the same
        tasks[-1].validate()
    a_validation = time.monotonic() - started
    validations = min(max(LEAST, int(VALIDATING * seconds / a_validation)), MOST)
    stepping = max(0.0, USED * seconds - (validations + 1) * a_validation)
    counts = [max(1, int(share * stepping / pace)) for share in shares]
    endless = len(stages) == 1 and settings.training.schedule == "constant"
    every = math.ceil(sum(counts) / validations)
    return _with(settings, MANY if endless else sum(counts), counts[-1], every)


def _stages(settings: density.Settings) -> list[tuple[float, density.Settings]]:
    """The share of every stage in the steps, and settings under which all steps are of it."""
    if settings.objective.objective != BOTH:
        return [(1.0, _with(settings, MANY, MANY, MANY))]
    steps = settings.training.steps
    first = matching_steps(settings.objective, steps) / steps
    return [(first, _with(settings, MANY, 0, MANY)), (1 - first, _with(settings, MANY, MANY, MANY))]


def _with(settings: density.Settings, steps: int, likelihood_steps: int, validate_every: int) -> density.Settings:
    objective = dataclasses.replace(settings.objective, likelihood_steps=likelihood_steps)
    training = dataclasses.replace(settings.training, steps=steps, validate_every=validate_every)
    return dataclasses.replace(settings, objective=objective, training=training)


def _pace(seconds: float, task: Task) -> float:
    """Seconds a step, of the later half of those that fit into some time; all of it where none does."""
    training = dataclasses.replace(task.training, steps=MANY, schedule="constant", validate_every=MANY)
    alone = dataclasses.replace(task, training=training, validate=lambda: {"nll": 0.0})
    begun = train_for(seconds, alone, lambda: None).begun
    took = np.diff([*begun, time.monotonic()])
    return float(took[len(took) // 2 :].mean()) if begun else seconds
