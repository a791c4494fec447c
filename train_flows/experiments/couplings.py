"""Couplings of flow matching: of densities with and without conditions, and of eight Gaussians with two moons.

A coupling that ignores conditions makes base points depend on them, which base points of sampling do not. The second
experiment is that of Cheng, Schwing 2025, arXiv 2503.10636, section 4.1, with shorter trainings. Its runs are those of
``transport``, a program for it. The condition is the moon, or the first coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from typing_extensions import override

from anode import MLPField, Solver, count_evals
from anode.errors import check_choice, config
from cnf import Continuous, Flow, FlowMatching, Mixture
from cnf.flow import MatchingPair
from cnf.flow_matching import optimal_transport
from train_flows.command_line import read
from train_flows.data import SEED_STRIDE, class_contexts
from train_flows.experiments.grid import Experiment, Scale, train_as_run, words
from train_flows.experiments.panels import against, draw_panels, ends_against
from train_flows.experiments.results import Results, by_data
from train_flows.experiments.training_densities import LOG_PROB, SAMPLING, training
from train_flows.run.folder import Run
from train_flows.run.step import shuffled_batches
from train_flows.settings import Count, Positive, Seed, Training

# Densities

COUPLINGS = ("optimal-transport", "independent")
GIVEN = ", given the half plane"
MATCHING = {"objective": "flow-matching", "steps": 4000, "validate_every": 200, "lr": 5e-3, "ema": 0.99}


def _runs(data: str, scale: Scale) -> dict[str, str]:
    options: dict[str, dict[str, Any]] = {name: {"coupling": name} for name in COUPLINGS}
    options |= {name + GIVEN: {"coupling": name, "conditional": True} for name in COUPLINGS}
    return {label: training(data, scale, **MATCHING, **each) for label, each in options.items()}


def _compare(results: Results, data: str) -> dict[str, Any]:
    costs, findings = SAMPLING | LOG_PROB | {"seconds of training": "seconds"}, {}
    for given in ("", GIVEN):
        pair = COUPLINGS[0] + given, COUPLINGS[1] + given
        if not set(pair) <= set(results.labels):
            continue
        found = results.ratios(*pair, costs, "coupled / independent")
        found["test NLL, coupled - independent"] = results.difference(*pair, "test_nll")
        findings |= {name + given: value for name, value in found.items()}
    return findings


# Eight Gaussians and two moons

KIND = "transport"
TRAIN, TESTED, RECORDS = 50_000, 1000, 5
ONE_STEP = Solver("euler", step_size=1.0)
Condition = Literal["class", "continuous"]
CONDITIONS: tuple[str, ...] = get_args(Condition)
IGNORED = "conditions-ignored"


def moons(n: int, condition: str, seed: int) -> tuple[Tensor, Tensor]:
    """Draw n points of two moons, (n, 2), and their conditions: the moon, (n, 2), or a third of x1, (n, 1)."""
    from sklearn.datasets import make_moons  # seconds, which --help need not wait for

    points, moon = make_moons(n, noise=0.05, random_state=seed)
    x = torch.from_numpy(3 * points - 1).float()
    return x, class_contexts(torch.from_numpy(moon), 2) if condition == "class" else x[:, :1] / 3


def eight_gaussians() -> Mixture:
    """Build a base of eight Gaussians of variance 0.1 on a circle of radius 5."""
    base, angles = Mixture((2,), components=8), torch.arange(8) * math.pi / 4
    base.means.data = 5 * torch.stack([angles.cos(), angles.sin()], 1)
    base.log_scales.data.fill_(math.log(0.1) / 2)
    return base.requires_grad_(False)


def wasserstein(x: Tensor, y: Tensor) -> float:
    """Return the exact 2-Wasserstein distance of two sets of n points (n, D)."""
    costs = torch.cdist(x, y).double().square().cpu().numpy()
    return math.sqrt(costs[linear_sum_assignment(costs)].mean())


class ConditionsIgnored(Flow):
    """A flow whose base points are coupled with the data whatever their conditions."""

    @override
    def matching_pair(self, x: Tensor, c: Tensor | None = None) -> MatchingPair:
        pair = super().matching_pair(x, c)
        return pair._replace(z=optimal_transport(pair.z, pair.x))


@config
class TransportSettings:
    """Train a flow from eight Gaussians to two moons, given a condition, by flow matching with a coupling."""

    positional: ClassVar = {"condition": "CONDITION"}
    condition: Condition = "class"
    coupling: Literal["independent", "conditions-ignored", "optimal-transport"] = "independent"
    steps: Count = 2000
    batch_size: Count = 256
    lr: Positive = 3e-3
    seed: Seed = 0
    out: str = "runs/transport"
    device: str = "auto"
    budget_minutes: Positive | None = None
    resume: str | None = None


class TransportTask:
    """Training of a flow of eight Gaussians to two moons, validated by its distance from new points."""

    criterion = None

    def __init__(self, settings: TransportSettings, device: torch.device) -> None:
        self.test, self.given = moons(TESTED, settings.condition, settings.seed + SEED_STRIDE)
        field = MLPField(2, (64, 64), context=self.given.shape[1])
        flow, ignored = Continuous(field, Solver(gradient="direct")), settings.coupling == IGNORED
        self.model = (ConditionsIgnored if ignored else Flow)(flow, eight_gaussians()).to(device)
        self.loss = FlowMatching(self.model, "independent" if ignored else settings.coupling)
        every = max(1, settings.steps // RECORDS)
        self.training = Training(settings.steps, settings.batch_size, settings.lr, validate_every=every)
        x, c = (part.to(device) for part in moons(TRAIN, settings.condition, settings.seed))
        self.batch: Callable[[int], Any] = shuffled_batches((x, c), settings.batch_size, settings.seed)

    def objective(self, batch: Any, step: int) -> Tensor:
        """Return the loss of flow matching."""
        return self.loss(batch)

    def loss_name(self, step: int) -> str:
        """Return the name of the loss in records."""
        return "matching_loss"

    def validate(self) -> dict[str, float]:
        """Return the distance of samples at the conditions of test points from these, adaptive and by one step."""
        with count_evals(self.model) as nfe:
            distance = self._distance(self.model)
        euler = self._distance(self.model.with_solver(ONE_STEP))
        return {"w2": distance, "w2_euler": euler, "nfe_sample": nfe.forward}

    def _distance(self, model: Flow) -> float:
        return wasserstein(model.sample(TESTED, self.given).cpu(), self.test)


def main(args: list[str]) -> None:
    """Run the command line ``transport``."""

    def figures(task: TransportTask, run: Run) -> dict[str, Any]:
        return {name: run.records()[-1][name] for name in ("w2", "w2_euler", "nfe_sample")}

    train_as_run(KIND, read(TransportSettings, args, KIND), TransportTask, figures)


def _transports(data: str, scale: Scale) -> dict[str, str]:
    check_choice("data", data, CONDITIONS)
    quick = {"steps": 4} if scale.size == "quick" else {}
    return {name: words(f"{KIND} {{data}}", {"coupling": name, **quick}) for name in (*reversed(COUPLINGS), IGNORED)}


def _distances(results: Results, data: str) -> dict[str, Any]:
    measured = {"W2 at one Euler step": "w2_euler", "W2": "w2", **SAMPLING}
    return {
        f"{name}, {label}": results.of(label).mean(metric)
        for name, metric in measured.items()
        for label in results.labels
    }


EXPERIMENTS = {
    "couplings": Experiment(
        "evaluations of flow matching by the coupling of base and data points",
        ("8gaussians", "moons", "checkerboard"),
        "densities",
        _runs,
        lambda r: draw_panels(r, ends_against("nfe_sample", "test_nll")),
        lambda r: by_data(r, _compare),
    ),
    "conditional-transport": Experiment(
        "flows from eight Gaussians to two moons given conditions, by the coupling",
        CONDITIONS,
        "targets",
        _transports,
        lambda r: draw_panels(r, against("step", "w2_euler", "o-"), against("step", "w2", "o-")),
        lambda r: by_data(r, _distances),
    ),
}
