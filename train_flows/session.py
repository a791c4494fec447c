"""What training programs do around the loop: the run folder, the best weights, the result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from anode import InputError, storage
from train_flows.checkpoint import RESULT, Run
from train_flows.compiling import compile_fields
from train_flows.errors import TrainingError
from train_flows.loop import train
from train_flows.provenance import provenance
from train_flows.settings import RunSettings
from train_flows.training import Training


def fitting_batch(batch_size: int, samples: int) -> int:
    """The batch size, or the number of training samples where there are fewer."""
    if samples >= batch_size:
        return batch_size
    print(f"note: the batch shrinks from {batch_size} to the {samples} training samples")
    return samples


def open_run(settings: Any, kind: str, dataset: Any, model: Any, **about: Any) -> Run:
    """The run to continue, or a new folder with its configuration.

    Args:
        settings: of the program; stored.
        kind: of the model.
        dataset: has a ``name``, ``notes``, ``columns`` and a ``digest()``.
        model: has the ``config`` that rebuilds it.
        about: further plain values to store.

    Raises:
        InputError: when the data have changed since the run began, or a new folder is not empty.
    """
    data = {"name": dataset.name, "sha256": dataset.digest(), "notes": dataset.notes}
    where: RunSettings = settings.run
    if where.resume is not None:
        run = Run(where.resume)
        if run.config(kind)["data"]["sha256"] != data["sha256"]:
            raise InputError(f"{dataset.name} has changed since {run.folder} began: restore it, or train anew")
        return run
    run = Run.create(where.out or f"runs/{dataset.name.strip('.').split('.')[0]}", where.overwrite)
    stored = {"model": model.config, "settings": dataclasses.asdict(settings), "data": data, "columns": dataset.columns}
    storage.write_config(run.folder, kind, {**stored, **about, **provenance()})
    return run


def fit(
    run: Run,
    objective: nn.Module,
    model: nn.Module,
    batch: Callable[[int], Any],
    training: Training,
    validate: Callable[[], dict[str, float]],
    criterion: str,
    compile: bool = False,
) -> bool:
    """Train, keeping the weights of the best validation in the run folder.

    Args:
        run: the folder.
        objective: what to minimise; it trains the weights of ``model``.
        model: what is stored; it holds the best weights at the end.
        batch: the batch of a step; see :func:`train_flows.loop.shuffled_batches`.
        training: how to optimise.
        validate: figures of the current weights.
        criterion: the one of them to minimise.
        compile: the vector fields, before training.

    Returns:
        Whether training came to its end; False when it was asked to stop.

    Raises:
        TrainingError: when training cannot go on; the message says what is left in the folder.
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if compile:
        batches = [batch(step) for step in sorted({0, training.restart or 0})]  # of each stage
        print(f"compiled in {compile_fields(model, objective, batches, validate):.0f} s")
    try:
        finished = train(
            objective,
            training,
            batch,
            validate,
            lambda: storage.write_weights(run.folder, model.state_dict()),
            run,
            Accelerator(cpu=device.type == "cpu"),
            criterion,
        )
    except TrainingError as error:
        kept = (run.folder / storage.WEIGHTS).exists()
        what = "the last checkpoint and the best weights so far are" if kept else "nothing was learnt yet"
        raise TrainingError(f"{error}; {what} in {run.folder}", error.solving) from error
    load_best(run, model)
    return finished


def load_best(run: Run, model: nn.Module) -> bool:
    """Give a model the best weights so far; False where there are none."""
    if not (run.folder / storage.WEIGHTS).exists():
        return False
    storage.load_weights(run.folder, model)
    return True


def write_result(run: Run, kind: str, seed: int, seconds: float, figures: dict[str, Any], notes: Any = ()) -> None:
    """Write ``result.json``: the figures of a finished run, and where they come from."""
    config = run.config(kind)
    settings = {name: section for name, section in config["settings"].items() if name not in ("data", "run")}
    about = {"command": config["command"], "settings": settings, "seed": seed, "seconds": round(seconds, 1)}
    result = provenance() | about | figures
    if notes:
        result["notes"] = notes  # such as jitter, without which the figures would mislead
    storage.write_atomically(run.folder / RESULT, (json.dumps(result, indent=2) + "\n").encode())
