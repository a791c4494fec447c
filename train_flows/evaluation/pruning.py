"""Which components of a mixture of flows a likelihood leaves out, and what that costs in nats."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from anode import InputError
from cnf import Density, LiftedFlow, MixtureFlow
from cnf.batches import split_batch
from cnf.tables import TableDensity
from cnf.tables.columns import encode
from train_flows.data import Split
from train_flows.evaluation import to_model
from train_flows.run import distributed

PRUNE = 1e-2  # responsibility of components that figures leave out
FEW = 2  # components, which are all summed
CERTIFIED = 100  # samples of a certificate


def mixture_of(model: nn.Module) -> MixtureFlow | None:
    """Return the mixture of flows that a density is, or has of the numbers of a table or below its lift, or None."""
    flow = model.flow if isinstance(model, TableDensity) else model
    flow = flow.flow if isinstance(flow, LiftedFlow) else flow
    return flow if isinstance(flow, MixtureFlow) else None


def find_prune(model: nn.Module, asked: float | None = None) -> float | None:
    """Return the responsibility below which figures leave components out; None if they sum all.

    Args:
        model: a density.
        asked: 0 to sum all; None for the default, 0.01 for mixtures of more than two flows.

    Raises:
        InputError: for a value outside [0, 1), or for a density that is not a mixture of flows.
    """
    flow = mixture_of(model)
    if asked is None:
        return PRUNE if flow is not None and len(flow.mixture.logits) > FEW else None
    if not 0 <= asked < 1:
        raise InputError(f"--prune {asked:g} must be at least 0, which sums all components, and less than 1")
    if flow is None:
        raise InputError(f"--prune {asked:g} is for mixtures of flows (--augmentation categorical): omit it")
    return asked or None


def keyword(prune: float | None) -> dict[str, Any]:
    """Return the argument ``prune`` of ``log_prob`` and ``elbo``, which densities without components do not take."""
    return {} if prune is None else {"prune": prune}


@torch.no_grad()
def certificate(model: Density, data: Split, prune: float) -> dict[str, float]:
    """Compare the pruned sum with the sum of all components on 100 random samples, the same in every call.

    Both sums are of one solve of all components, so that the gap is that of pruning alone. The gap of a lifted density
    is that of one draw.

    Returns:
        ``rows``, the number of samples; ``gap_mean``, the mean gap in nats, its standard error ``gap_error``, and the
        largest gap ``gap_max``.
    """
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:CERTIFIED].sort().values

    def gaps(rows: Tensor) -> Tensor:
        flow, y, c = in_flow(model, *to_model(model, split_batch(data.batch(rows))))
        log_joint, solved = flow.log_joint(y, c), flow.solved_components(y, c, prune)
        return (log_joint.logsumexp(0) - log_joint.masked_fill(~solved, -math.inf).logsumexp(0)).double().cpu()

    with torch.random.fork_rng():
        gap = distributed.shared_out([rows], gaps)[0]
    error = gap.std().item() / math.sqrt(len(gap)) if len(gap) > 1 else 0.0
    return {"rows": len(gap), "gap_mean": gap.mean().item(), "gap_error": error, "gap_max": gap.max().item()}


def in_flow(model: Density, x: Tensor, c: Tensor | None) -> tuple[MixtureFlow, Tensor, Tensor | None]:
    """Return the mixture of flows of a density, with samples and contexts as it takes them; noise is drawn once."""
    mixture = mixture_of(model)
    assert mixture is not None, "only mixtures are pruned"
    if isinstance(model, TableDensity) and model.flow is not None:
        x, given = model.prepare("x", x, c)
        rows = encode(model.columns, x)
        model, x, c = model.flow, rows.y.to(model.like), model.features(rows.states, given)
    if isinstance(model, LiftedFlow):
        x, c = model.prepare("x", x, c)
        x = model.lift(x, c).point
    return mixture, x, c
