"""Results of experiments: comparisons over seeds and at equal likelihood by hand, and run folders as outcomes."""

import json
import math

import numpy as np
import pytest

from train_flows.experiments import results
from train_flows.experiments.results import LEVELS, Outcome, Results, cost_at, equal_nll, read_outcome
from train_flows.run.folder import Run


def outcome(label, seed=0, status="success", data="spheres", **figures):
    """An outcome with a record for each value of its figures."""
    records = [dict(zip(figures, values, strict=True)) for values in zip(*figures.values(), strict=True)]
    return Outcome(label, data, seed, "train-flows ...", None, status, records)


def costs(nll, nfe):
    return outcome("some", nll_test=nll, nfe=nfe).records


class TestResults:
    RESULTS = Results(
        [
            outcome("NODE", 0, loss=[9.0, 2.0], nfe=[1.0, 20.0]),
            outcome("NODE", 1, loss=[9.0, 4.0], nfe=[1.0, 80.0]),
            outcome("NODE", 2, "too many steps", loss=[9.0], nfe=[1000.0]),
            outcome("ANODE", 2, loss=[9.0, 1.0], nfe=[1.0, 10.0]),
            outcome("ANODE", 0, loss=[9.0, 1.0], nfe=[1.0, 10.0]),
        ]
    )

    def test_means_are_of_the_successful_runs(self):
        node = self.RESULTS.of("NODE")
        assert node.mean("loss") == 3
        assert node.mean("loss", at=0) == 9
        assert node.last("nfe").tolist() == [20, 80]
        assert math.isnan(self.RESULTS.of("ResNet").mean("loss"))
        assert math.isnan(node.mean("accuracy"))

    def test_comparisons_are_of_the_seeds_that_succeeded_with_both(self):
        assert self.RESULTS.ratio("ANODE", "NODE", "nfe") == 0.5
        assert self.RESULTS.difference("NODE", "ANODE", "loss") == 1
        assert math.isnan(self.RESULTS.ratio("ResNet", "NODE", "nfe"))
        (node, anode) = self.RESULTS.shared("NODE", "ANODE")
        assert ([o.seed for o in node], [o.seed for o in anode]) == ([0], [0])

    def test_curves_end_where_a_run_failed(self):
        curves = self.RESULTS.of("NODE").curves("loss")
        np.testing.assert_array_equal(curves, [[9, 2], [9, 4], [9, math.nan]])
        assert np.isnan(self.RESULTS.curves("accuracy")).all()
        assert Results([]).curves("loss").shape == (0, 0)

    def test_the_summary_is_over_seeds(self):
        node, anode = self.RESULTS.summary()
        assert (node["model"], node["runs"], node["succeeded"]) == ("NODE", 3, 2)
        assert node["loss"] == {"mean": 3.0, "sd": pytest.approx(math.sqrt(2))}
        assert self.RESULTS.of("ANODE", "spheres").summary() == [anode]
        assert Results(self.RESULTS[:1]).summary()[0]["loss"]["sd"] is None
        shown = results.table([node, anode], {"ratio": 0.123456, "words": "never"})
        assert "2/3" in shown
        assert "3 +- 1.4" in shown
        assert shown.endswith("ratio: 0.1235\nwords: never")

    def test_the_exemplar_is_the_successful_run_of_the_lowest_seed(self):
        assert self.RESULTS.of("ANODE").exemplar.seed == 0
        assert Results([outcome("NODE", status="step underflow", loss=[1.0])]).exemplar is None


class TestEqualNLL:
    def test_a_cost_is_interpolated_to_where_a_level_is_first_reached(self):
        records = costs([3.0, 2.0, 2.5, 1.0], [10.0, 20.0, 30.0, 60.0])
        assert cost_at(records, 3.5, "nfe") == 10
        assert cost_at(records, 2.25, "nfe") == pytest.approx(17.5)
        assert cost_at(records, 2.0, "nfe") == 20
        assert cost_at(records, 1.5, "nfe") == pytest.approx(30 + 30 / 1.5)
        with pytest.raises(ValueError, match=r"0\.5"):
            cost_at(records, 0.5, "nfe")

    def test_trainings_compare_where_both_have_been(self):
        def trained(nll, nfe):
            return costs([9.0, *nll], [1e6, *nfe])

        plain = trained([3.0, 1.0], [20.0, 40.0])
        half = trained([3.0, 1.0, 0.0], [10.0, 20.0, 300.0])
        worse = trained([3.0, 2.0], [60.0, 60.0])  # levels 2 to 2.5, where the plain one has 30 to 25
        found = equal_nll([(half, plain), (worse, plain), (plain, plain)], "nfe")
        plain_costs = 20 + 10 * (3 - np.linspace(2, 2.5, LEVELS))
        logs = np.array([math.log(0.5), np.log(60 / plain_costs).mean(), 0.0])
        half_width = 4.302653 * logs.std(ddof=1) / math.sqrt(3)
        expected = {"ratio": logs.mean(), "low": logs.mean() - half_width, "high": logs.mean() + half_width}
        assert {name: math.log(found[name]) for name in expected} == pytest.approx(expected)
        assert found["nll"] == pytest.approx((1 + 2 + 1) / 3)
        assert (found["cost"], found["cost_below"]) == pytest.approx(((20 + 60 + 40) / 3, (40 + 30 + 40) / 3))
        assert (found["pairs"], found["apart"]) == (3, 0)
        alone = equal_nll([(half, plain)], "nfe")
        assert alone["ratio"] == pytest.approx(0.5)
        assert math.isnan(alone["low"])

    def test_a_training_that_is_always_better_compares_at_its_first_record(self):
        plain, better = costs([9.0, 3.0, 2.0], [0.0, 20.0, 40.0]), costs([1.9, 1.5, 1.0], [0.0, 10.0, 99.0])
        found = equal_nll([(better, plain)], "nfe")
        assert (found["ratio"], found["apart"], found["nll"]) == (pytest.approx(0.25), 1, 2.0)

    def test_without_a_common_seed_there_is_nothing_to_compare(self):
        apart = Results([outcome(label, i, nll_test=[1.0, 1.0], nfe=[1.0, 1.0]) for i, label in enumerate("ab")])
        assert apart.equal_nll("a", "b", "nfe") is None


class TestRunFolders:
    @pytest.fixture
    def made(self, tmp_path):
        """A run of two steps that has recorded some of them."""
        run = Run.create(tmp_path / "run", "density", {"training": {"steps": 2}, "run": {"seed": 3}}, {}, {})

        def record(*values, nll="nll"):
            for step, value in enumerate(values):
                figures = {nll: value, "nfe_log_prob": 10.0 + step, "seconds": 2.0 * step, "seconds_training": step}
                run.log({"step": step, **figures})
            return run

        return record

    def read(self, run):
        return read_outcome("plain", "moons", 3, "train-flows density moons", run.folder)

    def test_a_finished_density_has_the_figures_of_its_best_weights(self, made):
        run = made(3.0, 1.0, 2.0)
        nll = {"value": 1.5, "standard_error": 0.1, "kind": "bound", "samples": 64}
        run.write_result({"nll": nll, "nfe_log_prob": 50, "nfe_sample": 60.0}, ["some"])
        found = self.read(run)
        assert (found.status, found.notes) == ("success", ["some"])
        last = found.records[-1]
        assert (last["validation_nll"], last["nfe_validation"]) == (1.0, 11.0)
        assert (last["test_nll"], last["nfe_log_prob"], last["nfe_sample"]) == (1.5, 50, 60)
        assert last["importance_samples"] == 64
        assert (last["seconds"], last["nll"]) == (2, 2.0)

    def test_a_run_that_is_missing_interrupted_or_out_of_time_is_no_outcome(self, made, tmp_path):
        assert read_outcome("plain", "moons", 3, "", tmp_path / "none") is None
        run = made(3.0, 1.0)
        assert self.read(run) is None
        run.write_result({"accuracy": 1.0}, ["training is at step 1 of 2, its time was up"])
        assert self.read(run) is None

    def test_failures_are_outcomes(self, made):
        run = made(3.0, 1.0, math.nan)
        run.write_result({"accuracy": 1.0})
        assert self.read(run).status == "non-finite loss"
        run.write_result({"accuracy": 1.0}, ["training ended early: step 1 failed: too many steps at t = 0.1"])
        assert self.read(run).status == "too many steps"
        (run.folder / "failed.json").write_text(json.dumps({"status": "step underflow", "message": "some"}))
        assert self.read(run).status == "step underflow"

    def test_the_file_of_results_has_every_run(self, made, tmp_path):
        run = made(3.0, 1.23456789, math.inf, nll="loss")
        run.write_result({"accuracy": 1.0})
        path = tmp_path / "some.json"
        results.write_results(path, {"experiment": "some"}, Results([self.read(run)]), {"ratio": math.nan})
        content = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert {"command", "machine", "versions", "experiment", "summary"} <= set(content)
        assert content["findings"] == {"ratio": None}
        (only,) = content["runs"]
        assert (only["name"], only["data"], only["seed"], only["status"]) == ("plain", "moons", 3, "non-finite loss")
        assert only["command"] == "train-flows density moons"
        assert only["history"]["loss"] == [3.0, 1.2346, None]
