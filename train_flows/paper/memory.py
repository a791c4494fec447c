"""How many runs on images fit side by side into the memory of a GPU, from what their networks keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from anode import classifier, count_evals
from train_flows.paper.image_trials import ImageTrial
from train_flows.paper.scale import CLASSES, shape_of
from train_flows.paper.tolerance import kept_bytes

MOST = 4  # more do not keep a GPU busier
EVALUATIONS = 100  # of a training step, at most, as far as the papers' figures go
OF_A_PROCESS = 2**30  # bytes for CUDA, weights and images
SHARE = 0.9  # of the free memory


def side_by_side(trials: Sequence[ImageTrial], free: int) -> int:
    """How many of the largest of some trials fit into so many free bytes: 1 at least, ``MOST`` at most."""
    largest = max((needed(trial) for trial in trials), default=0) + OF_A_PROCESS
    return min(MOST, max(1, int(SHARE * free / largest)))


def needed(trial: ImageTrial) -> int:
    """The bytes a training step of a trial keeps for its backward pass, if it takes ``EVALUATIONS``."""
    once, an_evaluation = kept(shape_of(trial), trial.model)
    return round(trial.batch_size * (once + EVALUATIONS * an_evaluation))


def kept(shape: tuple[int, ...], model: dict[str, Any]) -> tuple[float, float]:
    """The bytes that a network keeps of an image for the backward pass: beside its evaluations, and of each of them."""
    (few, of_few), (many, of_many) = (_tried(shape, model, step_size) for step_size in (1.0, 0.5))
    an_evaluation = (many - few) / (of_many - of_few) if of_many > of_few else 0.0
    return few - of_few * an_evaluation, an_evaluation


def _tried(shape: tuple[int, ...], model: dict[str, Any], step_size: float) -> tuple[int, int]:
    """The bytes of an image at so many evaluations."""
    options: dict[str, Any] = {**model, "solver": {"method": "rk4", "step_size": step_size, "gradient": "direct"}}
    network, totals = classifier(shape, CLASSES, **options), []
    for images in (1, 2):  # weights are kept once
        with kept_bytes() as total, count_evals(network) as nfe:
            outputs = network(torch.rand(images, *shape))
            totals.append(total())
            del outputs
    return totals[1] - totals[0], nfe.forward
