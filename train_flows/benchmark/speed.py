"""``train-flows benchmark speed``: a continuous flow by this package and by others, at equal weights and tolerances.

Fields of three hidden layers of 64 (tanh) in two dimensions after 300 training steps on two moons, and of two of 860
(softplus) in 43 dimensions. dopri5 at 1e-5, float32, on as many cores as threads. Contenders take turns, the first of
which warms up; seconds are medians. Errors are those against a solve in double precision at 1e-9: of gradients
relative to their norm, of log-densities and of points as root mean squares. Evaluations of the field are those
forward and backward together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro

from anode import InputError, storage
from train_flows import data
from train_flows.benchmark import speed_report
from train_flows.benchmark.contender import Contender, Weights
from train_flows.benchmark.contenders import Ours, contenders, random_weights
from train_flows.benchmark.overhead import again, calls_of
from train_flows.benchmark.timing import apart, medians, peak_megabytes, pinned
from train_flows.loop import shuffled_batches
from train_flows.provenance import provenance
from train_flows.settings import Flag

TOLERANCE, REFERENCE = 1e-5, 1e-9
SWEEP = (1e-4, 1e-5, 1e-6)
TRAINED = 300  # steps, before a field is timed
MANY = 10_000  # points to evaluate and to sample
PLAIN = "torchdiffeq, adjoint (FFJORD)"
GROWING = ("ours, checkpoint", "ours, direct", PLAIN)


class Work(NamedTuple):
    """A field and a batch.

    Attributes:
        dim: of the data.
        hidden: widths of the field.
        activation: of its hidden layers.
        batch: samples of a training step.
    """

    dim: int
    hidden: tuple[int, ...]
    activation: str
    batch: int


PLANE = Work(2, (64, 64, 64), "tanh", 512)
TABLE = Work(43, (860, 860), "softplus", 128)  # the shape of MINIBOONE, and of FFJORD's network for it
WORKS = ("cnf-2d", "cnf-tab", "small", "growth")


@dataclass(frozen=True)
class Settings:
    """Time a continuous flow by this package and by others that are installed: seconds, evaluations, errors, memory."""

    works: tuple[str, ...] = WORKS
    repeats: int = 5  # of which the median is taken
    seeds: int = 3  # of weights
    threads: int = torch.get_num_threads()
    compile: bool = True  # also time this package with compiled fields
    out: Path = Path("benchmark-speed.json")
    overwrite: Flag = False  # replace existing results

    def check(self) -> None:
        """Raise an :class:`~anode.InputError` for what cannot be meant, or would overwrite results."""
        for option in ("repeats", "seeds", "threads"):
            if getattr(self, option) < 1:
                raise InputError(f"--{option} {getattr(self, option)} must be at least 1")
        for work in self.works:
            if work not in WORKS:
                raise InputError(f"--works {work} is unknown: choose from {', '.join(WORKS)}")
        if self.out.suffix != ".json" or self.out.is_dir() or not self.out.parent.is_dir():
            raise InputError(f"--out {self.out}: pass the name of a .json file in a folder that exists")
        if self.out.exists() and not self.overwrite:
            raise InputError(f"{self.out} exists: pass another --out, or --overwrite")


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark speed``."""
    settings = tyro.cli(Settings, args=args, prog="train-flows benchmark speed")
    settings.check()
    torch.set_num_threads(settings.threads)
    rows: list[dict[str, Any]] = []
    for work in settings.works:
        with pinned(settings.threads):
            rows += MEASURES[work](settings)
        work_text = " ".join((__doc__ or "").split("\n\n")[1].split())
        content = {**provenance(), "packages": speed_report.packages(), "work": work_text, "rows": rows}
        storage.write_atomically(settings.out, (json.dumps(content, indent=1) + "\n").encode())
    print(speed_report.table(rows), settings.out, sep="\n\n")
    speed_report.draw(rows).savefig(settings.out.with_suffix(".png"), dpi=110)


def plane(settings: Settings) -> list[dict[str, Any]]:
    """A training step, exact and by one probe, log_prob and samples of many points, for every seed of weights."""
    rows = []
    for seed in range(settings.seeds):
        weights = trained_weights(PLANE, seed)
        x = _moons(MANY, seed)
        rows += _tasks(settings, "cnf-2d", PLANE, weights, x, seed)
        if seed == 0:
            for tolerance in SWEEP:
                if tolerance != TOLERANCE:
                    rows += _tasks(settings, "cnf-2d", PLANE, weights, x, seed, tolerance)
    return rows


def _tasks(
    settings: Settings, name: str, work: Work, weights: Weights, x: np.ndarray, seed: int, tolerance: float = TOLERANCE
) -> list[dict[str, Any]]:
    """Rows of every task and contender."""
    rows = []
    z = np.random.default_rng(seed).normal(size=x.shape).astype(x.dtype)
    tasks = {
        "step, exact": (True, "step", x[: work.batch]),
        "step, one probe": (False, "step", x[: work.batch]),
        "log_prob": (True, "log_prob", x),
        "sample": (True, "sample", z),
    }
    for task, (exact, verb, points) in tasks.items():
        if tolerance != TOLERANCE and task not in ("step, exact", "log_prob"):
            continue
        truth = _truth(work, weights, points, verb) if exact else None
        works, here = {}, {}
        for contender, made in contenders(settings.compile).items():
            here[contender] = made(weights, work.activation, tolerance, exact=exact)
            works[contender] = _doing(here[contender], verb, points)
        seconds = medians(works, settings.repeats)
        for contender, each in here.items():
            nfe = each.evaluations(works[contender])
            error = None if truth is None else _error(each, works[contender], verb, truth)
            about = {"work": name, "task": task, "contender": contender, "seed": seed, "tolerance": tolerance}
            rows.append({**about, "seconds": seconds[contender], "evaluations": nfe, "error": error})
    return rows


def _doing(contender: Contender, verb: str, points: np.ndarray) -> Callable[[], Any]:
    """A piece of work; without a graph where nothing is trained."""
    given = contender.points(points)
    call = getattr(contender, verb)
    return (lambda: call(given)) if verb == "step" else torch.no_grad()(lambda: call(given))


def _truth(work: Work, weights: Weights, points: np.ndarray, verb: str) -> list[np.ndarray]:
    """What a piece of work comes to in double precision at a small tolerance."""
    double = [(weight.astype(np.float64), bias.astype(np.float64)) for weight, bias in weights]
    reference = Ours(double, work.activation, REFERENCE, gradient="checkpoint")
    return _result(reference, _doing(reference, verb, points.astype(np.float64)), verb)


def _result(contender: Contender, work: Callable[[], Any], verb: str) -> list[np.ndarray]:
    found = work()
    return contender.gradients() if verb == "step" else [np.asarray(found)]


def _error(contender: Contender, work: Callable[[], Any], verb: str, truth: Sequence[np.ndarray]) -> float:
    found = _result(contender, work, verb)
    squares = sum(np.square(a - b).sum() for a, b in zip(found, truth, strict=True))
    scale = sum(np.square(b).sum() for b in truth) if verb == "step" else truth[0].size
    return math.sqrt(squares / scale)


def table(settings: Settings) -> list[dict[str, Any]]:
    """A training step in 43 dimensions, of every contender in a process of its own, which may run out of memory."""
    rows = []
    for contender in contenders(settings.compile):
        for exact in (True, False):
            found = apart(_time_alone, contender, exact, min(settings.repeats, 3), settings.threads)
            task = "step, exact" if exact else "step, one probe"
            about = {"work": "cnf-tab", "task": task, "contender": contender, "seed": 0, "tolerance": TOLERANCE}
            rows.append({**about, **(found or {"seconds": None, "evaluations": None, "error": "out of memory"})})
    return rows


def _time_alone(name: str, exact: bool, repeats: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    weights = random_weights(TABLE.dim, TABLE.hidden, 0)
    x = np.random.default_rng(1).normal(size=(TABLE.batch, TABLE.dim)).astype(np.float32)
    contender = contenders(True)[name](weights, TABLE.activation, TOLERANCE, exact=exact)
    work = _doing(contender, "step", x)
    seconds = medians({name: work}, repeats)[name]
    error = _error(contender, work, "step", _truth(TABLE, weights, x, "step")) if exact else None
    return {"seconds": seconds, "evaluations": contender.evaluations(work), "error": error}


def small(settings: Settings) -> list[dict[str, Any]]:
    """A training step of 16 samples, and what its evaluations of the field take without a solver."""
    weights = trained_weights(PLANE, 0)
    x = torch.from_numpy(_moons(16, 0))
    rows = []
    for compiled in (False, True) if settings.compile else (False,):
        for gradient in ("direct", "checkpoint"):
            ours = Ours(weights, PLANE.activation, TOLERANCE, gradient=gradient, compile=compiled)
            nfe = ours.evaluations(partial(ours.step, x))
            calls = calls_of(Ours(weights, PLANE.activation, TOLERANCE, gradient=gradient), x)
            works = {"step": partial(ours.step, x), "field": partial(again, ours.field, calls)}
            seconds = medians(works, 5 * settings.repeats)
            contender = f"ours, {gradient}{', compiled' if compiled else ''}"
            about = {"work": "small", "contender": contender, "seed": 0, "tolerance": TOLERANCE, "evaluations": nfe}
            overhead = {"overhead": seconds["step"] / seconds["field"] - 1, "seconds_field": seconds["field"]}
            rows.append({**about, "task": "step, exact", "seconds": seconds["step"], "error": None, **overhead})
    return rows


def growth(settings: Settings) -> list[dict[str, Any]]:
    """Seconds and peak memory of a training step by tolerance, batch size and dimension."""
    sizes = {
        "tolerance": [(PLANE._replace(batch=4096), 10.0**-k) for k in range(3, 8)],
        "batch": [(PLANE._replace(batch=2**k), TOLERANCE) for k in range(7, 14, 2)],
        "dimension": [(PLANE._replace(dim=2**k), TOLERANCE) for k in range(1, 6)],
    }
    rows = []
    for by, cases in sizes.items():
        for work, tolerance in cases:
            weights = trained_weights(work, 0) if work.dim == PLANE.dim else random_weights(work.dim, work.hidden, 0)
            for name in GROWING:
                step, contender = _growing(name, work, weights, tolerance)
                seconds = medians({name: step}, min(settings.repeats, 3))[name]
                row = {"work": "growth", "task": f"step, by {by}", "contender": name, "seed": 0, "tolerance": tolerance}
                size = {"batch": work.batch, "dim": work.dim, "evaluations": contender.evaluations(step), "error": None}
                memory = peak_megabytes(_growing_step, name, work, weights, tolerance)
                rows.append({**row, **size, "seconds": seconds, "peak_megabytes": memory})
    return rows


def _growing(name: str, work: Work, weights: Weights, tolerance: float) -> tuple[Callable[[], Any], Contender]:
    contender = contenders(False)[name](weights, work.activation, tolerance)
    x = np.random.default_rng(1).normal(size=(work.batch, work.dim)).astype(np.float32)
    return _doing(contender, "step", x), contender


def _growing_step(name: str, work: Work, weights: Weights, tolerance: float) -> Callable[[], Any]:
    """The step alone, after a small one that loads what is loaded lazily."""
    _growing(name, work._replace(batch=8), weights, tolerance)[0]()
    return _growing(name, work, weights, tolerance)[0]


def trained_weights(work: Work, seed: int) -> Weights:
    """Those of a field after some training steps on the two moons."""
    torch.manual_seed(seed)
    ours = Ours(random_weights(work.dim, work.hidden, seed), work.activation, 1e-4, gradient="direct")
    optimizer = torch.optim.Adam(ours.field.parameters(), lr=3e-3)
    x = torch.from_numpy(_moons(MANY, seed))
    batch = shuffled_batches(x, PLANE.batch, seed)
    for step in range(TRAINED):
        ours.step(batch(step))
        optimizer.step()
    state = ours.field.state_dict()
    weights = []
    for i in range(len(work.hidden) + 1):
        weight = state[f"layers.{i}.weight"]
        if i == 0:
            weight = torch.cat([weight, state["layers.0.time"][:, None]], 1)
        weights.append((weight.numpy().copy(), state[f"layers.{i}.bias"].numpy().copy()))
    return weights


def _moons(n: int, seed: int) -> np.ndarray:
    """Points of the two moons, standardised."""
    x = data.load("moons", seed).train[:n]
    return ((x - x.mean(0)) / x.std(0)).numpy()


MEASURES: dict[str, Callable[[Settings], list[dict[str, Any]]]] = {
    "cnf-2d": plane,
    "cnf-tab": table,
    "small": small,
    "growth": growth,
}
