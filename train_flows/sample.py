"""``train-flows sample RUN``: draw from a stored density."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import tyro

import cnf
from anode import CheckpointError, InputError, storage
from cnf import Density, Flow
from cnf.models import KIND
from train_flows import likelihood, plots
from train_flows.checkpoint import columns_of
from train_flows.settings import Device, Flag, check_seed, find_device

CHUNK = 10_000  # samples solved together
SUFFIXES = (".csv", ".npy", ".png")


@dataclass(frozen=True)
class Settings:
    """Draw samples from a stored density, in the units of its data."""

    run: tyro.conf.Positional[Path]  # folder of the run
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1000  # how many samples
    out: Path = Path("samples.csv")  # .csv, .npy (samples x columns) or .png
    log_prob: Flag = False  # add the log-density, in nats, as last column
    samples: int | None = None  # importance samples of the log-density, where it is a bound; 64 when omitted
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
    torch.manual_seed(settings.seed)
    parts = []
    for start in range(0, settings.n, CHUNK):
        x, log_p = draw(model, min(CHUNK, settings.n - start), settings.log_prob, samples)
        parts.append(np.concatenate([x.reshape(len(x), -1), log_p], axis=1))
    values = np.concatenate(parts)
    if settings.log_prob:
        columns.append("log_prob" if model.kind == "exact" else f"log_prob_{model.kind}")
    _write(settings.out, values, columns, shape)
    print(f"{settings.n} samples of {', '.join(columns[:8])}{', ...' if len(columns) > 8 else ''} in {settings.out}")


@torch.no_grad()
def draw(model: Density, n: int, log_prob: bool, samples: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Samples (n, *S) and their log-densities (n, 1), or (n, 0) when not asked for."""
    if not log_prob:
        return model.sample(n).cpu().numpy(), np.empty((n, 0), dtype=np.float32)
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
    if settings.out.suffix not in SUFFIXES:
        raise InputError(f"--out {settings.out} must end in {', '.join(SUFFIXES)}")
    if settings.out.is_dir():
        raise InputError(f"--out {settings.out} is a folder: pass the name of a file")
    if settings.out.exists() and not settings.overwrite:
        raise InputError(f"--out {settings.out} exists: pass another name, or --overwrite")
    if settings.samples is not None and not settings.log_prob:
        raise InputError(f"--samples {settings.samples} is of --log-prob: pass that, too, or drop it")
    if settings.out.suffix == ".png" and settings.log_prob:
        raise InputError(f"--log-prob has no column in a picture: pass an --out other than {settings.out}")


def _write(path: Path, values: np.ndarray, columns: list[str], shape: Sequence[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    if path.suffix == ".csv":
        pd.DataFrame(values, columns=columns).to_csv(buffer, index=False)
    elif path.suffix == ".npy":
        np.save(buffer, values)
    else:
        plots.samples(values.reshape(-1, *shape), columns).savefig(buffer, dpi=150)
    storage.write_atomically(path, buffer.getvalue())
