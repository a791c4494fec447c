"""One flow fitted once to an unnormalised density, by reverse KL."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from anode import MLPField, PlanarField, Solver, count_evals
from cnf import Continuous, Flow, Normal, Planar, ReverseKL, Transform
from train_flows.data import targets
from train_flows.data.targets import Target
from train_flows.journal import Memory
from train_flows.loop import train
from train_flows.paper.outcomes import Outcome, Place, status_of
from train_flows.provenance import device_name
from train_flows.training import Training

TRAINING, FIGURES = Solver(rtol=1e-4, atol=1e-4, gradient="direct"), Solver(gradient="direct")
VALIDATED, TESTED = 2000, 20_000  # samples
SHOWN = 400  # of them, for pictures
TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "planar": lambda dim, layers: Planar(dim, layers),
    "planar field": lambda dim, units: Continuous(PlanarField(dim, units), TRAINING),
    "perceptron field": lambda dim, hidden: Continuous(MLPField(dim, hidden, zero_init=True), TRAINING),
}


@dataclass(frozen=True)
class VariationalTrial:
    """One flow on one target."""

    name: str  # in figures and tables
    data: str  # of train_flows.data.targets
    transform: str  # of TRANSFORMS
    size: dict[str, Any] = field(default_factory=dict)  # its arguments
    steps: int = 1500
    batch_size: int = 512
    lr: float = 5e-3  # of Adam, falling to zero as a cosine
    records: int = 10

    @property
    def epochs(self) -> int:
        """How many records there are after the first."""
        return self.records

    def plain(self) -> dict[str, Any]:
        """All settings."""
        return {**asdict(self), "solvers": {"training": asdict(TRAINING), "figures": asdict(FIGURES)}}


def attempt(trial: VariationalTrial, seed: int, place: Place) -> Outcome | None:
    """Fit the flow of a trial; records hold ``kl``, the last with its ``standard_error`` and evaluations.

    Where the normaliser of the target is not known, ``kl`` lacks it, and is the negative bound of the log-evidence.

    Returns:
        The outcome; None when the deadline has passed.

    Raises:
        KeyboardInterrupt: when a signal asks to stop.
    """
    if time.time() > place.deadline:
        return None
    target = targets.load(trial.data)
    torch.manual_seed(seed)
    device = torch.device(place.device)
    flow = Flow(TRANSFORMS[trial.transform](target.dim, **trial.size), Normal((target.dim,))).to(device)
    measured = flow.with_solver(FIGURES)
    every = max(1, trial.steps // trial.records)
    training = Training(every * trial.records, trial.batch_size, trial.lr, validate_every=every)
    journal, samples = Memory(), None

    def validate() -> dict[str, float]:
        return {"kl": divergences(measured, target, VALIDATED)[0].mean().item()}

    def work() -> bool:
        return train(
            ReverseKL(flow, target.log_density),
            training,
            lambda step: trial.batch_size,
            validate,
            lambda: None,
            journal,
            device,
            criterion="kl",
            quiet=True,
        )

    def test() -> None:
        nonlocal samples
        with count_evals(measured) as counted:
            each, samples = divergences(measured, target, TESTED)
        error = each.std().item() / math.sqrt(TESTED)
        journal.records[-1] |= {"kl": each.mean().item(), "standard_error": error, "nfe_sample": counted.forward}

    status = status_of(work, journal, test)
    shown = None if samples is None or seed else samples[:SHOWN].tolist()
    return Outcome(trial, seed, status, journal.records, device_name(device), shown)


@torch.no_grad()
def divergences(flow: Flow, target: Target, n: int) -> tuple[Tensor, Tensor]:
    """Log q(x) - log p(x) of n samples x of a flow, (n,), whose mean is KL(q | p), and the samples."""
    x, log_q = flow.sample_with_log_prob(n)
    return (log_q - target.log_density(x)).double() + (target.log_normalizer or 0.0), x
