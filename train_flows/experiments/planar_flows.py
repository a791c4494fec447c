"""Depth of planar flows against width of continuous ones, fitted to unnormalised densities by reverse KL.

Chen et al. 2018, section 4.1: K layers of a discrete planar flow, and the ODE of M planar units. The discrete ones take
more steps of training, which are cheaper, at another learning rate. A perceptron of 64-64 units as the field shows
the possible gain. A run is one of ``reverse-kl``, a program for this experiment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torch.nn import functional as F

from anode import MLPField, Solver, count_evals
from anode.errors import check_choice, config
from cnf import Continuous, Flow, Normal, Planar, PlanarField, ReverseKL, Transform
from train_flows.command_line import read
from train_flows.experiments.grid import Experiment, Scale, train_as_run, words
from train_flows.experiments.panels import Panel, draw_panels
from train_flows.experiments.results import Results, by_data
from train_flows.figures import plots
from train_flows.run.folder import Run
from train_flows.settings import Count, Positive, Seed, Training

KIND = "reverse-kl"
BATCH, RECORDS = 512, 10  # of a training
VALIDATED, TESTED, SHOWN = 2000, 20_000, 400  # samples
TRAINING, FIGURES = Solver(rtol=1e-4, atol=1e-4, gradient="direct"), Solver(gradient="direct")
WALL = 4.0  # where the published pictures of u2, u3 and u4 end, along z1
LOG_2PI = math.log(2 * math.pi)
LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Target:
    """A distribution known up to a constant."""

    dim: int
    log_density: LogDensity  # from points (B, D) to (B,), in nats, in the type and on the device of the points
    log_normalizer: float | None  # log of the integral of exp(log_density); None if unknown
    half: float | None = None  # half the width of the square around 0 to draw


def load_target(name: str) -> Target:
    """Make a target by name.

    ``u1`` to ``u4`` have the log-density -U(z), z in R^2, of the published energies U. With bell(d, s) =
    exp(-(d / s)^2 / 2), w1 = sin(2 pi z1 / 4), w2 = 3 bell(z1 - 1, 0.6) and w3 = 3 sigmoid((z1 - 1) / 0.3),

        exp(-U1) = bell(|z| - 2, 0.4) (bell(z1 - 2, 0.6) + bell(z1 + 2, 0.6))
        exp(-U2) = bell(z2 - w1, 0.4)
        exp(-U3) = bell(z2 - w1, 0.35) + bell(z2 - w1 + w2, 0.35)
        exp(-U4) = bell(z2 - w1, 0.4) + bell(z2 - w1 + w3, 0.35).

    The last three have infinite mass along z1, and the published pictures cut them at |z1| = 4. Here they are
    multiplied by bell(max(|z1| - 4, 0), 0.4), a smooth wall, which makes them normalisable and changes nothing
    between -4 and 4.

    ``funnel`` is x1 ~ N(0, 9) and x2, ..., x10 ~ N(0, exp(x1)) given x1. ``logistic`` is the posterior of a logistic
    regression of scikit-learn's breast cancer data: 30 weights of standardised features, then the intercept, all
    N(0, 1) a priori; prior and likelihood keep their constants, so that the normaliser is the evidence.

    References:
        Rezende, Mohamed 2015, arXiv 1505.05770, table 1; Neal 2003, "Slice sampling", Annals of Statistics 31(3),
        section 8.
    """
    check_choice("target", name, TARGETS)
    if name in ENERGIES:
        return Target(2, ENERGIES[name], _log_integral(ENERGIES[name]), half=4.0 if name == "u1" else 5.0)
    return Target(10, _funnel, log_normalizer=0.0) if name == "funnel" else _logistic()


def _log_integral(log_density: LogDensity, half: float = 8.0, n: int = 320) -> float:
    """Compute the log of the integral over the plane, by the midpoint rule in float64 on a square that holds all mass.

    The kink of the wall must lie between two cells: 4 is a multiple of their width 2 half / n.
    """
    log_p = log_density(torch.from_numpy(plots.grid((-half, half, -half, half), n)))
    return log_p.logsumexp(0).item() + 2 * math.log(2 * half / n)


def _bell(d: Tensor, width: float) -> Tensor:
    """Return the log of a Gaussian without its constant."""
    return -0.5 * (d / width).square()


def _ring(z: Tensor) -> Tensor:
    radius = torch.linalg.vector_norm(z, dim=1)  # its slope at 0 is 0, not nan
    return _bell(radius - 2, 0.4) + torch.logaddexp(_bell(z[:, 0] - 2, 0.6), _bell(z[:, 0] + 2, 0.6))


def _wave(z: Tensor, width: float, drop: Tensor | None = None) -> Tensor:
    """Return the log-density of a band around the wave, and of a second one a drop (B,) below, within the wall."""
    above = z[:, 1] - torch.sin(2 * math.pi * z[:, 0] / 4)
    band, wall = _bell(above, width), _bell((z[:, 0].abs() - WALL).clamp(min=0), 0.4)
    return wall + (band if drop is None else torch.logaddexp(band, _bell(above + drop, 0.35)))


def _funnel(x: Tensor) -> Tensor:
    x1, others = x[:, 0], x[:, 1:]
    log_p1 = -0.5 * ((x1 / 3).square() + LOG_2PI) - math.log(3)
    scaled = others * torch.exp(-x1 / 2).unsqueeze(1)  # squared last: exp(-x1) would overflow sooner
    return log_p1 - 0.5 * (scaled.square() + x1.unsqueeze(1) + LOG_2PI).sum(1)


def _logistic() -> Target:
    bunch = load_breast_cancer()
    features, labels = torch.from_numpy(bunch.data), torch.from_numpy(bunch.target)
    features = (features - features.mean(0)) / features.std(0, correction=0)
    sign = 2 * labels.unsqueeze(1) - 1  # p(label | w) = sigmoid(sign w'a)
    signed = sign * torch.cat([features, torch.ones_like(features[:, :1])], 1)  # (N, D)

    def log_density(w: Tensor) -> Tensor:
        return -0.5 * (w.square() + LOG_2PI).sum(1) + F.logsigmoid(w @ signed.to(w).T).sum(1)

    return Target(signed.shape[1], log_density, log_normalizer=None)


ENERGIES: dict[str, LogDensity] = {
    "u1": _ring,
    "u2": lambda z: _wave(z, 0.4),
    "u3": lambda z: _wave(z, 0.35, 3 * _bell(z[:, 0] - 1, 0.6).exp()),
    "u4": lambda z: _wave(z, 0.4, 3 * torch.sigmoid((z[:, 0] - 1) / 0.3)),
}
TARGETS = (*ENERGIES, "funnel", "logistic")
TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "planar": lambda dim, layers: Planar(dim, layers),
    "planar-field": lambda dim, units: Continuous(PlanarField(dim, units), TRAINING),
    "mlp-field": lambda dim, *hidden: Continuous(MLPField(dim, hidden, zero_init=True), TRAINING),
}


@config
class FlowSettings:
    """Fit a flow of a number of layers or units, or of hidden layers, to an unnormalised density."""

    positional: ClassVar = {"target": "TARGET"}
    target: str = "u1"
    transform: Literal["planar", "planar-field", "mlp-field"] = "planar"
    size: tuple[Count, ...] = (8,)
    steps: Count = 1500
    lr: Positive = 5e-3
    seed: Seed = 0
    out: str = "runs/reverse-kl"
    device: str = "auto"
    budget_minutes: Positive | None = None
    resume: str | None = None


class ReverseKLTask:
    """Training of a flow by its divergence from a target."""

    criterion = None

    def __init__(self, settings: FlowSettings, device: torch.device) -> None:
        self.target = load_target(settings.target)
        transform = TRANSFORMS[settings.transform](self.target.dim, *settings.size)
        self.model = Flow(transform, Normal((self.target.dim,))).to(device)
        self.measured = self.model.with_solver(FIGURES)
        self.loss = ReverseKL(self.model, self.target.log_density)
        every = max(1, settings.steps // RECORDS)
        self.training = Training(settings.steps, BATCH, settings.lr, validate_every=every)

    def batch(self, step: int) -> int:
        """Return the number of samples to draw."""
        return self.training.batch_size

    def objective(self, batch: int, step: int) -> Tensor:
        """Return the divergence KL(q | p) up to a constant."""
        return self.loss(batch)

    def loss_name(self, step: int) -> str:
        """Return the name of the loss in records."""
        return "loss"

    def validate(self) -> dict[str, float]:
        """Return the divergence of new samples."""
        return {"kl": divergences(self.measured, self.target, VALIDATED).mean().item()}


@torch.no_grad()
def divergences(flow: Flow, target: Target, n: int) -> Tensor:
    """Return log q(x) - log p(x) of n samples x of a flow, (n,), whose mean is KL(q | p).

    Without a known normaliser its mean is the negative ELBO, a bound of the log-evidence by one importance sample.
    """
    x, log_q = flow.rsample_and_log_prob(n)
    return (log_q - target.log_density(x)).double() + (target.log_normalizer or 0.0)


def main(args: list[str]) -> None:
    """Run the command line ``reverse-kl``."""

    def figures(task: ReverseKLTask, run: Run) -> dict[str, Any]:
        with count_evals(task.measured) as nfe:
            kl = divergences(task.measured, task.target, TESTED)
        error = kl.std().item() / math.sqrt(TESTED)
        return {"kl": kl.mean().item(), "standard_error": error, "nfe_sample": nfe.forward}

    train_as_run(KIND, read(FlowSettings, args, KIND), ReverseKLTask, figures)


# The experiment

SIZES = (2, 8, 32)
KINDS = ("NF K", "CNF M")  # layers of a planar flow, units of the field of a continuous one
PERCEPTRON = "CNF 64-64"
SAMPLED = (*(f"{kind}={SIZES[-1]}" for kind in KINDS), PERCEPTRON)


def _runs(data: str, scale: Scale) -> dict[str, str]:
    load_target(data)  # raises an error if there is none
    quick = {"steps": 4} if scale.size == "quick" else {}

    def fit(transform: str, *size: int, **settings: Any) -> str:
        return words("reverse-kl {data}", {"transform": transform, "size": size, **settings, **quick})

    return {
        **{f"{KINDS[0]}={k}": fit("planar", k, steps=6000) for k in SIZES},
        **{f"{KINDS[1]}={m}": fit("planar-field", m, steps=3000, lr=2e-2) for m in SIZES},
        PERCEPTRON: fit("mlp-field", 64, 64, steps=4000),
    }


def _divergences(results: Results, data: str) -> dict[str, Any]:
    known = load_target(data).log_normalizer is not None
    what = "KL" if known else "negative ELBO (1 importance sample, bounds the log-evidence)"
    return {f"{what}, {label}": results.of(label).mean("kl") for label in results.labels}


def _draw_target(axes: Axes, results: Results) -> None:
    target = load_target(results.data[0])
    if target.half is None:
        return
    box = (-target.half, target.half, -target.half, target.half)
    density = target.log_density(torch.from_numpy(plots.grid(box, 120))).exp().reshape(120, 120)
    axes.imshow(density.numpy(), origin="lower", extent=box, cmap=plots.DENSITY_COLORS, aspect="auto")
    axes.set_title("target")


def _draw_samples(label: str) -> Panel:
    def draw(axes: Axes, results: Results) -> None:
        half = load_target(results.data[0]).half or 4.0
        axes.set(title=label, xlim=(-half, half), ylim=(-half, half))
        if (outcome := results.of(label).exemplar) is not None:
            run = Run.open(outcome.folder)
            task = ReverseKLTask(FlowSettings(**run.config["model"]), torch.device("cpu"))
            run.load_best(task.model)
            torch.manual_seed(0)
            axes.plot(*task.measured.sample(SHOWN)[:, :2].numpy().T, ".", ms=2, color=plots.LINE_COLORS[0])

    return draw


def _draw_divergences(axes: Axes, results: Results) -> None:
    for kind, color in zip(KINDS, plots.LINE_COLORS, strict=False):
        axes.plot(SIZES, [results.of(f"{kind}={n}").mean("kl") for n in SIZES], "o-", label=kind, color=color)
    axes.axhline(results.of(PERCEPTRON).mean("kl"), color="0.5", ls="--", label=PERCEPTRON)
    axes.set(xlabel="layers or units", xscale="log", ylabel="KL to the target in nats")
    plots.log_y(axes)
    axes.set_xticks(SIZES, map(str, SIZES))
    axes.xaxis.set_minor_locator(NullLocator())


EXPERIMENTS = {
    "planar": Experiment(
        "depth of planar flows against width of continuous ones, by reverse KL (Neural ODEs, fig. 4)",
        tuple(ENERGIES),
        "targets",
        _runs,
        lambda r: draw_panels(r, _draw_target, *map(_draw_samples, SAMPLED), _draw_divergences),
        lambda r: by_data(r, _divergences),
    )
}
