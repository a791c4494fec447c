"""Bits per dimension: against a mass in closed form, and which of the bounds is told."""

import json
import math

import pytest
import torch

from anode import InputError, Solver
from cnf import Compose, Dequantize, Flow, LiftedFlow, Normal, density_model
from train_flows import likelihood, likelihood_table

TINY = ["--steps", "4", "--validate-every", "2", "--hidden", "8", "8", "--batch-size", "64"]
SOLVER = Solver(rtol=1e-5, atol=1e-5)


class Uniform(Normal):
    """The base U[0, 1]^D, under which discrete data have the mass levels^-D."""

    def __init__(self, shape):
        super().__init__(shape)
        self.unused = torch.nn.Parameter(torch.zeros(()))  # by which programs know where a model is

    def log_prob(self, z):
        return torch.where(((z >= 0) & (z < 1)).flatten(1).all(1), 0.0, -math.inf)


def images(n=40):
    return torch.randint(17, (n, 1, 2, 2)).float()


def wild(**options):
    model = density_model((1, 2, 2), hidden=(8, 8), levels=17, solver=SOLVER, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("samples", [1, 5])
def test_uniform_images_take_the_logarithm_of_their_levels(levels, samples):
    model = LiftedFlow(Dequantize(levels), Flow(Compose([]), Uniform((3, 4, 4))))
    x = torch.randint(levels, (30, 3, 4, 4)).float()
    figure, _ = likelihood.nll(model, x, samples)
    assert figure["bits_per_dim"] == pytest.approx(math.log2(levels), rel=1e-6)
    assert figure["bits_per_dim_standard_error"] == pytest.approx(0, abs=1e-6)
    for batch in (x, (x, torch.zeros(30, 2))):  # alone, and with contexts
        assert likelihood.of_one_draw(model, batch)["bits_per_dim"] == pytest.approx(math.log2(levels), rel=1e-6)


def test_both_bounds_of_an_exact_flow():
    model, x = wild(), images(200)
    report = likelihood.measure(model, x, SOLVER, samples=16)
    assert (report["nll"]["samples"], report["nll_one_draw"]["samples"]) == (16, 1)
    assert report["nll_one_draw"]["value"] > report["nll"]["value"]  # Jensen
    for figure in (report["nll"], report["nll_one_draw"], report["nll_tighter"]):
        assert figure["kind"] == "bound"
        for name in ("", "_standard_error"):
            nats = figure["standard_error" if name else "value"]
            assert figure[f"bits_per_dim{name}"] == pytest.approx(nats / 4 / math.log(2))
    said = likelihood_table.table(report)
    assert "bits/dim (upper bound, 16 importance sample(s), rtol" in said
    assert "bits/dim (upper bound, one draw of uniform dequantisation as in FFJORD, rtol" in said


def test_one_draw_is_that_of_training(monkeypatch):
    model, x = wild(), images()
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)  # one dequantisation for all
    report, record = likelihood.measure(model, x, SOLVER, samples=4), likelihood.of_one_draw(model, x)
    assert report["nll_one_draw"]["bits_per_dim"] == pytest.approx(record["bits_per_dim"], rel=1e-5)
    assert record["bits_per_dim"] == pytest.approx(record["nll"] / 4 / math.log(2))


def test_estimates_know_one_draw_alone():
    report = likelihood.measure(wild(divergence="hutchinson", probes=2), images(), SOLVER)
    assert "nll_one_draw" not in report
    assert (report["nll"]["samples"], report["nll"]["probes"]) == (1, 2)
    expected = "estimated upper bound, one draw of uniform dequantisation as in FFJORD, 2 probe(s)"
    assert expected in likelihood_table.table(report)


def test_draws_that_would_not_tighten_an_estimate_are_refused():
    model = wild(divergence="hutchinson")
    likelihood.check_importance_samples(model, None)
    likelihood.check_importance_samples(model, 1)
    with pytest.raises(InputError, match="--samples 8 of an estimated log-density are no bound: drop it"):
        likelihood.check_importance_samples(model, 8)


def test_evaluations_are_those_of_all_odes():
    """At zero fields each ODE takes as many, whether points go to the base or come from it."""
    for blocks in (1, 3):
        model = density_model((1, 2, 2), hidden=(8, 8), levels=17, solver=SOLVER, blocks=blocks)
        report, record = likelihood.measure(model, images(), SOLVER, samples=4), likelihood.of_one_draw(model, images())
        found = report["nfe_log_prob"], report["nfe_sample"], record["nfe_log_prob"]
        assert found == pytest.approx((44 * blocks,) * 3)


@pytest.mark.parametrize("options", [{}, {"extra": 1}], ids=["exact", "augmented"])
def test_real_numbers_have_no_bits(options):
    model, x = density_model((2,), solver=SOLVER, **options), torch.randn(40, 2)
    report = likelihood.measure(model, x, SOLVER, samples=2)
    assert "nll_one_draw" not in report
    assert report["nll"]["bits_per_dim"] is None
    assert "bits" not in likelihood_table.table(report)
    assert "bits_per_dim" not in likelihood.of_one_draw(model, x)


def test_programs_tell_them(run, monkeypatch, tmp_path):
    monkeypatch.setattr("train_flows.pictures.draw", lambda *_: None)
    status, out, _ = run("density", "digits", *TINY)
    assert status == 0
    assert "bits_per_dim" in out  # of the validations
    assert "one draw of uniform dequantisation as in FFJORD" in out
    result = json.loads((tmp_path / "runs" / "digits" / "result.json").read_text())
    report = json.loads(run("evaluate", "runs/digits", "--json")[1])
    for figures in (result, report):
        assert figures["nll"]["bits_per_dim"] < figures["nll_one_draw"]["bits_per_dim"] < math.log2(17)
    assert json.loads(run("evaluate", "runs/digits", "--json", "--samples", 1)[1]).keys() == report.keys() - {
        "nll_one_draw"
    }


@pytest.mark.parametrize(
    ("count", "side", "expected"), [(4, 1, 64), (2**11, 8, 64), (2**12 + 1, 8, 16), (10**4, 28, 1)]
)
def test_many_numbers_take_fewer_draws(count, side, expected):
    x = torch.zeros(()).expand(count, 1, side, side)
    assert likelihood._affordable(x, count) == likelihood._affordable((x, x), count) == expected
    assert count * side**2 * expected <= max(likelihood.MOST_NUMBERS, x.numel())


@pytest.mark.parametrize("extra", [0, 1])
def test_draws_of_augmented_variables_are_named(extra):
    said = likelihood_table.how(likelihood.kind_of(wild(extra=extra), 1))
    assert ("as in FFJORD and of augmented variables," in said) == bool(extra)
