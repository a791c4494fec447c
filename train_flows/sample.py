"""``train-flows sample RUN``: draw from a stored density."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import pandas as pd
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

import cnf
from anode import CheckpointError, InputError, storage
from cnf import Density, Flow
from cnf.models import KIND
from train_flows import image_plots, likelihood, plots
from train_flows.checkpoint import classes_of, columns_of
from train_flows.data.dataset import indicators
from train_flows.portions import together
from train_flows.precision import suited
from train_flows.settings import Device, Flag, check_out, check_seed, find_device

CHUNK = 10_000  # samples solved together, at most
SHOWN, SHOWN_IMAGES = 100_000, 10_000  # samples in a picture at most
LABEL = "label"  # the column of the class
SUFFIXES = (".csv", ".npy", ".png")


@dataclass(frozen=True)
class Settings:
    """Draw samples from a stored density, in the units of its data."""

    run: tyro.conf.Positional[Path]  # folder of the run
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1000  # how many samples
    out: Path = Path("samples.csv")  # .csv, .npy (samples x columns, a class by its number) or .png
    label: str | None = None  # the class, of a density given the class; all of them in turn when omitted
    log_prob: Flag = False  # add the log-density, in nats, as last column
    samples: int | None = None  # importance samples of the log-density, where it is a bound; 64 when omitted
    temperature: float = 1.0  # factor of the noise of the base: below 1, fewer and more usual samples
    seed: int = 0  # of the samples
    device: Device = "auto"
    overwrite: Flag = False  # replace an existing file


@dataclass(frozen=True)
class Layout:
    """What a file of samples holds.

    Attributes:
        shape: shape S of one sample.
        columns: names of the columns: dimensions, the class where there is one, and the log-density where asked for.
        classes: their names; none for a density of samples alone.
        levels: number of values of an element of discrete data; None for real numbers.
    """

    shape: tuple[int, ...]
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    levels: int | None


def main(args: list[str]) -> None:
    """Run the command line ``train-flows sample``."""
    settings = tyro.cli(Settings, args=args, prog="train-flows sample")
    _check(settings)
    model = cnf.load(settings.run, find_device(settings.device))
    likelihood.check_importance_samples(model, settings.samples)
    samples = likelihood.DRAWS if settings.samples is None else settings.samples
    layout = _layout(settings, model)
    labels = _labels(settings, layout.classes)
    _check_picture(settings, layout.shape)
    torch.manual_seed(settings.seed)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with storage.written_atomically(settings.out) as file:
        _write(file, settings, _parts(model, settings, samples, labels, layout), layout)
    shown = f"{', '.join(layout.columns[:8])}{', ...' if len(layout.columns) > 8 else ''}"
    print(f"{settings.n} samples of {shown} in {settings.out}")


def _layout(settings: Settings, model: Density) -> Layout:
    config = storage.read_config(settings.run, KIND)
    shape, classes = tuple(config["model"]["shape"]), classes_of(config, settings.run)
    columns = columns_of(config, settings.run) or tuple(f"x{i}" for i in range(math.prod(shape)))
    if len(columns) != math.prod(shape):
        raise CheckpointError(f"{settings.run} names {len(columns)} columns of {math.prod(shape)}: train again")
    columns += (LABEL,) if classes else ()
    if settings.log_prob:
        columns += ("log_prob" if model.kind == "exact" else f"log_prob_{model.kind}",)
    return Layout(shape, columns, classes, config["model"]["levels"])


def _labels(settings: Settings, classes: Sequence[str]) -> Tensor | None:
    """The class of every sample, (n,); None for a density of samples alone."""
    if settings.label is None:
        return torch.arange(settings.n) % len(classes) if classes else None
    if not classes:
        raise InputError(f"--label {settings.label} is for densities given the class, {settings.run} is not: drop it")
    if settings.label not in classes:
        raise InputError(f"--label {settings.label} is no class of {settings.run}: choose one of {', '.join(classes)}")
    return torch.full((settings.n,), classes.index(settings.label))


def _parts(
    model: Density, settings: Settings, samples: int, labels: Tensor | None, layout: Layout
) -> Iterator[np.ndarray]:
    """The rows of the file, so many at a time as are solved together; a class is its number."""
    size = together(layout.shape, CHUNK)
    for start in range(0, settings.n, size):
        n = min(size, settings.n - start)
        y = None if labels is None else labels[start : start + n]
        c = None if y is None else indicators(y, len(layout.classes))
        x, log_p = draw(model, n, settings.log_prob, samples, c, settings.temperature)
        label = [] if y is None else [y.numpy()[:, None].astype(x.dtype)]
        yield np.concatenate([x.reshape(n, -1), *label, log_p], axis=1)


@torch.no_grad()
def draw(
    model: Density,
    n: int,
    log_prob: bool,
    samples: int = 64,
    c: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Samples (n, *S), given contexts (n, K), and, where they are asked for, at temperature 1, their log-densities.

    These are (n, 1); (n, 0) where they are not.
    """
    c = None if c is None else suited(model, c)
    if not log_prob:
        return model.sample(n, c, temperature).cpu().numpy(), np.empty((n, 0), dtype=np.float32)
    if isinstance(model, Flow):
        x, log_p = model.sample_with_log_prob(n, c)
    else:
        x = model.sample(n, c)
        log_p = likelihood.log_prob(model, x, samples, c)
    return x.cpu().numpy(), log_p.cpu().numpy()[:, None]


def _check(settings: Settings) -> None:
    check_seed(settings.seed)
    if settings.n < 1:
        raise InputError(f"-n {settings.n} must be at least 1")
    check_out(settings.out, SUFFIXES, settings.overwrite)
    if settings.samples is not None and not settings.log_prob:
        raise InputError(f"--samples {settings.samples} is of --log-prob: pass that, too, or drop it")
    if not (settings.temperature > 0 and math.isfinite(settings.temperature)):
        raise InputError(f"--temperature {settings.temperature} must be a positive number, such as 0.8")
    if settings.log_prob and settings.temperature != 1:
        raise InputError(
            f"--log-prob is the density at --temperature 1, not that of samples at {settings.temperature}: drop one"
        )
    if settings.out.suffix == ".png" and settings.log_prob:
        raise InputError(f"--log-prob has no column in a picture: pass an --out other than {settings.out}")


def _check_picture(settings: Settings, shape: Sequence[int]) -> None:
    most = SHOWN_IMAGES if len(shape) == 3 else SHOWN
    if settings.out.suffix == ".png" and settings.n > most:
        raise InputError(f"-n {settings.n} is too many for a picture: pass at most {most}, or another --out")


def _write(file: BinaryIO, settings: Settings, parts: Iterable[np.ndarray], layout: Layout) -> None:
    """Write parts as they come, without keeping them, but for a picture."""
    kind = settings.out.suffix
    if kind == ".png":
        _picture(np.concatenate(list(parts)), layout).savefig(file, dpi=150 if len(layout.shape) == 1 else "figure")
        return
    for i, part in enumerate(parts):
        if kind == ".csv":
            frame = pd.DataFrame(part, columns=list(layout.columns))
            if layout.classes:
                frame[LABEL] = [layout.classes[int(label)] for label in frame[LABEL]]
            frame.to_csv(file, index=False, header=i == 0)
            continue
        if i == 0:
            _write_head(file, part, settings.n)
        file.write(part.tobytes())


def _picture(rows: np.ndarray, layout: Layout) -> Figure:
    """Rows of the file as a picture; of images in several classes, with a row for each class."""
    size = math.prod(layout.shape)
    x = rows[:, :size].reshape(-1, *layout.shape)
    if len(layout.shape) == 1:
        return plots.samples(x, layout.columns)
    top = x.max() if layout.levels is None else layout.levels - 1
    labels = rows[:, size].astype(int) if layout.classes else np.zeros(len(x), dtype=int)
    if len(np.unique(labels)) == 1:
        return image_plots.grid(x, top)
    return image_plots.in_classes({"samples": (x, labels)}, layout.classes, top)


def _write_head(file: BinaryIO, part: np.ndarray, rows: int) -> None:
    """The head of an NPY file of so many rows like these."""
    described = {"descr": np.lib.format.dtype_to_descr(part.dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**described, "shape": (rows, part.shape[1])})
