"""Targets of variational inference against closed forms, quadrature and independent implementations; their program."""

import math

import pytest
import torch
from scipy.integrate import dblquad
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch.distributions import Bernoulli, Independent, Normal

from anode import InputError, MLPField
from cnf import Continuous, Flow
from cnf import Normal as NormalBase
from train_flows.experiments import planar_flows
from train_flows.experiments.planar_flows import ENERGIES, TARGETS, Target, divergences, load_target, main
from train_flows.run import TrainingError
from train_flows.run.folder import Run

DROP_2 = 3 * math.exp(-0.5)  # w2 at z1 = 1.6
DROP_3 = 3 / (1 + math.exp(-2 / 0.3))  # w3 at z1 = 3


@pytest.mark.parametrize(
    ("name", "z", "log_density"),
    [
        ("u1", (2, 0), math.log1p(math.exp(-200 / 9))),
        ("u1", (-1.2, 1.6), math.log(math.exp(-8 / 9) + math.exp(-128 / 9))),  # |z| = 2
        ("u1", (0, 0), -12.5 + math.log(2) - 50 / 9),
        ("u2", (1, 1), 0),
        ("u2", (-1, -0.2), -2),
        ("u2", (-5, 0), -3.125 - 3.125),  # w1 = -1, and the wall at 1 / 0.4 deviations
        ("u3", (1, -0.5), math.log(2) - 0.5 * (1.5 / 0.35) ** 2),  # half way down w2 = 3
        ("u3", (1.6, math.sin(0.8 * math.pi) - DROP_2), math.log1p(math.exp(-0.5 * (DROP_2 / 0.35) ** 2))),
        ("u3", (6, 0), math.log(2) - 12.5),
        ("u4", (1, 1), math.log1p(math.exp(-0.5 * (1.5 / 0.35) ** 2))),  # w3 = 1.5
        ("u4", (3, -1 - DROP_3), math.log1p(math.exp(-0.5 * (DROP_3 / 0.4) ** 2))),
        ("u4", (-5, 3), math.log(math.exp(-50) + math.exp(-0.5 * (4 / 0.35) ** 2)) - 3.125),  # w1 = -1, w3 = 0
    ],
)
def test_energies_at_points_computed_by_hand(name, z, log_density, float64):
    got = load_target(name).log_density(torch.tensor([z], dtype=float64))
    assert got.item() == pytest.approx(log_density, abs=1e-6)


@pytest.mark.parametrize(("name", "widths"), [("u2", 0.4), ("u3", 0.35 + 0.35), ("u4", 0.4 + 0.35)])
def test_normalizers_of_energies_along_a_wave(name, widths):
    """Every z1 has the same mass of Gaussians along z2; the wall adds the two halves of one to the width of 8."""
    root = math.sqrt(2 * math.pi)
    expected = math.log(widths * root * (8 + 0.4 * root))
    assert load_target(name).log_normalizer == pytest.approx(expected, abs=1e-9)


def test_normalizer_of_the_ring():
    """By adaptive quadrature in polar coordinates, over a quarter of the plane."""

    def density(angle, r):
        z1 = r * math.cos(angle)
        sides = math.exp(-(((z1 - 2) / 0.6) ** 2) / 2) + math.exp(-(((z1 + 2) / 0.6) ** 2) / 2)
        return r * sides * math.exp(-(((r - 2) / 0.4) ** 2) / 2)

    quarter, _ = dblquad(density, 0, 7, 0, math.pi / 2, epsabs=1e-11, epsrel=1e-11)
    assert load_target("u1").log_normalizer == pytest.approx(math.log(4 * quarter), abs=1e-9)


def test_the_funnel_is_its_composition_of_normals(float64):
    x = torch.randn(100, 10) * torch.tensor([3.0] + [2.0] * 9)
    scale = (x[:, :1] / 2).exp().expand(-1, 9)
    expected = Normal(0.0, 3.0).log_prob(x[:, 0]) + Independent(Normal(0.0, scale), 1).log_prob(x[:, 1:])
    torch.testing.assert_close(load_target("funnel").log_density(x), expected, rtol=1e-12, atol=1e-12)
    assert load_target("funnel").log_normalizer == 0


def test_the_posterior_is_prior_times_likelihood(float64):
    features, labels = load_breast_cancer(return_X_y=True)
    design = torch.cat([torch.from_numpy(StandardScaler().fit_transform(features)), torch.ones(len(labels), 1)], 1)
    w = torch.randn(20, 31)
    likelihood = Bernoulli(logits=w @ design.T).log_prob(torch.from_numpy(labels).to(float64)).sum(1)
    prior = Independent(Normal(torch.zeros(31), 1.0), 1).log_prob(w)
    target = load_target("logistic")
    torch.testing.assert_close(target.log_density(w), prior + likelihood, rtol=1e-12, atol=1e-9)
    assert target.log_normalizer is None


@pytest.mark.parametrize("name", TARGETS)
def test_gradients_are_those_of_differences_and_types_those_of_the_points(name, float64):
    target = load_target(name)
    x = (2 * torch.randn(5, target.dim)).requires_grad_()
    assert torch.autograd.gradcheck(target.log_density, x)
    exact, rounded = target.log_density(x), target.log_density(x.float())
    assert (exact.shape, exact.dtype, rounded.dtype) == ((5,), torch.float64, torch.float32)
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ENERGIES)
def test_gradients_are_finite_at_zero_and_far_away(name):
    z = torch.tensor([[0.0, 0.0], [4.0, 0.0], [-4.0, 1.0], [60.0, -60.0]], requires_grad=True)
    log_p = load_target(name).log_density(z)
    assert torch.isfinite(torch.cat([log_p, *torch.autograd.grad(log_p.sum(), z)[0]])).all()


def test_unknown_targets_list_the_known():
    with pytest.raises(InputError, match=r"u5.*u1, u2, u3, u4, funnel, logistic"):
        load_target("u5")


def test_a_flow_at_its_target_has_no_divergence():
    """An untrained flow of a field that starts at zero is the standard normal; so is this target, up to a constant."""
    log_normalizer = math.log(2 * math.pi) + 3
    target = Target(2, lambda x: -x.square().sum(1) / 2 + 3, log_normalizer)
    flow = Flow(Continuous(MLPField(2, [8], zero_init=True)), NormalBase((2,)))
    torch.testing.assert_close(divergences(flow, target, 50), torch.zeros(50).double(), rtol=0, atol=1e-5)


class TestReverseKL:
    def train(self, folder, *more):
        line = f"u2 --transform planar-field --size 4 --seed 1 --out {folder} --steps 4 --device cpu"
        main([*line.split(), *more])
        return Run.open(folder)

    def test_a_run_continues_as_if_it_had_not_stopped(self, tmp_path, monkeypatch):
        monkeypatch.setattr(planar_flows, "TESTED", 200)
        whole = self.train(tmp_path / "whole")
        part = self.train(tmp_path / "part", "--budget-minutes", "1e-9")
        assert part.result() is None
        main(["--resume", str(part.folder), "--device", "cpu"])
        assert [r["kl"] for r in part.records()] == [r["kl"] for r in whole.records()]
        result = whole.result()
        assert part.result()["kl"] == result["kl"]
        assert result["nfe_sample"] > 0
        assert whole.records()[-1]["kl"] == pytest.approx(result["kl"], abs=10 * result["standard_error"])

    def test_a_fit_that_diverges_is_an_error(self, tmp_path):
        with pytest.raises((TrainingError, InputError)):
            self.train(tmp_path / "run", "--steps", "40", "--lr", "1e9")
