"""``train-flows sample RUN``: draw from a stored density."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import pandas as pd
import torch
import tyro

import cnf
from anode import CheckpointError, InputError, storage
from cnf import Density, Flow
from cnf.models import KIND
from train_flows import image_plots, likelihood, plots
from train_flows.checkpoint import columns_of
from train_flows.settings import Device, Flag, check_out, check_seed, find_device

CHUNK = 10_000  # samples solved together
SHOWN, SHOWN_IMAGES = 100_000, 10_000  # samples in a picture at most
SUFFIXES = (".csv", ".npy", ".png")


@dataclass(frozen=True)
class Settings:
    """Draw samples from a stored density, in the units of its data."""

    run: tyro.conf.Positional[Path]  # folder of the run
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1000  # how many samples
    out: Path = Path("samples.csv")  # .csv, .npy (samples x columns) or .png
    log_prob: Flag = False  # add the log-density, in nats, as last column
    samples: int | None = None  # importance samples of the log-density, where it is a bound; 64 when omitted
    temperature: float = 1.0  # factor of the noise of the base: below 1, fewer and more usual samples
    seed: int = 0  # of the samples
    device: Device = "auto"
    overwrite: Flag = False  # replace an existing file


def main(args: list[str]) -> None:
    """Run the command line ``train-flows sample``."""
    settings = tyro.cli(Settings, args=args, prog="train-flows sample")
    _check(settings)
    model = cnf.load(settings.run, find_device(settings.device))
    samples = likelihood.importance_samples(model, settings.samples)
    config = storage.read_config(settings.run, KIND)
    shape = config["model"]["shape"]
    columns = list(columns_of(config, settings.run)) or [f"x{i}" for i in range(math.prod(shape))]
    if len(columns) != math.prod(shape):
        raise CheckpointError(f"{settings.run} names {len(columns)} columns of {math.prod(shape)}: train again")
    if settings.log_prob:
        columns.append("log_prob" if model.kind == "exact" else f"log_prob_{model.kind}")
    _check_picture(settings, shape)
    torch.manual_seed(settings.seed)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with storage.written_atomically(settings.out) as file:
        _write(file, settings, _parts(model, settings, samples), columns, config["model"])
    print(f"{settings.n} samples of {', '.join(columns[:8])}{', ...' if len(columns) > 8 else ''} in {settings.out}")


def _parts(model: Density, settings: Settings, samples: int) -> Iterator[np.ndarray]:
    """The rows of the file, so many at a time as are solved together."""
    for start in range(0, settings.n, CHUNK):
        n = min(CHUNK, settings.n - start)
        x, log_p = draw(model, n, settings.log_prob, samples, settings.temperature)
        yield np.concatenate([x.reshape(len(x), -1), log_p], axis=1)


@torch.no_grad()
def draw(
    model: Density, n: int, log_prob: bool, samples: int = 64, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Samples (n, *S) and, where they are asked for, at temperature 1, their log-densities (n, 1); else (n, 0)."""
    if not log_prob:
        return model.sample(n, temperature=temperature).cpu().numpy(), np.empty((n, 0), dtype=np.float32)
    if isinstance(model, Flow):
        x, log_p = model.sample_with_log_prob(n)
    else:
        x = model.sample(n)
        log_p = likelihood.log_prob(model, x, samples)
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


def _write(
    file: BinaryIO, settings: Settings, parts: Iterable[np.ndarray], columns: list[str], model: Mapping[str, Any]
) -> None:
    """Write parts as they come, without keeping them, but for a picture."""
    kind = settings.out.suffix
    if kind == ".png":
        x = np.concatenate(list(parts))
        if len(model["shape"]) == 3:
            top = x.max() if model["levels"] is None else model["levels"] - 1
            image_plots.grid(x.reshape(-1, *model["shape"]), top).savefig(file)
        else:
            plots.samples(x, columns).savefig(file, dpi=150)
        return
    for i, part in enumerate(parts):
        if kind == ".csv":
            pd.DataFrame(part, columns=columns).to_csv(file, index=False, header=i == 0)
            continue
        if i == 0:
            _write_head(file, part, settings.n)
        file.write(part.tobytes())


def _write_head(file: BinaryIO, part: np.ndarray, rows: int) -> None:
    """The head of an NPY file of so many rows like these."""
    described = {"descr": np.lib.format.dtype_to_descr(part.dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**described, "shape": (rows, part.shape[1])})
