"""Beginning a program: device, seeds, the run to open, compiled fields, and what Ctrl-C prints."""

import dataclasses
import re
import signal
from functools import partialmethod

import pytest
import torch
from tasks import Quadratic
from torch import nn

import cnf
from anode import InputError, MLPField
from cnf import FlowMatching, MaximumLikelihood, density_model
from train_flows.data import toy
from train_flows.run import distributed
from train_flows.run.folder import Run
from train_flows.run.loop import train
from train_flows.run.session import begin, compile_fields, find_device, fitting_batch, open_run, resumable, tell
from train_flows.settings import RunSettings, Training

MOONS = dataclasses.replace(toy.load("moons").limited(10, 10, seed=0), name="moons.csv")


class DensityTask:
    """Flow matching, then likelihood, of a small density."""

    criterion = "nll"

    def __init__(self, steps=4):
        torch.manual_seed(0)
        self.training = Training(steps=steps, validate_every=2, likelihood_from=2)
        self.model = density_model((2,), hidden=(8, 8), divergence="hutchinson")
        self.objectives = (FlowMatching(self.model), MaximumLikelihood(self.model))

    def batch(self, step):
        return torch.randn(16, 2, generator=torch.Generator().manual_seed(step))

    def loss_name(self, step):
        return "matching_loss" if step < (self.training.likelihood_from or 0) else "loss"

    def objective(self, batch, step):
        return self.objectives[step >= self.training.likelihood_from](batch)

    def validate(self):
        with torch.no_grad():
            return {"nll": -self.model.log_prob(self.batch(99)).mean().item()}


def test_weights_and_noise_follow_the_seed(monkeypatch):
    assert begin(RunSettings(seed=5, device="cpu")) == torch.device("cpu")
    first = torch.randn(3)
    assert torch.equal(first, torch.randn(3, generator=torch.Generator().manual_seed(5)))
    monkeypatch.setattr(distributed, "rank", lambda: 2)
    distributed.seed_noise(5)
    assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(5 + 2 * 1_000_003)))


def test_deterministic_algorithms_are_a_choice():
    begin(RunSettings(device="cpu", deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    begin(RunSettings(device="cpu"))
    assert not torch.are_deterministic_algorithms_enabled()


MISSING = [*(() if torch.cuda.is_available() else ("cuda",)), *(() if torch.backends.mps.is_available() else ("mps",))]


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta", *MISSING])
def test_a_device_that_cannot_be_used(name, tmp_path):
    cnf.save(density_model((2,), hidden=(4,)), tmp_path)
    for use in (find_device, lambda device: cnf.load(tmp_path, device)):
        with pytest.raises(InputError, match=f"device='{name}' cannot be used here .*: pass another one, or cpu"):
            use(name)


def test_a_batch_is_no_larger_than_the_data(monkeypatch, capsys):
    assert fitting_batch(512, 600) == 512
    assert fitting_batch(512, 99) == 99
    assert "the batch shrinks from 512 to the 99 training samples" in capsys.readouterr().out
    monkeypatch.setattr(distributed, "count", lambda: 2)
    assert fitting_batch(512, 99) == 98
    with pytest.raises(InputError, match="--batch-size 65 is shared by 2 processes: pass a multiple of 2"):
        fitting_batch(65, 600)


def test_a_run_is_opened_or_resumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = RunSettings(tensorboard=True)
    run = open_run(settings, {"x": 1}, "test", {"shape": [2]}, MOONS)
    assert str(run.folder) == "runs/moons"
    assert run.tensorboard
    with pytest.raises(InputError, match="exists"):
        open_run(RunSettings(out="runs/moons"), {}, "test", {}, MOONS)
    for i in (2, 3):
        assert str(open_run(RunSettings(), {}, "test", {}, MOONS).folder) == f"runs/moons-{i}"
        assert f"run: runs/moons-{i}, since runs/moons exists" in capsys.readouterr().out
    assert str(open_run(RunSettings(overwrite=True), {"x": 1}, "test", {}, MOONS).folder) == "runs/moons"
    again = open_run(RunSettings(resume="runs/moons"), {}, "test", {}, MOONS)
    assert again.settings == {"x": 1}
    assert not again.tensorboard
    with pytest.raises(InputError, match=r"moons.csv has changed since runs/moons began"):
        open_run(RunSettings(resume="runs/moons"), {}, "test", {}, MOONS.limited(9, 10, seed=0))


def test_sentences_fill_a_terminal_and_are_whole_elsewhere(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "16")
    for terminal, said in ((False, "note: a well-known value\n"), (True, "note: a\n  well-known\n  value\n")):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
        tell("note: a well-known value")
        assert capsys.readouterr().out == said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("training", [False, True])
def test_a_stop_says_how_to_continue(number, training):
    """While a step is taken, and at any other moment."""
    run, task = Run.temporary(), Quadratic(Training(steps=9))
    batch = task.batch
    task.batch = lambda step: (step == 4 and signal.raise_signal(number), batch(step))[1]
    message = f"^stopped; continue with: train-flows density --resume {re.escape(str(run.folder))}$"
    stop = (lambda: train(task, run, quiet=True)) if training else (lambda: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt, match=message), resumable(run, "density"):
        stop()
    assert run.step == (5 if training else 0)


class TestCompiling:
    def test_training_is_the_same(self, monkeypatch):
        """By a backend that writes no C++, which would take longer than all other tests of this file."""
        monkeypatch.setattr(MLPField, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
        records = []
        for compiled in (False, True):
            task, run = DensityTask(), Run.temporary()
            if compiled:
                assert compile_fields(task) > 0
            train(task, run, quiet=True)
            records.append([record["nll"] for record in run.records()])
        assert records[1] == pytest.approx(records[0], abs=1e-4)

    def test_nothing_changes_by_the_first_use(self, monkeypatch):
        monkeypatch.setattr(MLPField, "compile", lambda self: None)
        task = DensityTask()
        before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
        generator = torch.get_rng_state()
        compile_fields(task)
        assert torch.equal(torch.get_rng_state(), generator)
        assert all(torch.equal(before[name], tensor) for name, tensor in task.model.state_dict().items())
        assert all(weight.grad is None for weight in task.model.parameters())

    def test_fields_of_all_models_are_compiled(self, monkeypatch):
        compiled = []
        monkeypatch.setattr(MLPField, "compile", lambda self: compiled.append(self))
        task = DensityTask()
        compile_fields(task, task.model.with_solver(dataclasses.replace(task.model.config.solver, rtol=1e-7)))
        assert len(compiled) == 2

    def test_there_must_be_a_field(self):
        with pytest.raises(InputError, match="--compile finds no vector field"):
            compile_fields(Quadratic(Training()))
