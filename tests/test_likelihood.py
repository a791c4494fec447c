"""Likelihoods: against closed forms and quadrature, named for what they are, and what their solves cost."""

import math

import pytest
import torch
from fields import Linear
from stored_runs import spread
from torch.distributions import MultivariateNormal

from anode import InputError, MLPField, Solver
from cnf import Compose, Continuous, Dequantize, Flow, LiftedFlow, MaximumLikelihood, Normal, density_model
from train_flows.data import Dataset, Split, class_contexts
from train_flows.data.grids import Grid
from train_flows.evaluation import chunks, costs, in_chunks, likelihood, wording

SOLVER = Solver(rtol=1e-5, atol=1e-5)
COARSE, TIGHT = Solver("rk4", step_size=0.5), Solver(rtol=1e-9, atol=1e-9)


class Uniform(Normal):
    """The base U[0, 1]^D, under which discrete data have the mass levels^-D."""

    def __init__(self, shape):
        super().__init__(shape)
        self.unused = torch.nn.Parameter(torch.zeros(()))  # by which programs know where a model is

    def log_prob(self, z):
        return torch.where(((z >= 0) & (z < 1)).flatten(1).all(1), 0.0, -math.inf)


def images(n=40):
    return Split(torch.randint(17, (n, 1, 2, 2), dtype=torch.uint8))


def wild(**options):
    return spread(density_model((1, 2, 2), hidden=(8, 8), levels=17, solver=SOLVER, **options))


class TestBitsPerDimension:
    @pytest.mark.parametrize("levels", [17, 256])
    @pytest.mark.parametrize("samples", [1, 5])
    def test_uniform_images_take_the_logarithm_of_their_levels(self, levels, samples):
        model = LiftedFlow(Dequantize(levels), Flow(Compose([]), Uniform((3, 4, 4))))
        x = torch.randint(levels, (30, 3, 4, 4)).float()
        figure, _ = likelihood.nll(model, Split(x), samples)
        assert figure["bits_per_dim"] == pytest.approx(math.log2(levels), rel=1e-6)
        assert figure["bits_per_dim_standard_error"] == pytest.approx(0, abs=1e-6)
        for batch in (Split(x), Split(x, c=torch.zeros(30, 2))):  # alone, and with contexts
            assert likelihood.validation_nll(model, batch)["bits_per_dim"] == pytest.approx(math.log2(levels), rel=1e-6)

    def test_both_bounds_of_an_exact_flow(self):
        report = likelihood.measure(wild(), images(200), SOLVER, samples=16)
        assert (report["nll"]["samples"], report["nll_one_draw"]["samples"]) == (16, 1)
        assert report["nll_one_draw"]["value"] > report["nll"]["value"]  # Jensen
        for figure in (report["nll"], report["nll_one_draw"], report["nll_tighter"]):
            assert figure["kind"] == "bound"
            assert figure["bits_per_dim"] == pytest.approx(figure["value"] / 4 / math.log(2))
            error = figure["bits_per_dim_standard_error"]
            assert error == pytest.approx(figure["standard_error"] / 4 / math.log(2))
        said = wording.likelihood_table(report)
        assert "bits/dim (upper bound, 16 importance samples, rtol" in said
        assert "bits/dim (upper bound, one draw of uniform dequantisation as in FFJORD, rtol" in said

    def test_one_draw_is_that_of_training(self, monkeypatch):
        model, x = wild(), images()
        monkeypatch.setattr(torch, "rand_like", torch.zeros_like)  # one dequantisation for all
        report, record = likelihood.measure(model, x, SOLVER, samples=4), likelihood.validation_nll(model, x)
        assert report["nll_one_draw"]["bits_per_dim"] == pytest.approx(record["bits_per_dim"], rel=1e-5)
        assert record["bits_per_dim"] == pytest.approx(record["nll"] / 4 / math.log(2))

    @pytest.mark.parametrize("options", [{}, {"extra": 1}], ids=["exact", "augmented"])
    def test_real_numbers_have_no_bits(self, options):
        model, x = density_model((2,), solver=SOLVER, **options), Split(torch.randn(40, 2))
        report = likelihood.measure(model, x, SOLVER, samples=2)
        assert "nll_one_draw" not in report
        assert report["nll"]["bits_per_dim"] is None
        assert "bits" not in wording.likelihood_table(report)
        assert "bits_per_dim" not in likelihood.validation_nll(model, x)


class TestKinds:
    def test_an_estimate_has_one_draw_alone(self):
        report = likelihood.measure(wild(divergence="hutchinson", probes=2), images(), SOLVER)
        assert "nll_one_draw" not in report
        assert (report["nll"]["samples"], report["nll"]["probes"]) == (1, 2)
        expected = "estimated upper bound, one draw of uniform dequantisation as in FFJORD, 2 probes"
        assert expected in wording.likelihood_table(report)

    def test_draws_that_would_not_tighten_are_refused(self):
        model = wild(divergence="hutchinson")
        likelihood.check_importance_samples(model, None)
        likelihood.check_importance_samples(model, 1)
        with pytest.raises(InputError, match="--samples 8 of an estimated log-density give no bound: omit it"):
            likelihood.check_importance_samples(model, 8)
        with pytest.raises(InputError, match="--samples 8 is for bounds; this log-density is of kind 'exact'"):
            likelihood.check_importance_samples(density_model((2,)), 8)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({}, "one draw of uniform dequantisation as in FFJORD, rtol"),
            ({"extra": 1}, "as in FFJORD and of augmented variables, rtol"),
            ({"dequantization": "learned"}, "one draw of learned dequantisation, rtol"),
        ],
    )
    def test_draws_are_named(self, options, said):
        assert said in wording.validated_as(wild(**options))

    def test_validation_by_one_component_is_a_bound(self):
        model = density_model((2,), extra=2, augmentation="categorical", posterior="fitted")
        assert "upper bound, one draw" in wording.validated_as(model)
        assert "(exact, rtol" in wording.validated_as(density_model((2,)))
        several = density_model((2,), extra=3, augmentation="categorical", posterior="fitted")
        assert "(upper bound, components below 0.01 left out, rtol" in wording.validated_as(several)

    def test_the_nll_is_that_of_the_given_classes(self):
        model = spread(density_model((1, 1, 1), levels=4, hidden=(8, 8), context=3), std=0.5)
        x, y = torch.randint(4, (200, 1, 1, 1)), torch.randint(3, (200,))
        given, other = (
            likelihood.nll(model, Split(x, c=class_contexts(labels, 3)), samples=100)[0]["value"]
            for labels in (y, (y + 1) % 3)
        )
        assert abs(other - given) > 0.02
        with torch.no_grad():
            exact = -likelihood.log_prob(model, x, 1000, class_contexts(y, 3)).mean().item()
        assert given == pytest.approx(exact, abs=0.03)


class TestEvaluations:
    def test_evaluations_are_those_of_all_odes(self):
        """At zero fields each ODE takes the same number, whether points go to the base or come from it."""
        for blocks in (1, 3):
            model = density_model((1, 2, 2), hidden=(8, 8), levels=17, solver=SOLVER, blocks=blocks)
            report, record = (
                likelihood.measure(model, images(), SOLVER, samples=4),
                likelihood.validation_nll(model, images()),
            )
            found = report["nfe_log_prob"], report["nfe_sample"], record["nfe_log_prob"]
            assert found == pytest.approx((44 * blocks,) * 3)

    def test_tolerances_and_inverse_error(self):
        model, x = spread(density_model((2,), hidden=(32, 32)), std=0.35), Split(torch.randn(30, 2))
        loose, tight = (likelihood.measure(model, x, Solver(rtol=tol, atol=tol)) for tol in (1e-2, 1e-5))
        assert loose["nll"]["tolerance"] == {"rtol": 1e-2, "atol": 1e-2}
        assert loose["nfe_log_prob"] < tight["nfe_log_prob"]
        assert tight["inverse_error"] < loose["inverse_error"] / 5
        assert abs(tight["nll"]["value"] - tight["nll_tighter"]["value"]) < 1e-3

    @pytest.mark.parametrize("unit", [1e-30, 1e30])
    def test_the_inverse_error_of_any_unit_is_finite(self, unit):
        x = unit * torch.randn(30, 2)
        found = likelihood.measure(spread(density_model((2,), x, hidden=(32, 32))), Split(x), SOLVER)
        assert 0 < found["inverse_error"] / unit < 1e-2
        assert 0 < found["inverse_error_standardized"] < 1e-2

    @pytest.mark.parametrize(
        ("count", "side", "expected"), [(4, 1, 64), (2**11, 8, 64), (2**12 + 1, 8, 16), (10**4, 28, 1)]
    )
    def test_many_numbers_take_fewer_draws(self, count, side, expected):
        assert likelihood.affordable_samples(count, side**2) == expected

    def test_a_single_sample_is_too_few(self):
        with pytest.raises(InputError, match="1 samples are too few to evaluate on"):
            likelihood.measure(density_model((2,)), Split(torch.randn(1, 2)), SOLVER)


class TestChunks:
    def test_chunks_cover_all_rows_in_order(self):
        assert chunks(Split(torch.zeros(6000, 2))) == [slice(0, 2500), slice(2500, 5000), slice(5000, 6000)]
        assert [part.stop - part.start for part in chunks(Split(torch.zeros(5, 2**19)))] == [2, 2, 1]

    def test_the_mean_is_that_of_all_chunks(self):
        model, x = spread(density_model((2,), hidden=(8, 8))), torch.randn(2600, 2)
        with torch.no_grad():
            expected = -model.log_prob(x).double()
        figure, _ = likelihood.nll(model, Split(x))
        assert figure["value"] == pytest.approx(expected.mean().item(), abs=1e-4)
        assert figure["standard_error"] == pytest.approx((expected.std() / 2600**0.5).item(), rel=1e-3)

    def test_mapped_rows_are_those_in_memory(self):
        x, rows = torch.randn(50, 3), torch.randperm(50)[:20]
        mapped, memory = Split(x, rows=rows), Split(x[rows])
        found = [torch.cat(in_chunks(torch.nn.Linear(3, 1), part, lambda x, c: x, "")) for part in (mapped, memory)]
        assert torch.equal(*found)


def test_the_nll_of_noisy_values_bounds_that_of_a_grid():
    step, normal = 0.5, torch.distributions.Normal(0, 1)
    recorded = Split((torch.randn(4000, 1) / step).round() * step)
    plain = Dataset("t", recorded, recorded, recorded, ("a",))
    noisy = plain.jittered({"a": Grid(step, 0.0)}, seed=0)
    figure = likelihood.nll(density_model((1,)), noisy.test)[0]
    found = likelihood.grid_figures(figure, noisy)["grid"]
    cells = normal.cdf(recorded.x + step / 2) - normal.cdf(recorded.x - step / 2)
    truth = -cells.log().mean().item()
    assert found["steps"] == {"a": step}
    assert truth < found["nll_bound"] < truth + 0.03
    assert likelihood.grid_figures(figure, plain) == {}


class TestGaussian:
    def test_the_gaussian_to_beat_is_the_gaussian(self):
        x, test = torch.randn(500, 3) @ torch.randn(3, 3) * 100, torch.randn(50, 3) * 100
        double = x.double()
        expected = MultivariateNormal(double.mean(0), double.T.cov(correction=0))
        dataset = Dataset("t", Split(x), Split(x), Split(test), ("a", "b", "c"))
        assert likelihood.gaussian_nll(dataset) == pytest.approx(
            -expected.log_prob(test.double()).mean().item(), abs=1e-8
        )

    def test_collinear_columns_have_no_gaussian(self):
        x = Split(torch.randn(500, 2) @ torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]]))
        assert likelihood.gaussian_nll(Dataset("t", x, x, x, ("a", "b", "c"))) is None

    def test_it_stands_next_to_the_flow_in_standard_deviations(self):
        figures = {"nll": {"value": 5.0, "value_standardized": 2.0}, "gaussian_nll": 6.5, "heavy_tailed": []}
        assert "2.0000 nats (full-covariance Gaussian: 3.5000)" in wording.gaussian_row(figures)
        assert "misleading" not in wording.gaussian_row(figures)
        said = wording.gaussian_row({**figures, "heavy_tailed": ["flux", "age"]})
        assert said.endswith("misleading: a few rows set the standard deviation of flux, age")


class TestDrift:
    def test_of_a_linear_field_is_that_of_the_taylor_polynomial(self, float64):
        """A step h of RK4 multiplies by 1 + hA + ... + (hA)^4/24; the trace of A is integrated exactly."""
        a, x = torch.randn(3, 3), torch.randn(700, 3)
        flow = Flow(Continuous(Linear(a), COARSE), Normal((3,)))
        h = -0.5 * a  # from data at 1 to base at 0, in two steps
        step = sum(torch.linalg.matrix_power(h, k) / math.factorial(k) for k in range(5))
        coarse, exact = x[:500] @ (step @ step).T, x[:500] @ torch.matrix_exp(-a).T
        nll = coarse.square().sum(1) / 2 + 1.5 * math.log(2 * math.pi) + a.trace()
        found = likelihood.drift(flow, flow.with_solver(TIGHT), Split(x))
        assert found["nll_training_solver"] == pytest.approx(nll.mean().item(), rel=1e-10)
        expected = (coarse.square() - exact.square()).sum(1).mean().item() / 2
        assert found["drift"] == pytest.approx(expected, rel=1e-4)
        assert abs(expected) > 1e-4

    def test_noise_is_the_same_and_stays(self):
        """Dequantisation and probes make each NLL noisy, but not their difference."""
        ode = Continuous(MLPField(4, hidden=(8, 8)), Solver("rk4", step_size=0.02), divergence="hutchinson")
        model = LiftedFlow(Dequantize(levels=2), Flow(spread(ode, 0.7), Normal((4,))))
        adaptive, x, before = (
            model.with_solver(Solver(rtol=1e-6, atol=1e-6)),
            Split(torch.randint(2, (40, 4))),
            torch.get_rng_state(),
        )
        found = [likelihood.drift(model, adaptive, x)]
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(1)
        found.append(likelihood.drift(model, adaptive, x))
        assert abs(found[0]["nll_training_solver"] - found[1]["nll_training_solver"]) > 1e-2
        assert all(abs(each["drift"]) < 1e-4 for each in found)

    def test_steps_that_fail_have_no_drift(self):
        flow = density_model((2,), hidden=(8, 8), solver=Solver("rk4", step_size=0.01, max_steps=10))
        assert likelihood.drift(flow, flow.with_solver(TIGHT), Split(torch.randn(9, 2))) == {}


# Costs at equal likelihood


def table(n=50):
    part = Split(torch.randn(n, 2))
    return Dataset("t", part, part, part, ("a", "b"))


def test_an_exact_flow_takes_one_point_for_each_sample():
    model, data, before = spread(density_model((2,), hidden=(8, 8))), table(), torch.get_rng_state()
    found = costs.costs(model, data)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        assert found["nll_test"] == pytest.approx(-model.log_prob(data.test.x).mean().item(), abs=1e-3)
    assert (found["points_log_prob"], found["raised"]) == (1, 0)
    for what in ("sample", "log_prob"):
        assert 0 < found[f"nfe_{what}_1e-05"] < found[f"nfe_{what}_1e-07"]
    again = costs.costs(model, data)
    assert all(again[name] == value for name, value in found.items() if not name.startswith("seconds"))


def test_the_evaluations_are_those_of_double_precision():
    model, data = spread(density_model((2,), hidden=(8, 8))), table()
    single, double = costs.costs(model, data), costs.costs(model.double(), data)
    names = [name for name in single if name.startswith("nfe")]
    assert [single[name] for name in names] == [double[name] for name in names]


def test_a_mixture_of_flows_takes_a_point_for_each_component():
    model = spread(density_model((2,), hidden=(8, 8), extra=3, augmentation="categorical"))
    assert costs.costs(model, table())["points_log_prob"] == 3


def test_a_pruned_mixture_reports_its_work_and_what_it_leaves_out():
    model, data = spread(density_model((2,), hidden=(8, 8), extra=4, augmentation="categorical")), table(150)
    found = costs.costs(model, data)
    report = likelihood.measure(model, data.test, SOLVER, prune=0.1)
    with torch.no_grad():
        pruned = model.with_solver(SOLVER).log_prob(data.test.x, prune=0.1)
    assert report["nll"]["value"] == pytest.approx(-pruned.mean().item(), abs=1e-5)
    assert report["nll"]["evaluations_per_sample"] > report["nfe_log_prob"] > report["nfe_sample"]
    assert (report["nll"]["kind"], report["nll"]["prune"]) == ("bound", 0.1)
    assert 0 <= report["certificate"]["gap_mean"] <= report["certificate"]["gap_max"] < -4 * math.log(0.7)
    assert report["certificate"]["rows"] == 100
    assert "(upper bound, components below 0.1 left out, rtol" in wording.likelihood_table(report)
    assert 1 <= found["points_log_prob"] < 4
    assert found["work_log_prob_1e-05"] > found["nfe_log_prob_1e-05"]
    assert 0 <= found["gap_mean"] <= found["gap_max"]


@pytest.mark.parametrize("options", [{"residual_steps": 3}, {"solver": Solver("rk4", step_size=0.5)}])
def test_evaluations_of_a_pass_include_the_gate(options):
    model = spread(density_model((2,), hidden=(8, 8), extra=4, augmentation="categorical", **options))
    plain, pruned = (likelihood.nll(model, table(150).test, 1, prune)[1] for prune in (None, 0.1))
    assert (plain, pruned) == ((3, 3 + 3) if "residual_steps" in options else (8, 8 + 4))


def test_draws_are_doubled_until_a_bound_settles(monkeypatch):
    model, data = spread(density_model((2,), hidden=(8, 8), extra=1)), table()
    with torch.no_grad():
        one = -model.log_prob(data.test.x, samples=1).mean().item()
    found = costs.costs(model, data)
    assert found["points_log_prob"] >= costs.MIN_DRAWS
    assert found["raised"] < costs.CONVERGED
    assert found["nll_test"] < one
    monkeypatch.setattr(costs, "MAX_POINTS", 4 * data.test.x.numel())
    assert costs.costs(model, data)["points_log_prob"] == 4


def test_path_energies_come_with_the_nll():
    model, data = spread(density_model((2,), hidden=(8, 8))), Split(torch.randn(50, 2))
    plain, found = (likelihood.validation_nll(model, data, names) for names in ((), ("acceleration", "kinetic")))
    with torch.no_grad():
        terms = MaximumLikelihood(model, kinetic=1.0, acceleration=1.0).terms(data.x)
    assert {name: pytest.approx(value.item(), rel=1e-5) for name, value in terms.items()}.items() <= found.items()
    assert plain == {name: found[name] for name in plain}


@pytest.mark.parametrize(
    ("options", "count", "points", "expected"),
    [
        ({}, 10_000, 10**6, (10_000, 1)),
        ({}, 10**6, 10**5, (10**5, 1)),  # a hundred thousand rows of a million
        ({"extra": 2}, 10_000, 10**6, (10_000, 64)),
        ({"extra": 2}, 10_000, 614_400, (10_000, 32)),
        ({"extra": 2}, 10_000, 2560, (4096, 16)),  # 2^17 numbers in all
        (
            {"extra": 2, "divergence": "hutchinson"},
            10_000,
            2560,
            (10_000, 1),
        ),  # no bound by estimates
    ],
)
def test_as_many_points_are_measured_as_training_took(options, count, points, expected):
    assert costs.in_proportion(density_model((2,), **options), count, points) == expected
