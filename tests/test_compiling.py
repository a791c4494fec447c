"""``--compile``: the same training, by compiled fields."""

import shutil

import pytest
import torch

from anode import ConvField, MLPField
from cnf import Continuous, MaximumLikelihood, density_model
from train_flows.checkpoint import Run
from train_flows.compiling import compile_fields

SMALL = ("--steps", 4, "--batch-size", 32, "--hidden", 8, 8, "--validate-every", 2)
needs_a_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="compiling for a CPU takes a C++ compiler")


@needs_a_compiler
def test_training_is_the_same(run, monkeypatch):
    from train_flows import pictures

    monkeypatch.setattr(pictures, "draw", lambda *_: None)
    records = {}
    for name, more in {"plain": (), "compiled": ("--compile",)}.items():
        options = ("--objective", "flow-matching+likelihood", "--likelihood-steps", 2)
        status, out, _ = run("density", "moons", *SMALL, *options, "--out", name, *more)
        assert status == 0
        assert ("compiled in" in out) == bool(more)
        records[name] = [record["nll"] for record in Run(name).records()]
    assert records["compiled"] == pytest.approx(records["plain"], abs=1e-4)


def test_nothing_changes_by_the_warm_up(monkeypatch):
    monkeypatch.setattr(MLPField, "compile", lambda self: None)
    model = density_model((2,), hidden=(8, 8), divergence="hutchinson")
    objective = MaximumLikelihood(model)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    generator = torch.get_rng_state()
    seconds = compile_fields(model, objective, [torch.randn(16, 2, generator=torch.Generator())], dict)
    assert seconds > 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], tensor) for name, tensor in objective.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_there_must_be_a_field(run):
    status, _, err = run("classify", "intervals", "--model", "mlp", "--epochs", 1, "--compile")
    assert status != 0
    assert "--compile finds no vector field" in err


@pytest.mark.parametrize("field", [MLPField(3, (4, 4)), MLPField(3, (4, 4, 4)), ConvField(3, 4)])
def test_both_rules_of_a_field_are_compiled(field, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, *_, **__: (compiled.append(f.__name__), f)[1])
    x = torch.randn(5, 3, 4, 4) if isinstance(field, ConvField) else torch.randn(5, 3)
    expected = Continuous(field)(x)
    field.compile()
    found = Continuous(field)(x)
    assert "velocity_and_divergence" in compiled
    assert any(name != "velocity_and_divergence" for name in compiled)
    torch.testing.assert_close(found, expected)
