"""Small trainings: a task of two parameters for the tests of runs, and a loop for those of models."""

import torch
from torch import nn

from train_flows.run.step import shuffled_batches


class Quadratic:
    """Minimises E[|w x|^2], whose first gradients exceed any sensible bound.

    Args:
        training: how to optimise.
        fail_at: steps at which the objective fails.
        failure: the exception it raises there; without one, the loss is not a number.
        validate: figures of the current weights; the loss of all samples by default.
    """

    criterion = "nll"

    def __init__(self, training, fail_at=(), failure=None, validate=None):
        self.training, self.fail_at, self.failure = training, set(fail_at), failure
        self.model = nn.Linear(2, 1, bias=False)
        self.weight = self.model.weight
        with torch.no_grad():
            self.weight.copy_(torch.tensor([[5.0, -3.0]]))
        x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([100.0, 1.0])
        self.batch = shuffled_batches(x, 16, seed=0)
        self.validate = validate or (lambda: {"nll": (self.weight * x).square().sum(1).mean().item()})

    def loss_name(self, step):
        return "loss"

    def objective(self, batch, step):
        if step not in self.fail_at:
            return (self.weight * batch).square().sum(1).mean()
        if self.failure is not None:
            raise self.failure
        return self.weight.sum() * torch.nan


def minimise(loss, model, steps, lr):
    """Minimise loss() by Adam, and return its values."""
    optimizer, losses = torch.optim.Adam(model.parameters(), lr), []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def without_times(records):
    """Return records without what the clock says."""
    return [{name: value for name, value in record.items() if "seconds" not in name} for record in records]
