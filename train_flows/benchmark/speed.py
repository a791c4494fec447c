"""``train-flows benchmark speed``: a continuous flow by this package and by others, at equal weights and tolerances.

Fields of three hidden layers of 64 (tanh) in two dimensions after 300 training steps on two moons, and of two of 860
(softplus) in 43 dimensions. dopri5 at 1e-5, float32, on one core a thread. Contenders take turns, and the first turn
warms up; seconds are medians. Errors are measured against a solve in double precision at 1e-9: of gradients relative to
their norm, of log-densities and points as root mean squares. Evaluations of the field are forward and backward ones.
With another checkout (--against), flows of the two are timed in turns in child processes, in CPU seconds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic import Field

from anode import InputError, MLPField
from anode.errors import config
from train_flows import benchmark, data
from train_flows.benchmark.packages import PACKAGES, Contender, FlowSpec, contenders, missing, ours
from train_flows.benchmark.timing import compare_checkouts, in_child, medians, pinned
from train_flows.command_line import read
from train_flows.figures.plots import LINE_COLORS
from train_flows.results_pages import OURS, speed_rows
from train_flows.run.step import shuffled_batches

Count = Annotated[int, Field(ge=1)]
Row = dict[str, Any]
TOLERANCE, REFERENCE = 1e-5, 1e-9
NAME = "Augmented Flows"  # of this package in the figure
TASKS = {  # titles of panels
    "cnf-2d, step, exact": "training step,\n2 dimensions",
    "cnf-2d, step, one probe": "training step, trace by\none probe, 2 dimensions",
    "cnf-2d, log_prob": "log-density of 10,000\npoints, 2 dimensions",
    "cnf-2d, sample": "10,000 samples,\n2 dimensions",
    "cnf-tab, step, exact": "training step,\n43 dimensions",
    "cnf-tab, step, one probe": "training step, trace by\none probe, 43 dimensions",
}


class Work(NamedTuple):
    """A field and a batch."""

    dim: int  # of the data
    hidden: tuple[int, ...]  # widths of the field
    activation: str
    batch: int  # samples of a training step


@dataclass(frozen=True)
class Sizes:
    """Sizes of all works."""

    plane: Work
    table: Work  # by default the shape of MINIBOONE, and of FFJORD's network for it
    points: int  # to evaluate and to sample
    trained: int  # steps, before a field is timed


FULL = Sizes(Work(2, (64, 64, 64), "tanh", 512), Work(43, (860, 860), "softplus", 128), 10_000, 300)
QUICK = Sizes(Work(2, (8, 8, 8), "tanh", 16), Work(5, (8, 8), "softplus", 16), 64, 2)


@config
class Settings:
    """Time a continuous flow by this package and by others that are installed: seconds, evaluations, errors, memory.

    Attributes:
        works: cnf-2d: steps, log-densities and samples in two dimensions; cnf-tab: steps in 43 dimensions
        repeats: number of runs; their median counts
        seeds: number of seeds of weights
        threads: number of threads
        compile: also time this package with compiled fields
        quick: use tiny fields, to see that everything runs
        against: folder of another checkout of this project; compare with it instead
        minutes: time for the comparison with another checkout
        out: JSON file of results
        overwrite: replace existing results
    """

    works: tuple[Literal["cnf-2d", "cnf-tab"], ...] = ("cnf-2d", "cnf-tab")
    repeats: Count = 5
    seeds: Count = 3
    threads: Count = torch.get_num_threads()
    compile: bool = True
    quick: bool = False
    against: Path | None = None
    minutes: Annotated[float, Field(gt=0)] = 4.0
    out: Path = Path("benchmark-speed.json")
    overwrite: bool = False


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark speed``."""
    settings = read(Settings, args, "benchmark speed")
    benchmark.prepare(settings.out, settings.overwrite)
    if settings.against is not None:
        compare(settings.against, settings)
        return
    if absent := missing():
        print(f"note: {', '.join(absent)} are not installed, and left out")
    torch.set_num_threads(settings.threads)
    rows: list[Row] = []
    packages = {name: version(name) for name in PACKAGES if name not in absent}
    for work in settings.works:
        with pinned(settings.threads):
            rows += (plane if work == "cnf-2d" else in_many_dimensions)(settings)
        benchmark.write(settings.out, __doc__, packages=packages, rows=rows)
    picture = settings.out.with_suffix(".png")
    draw({"rows": rows}).savefig(picture, dpi=110)
    print(table(rows), f"{settings.out}, {picture}", sep="\n\n")


def draw(content: Mapping[str, Any]) -> Figure:
    """Draw the seconds of every package over those of this one, a panel for each task, all with one scale.

    Args:
        content: of a JSON file that this benchmark wrote.
    """
    rows = list(speed_rows(content))
    tasks = [task for task in TASKS if any(task in row for row in rows)]
    figure = Figure(figsize=(2.6 * len(tasks) + 2.4, 0.32 * len(rows) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(tasks), sharex=True, sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for i, row in enumerate(rows):
            if task in row:
                log_ratio, seconds = np.log2(row[task]["ratio"]), row[task]["seconds"]
                axes.barh(i, log_ratio, color=LINE_COLORS[1 if row["package"].startswith("ours") else 0])
                axes.text(max(0, log_ratio) + 0.2, i, f"{seconds:.2g} s", va="center", size="small")
        axes.axvline(0, color="k", lw=0.8)
        axes.set_title(TASKS[task], fontsize="medium")
    ticks = [-2, 0, 2, 4]
    panels[0].set_xticks(ticks, [f"{2.0**tick:g}" for tick in ticks])
    panels[0].margins(x=0.35)
    panels[0].set_yticks(range(len(rows)), [row["package"].replace("ours", NAME) for row in rows])
    panels[0].invert_yaxis()
    figure.supxlabel(f"seconds over those of {NAME}, checkpoint: bars to the left are faster")
    return figure


def compare(against: Path, settings: Settings) -> None:
    """Compare with another checkout, and print the ratios."""
    for package in ("anode", "cnf"):
        if not (against / package).is_dir():
            raise InputError(f"--against {against} lacks the package {package}: pass the folder of a checkout")
    rows = compare_checkouts(against, settings.minutes)
    ratio = math.exp(np.mean([math.log(row["ratio"]) for row in rows]))
    benchmark.write(settings.out, __doc__, against=str(against), ratio=ratio, rows=rows)
    shown = pd.DataFrame(rows).drop(columns="runs").to_string(index=False, float_format="{:.4f}".format)
    print(shown, f"\nCPU seconds of this checkout over {against}: {ratio:.3f} (geometric mean)", settings.out, sep="\n")


def plane(settings: Settings) -> Iterator[Row]:
    """Time a training step, exact and by one probe, and log_prob and samples of many points, for every seed."""
    sizes = QUICK if settings.quick else FULL
    work = sizes.plane
    for seed in range(settings.seeds):
        field, x = trained_field(sizes, seed), moons(sizes.points, seed)
        z = np.random.default_rng(seed).normal(size=x.shape).astype(x.dtype)
        tasks = {
            "step, exact": ("step", x[: work.batch]),
            "step, one probe": ("step", x[: work.batch]),
            "log_prob": ("log_prob", x),
            "sample": ("sample", z),
        }
        for task, (verb, given) in tasks.items():
            spec = FlowSpec(field, work.activation, TOLERANCE, exact=task != "step, one probe")
            made = {name: make(spec) for name, make in contenders(settings.compile).items()}
            calls = {name: call_of(contender, verb, given) for name, contender in made.items()}
            seconds = medians(calls, settings.repeats)
            for name, contender in made.items():
                found = {"seconds": seconds[name], **_figures(contender, spec, verb, given)}
                yield {"work": "cnf-2d", "task": task, "contender": name, "seed": seed, "tolerance": TOLERANCE, **found}


def in_many_dimensions(settings: Settings) -> Iterator[Row]:
    """Time a training step in many dimensions, each contender in a child process, which may run out of memory."""
    work = (QUICK if settings.quick else FULL).table
    for name in contenders(settings.compile):
        for exact in (True, False):
            found = in_child(_time_alone, work, name, exact, min(settings.repeats, 3), settings.threads)
            task = "step, exact" if exact else "step, one probe"
            about = {"work": "cnf-tab", "task": task, "contender": name, "seed": 0, "tolerance": TOLERANCE}
            yield {**about, **(found or {"seconds": None, "evaluations": None, "error": "out of memory"})}


def _time_alone(work: Work, name: str, exact: bool, repeats: int, threads: int) -> Row:
    torch.set_num_threads(threads)
    spec = FlowSpec(random_field(work, 0), work.activation, TOLERANCE, exact)
    x = np.random.default_rng(1).normal(size=(work.batch, work.dim)).astype(np.float32)
    contender = contenders(True)[name](spec)
    seconds = medians({name: call_of(contender, "step", x)}, repeats)[name]
    return {"seconds": seconds, **_figures(contender, spec, "step", x)}


def call_of(contender: Contender, verb: str, points: np.ndarray) -> Callable[[], Any]:
    """Return a piece of work: ``step``, or ``log_prob`` or ``sample`` without a graph."""
    call = partial(getattr(contender, verb), contender.points(points))
    return call if verb == "step" else torch.no_grad()(call)


def _figures(contender: Contender, spec: FlowSpec, verb: str, points: np.ndarray) -> Row:
    """Return the evaluations of a piece of work, and its error if nothing is estimated."""
    call = call_of(contender, verb, points)
    evaluations = contender.evaluations(call)
    if not spec.exact:
        return {"evaluations": evaluations, "error": None}
    truth = ours(FlowSpec(copy.deepcopy(spec.field).double(), spec.activation, REFERENCE))
    found, expected = (
        _result(*each, verb) for each in ((contender, call), (truth, call_of(truth, verb, points.astype(np.float64))))
    )
    squares = sum(np.square(a - b).sum() for a, b in zip(found, expected, strict=True))
    scale = sum(np.square(b).sum() for b in expected) if verb == "step" else expected[0].size
    return {"evaluations": evaluations, "error": math.sqrt(squares / scale)}


def _result(contender: Contender, call: Callable[[], Any], verb: str) -> list[np.ndarray]:
    found = call()
    return contender.gradients() if verb == "step" else [np.asarray(found)]


def random_field(work: Work, seed: int) -> MLPField:
    """Return a field with the initial weights of a seed."""
    torch.manual_seed(seed)
    return MLPField(work.dim, work.hidden, work.activation, time="concat")


def trained_field(sizes: Sizes, seed: int) -> MLPField:
    """Return a field after some training steps on the two moons."""
    contender = ours(FlowSpec(random_field(sizes.plane, seed), sizes.plane.activation, 1e-4), "direct")
    optimizer = torch.optim.Adam(contender.field.parameters(), lr=3e-3)
    batch = shuffled_batches(torch.from_numpy(moons(sizes.points, seed)), min(sizes.plane.batch, sizes.points), seed)
    for step in range(sizes.trained):
        contender.step(batch(step))
        optimizer.step()
    contender.field.zero_grad()
    return contender.field


def moons(n: int, seed: int) -> np.ndarray:
    """Return points of the two moons, standardised."""
    x = data.load_density_data("moons", seed=seed).train.head(n).x
    return ((x - x.mean(0)) / x.std(0)).numpy()


def table(rows: Sequence[Row]) -> str:
    """Return means over the seeds by task: seconds, times those of ours (geometric mean), evaluations, errors."""
    frame, blocks = pd.DataFrame(rows), []
    for name, part in frame.groupby(frame["work"] + ": " + frame["task"], sort=False):
        seconds = part.pivot(index="seed", columns="contender", values="seconds").astype(float)
        ratio = np.exp(np.log(seconds.div(seconds[OURS], axis=0)).mean())
        by_name = part.assign(error=pd.to_numeric(part["error"], errors="coerce")).groupby("contender", sort=False)
        means = by_name[["seconds", "evaluations", "error"]].mean(numeric_only=True).assign(ratio=ratio)
        blocks.append(f"{name}\n{means.to_string(float_format='{:.4g}'.format, na_rep='-')}")
    return "\n\n".join(blocks)
