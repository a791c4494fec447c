"""Settings by concern: small dataclasses that the programs compose into their command lines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from anode import InputError, Solver
from anode.solver import FIXED_METHODS
from train_flows import processes

Device = Annotated[str, tyro.conf.arg(help="cpu, cuda, cuda:1, mps; auto takes a CUDA GPU where there is one")]
Data = Annotated[
    tyro.conf.Positional[str | None],
    tyro.conf.arg(
        metavar="DATA", help="moons, ..., digits, mnist, ..., power, ..., or the path of a table or a folder of images"
    ),
]
Labelled = Annotated[
    tyro.conf.Positional[str | None],
    tyro.conf.arg(
        metavar="DATA", help="spheres, ..., mnist, ..., wine, ..., or the path of a table or a folder of images"
    ),
]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]  # --name alone: of what no recipe turns on

Activation = Literal["tanh", "softplus", "relu", "silu"]
TRAINED = 0.9  # of the time of a sitting; the rest is left for figures and pictures


@dataclass(frozen=True)
class Source:
    """What to learn."""

    source: Data = None
    jitter: Flag = False  # add noise to columns of few distinct values
    data_root: str = "data"  # folder of the published tables, and of mnist, fashion, cifar10 and svhn
    download: Flag = False  # fetch those images that are not there
    image_size: int | None = None  # height and width to bring images to
    train_size: int | None = None  # how many images to train on, drawn by the seed; all when omitted
    test_size: int | None = None  # how many to test on
    conditional: Flag = False  # a density given the class, of images in classes


@dataclass(frozen=True)
class Labels:
    """What to learn."""

    source: Labelled = None
    target: str | None = None  # the column of the classes, for a table
    data_root: str = "data"  # folder of mnist, fashion, cifar10 and svhn
    download: Flag = False  # fetch those that are not there
    image_size: int | None = None  # height and width to bring images to
    train_size: int | None = None  # how many images to train on, drawn by the seed; all when omitted
    test_size: int | None = None  # how many to test on


@dataclass(frozen=True)
class Network:
    """The classifier."""

    model: Literal["node", "second-order", "resnet", "mlp"] = "node"  # neural ODE, augmented with --extra, or another
    extra: int = 0  # augmented dimensions, channels of images
    lift: Literal["zeros", "learned"] = "zeros"  # how they begin
    field: Literal["mlp", "conv", "norm-conv"] = "mlp"  # of NODE and ResNet; convolutions are for images
    hidden: tuple[int, ...] = (32, 32)  # widths of the hidden layers
    filters: int = 64  # of convolutions
    activation: Activation = "relu"  # of the hidden layers
    time: Literal["none", "concat", "bias"] = "concat"  # how the field of an ODE depends on time
    blocks: int = 5  # of a ResNet
    stem: Literal["none", "conv", "residual"] = "none"  # what makes a small map of an image, first of all
    readout: Literal["linear", "pool", "none"] = "linear"  # a layer on the final state, on its means, or none


@dataclass(frozen=True)
class Model:
    """The field and its divergence."""

    field: Literal["mlp", "conv", "stack", "unet"] = "mlp"  # a perceptron; of images 1x1-3x3-1x1, 3x3 ..., or a U-Net
    hidden: tuple[int, ...] = (128, 128)  # widths of the hidden layers, filters of a stack, or of levels of a U-Net
    filters: int = 32  # of --field conv
    activation: tuple[Activation, ...] = ("tanh",)  # of the hidden layers in turn, the last name of all that are left
    time: Literal["none", "concat", "bias", "squash", "hyper"] = "bias"  # how the field depends on time
    residual: Flag = False  # the field is the network less the state
    whiten: bool = False  # take the correlations of the data out before the ODE
    base: Literal["normal", "mixture", "conditional"] = "normal"  # N(0, I), a learned mixture, or one given --extra
    components: int = 8  # of the mixture
    divergence: Literal["exact", "hutchinson"] = "exact"  # exact or estimated
    probes: int = 1  # Hutchinson probes averaged
    noise: Literal["rademacher", "gaussian"] = "rademacher"  # of the probes


@dataclass(frozen=True)
class Scales:
    """How many ODEs, at which scales of images, and how values of pixels are spread."""

    blocks: int = 1  # ODEs in a row; at every scale, before and after its squeeze
    multiscale: bool = False  # smaller and smaller images, half of whose channels leave for the base
    dequantization: Literal["uniform", "learned"] = "uniform"  # noise that fills the gaps between values
    alpha: float = 0.05  # keeps values from the infinite ends of the logit: 1e-6 to 0.05


@dataclass(frozen=True)
class Augmentation:
    """Further dimensions for the flow to use."""

    extra: int = 0  # augmented dimensions, channels of images; or how many components
    augmentation: Literal["joint", "frozen", "momentum", "categorical", "copies"] = "joint"  # what to make of them
    posterior: Literal["normal", "learned", "fitted"] = "normal"  # how they are drawn, given the data
    correlated: Flag = False  # the components of a mixture have a full covariance instead of a diagonal one
    samples: int = 1  # draws of them in training, for a tighter bound
    warm_up: int = 0  # steps over which what a learned posterior, or dequantization, costs comes to count in full
    matching_kl: float = 1.0  # what it costs in flow matching


@dataclass(frozen=True)
class Objective:
    """What to minimise."""

    objective: Literal["likelihood", "flow-matching", "flow-matching+likelihood"] = "likelihood"
    likelihood_steps: int | None = None  # the last steps, of flow-matching+likelihood; a sixth, if omitted
    coupling: Literal["independent", "optimal_transport", "entropic"] = "independent"  # of flow matching
    interpolation: Literal["straight", "variance-preserving"] = "straight"  # paths of flow matching
    sigma: float = 0.0  # noise of flow matching, in standard deviations of the data
    kinetic: float = 0.0  # weight of the kinetic energy of the paths, of likelihood as the next three
    frobenius: float = 0.0  # weight of the squared norm of the Jacobian
    acceleration: float = 0.0  # weight of the squared acceleration, which makes solving cheap
    steer: float = 0.0  # move the time of the base by up to this while training
    energies: tuple[Literal["kinetic", "frobenius", "acceleration"], ...] = ()  # to report with every validation


@dataclass(frozen=True)
class Numerics:
    """How ODEs are solved."""

    solver: str = "dopri5"  # method
    rtol: float = 1e-3  # relative tolerance
    atol: float = 1e-3  # absolute tolerance
    step_size: float | None = None  # of a fixed-step solver; 0.25 when omitted
    gradient: Literal["checkpoint", "direct", "adjoint"] = "checkpoint"  # in little memory, fastest, or by the adjoint
    max_steps: int = 1000  # a solve that takes more, of six evaluations each with dopri5, ends the training

    def value(self) -> Solver:
        """The solver."""
        size = 0.25 if self.step_size is None and self.solver in FIXED_METHODS else self.step_size
        return Solver(self.solver, self.rtol, self.atol, size, self.max_steps, self.gradient)


@dataclass(frozen=True)
class DensityNumerics(Numerics):
    """How the ODEs of densities are solved, which have to be accurate for their figures to mean something."""

    solver: str = "dopri5"  # of training; figures of a fixed-step one are taken by dopri5
    rtol: float = 1e-5  # relative tolerance of all figures
    atol: float = 1e-5  # absolute tolerance of all figures
    loosen: float = 10.0  # training solves at this multiple of rtol and atol
    refine: bool = True  # halve fixed steps of training once their NLL drifts from the adaptive one

    def training(self) -> Solver:
        """The solver of training."""
        if not self.loosen > 0:
            raise InputError(f"--loosen {self.loosen} must be a positive number, 1 for the tolerances of the figures")
        return dataclasses.replace(self.value(), rtol=self.loosen * self.rtol, atol=self.loosen * self.atol)

    def figures(self) -> Solver:
        """The solver of validation, tests and the stored model: always adaptive."""
        method = "dopri5" if self.solver in FIXED_METHODS else self.solver
        return dataclasses.replace(self.value(), method=method, step_size=None, gradient="direct")


@dataclass(frozen=True)
class RunSettings:
    """Where and how to run."""

    out: str | None = None  # run folder; runs/DATA when omitted
    seed: int = 0  # of data, weights, batches and noise
    data_seed: int | None = None  # of the data, their split and batches alone; --seed, if omitted
    noise_seed: int | None = None  # of probes and other noise alone; if omitted, what goes on from the weights
    device: Device = "auto"
    dtype: Literal["float32", "float64"] = "float32"  # of weights, data and states
    deterministic: Flag = False  # take algorithms that give the same bits again, also on a GPU, though slower
    compile: Flag = False  # vector fields, by torch.compile: faster steps after a minute or so
    tensorboard: Flag = False  # records for TensorBoard, too, in the run folder
    overwrite: Flag = False  # replace an existing run
    budget_minutes: float | None = None  # of this sitting: train for nine tenths of them; --resume goes on
    resume: str | None = None  # continue this run with all its settings

    def check(self) -> None:
        """Raise an :class:`~anode.InputError` for a budget that is none, or a seed that no generator takes."""
        for name in ("seed", "data_seed", "noise_seed"):
            if getattr(self, name) is not None:
                check_seed(getattr(self, name), f"--{name.replace('_', '-')}")
        if self.budget_minutes is not None and not self.budget_minutes > 0:
            raise InputError(f"--budget-minutes {self.budget_minutes} must be a positive number")

    def deadline(self, started: float) -> float:
        """When training has to stop, in a sitting that started then; infinity without a budget."""
        return math.inf if self.budget_minutes is None else started + 60 * TRAINED * self.budget_minutes

    def of_data(self) -> int:
        """The seed of the data, their split and batches."""
        return self.seed if self.data_seed is None else self.data_seed


def find_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is a CUDA GPU where there is one.

    Raises:
        InputError: when there is no such device here.
    """
    if name == "auto":
        return _numbered(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(name)
        torch.zeros(1).to(device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:100]
        raise InputError(f"--device {name} cannot be used here ({reason}): pass --device cpu or auto") from error
    return _numbered(device)


def _numbered(device: torch.device) -> torch.device:
    """The device with the number of its GPU, which ``torch.cuda.set_device`` wants; each process has one of its own."""
    if device != torch.device("cuda"):
        return device
    if processes.started()[1] == 1:
        return torch.device("cuda", torch.cuda.current_device())
    if processes.local_rank() >= torch.cuda.device_count():
        raise InputError(f"{torch.cuda.device_count()} GPUs are too few: start as many processes, or pass --device cpu")
    return torch.device("cuda", processes.local_rank())


def check_seed(seed: int, option: str = "--seed") -> None:
    """Raise an :class:`~anode.InputError` for a seed that some random generator does not take."""
    if not 0 <= seed < 2**31:
        raise InputError(f"{option} {seed} must be from 0 to {2**31 - 1}")


def check_out(out: Path, suffixes: Sequence[str], overwrite: bool) -> None:
    """Raise an :class:`~anode.InputError` for a file that is of no known format, or that would be lost."""
    if out.suffix not in suffixes:
        raise InputError(f"--out {out} must end in {', '.join(suffixes)}")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: pass the name of a file")
    if out.exists() and not overwrite:
        raise InputError(f"--out {out} exists: pass another name, or --overwrite")
