"""Precision, determinism and the policy for stiff steps, as chosen on the command line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("undrawn")
TINY = ("density", "moons", "--steps", "4", "--validate-every", "2", "--hidden", "8", "8", "--batch-size", "64")
LIKELIHOOD = ("--objective", "likelihood")


def weights(folder):
    return load_file(Path(folder, "model.safetensors"))


def dtypes(folder):
    return {tensor.dtype for tensor in weights(folder).values() if tensor.is_floating_point()}


@pytest.mark.parametrize("source", ["moons", "digits"])
def test_densities_in_float64(run, source):
    assert run("density", source, *TINY[2:], "--dtype", "float64", "--out", "run")[0] == 0
    assert dtypes("run") == {torch.float64}
    result = json.loads(Path("run/result.json").read_text())["nll"]
    draws = [] if result["samples"] is None else ["--samples", result["samples"]]
    status, out, _ = run("evaluate", "run", "--json", *draws)
    assert status == 0
    assert json.loads(out)["nll"]["value"] == pytest.approx(result["value"])


def test_classifiers_in_float64(run):
    assert run("classify", "spheres", "--epochs", "1", "--hidden", "8", "--dtype", "float64", "--out", "run")[0] == 0
    assert dtypes("run") == {torch.float64}
    assert run("evaluate", "run")[0] == 0


def test_deterministic_algorithms_are_asked_for(run):
    assert run(*TINY, "--deterministic", "--out", "a")[0] == 0
    assert torch.are_deterministic_algorithms_enabled()
    assert run(*TINY, "--out", "b")[0] == 0
    assert not torch.are_deterministic_algorithms_enabled()
    assert all(torch.equal(tensor, weights("b")[name]) for name, tensor in weights("a").items())


def test_bfloat16_evaluates_fields_alone_and_its_effect_is_reported(run):
    loose = ("--rtol", "1e-3", "--atol", "1e-3")
    assert run(*TINY, *LIKELIHOOD, "--precision", "bfloat16", *loose, "--out", "a")[0] == 0
    assert dtypes("a") == {torch.float32}
    status, out, _ = run("evaluate", "a", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["nll_bfloat16"]["value"] != found["nll"]["value"]
    assert found["nll_bfloat16"]["value"] == pytest.approx(found["nll"]["value"], abs=0.05)
    assert "nll_bfloat16" not in json.loads(run("evaluate", "a", "--json", "--precision", "float32")[1])


@pytest.mark.parametrize("options", [("--dtype", "float64"), ("--gradient", "adjoint")])
def test_bfloat16_excludes_other_options(run, options):
    status, _, err = run(*TINY, "--precision", "bfloat16", *options)
    assert status == 2
    assert "bfloat16" in err


class TestStiffSteps:
    """A limit of steps that no solve of the objective keeps."""

    LIMITED = (*TINY, *LIKELIHOOD, "--max-steps", "2")

    def test_stop_training(self, run):
        status, _, err = run(*self.LIMITED)
        assert status == 1
        assert "too many steps" in err

    def test_can_be_skipped(self, run, monkeypatch):
        """Validation fails as well, and is left out."""
        monkeypatch.setattr("train_flows.evaluation.likelihood.validation_nll", lambda *_: {"nll": 1.0})
        monkeypatch.setattr("train_flows.density.report", lambda *_: None)
        status, _, err = run(*self.LIMITED, "--on-stiff", "skip", "--out", "run")
        assert status == 0, err
        records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
        assert [record["skipped"] for record in records] == [0, 2, 2]
