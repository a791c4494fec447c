"""``train-flows benchmark series``: irregular time series as one batch, one by one, and at the union of their times.

The work: 64 damped oscillations in two dimensions with 100 times each, whose gaps are exponential; models of kind node
and latent with their defaults, after 300 steps of training; dopri5 at 1e-3; CPU seconds of one thread. All ways share
encoder, field, decoder, loss and weights. The union is the usual way of irregular series: one solve of the batch for
its states at the times of all series, from which each series picks its own. The error is the error of the worst state,
next to series solved one by one in double precision at 1e-9, where all ways must agree.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torchdiffeq import odeint
from typing_extensions import override

from anode import Solver, with_solver
from anode.errors import config
from anode.time_series import Series, SeriesModel, pad, series_model
from anode.time_series.paths import SolvedPaths
from anode.time_series.series import History
from train_flows import benchmark
from train_flows.benchmark.timing import medians
from train_flows.command_line import read

Parts = list[tuple[SeriesModel, Series]]  # batches that are solved one after the other
Solve = Callable[[nn.Module, Tensor, Tensor, Solver], Tensor]  # field, y0 (B, S), times (T,), solver -> (T, B, S)

KINDS = ("node", "latent")
GAP, DECAY, NOISE = 0.2, 0.05, 0.05  # of the data: mean gap, rate, standard deviation
RATE = 0.01  # of Adam
TIGHT = Solver(rtol=1e-9, atol=1e-9, gradient="direct")
BATCH, LOOP = "one batch", "one by one"


class Sizes(NamedTuple):
    """Sizes of the work."""

    series: int = 64
    times: int = 100
    steps: int = 300


@config
class Settings:
    """Time a batch of irregular time series against a loop over them and against the union of their times.

    Attributes:
        repeats: number of runs; their median counts
        quick: use few short series, to see that everything runs
        out: JSON file of results
        overwrite: replace existing results
    """

    repeats: Annotated[int, Field(ge=1)] = 7
    quick: bool = False
    out: Path = Path("benchmark-series.json")
    overwrite: bool = False


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark series``."""
    settings = read(Settings, args, "benchmark series")
    benchmark.prepare(settings.out, settings.overwrite)
    torch.set_num_threads(1)
    sizes = Sizes(3, 6, 2) if settings.quick else Sizes()
    rows = [row for kind in KINDS for row in measure(kind, sizes, settings.repeats)]
    benchmark.write(settings.out, __doc__, rows=rows)
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format), settings.out, sep="\n\n")


def measure(kind: str, sizes: Sizes, repeats: int) -> list[dict[str, Any]]:
    """Return seconds, evaluations and errors of every way to solve a batch of series.

    Returns:
        A row for each task and way: CPU ``seconds``, their ``ratio`` to one batch, ``evaluations`` of the field,
        ``points`` (evaluations times the series of each), the largest ``error`` of a state and the largest
        ``difference`` from one batch, in units of the state, and the largest ``error_tight`` of the way at 1e-9.
    """
    data = oscillations(sizes)
    model = trained(kind, data, sizes.steps)
    parts = {way: make(model, data) for way, make in WAYS.items()}
    states = {way: forecast(each) for way, each in parts.items()}
    precise = with_solver(copy.deepcopy(model).double(), TIGHT)
    tight = {way: forecast(make(precise, data)) for way, make in WAYS.items()}
    rows = []
    for task, work in TASKS.items():
        works = {way: partial(work, each) for way, each in parts.items()}
        seconds = medians(works, repeats, time.process_time)
        for way, [(solved, _), *_] in parts.items():
            batches = batches_of(solved.paths.field, works[way])
            row = {"kind": kind, "task": task, "way": way, "seconds": seconds[way]}
            row |= {"ratio": seconds[way] / seconds[BATCH], "evaluations": len(batches), "points": sum(batches)}
            row |= {"error": _largest(states[way] - tight[LOOP]), "difference": _largest(states[way] - states[BATCH])}
            rows.append({**row, "error_tight": _largest(tight[way] - tight[LOOP])})
    return rows


def oscillations(sizes: Sizes) -> Series:
    """Draw damped oscillations of random amplitude and phase, with noise, at the times of a Poisson process."""
    generator = torch.Generator().manual_seed(0)
    gaps = torch.empty(sizes.series, sizes.times, dtype=torch.float64).exponential_(1 / GAP, generator=generator)
    times = gaps.cumsum(1)
    amplitudes = 1 + torch.rand(sizes.series, 1, generator=generator)
    angles = times + 2 * torch.pi * torch.rand(sizes.series, 1, generator=generator)
    values = (amplitudes * (-DECAY * times).exp()).unsqueeze(-1) * torch.stack([angles.cos(), angles.sin()], dim=-1)
    noise = NOISE * torch.randn(values.shape, generator=generator)
    return pad(list(zip(times, values + noise, strict=True)))


def trained(kind: str, data: Series, steps: int) -> SeriesModel:
    """Train a default model on the series: the paths of a new one are constant, and cost few steps."""
    torch.manual_seed(0)
    model = series_model(2, data=data, kind=kind)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for _ in range(steps):
        step([(model, data)])
        optimizer.step()
    return model


# Ways to solve the series


class UnionPaths(nn.Module):
    """The paths of a model, by one solve for the states of a batch at the times of all its series.

    Args:
        paths: the paths, whose start, field and solver are shared.
        solve: solves the ODE.
    """

    def __init__(self, paths: SolvedPaths, solve: Solve) -> None:
        super().__init__()
        self.start, self.field, self.solver, self.solve = paths.start, paths.field, paths.solver, solve

    @override
    def forward(self, history: History, times: Tensor, samples: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the states (K, B, T, S) at times (B, T), and the divergence (B,); see :class:`SolvedPaths`."""
        states, kl = self.start(history, samples)
        union, place = torch.cat([times.new_zeros(1), times.flatten()]).unique(return_inverse=True)
        path = self.solve(self.field, states.flatten(0, 1), union, self.solver)  # (all times, K B, S)
        rows = torch.arange(path.shape[1]).view(*states.shape[:2], 1)
        return path[place[1:].view_as(times), rows], kl


def one_by_one(model: SeriesModel, data: Series) -> Parts:
    """Return a batch of one for each series."""
    return [(model, Series(*each)) for each in zip(*(part.split(1) for part in data), strict=True)]


def on_union(solve: Solve, model: SeriesModel, data: Series) -> Parts:
    """Return the batch with a model of the same weights that solves it for the union of its times."""
    other: Any = with_solver(model, model.config.solver)
    other.paths = UnionPaths(other.paths, solve)
    return [(other, data)]


def by_torchdiffeq(field: nn.Module, y0: Tensor, times: Tensor, solver: Solver) -> Tensor:
    """Solve by plain torchdiffeq, whose gradient is that of the steps."""
    return odeint(field, y0, times, rtol=solver.rtol, atol=solver.atol, method=solver.method)


def by_anode(field: nn.Module, y0: Tensor, times: Tensor, solver: Solver) -> Tensor:
    """Solve by this package."""
    return solver.trajectory(field, y0, times)


WAYS: dict[str, Callable[[SeriesModel, Series], Parts]] = {
    BATCH: lambda model, data: [(model, data)],
    LOOP: one_by_one,
    "union of times, torchdiffeq": partial(on_union, by_torchdiffeq),
    "union of times, anode": partial(on_union, by_anode),
}


# Tasks


@torch.no_grad()
def forecast(parts: Parts) -> Tensor:
    """Return the states (B, T, S) of all series at their times; of the mean of the posterior of a latent model."""
    return torch.cat([model.trajectory(data, data.times) for model, data in parts])


def step(parts: Parts) -> None:
    """Compute the gradients of the mean loss of all series, which have equally many values."""
    parts[0][0].zero_grad()
    for model, data in parts:
        (model.loss(data, data) / len(parts)).backward()


TASKS: dict[str, Callable[[Parts], Any]] = {"forecast": forecast, "training step": step}


def batches_of(field: nn.Module, work: Callable[[], Any]) -> list[int]:
    """Return the number of series in each evaluation of a field."""
    found: list[int] = []
    hook = field.register_forward_hook(lambda *call: found.append(len(call[-1])))
    work()
    hook.remove()
    return found


def _largest(x: Tensor) -> float:
    return x.abs().max().item()
