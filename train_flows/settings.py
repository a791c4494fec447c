"""Settings by concern: small dataclasses that the programs compose into their command lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro

from anode import InputError, Solver
from anode.solver import FIXED_METHODS

Device = Annotated[str, tyro.conf.arg(help="cpu, cuda, cuda:1, mps; auto takes a CUDA GPU where there is one")]
Data = Annotated[
    tyro.conf.Positional[str | None],
    tyro.conf.arg(metavar="DATA", help="moons, 8gaussians, ..., digits, power, ..., or the path of a table"),
]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class Source:
    """What to learn."""

    source: Data = None
    jitter: Flag = False  # add noise to columns of few distinct values
    data_root: str = "data"  # folder of the published tables


@dataclass(frozen=True)
class Model:
    """The field and its divergence."""

    hidden: tuple[int, ...] = (128, 128)  # widths of the hidden layers
    activation: Literal["tanh", "softplus", "relu", "silu"] = "tanh"  # of the hidden layers
    time: Literal["none", "concat", "bias"] = "bias"  # how the field depends on time
    divergence: Literal["exact", "hutchinson"] = "exact"  # exact or estimated
    probes: int = 1  # Hutchinson probes averaged
    noise: Literal["rademacher", "gaussian"] = "rademacher"  # of the probes


@dataclass(frozen=True)
class Numerics:
    """How ODEs are solved."""

    solver: str = "dopri5"  # of training; figures of a fixed-step one are taken by dopri5
    rtol: float = 1e-5  # relative tolerance of all figures
    atol: float = 1e-5  # absolute tolerance of all figures
    loosen: float = 10.0  # training solves at this multiple of rtol and atol
    step_size: float | None = None  # of a fixed-step solver
    gradient: Literal["direct", "adjoint"] = "direct"  # through the steps, or by the adjoint
    max_steps: int = 1000  # a solve that takes more has failed

    def training(self) -> Solver:
        """The solver of training."""
        if not self.loosen > 0:
            raise InputError(f"--loosen {self.loosen} must be a positive number, 1 for the tolerances of the figures")
        rtol, atol = self.loosen * self.rtol, self.loosen * self.atol
        return Solver(self.solver, rtol, atol, self.step_size, self.max_steps, self.gradient)

    def figures(self) -> Solver:
        """The solver of validation, tests and the stored model: always adaptive."""
        method = "dopri5" if self.solver in FIXED_METHODS else self.solver
        return Solver(method, self.rtol, self.atol, max_steps=self.max_steps)


@dataclass(frozen=True)
class RunSettings:
    """Where and how to run."""

    out: str | None = None  # run folder; runs/DATA when omitted
    seed: int = 0  # of data, weights, batches and noise
    device: Device = "auto"
    overwrite: Flag = False  # replace an existing run
    resume: str | None = None  # continue this run with all its settings


def find_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is a CUDA GPU where there is one.

    Raises:
        InputError: when there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1).to(device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:100]
        raise InputError(f"--device {name} cannot be used here ({reason}): pass --device cpu or auto") from error
    return device


def check_seed(seed: int) -> None:
    """Raise an :class:`~anode.InputError` for a negative seed."""
    if seed < 0:
        raise InputError(f"--seed {seed} must be 0 or more")
