"""Learning outputs from inputs: the objective and what to measure of a trained network."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode import InputError, count_evals
from train_flows import processes
from train_flows.data.labelled import Pairs
from train_flows.precision import layers_in, suited
from train_flows.training import Precision

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth-l1": F.smooth_l1_loss,
    "mse": F.mse_loss,
    "cross-entropy": F.cross_entropy,
}
CHUNK = 5000  # samples solved together, at most
CHUNK_NUMBERS = 2**20  # numbers in them, at most


class Supervised(nn.Module):
    """The mean loss of a network over a batch (x, y).

    Args:
        model: from inputs (B, *S) to outputs (B, K).
        loss: ``"smooth-l1"`` or ``"mse"`` for values (B, K), ``"cross-entropy"`` for classes (B,).
        precision: ``"float32"``, or ``"bfloat16"`` for the layers alone: the state of an ODE, its steps and the loss
            stay in float32, and so do the figures of :func:`measure`.

    Raises:
        InputError: for an unknown loss.
    """

    def __init__(self, model: nn.Module, loss: str, precision: Precision = "float32") -> None:
        super().__init__()
        if loss not in LOSSES:
            raise InputError(f"loss={loss!r} is unknown; choose one of {', '.join(LOSSES)}")
        self.model = model
        self.loss = LOSSES[loss]
        self.precision = precision

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss, a scalar."""
        x, y = batch
        with layers_in(self.precision, x.device):
            found = self.model(x)
        return self.loss(found.to(torch.promote_types(found.dtype, torch.float32)), y)


def suited_pairs(model: nn.Module, pairs: Pairs) -> Pairs:
    """Pairs where a model is, and in its precision."""
    return Pairs(*(suited(model, part) for part in pairs))


@torch.no_grad()
def outputs(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a model makes of x (N, *S), solved for in chunks."""
    return torch.cat([model(part) for part in x.split(chunk(x))])


@torch.no_grad()
def outputs_together(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The same, of chunks that several processes share out."""
    return torch.cat(processes.shared_out(x.split(chunk(x)), lambda part: model(part).cpu())).to(x.device)


def chunk(x: Tensor) -> int:
    """How many samples of x (N, *S) are solved together."""
    return max(1, min(CHUNK, CHUNK_NUMBERS // max(1, x[0].numel()), len(x)))


def predicted(values: Tensor) -> Tensor:
    """The class of outputs (N, K): the largest of several, the sign of one."""
    return values.argmax(1) if values.shape[1] > 1 else values[:, 0] > 0


@torch.no_grad()
def measure(objective: Supervised, pairs: Pairs) -> dict[str, float]:
    """Loss, accuracy and evaluations of the field a solve (and the mean squared error of values), over all pairs."""
    with count_evals(objective) as nfe:
        found = outputs_together(objective.model, pairs.x)
    evaluations = sum(processes.gathered(nfe.forward))
    values = pairs.y.is_floating_point()
    right = predicted(found) == (predicted(pairs.y) if values else pairs.y)
    figures = {"mse": float(F.mse_loss(found, pairs.y))} if values else {}
    return figures | {
        "loss": float(objective.loss(found, pairs.y)),
        "accuracy": float(right.sum()) / len(right),
        "nfe": evaluations / math.ceil(len(pairs.x) / chunk(pairs.x)),
    }
