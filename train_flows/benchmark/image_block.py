"""``train-flows benchmark image-block``: a training step of an image block, timed against plain torchdiffeq.

The work: one channel of 28x28 and five augmented ones, a field of 64 filters, a linear head, batches of 64, dopri5 at
1e-3, from equal weights. Time as a bias is another field along the border, beyond which a channel of t is zero.
Contenders take turns in one process; memory is measured in the first step of a child process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchdiffeq import odeint, odeint_adjoint
from typing_extensions import override

from anode import Augment, ConvField, ODEBlock, Solver, count_evals
from anode.errors import config
from train_flows import benchmark
from train_flows.benchmark.timing import medians, peak_megabytes
from train_flows.command_line import read
from train_flows.run.session import find_device

EXTRA, CLASSES = 5, 10
CHANNELS = 1 + EXTRA
TOLERANCE = 1e-3
REFERENCE = "torchdiffeq, adjoint, time as a channel"


class Sizes(NamedTuple):
    """Sizes of the work."""

    side: int = 28
    filters: int = 64
    batch: int = 64


@config
class Settings:
    """Time a training step of an image block against plain torchdiffeq: seconds, evaluations, peak memory.

    Attributes:
        repeats: number of runs; their median counts
        threads: number of threads
        device: cpu, cuda, cuda:1 or mps; auto takes a CUDA GPU if there is one
        quick: use tiny images, to see that everything runs
        out: JSON file of results
        overwrite: replace existing results
    """

    repeats: Annotated[int, Field(ge=1)] = 7
    threads: Annotated[int, Field(ge=1)] = torch.get_num_threads()
    device: str = "auto"
    quick: bool = False
    out: Path = Path("benchmark-image-block.json")
    overwrite: bool = False


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark image-block``."""
    settings = read(Settings, args, "benchmark image-block")
    benchmark.prepare(settings.out, settings.overwrite)
    device = find_device(settings.device)
    torch.set_num_threads(settings.threads)
    rows = measure(Sizes(6, 4, 8) if settings.quick else Sizes(), settings.repeats, device)
    benchmark.write(settings.out, __doc__, rows=rows)
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format, na_rep="-"), settings.out, sep="\n\n")


def measure(sizes: Sizes, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Return seconds, evaluations and memory of a training step of every contender."""
    steps = {name: Step(name, sizes, device) for name in CONTENDERS}
    seconds = medians(steps, repeats)
    return [
        {
            "contender": name,
            "seconds": seconds[name],
            "times_faster": seconds[REFERENCE] / seconds[name],
            "images_per_second": sizes.batch / seconds[name],
            "evaluations": step.evaluations(),
            "peak_megabytes": peak_megabytes(Step, name, sizes, device, device=str(device)),
        }
        for name, step in steps.items()
    ]


class Step:
    """A training step of a contender: loss and gradients."""

    def __init__(self, name: str, sizes: Sizes, device: torch.device) -> None:
        torch.manual_seed(0)
        self.block = CONTENDERS[name](sizes.filters).to(device)
        torch.manual_seed(1)  # some blocks draw more numbers than others
        self.augment = Augment(EXTRA)
        self.head = nn.Linear(CHANNELS * sizes.side**2, CLASSES).to(device)
        self.x = torch.rand(sizes.batch, 1, sizes.side, sizes.side).to(device)
        self.y = torch.randint(CLASSES, (sizes.batch,)).to(device)

    def __call__(self) -> None:
        """Take the step."""
        F.cross_entropy(self.head(self.block(self.augment(self.x)).flatten(1)), self.y).backward()
        if self.x.device.type == "cuda":
            torch.cuda.synchronize(self.x.device)

    def evaluations(self) -> int:
        """Count the evaluations of the field in a step, forward and backward."""
        plain = getattr(self.block, "field", None)
        before = plain.evaluations if isinstance(plain, PlainField) else 0
        with count_evals(self.block) as nfe:
            self()
        return plain.evaluations - before if isinstance(plain, PlainField) else nfe.forward + nfe.backward


class PlainField(nn.Module):
    """The field in plain PyTorch: the constant channel of t is joined to the input of every convolution."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(CHANNELS + 1, filters, 1), nn.Conv2d(filters + 1, filters, 3, padding=1)
        self.convs = nn.ModuleList([first, second, nn.Conv2d(filters + 1, CHANNELS, 1)])
        self.evaluations = 0

    @override
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.evaluations += 1
        first, second, last = self.convs
        return last(_with_time(F.relu(second(_with_time(F.relu(first(_with_time(x, t))), t))), t))


def _with_time(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1]) * t], dim=1)


class PlainBlock(nn.Module):
    """A block by torchdiffeq: the state at time 1."""

    def __init__(self, filters: int, solve: Callable[..., Any]) -> None:
        super().__init__()
        self.field = PlainField(filters)
        self.solve = solve

    @override
    def forward(self, x: Tensor) -> Tensor:
        times = torch.tensor([0.0, 1.0], device=x.device)
        return self.solve(self.field, x, times, rtol=TOLERANCE, atol=TOLERANCE)[1]


def block(filters: int, time: str, gradient: Any) -> ODEBlock:
    """Return a block of this package with the weights of the plain one."""
    convs: Any = PlainField(filters).convs  # drawn first, as by the plain block
    field, weights = ConvField(CHANNELS, filters, time=time), {}
    for i, conv in enumerate(convs):
        weight, of_time = conv.weight[:, :-1], conv.weight[:, -1:]
        of_time = of_time.sum((1, 2, 3)) if time == "bias" else of_time
        weights |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": conv.bias, f"layers.{i}.time": of_time}
    field.load_state_dict(weights)
    return ODEBlock(field, Solver(rtol=TOLERANCE, atol=TOLERANCE, gradient=gradient))


CONTENDERS: dict[str, Callable[[int], nn.Module]] = {
    REFERENCE: lambda filters: PlainBlock(filters, odeint_adjoint),
    "torchdiffeq, direct, time as a channel": lambda filters: PlainBlock(filters, odeint),
    "anode, direct, time as a channel": lambda filters: block(filters, "concat", "direct"),
    "anode, direct, time as a bias": lambda filters: block(filters, "bias", "direct"),
    "anode, checkpoint, time as a bias": lambda filters: block(filters, "bias", "checkpoint"),
    "anode, adjoint, time as a bias": lambda filters: block(filters, "bias", "adjoint"),
}
