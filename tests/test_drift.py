"""Drift of fixed steps: against closed forms, with the same noise, and what is done about it."""

import json
import math
from pathlib import Path

import pytest
import torch
from fields import Linear

from anode import MLPField, Solver, storage
from cnf import Continuous, Dequantize, Flow, LiftedFlow, MaximumLikelihood, Normal, density_model
from train_flows.checkpoint import Run
from train_flows.drift import FixedSteps, compare

COARSE = Solver("rk4", step_size=0.5)
TIGHT = Solver(rtol=1e-9, atol=1e-9)
STEEP = ("density", "moons", "--hidden", "16", "16", "--steps", "40", "--validate-every", "8", "--lr", "0.1")
STEEP = (*STEEP, "--batch-size", "256", "--solver", "rk4", "--step-size", "1")


def test_of_a_linear_field_is_that_of_the_taylor_polynomial(float64):
    """A step h of RK4 multiplies by 1 + hA + (hA)^2/2 + (hA)^3/6 + (hA)^4/24; the trace of A is integrated exactly."""
    a, x = torch.randn(3, 3), torch.randn(700, 3)
    flow = Flow(Continuous(Linear(a), COARSE), Normal((3,)))
    h = -0.5 * a  # from data at 1 to base at 0, in two steps
    step = sum(torch.linalg.matrix_power(h, k) / math.factorial(k) for k in range(5))
    x = x[:500]
    coarse, exact = x @ (step @ step).T, x @ torch.matrix_exp(-a).T
    nll = coarse.square().sum(1) / 2 + 1.5 * math.log(2 * math.pi) + a.trace()
    found = compare(flow, flow.with_solver(TIGHT), x)
    assert found["nll_training_solver"] == pytest.approx(nll.mean().item(), rel=1e-10)
    expected = (coarse.square() - exact.square()).sum(1).mean().item() / 2
    assert found["drift"] == pytest.approx(expected, rel=1e-4)
    assert abs(expected) > 1e-4


def test_noise_is_the_same_and_stays():
    """Dequantisation and probes make each NLL noisy, but not their difference."""
    ode = Continuous(MLPField(4, hidden=(8, 8)), Solver("rk4", step_size=0.02), divergence="hutchinson")
    with torch.no_grad():
        for weight in ode.parameters():
            weight.normal_(std=0.7)
    model = LiftedFlow(Dequantize(levels=2), Flow(ode, Normal((4,))))
    x, before = torch.randint(2, (40, 4)), torch.get_rng_state()
    found = [compare(model, model.with_solver(Solver(rtol=1e-6, atol=1e-6)), x)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    found.append(compare(model, model.with_solver(Solver(rtol=1e-6, atol=1e-6)), x))
    assert abs(found[0]["nll_training_solver"] - found[1]["nll_training_solver"]) > 1e-2
    assert all(abs(each["drift"]) < 1e-4 for each in found)


def test_as_many_samples_as_will_do():
    flow = density_model((2,), hidden=(8, 8), solver=COARSE)
    x = torch.randn(900, 2)
    first = compare(flow, flow.with_solver(TIGHT), x[:500])
    assert compare(flow, flow.with_solver(TIGHT), x) == first


def test_steps_that_fail_have_no_drift():
    flow = density_model((2,), hidden=(8, 8), solver=Solver("rk4", step_size=0.01, max_steps=10))
    assert compare(flow, flow.with_solver(TIGHT), torch.randn(9, 2)) == {}


def fixed(drifts, refine=True, solver=COARSE):
    found = iter(drifts)
    model = density_model((2,), hidden=(8, 8), solver=solver)
    return FixedSteps(MaximumLikelihood(model), lambda: {"drift": next(found)}, 2, refine)


BOUND = 2 * 0.02 * math.log(2)  # nats, in two dimensions


def test_steps_are_halved_beyond_what_is_tolerated(capsys):
    steps = fixed([0.99 * BOUND, -1.01 * BOUND, 1.01 * BOUND, 0.0, math.nan])
    sizes = [steps.check()["step_size"] for _ in range(5)]
    assert sizes == [0.5, 0.5, 0.25, 0.125, 0.125]
    assert steps.get_extra_state() == 0.0625
    assert capsys.readouterr().out.splitlines()[:2] == [
        "note: by rk4 in steps of 0.5 the NLL drifts by -0.028 nats, -0.02 bits/dim: they are of 0.25 from now on",
        "note: by rk4 in steps of 0.25 the NLL drifts by +0.028 nats, +0.02 bits/dim: they are of 0.125 from now on",
    ]
    other = fixed([])
    other.load_state_dict(steps.state_dict())
    assert other.objective.model.transform.transforms[-1].solver.step_size == 0.0625
    x = torch.randn(9, 2)
    assert torch.equal(
        other(x), other.objective.model.with_solver(Solver("rk4", step_size=0.0625)).log_prob(x).mean().neg()
    )


def test_the_note_comes_once_where_steps_stay(capsys):
    steps = fixed([1.0, 1.0], refine=False)
    assert [steps.check()["step_size"] for _ in range(2)] == [0.5, 0.5]
    out = capsys.readouterr().out
    assert out.count("note") == 1
    assert "take more of them, by a smaller --step-size" in out


def test_steps_stay_above_what_the_solver_allows():
    steps = fixed([9.0] * 9, solver=Solver("rk4", step_size=0.5, max_steps=16))
    assert [steps.check()["step_size"] for _ in range(4)] == [0.5, 0.25, 0.125, 0.125]


def test_a_failure_is_too_far(capsys):
    steps = FixedSteps(fixed([]).objective, dict, 2, refine=True)
    assert steps.check() == {"step_size": 0.5}
    assert "the NLL cannot be had: they are of 0.25" in capsys.readouterr().out


class TestRuns:
    @pytest.fixture(autouse=True)
    def _undrawn(self, monkeypatch):
        monkeypatch.setattr("train_flows.pictures.draw", lambda *_: None)

    def test_refined_steps_outlive_the_sitting(self, run, monkeypatch):
        status, out, _ = run(*STEEP, "--out", "whole")
        assert status == 0
        assert "they are of 0.5 from now on" in out
        records = Run("whole").records()
        sizes = [record["step_size"] for record in records]
        assert sizes[0] == 1.0
        assert sizes[-1] < 1.0
        assert all(record["nfe_forward"] == 4 / record["step_size"] for record in records[1:])
        best = min(records, key=lambda record: record["nll"])
        result = json.loads(Path("whole/result.json").read_text())["drift"]
        assert result == {"value": best["drift"], "bits_per_dim": None, "step_size": best["step_size"]}
        assert f"drift of training  {best['drift']:+.2g} nats" in out

        halved = next(i for i, size in enumerate(sizes) if size < 1.0)
        with monkeypatch.context() as patch:
            real = FixedSteps.check
            counted = iter(range(99))
            stop = []

            def check(self):
                if next(counted) == halved:
                    stop.append(1)
                return real(self)

            patch.setattr(FixedSteps, "check", check)
            patch.setattr("train_flows.loop.time.monotonic", lambda: 1e9 if stop else 0.0)
            assert "its time was up" in run(*STEEP, "--out", "parts", "--budget-minutes", "9")[1]
        assert run("density", "--resume", "parts")[0] == 0
        assert [record["step_size"] for record in Run("parts").records()] == sizes
        whole, parts = (storage.read_weights(name) for name in ("whole", "parts"))
        assert all(torch.equal(whole[name], parts[name]) for name in whole)

    def test_bits_for_discrete_data(self, run):
        tiny = ("--steps", "2", "--validate-every", "2", "--hidden", "8", "8", "--objective", "likelihood")
        status, out, _ = run("density", "digits", *tiny, "--solver", "rk4", "--step-size", "0.5")
        assert status == 0
        found = json.loads(Path("runs/digits/result.json").read_text())["drift"]
        assert found["bits_per_dim"] == pytest.approx(found["value"] / 64 / math.log(2))
        assert f"drift of training  {found['bits_per_dim']:+.2g} bits/dim (validation, steps of 0.5" in out

    @pytest.mark.parametrize(
        "options", [("--solver", "dopri5"), ("--solver", "rk4", "--step-size", "1", "--objective", "flow-matching")]
    )
    def test_none_where_nothing_drifts(self, run, options):
        tiny = ("--steps", "2", "--validate-every", "2", "--hidden", "8", "8")
        assert run("density", "moons", *tiny, *options)[0] == 0
        assert all("drift" not in record for record in Run("runs/moons").records())
        assert "drift" not in json.loads(Path("runs/moons/result.json").read_text())
