"""``train-flows benchmark image-block``: a training step of an image block, timed against plain torchdiffeq.

The work: one channel of 28x28 and five augmented ones, a field of 64 filters, a linear head, batches of 64, dopri5 at
1e-3, from equal weights. Time as a bias is another field along the border, beyond which a channel of t is zero.
Contenders take turns in one process; memory is that of a first step in a process of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.autograd.profiler import profile
from torch.nn import functional as F
from torchdiffeq import odeint, odeint_adjoint

from anode import Augment, ConvField, InputError, ODEBlock, Solver, count_evals, storage
from train_flows.benchmark.timing import medians, peak_megabytes
from train_flows.provenance import provenance
from train_flows.settings import Device, Flag, find_device

SIDE, EXTRA, FILTERS, BATCH, CLASSES = 28, 5, 64, 64, 10
TOLERANCE = 1e-3
REFERENCE = "torchdiffeq, adjoint, time as a channel"


@dataclass(frozen=True)
class Settings:
    """Time a training step of an image block against plain torchdiffeq: seconds, evaluations, peak memory."""

    repeats: int = 7  # of which the median is taken
    threads: int = torch.get_num_threads()
    device: Device = "auto"
    out: Path = Path("benchmark-image-block.json")
    overwrite: Flag = False  # replace existing results


class Concatenated(nn.Module):
    """The field written plainly: the constant channel of t joined to the input of every convolution."""

    def __init__(self) -> None:
        super().__init__()
        channels = 1 + EXTRA
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(channels + 1, FILTERS, 1),
                nn.Conv2d(FILTERS + 1, FILTERS, 3, padding=1),
                nn.Conv2d(FILTERS + 1, channels, 1),
            ]
        )
        self.evaluations = 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate the field."""
        self.evaluations += 1
        inner, middle, outer = self.convs
        h = F.relu(inner(self._timed(t, x)))
        return outer(self._timed(t, F.relu(middle(self._timed(t, h)))))

    def _timed(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones_like(x[:, :1]) * t], dim=1)


class Plain(nn.Module):
    """A block of plain torchdiffeq."""

    def __init__(self, solve: Callable[..., Any]) -> None:
        super().__init__()
        self.field = Concatenated()
        self.solve = solve

    def forward(self, x: Tensor) -> Tensor:
        """The state at time 1."""
        times = torch.tensor([0.0, 1.0], device=x.device)
        return self.solve(self.field, x, times, rtol=TOLERANCE, atol=TOLERANCE)[1]


def block(field_time: str, gradient: str) -> ODEBlock:
    """A block of this package with the weights of the plain one."""
    plain = Concatenated()
    field = ConvField(1 + EXTRA, FILTERS, time=field_time)
    weights = {}
    for i, conv in enumerate(plain.convs):
        weight = conv.get_parameter("weight").detach()
        of_time = weight[:, -1:]
        weights |= {
            f"layers.{i}.weight": weight[:, :-1],
            f"layers.{i}.bias": conv.get_parameter("bias").detach(),
            f"layers.{i}.time": of_time.sum((1, 2, 3)) if field_time == "bias" else of_time,
        }
    field.load_state_dict(weights)
    return ODEBlock(field, Solver(rtol=TOLERANCE, atol=TOLERANCE, gradient=gradient))


CONTENDERS: dict[str, Callable[[], nn.Module]] = {
    REFERENCE: lambda: Plain(odeint_adjoint),
    "torchdiffeq, direct, time as a channel": lambda: Plain(odeint),
    "anode, direct, time as a channel": lambda: block("concat", "direct"),
    "anode, direct, time as a bias": lambda: block("bias", "direct"),
    "anode, checkpoint, time as a bias": lambda: block("bias", "checkpoint"),
    "anode, adjoint, time as a bias": lambda: block("bias", "adjoint"),
}


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark image-block``."""
    settings = tyro.cli(Settings, args=args, prog="train-flows benchmark image-block")
    for option in ("repeats", "threads"):
        if getattr(settings, option) < 1:
            raise InputError(f"--{option} {getattr(settings, option)} must be at least 1")
    if settings.out.is_dir():
        raise InputError(f"--out {settings.out} is a folder: pass the name of a file")
    if settings.out.exists() and not settings.overwrite:
        raise InputError(f"{settings.out} exists: pass another --out, or --overwrite")
    if not settings.out.parent.is_dir():
        raise InputError(f"--out {settings.out}: there is no folder {settings.out.parent}, make it first")
    device = find_device(settings.device)
    torch.set_num_threads(settings.threads)
    rows = measure(settings, device)
    content = {**provenance(), "work": __doc__.split("\n\n")[1].replace("\n", " ") if __doc__ else "", "rows": rows}
    storage.write_atomically(settings.out, (json.dumps(content, indent=2) + "\n").encode())
    print(table(rows), settings.out, sep="\n\n")


def measure(settings: Settings, device: torch.device) -> list[dict[str, Any]]:
    """Seconds, evaluations and memory of a training step of every contender."""
    steps = {name: Step(name, device) for name in CONTENDERS}
    seconds = medians(steps, settings.repeats)
    return [
        {
            "contender": name,
            "seconds": seconds[name],
            "times_faster": seconds[REFERENCE] / seconds[name],
            "images_per_second": BATCH / seconds[name],
            "outside_convolutions": outside_convolutions(step, device),
            "evaluations": step.evaluations(),
            "peak_megabytes": peak_megabytes(Step, name, device, device=str(device)),
        }
        for name, step in steps.items()
    ]


def outside_convolutions(step: Callable[[], None], device: torch.device) -> float:
    """The share of the device's time in a step that is not spent in convolutions, by torch's profiler."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's chatter on standard error
    on_gpu = device.type == "cuda"
    with profile(use_device="cuda" if on_gpu else None, use_kineto=on_gpu) as profiled:
        step()
    times = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profiled.key_averages()
        if event.device_type == DeviceType.CPU  # operators: kernels of a GPU are counted with those that launch them
    }
    return sum(time for name, time in times.items() if "conv" not in name.lower()) / sum(times.values())


class Step:
    """A training step of a contender: loss and gradients."""

    def __init__(self, name: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.block = CONTENDERS[name]().to(device)
        torch.manual_seed(1)  # some blocks draw more numbers than others
        self.augment = Augment(EXTRA)
        self.head = nn.Linear((1 + EXTRA) * SIDE**2, CLASSES).to(device)
        self.x = torch.rand(BATCH, 1, SIDE, SIDE).to(device)
        self.y = torch.randint(CLASSES, (BATCH,)).to(device)

    def __call__(self) -> None:
        """Take it."""
        F.cross_entropy(self.head(self.block(self.augment(self.x)).flatten(1)), self.y).backward()
        if self.x.device.type == "cuda":
            torch.cuda.synchronize(self.x.device)

    def evaluations(self) -> int:
        """Of the field in a step, forward and backward."""
        plain = getattr(self.block, "field", None)
        if isinstance(plain, Concatenated):
            plain.evaluations = 0
            self()
            return plain.evaluations
        with count_evals(self.block) as nfe:
            self()
        return nfe.forward + nfe.backward


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines to read."""
    lines = [f"{'a training step':<40} seconds  times faster  images/s  outside convolutions  evaluations  peak MB"]
    for row in rows:
        peak = "-" if row["peak_megabytes"] is None else f"{row['peak_megabytes']:.0f}"
        speed = f"{row['seconds']:7.3f}  {row['times_faster']:12.2f}  {row['images_per_second']:8.0f}"
        rest = f"{row['outside_convolutions']:20.0%}  {row['evaluations']:11}  {peak:>7}"
        lines.append(f"{row['contender']:<40} {speed}  {rest}")
    return "\n".join(lines)
