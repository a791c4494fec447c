"""Short trainings with noise in every step, in this process or in one that can be killed or limited."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import resource
import sys
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path

import safetensors.torch
import torch
from tqdm import tqdm

from anode import Solver
from cnf import FlowMatching, MaximumLikelihood, density_model
from train_flows.run.folder import Run
from train_flows.run.loop import train
from train_flows.run.step import shuffled_batches
from train_flows.settings import Training

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "pydantic", "safetensors", "torchdiffeq"])  # starts at once
FILES = ("config.json", "model.safetensors", "metrics.jsonl", "state.pt", "result.json")
TRAINING = Training(
    steps=40, batch_size=64, validate_every=4, likelihood_from=20, lr_warm_up=3, ema=0.9, weight_decay=1e-3
)


class SmallTask:
    """Flow matching of correlated Gaussian data, then likelihood with a random estimate of the divergence."""

    criterion = "nll"

    def __init__(self, training: Training = TRAINING) -> None:
        torch.manual_seed(0)
        x = torch.randn(600, 2) @ torch.tensor([[1.0, 0.5], [0.0, 1.0]])
        self.training = training
        solver = Solver(rtol=1e-3, atol=1e-3)
        self.model = density_model((2,), x, hidden=(8, 8), divergence="hutchinson", solver=solver)
        self.validation = x[500:]
        self.batch = shuffled_batches(x[:500], training.batch_size, seed=0)
        self.matching, self.likelihood = FlowMatching(self.model), MaximumLikelihood(self.model)

    def loss_name(self, step):
        return "matching_loss" if step < (self.training.likelihood_from or 0) else "loss"

    def objective(self, batch, step):
        objective = self.matching if step < (self.training.likelihood_from or 0) else self.likelihood
        return objective(batch)

    def validate(self):
        with torch.no_grad():
            return {"nll": -self.model.log_prob(self.validation).mean().item()}


def train_small(folder: Path, training: Training = TRAINING) -> Run:
    """Train a small run, or continue it if it has begun, and write a result."""
    task = SmallTask(training)
    if (folder / "config.json").exists():
        run = Run.open(folder, "density")
    else:
        arguments = {"shape": (2,), **dataclasses.asdict(task.model.config)}
        run = Run.create(folder, "density", {"run": {"seed": 0}}, arguments, {"name": "gaussian", "sha256": "0"})
    train(task, run, quiet=True)
    run.load_best(task.model)
    run.write_result({"nll": task.validate()["nll"], "kind": "estimate"})
    return run


def start(folder: Path, largest_file: int | None = None) -> BaseProcess:
    """Start :func:`train_small` in a process.

    Args:
        folder: folder of the run; the output of the process goes to a file next to it.
        largest_file: bytes to which the process may write a file, as on a full disk.
    """
    process = CONTEXT.Process(target=_train_in_process, args=(folder, largest_file))
    process.start()
    return process


def log_of(folder: Path) -> str:
    """Return what a process of :func:`start` printed."""
    return folder.with_suffix(".log").read_text()


def _train_in_process(folder: Path, largest_file: int | None) -> None:
    sys.stdout = sys.stderr = folder.with_suffix(".log").open("w", buffering=1)
    tqdm.set_lock(threading.RLock())  # its own lock would outlive a kill
    torch.set_num_threads(1)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    train_small(folder)


def outcome(folder: Path) -> tuple[list[dict], dict[str, bytes], object]:
    """Return what must be identical: the records without times, the bytes of the best weights, and the final NLL."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [{k: v for k, v in json.loads(line).items() if not k.startswith("seconds")} for line in lines]
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    content = {name: tensor.numpy().tobytes() for name, tensor in weights.items()}
    return records, content, json.loads((folder / "result.json").read_text())["nll"]
