"""Precision, random numbers and guards of training, as they are chosen on the command line."""

import json
from pathlib import Path

import pytest
import torch

from anode import storage
from cnf import MaximumLikelihood, density_model
from train_flows.checkpoint import Run
from train_flows.precision import InPrecision

TINY = ("density", "moons", "--steps", "4", "--validate-every", "2", "--hidden", "8", "8", "--batch-size", "64")
LIKELIHOOD = ("--objective", "likelihood")


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr("train_flows.pictures.draw", lambda *_: None)
    monkeypatch.setattr("train_flows.pictures.draw_classifier", lambda *_: None)


def weights(folder):
    return storage.read_weights(folder)


def alike(one, other):
    return all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


@pytest.mark.parametrize("source", ["moons", "digits"])
def test_float64_all_the_way(run, source):
    assert run(TINY[0], source, *TINY[2:], "--dtype", "float64", "--out", "run")[0] == 0
    assert {tensor.dtype for tensor in weights("run").values() if tensor.is_floating_point()} == {torch.float64}
    status, out, _ = run("evaluate", "run", "--json")
    assert status == 0
    assert json.loads(out)["nll"]["value"] == pytest.approx(
        json.loads(Path("run/result.json").read_text())["nll"]["value"]
    )


def test_classifiers_in_float64(run):
    small = ("--epochs", "1", "--hidden", "8", "--dtype", "float64")
    assert run("classify", "spheres", *small, "--out", "run")[0] == 0
    assert {tensor.dtype for tensor in weights("run").values()} == {torch.float64}
    assert run("evaluate", "run")[0] == 0


class TestSeeds:
    def test_of_noise_changes_the_training_alone(self, run):
        noisy = (*TINY, *LIKELIHOOD, "--divergence", "hutchinson")
        for name, options in (("a", ()), ("b", ("--noise-seed", "1")), ("c", ("--noise-seed", "1"))):
            assert run(*noisy, *options, "--out", name)[0] == 0
        records = [Run(name).records() for name in "abc"]
        losses = [each[1]["loss"] for each in records]
        assert losses[1] == losses[2] != losses[0]
        configs = [json.loads(Path(name, "config.json").read_text())["data"] for name in "abc"]
        assert configs[0] == configs[1]

    def test_of_data_changes_the_data_alone(self, run):
        for name, options in (("a", ()), ("b", ("--data-seed", "1")), ("c", ("--seed", "1"))):
            assert run(*TINY, *LIKELIHOOD, "--steps", "1", *options, "--out", name)[0] == 0
        digests = [json.loads(Path(name, "config.json").read_text())["data"]["sha256"] for name in "abc"]
        assert digests[1] == digests[2] != digests[0]
        assert run("evaluate", "b")[0] == 0  # which finds the same data again
        first = next(name for name in weights("a") if "layers" in name)
        assert torch.allclose(weights("a")[first], weights("b")[first], atol=0.1)  # a step away from the same beginning
        assert not torch.allclose(weights("a")[first], weights("c")[first], atol=0.1)

    @pytest.mark.parametrize("name", ["seed", "data-seed", "noise-seed"])
    def test_beyond_the_range_are_refused(self, run, name):
        status, _, err = run(*TINY, f"--{name}", "-1")
        assert status == 2
        assert f"--{name} -1 must be from 0" in err


def test_deterministic_algorithms_are_asked_for(run):
    assert run(*TINY, "--deterministic", "--out", "a")[0] == 0
    assert torch.are_deterministic_algorithms_enabled()
    assert run(*TINY, "--out", "b")[0] == 0
    assert not torch.are_deterministic_algorithms_enabled()
    assert alike("a", "b")


class TestPrecision:
    @pytest.mark.parametrize("options", [{}, {"divergence": "hutchinson"}, {"hidden": (8, 8, 8)}])
    def test_fields_alone_are_in_bfloat16(self, options):
        """Log-densities are, but for the rounding of the fields, those without."""
        model = density_model((2,), **({"hidden": (8, 8)} | options))
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        x, seen = torch.randn(64, 2), []
        linear = next(part for part in model.modules() if hasattr(part, "layers"))
        linear.layers[0].register_forward_hook(lambda layer, taken, made: seen.append(made.dtype))
        losses = []
        for precision in ("float32", "bfloat16"):
            torch.manual_seed(1)
            losses.append(InPrecision(MaximumLikelihood(model), precision)(x))
        assert losses[1].dtype == torch.float32
        assert losses[0] != losses[1]
        assert losses[1].item() == pytest.approx(losses[0].item(), abs=0.05)

    def test_its_effect_is_told(self, run):
        assert (
            run(*TINY, *LIKELIHOOD, "--precision", "bfloat16", "--rtol", "1e-3", "--atol", "1e-3", "--out", "a")[0] == 0
        )
        assert {tensor.dtype for tensor in weights("a").values()} == {torch.float32}
        status, out, _ = run("evaluate", "a")
        assert status == 0
        assert "NLL, bfloat16" in out
        found = json.loads(run("evaluate", "a", "--json")[1])
        assert found["nll_bfloat16"]["value"] != found["nll"]["value"]
        assert found["nll_bfloat16"]["value"] == pytest.approx(found["nll"]["value"], abs=0.05)
        assert "nll_bfloat16" not in json.loads(run("evaluate", "a", "--json", "--precision", "float32")[1])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--dtype", "float64"), "--precision bfloat16 and --dtype float64 contradict"),
            (("--gradient", "adjoint"), "--precision bfloat16 is no precision of the adjoint"),
        ],
    )
    def test_what_it_excludes(self, run, options, message):
        status, _, err = run(*TINY, "--precision", "bfloat16", *options)
        assert status == 2
        assert message in err


class TestStiffness:
    """A bound of steps that no solve keeps."""

    BOUND = (*TINY, *LIKELIHOOD, "--max-steps", "2")

    def test_stops_unless_told(self, run):
        status, _, err = run(*self.BOUND)
        assert status == 1
        assert "too many steps" in err

    @pytest.mark.parametrize("policy", ["skip", "loosen"])
    def test_can_be_got_round(self, run, policy, monkeypatch):
        """Where looser tolerances do not help either, steps are skipped. Validation would end it, and is left out."""
        monkeypatch.setattr("train_flows.likelihood.of_one_draw", lambda *_: {"nll": 1.0})
        monkeypatch.setattr("train_flows.density.report", lambda *_: None)
        status, _, err = run(*self.BOUND, "--on-stiff", policy, "--out", "run")
        assert status == 0, err
        records = Run("run").records()
        assert [record["skipped"] for record in records] == [0, 2, 2]

    def test_bad_bounds_are_refused(self, run):
        status, _, err = run(*TINY, "--max-skipped", "-1")
        assert status == 2
        assert "--max-skipped -1 must be at least 0" in err
