"""The program that measures stored models: its own test part, other data, and what is refused."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from stored_runs import report_of, spread, store_classifier, store_density, write_greys

import anode
import cnf
from anode import Solver
from train_flows.evaluate import load_test_part
from train_flows.evaluation import likelihood

pytestmark = pytest.mark.usefixtures("unrepeated")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table with names, and a run of it."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(400, 3)) @ np.diag([1.0, 10.0, 100.0])
    frame = pd.DataFrame(x, columns=["height", "weight", "age"])
    frame.to_csv("people.csv", index=False)
    return frame, *store_density("runs/people", "people.csv")


class TestDensities:
    def test_the_test_part_of_the_run(self, run, table):
        _, flow, dataset = table
        report = report_of(run, "evaluate", "runs/people")
        with torch.no_grad():
            expected = -flow.log_prob(dataset.test.x).mean().item()
        assert report["nll"]["value"] == pytest.approx(expected, abs=1e-3)
        assert (report["nll"]["kind"], report["nll"]["tolerance"]) == ("exact", {"rtol": 1e-5, "atol": 1e-5})
        assert report == report_of(run, "evaluate", "runs/people", "people.csv")  # the file of the run
        status, out, _ = run("evaluate", "runs/people")
        assert status == 0
        assert "nats (exact, rtol 1e-05, atol 1e-05)" in out
        assert "telling samples from 40 test rows" in out
        assert report["gaussian_nll"] == likelihood.gaussian_nll(dataset)

    def test_says_which_rows_are_measured(self, run, table):
        table[0].iloc[:50].to_csv("others.csv", index=False)
        for typed, said in (
            ([], "test part of people.csv: 40 samples"),
            (["people.csv"], "test part of people.csv, on whose other samples runs/people was trained: 40 samples"),
            (["others.csv"], "others.csv: 50 samples"),
        ):
            assert run("evaluate", "runs/people", *typed)[1].splitlines()[0] == said

    def test_other_rows_and_another_order(self, run, table):
        frame, flow, _ = table
        frame.iloc[:5].to_csv("few.csv", index=False)
        frame.iloc[:5][["age", "height", "weight"]].to_csv("reordered.csv", index=False)
        few, reordered = (report_of(run, "evaluate", "runs/people", name) for name in ("few.csv", "reordered.csv"))
        assert few["nll"]["value"] == pytest.approx(reordered["nll"]["value"], abs=1e-4)
        x = torch.tensor(frame.iloc[:5].to_numpy(), dtype=torch.float32)
        with torch.no_grad():
            assert few["nll"]["value"] == pytest.approx(-flow.log_prob(x).mean().item(), abs=1e-3)

    def test_data_that_changed(self, run, table):
        table[0].iloc[1:].to_csv("people.csv", index=False)
        status, _, err = run("evaluate", "runs/people")
        assert (status, err.count("\n")) == (2, 1)
        assert "has changed since runs/people was trained on it" in err

    def test_other_data_get_the_noise_of_the_grid(self, run):
        x = np.random.default_rng(0).normal(size=(400, 2))
        x[:, 1] = x[:, 1].round(1)
        for name, rows in (("whole.csv", x), ("other.csv", x[:50])):
            pd.DataFrame(rows, columns=["a", "b"]).to_csv(name, index=False)
        pd.DataFrame(x[:50, ::-1], columns=["b", "a"]).to_csv("swapped.csv", index=False)
        flow, _ = store_density("runs/whole", "whole.csv")
        report = report_of(run, "evaluate", "runs/whole", "other.csv")
        part = load_test_part("runs/whole", "other.csv")[0].test.x
        noise = part - torch.from_numpy(x[:50])
        assert noise[:, 0].abs().max() == 0
        assert 0.04 < noise[:, 1].abs().max() <= 0.05
        with torch.no_grad():
            expected = -flow.log_prob(part.float()).mean().item()
        assert report["nll"]["value"] == pytest.approx(expected, abs=1e-4)
        assert report["grid"]["steps"] == {"b": 0.1}
        assert report["grid"]["nll_bound"] == pytest.approx(report["nll"]["value"] - math.log(0.1))
        assert report == report_of(run, "evaluate", "runs/whole", "swapped.csv")
        assert "NLL, recorded      at most" in run("evaluate", "runs/whole")[1]
        store_density("runs/bare", "whole.csv", jitter=False)
        assert "grid" not in report_of(run, "evaluate", "runs/bare", "other.csv")

    def test_double_precision_of_other_data(self, run):
        t = 1.7e9 + 600 * np.random.default_rng(0).random((400, 2))
        pd.DataFrame(t, columns=["a", "b"]).to_csv("whole.csv", index=False)
        pd.DataFrame(t[:50], columns=["a", "b"]).to_csv("other.csv", index=False)
        store_density("runs/whole", "whole.csv", run={"dtype": "float64"})
        assert load_test_part("runs/whole")[0].test.x.dtype == torch.float64
        np.testing.assert_array_equal(load_test_part("runs/whole", "other.csv")[0].test.x, t[:50])
        assert report_of(run, "evaluate", "runs/whole", "other.csv")["inverse_error_standardized"] < 1e-3

    def test_named_data_keep_the_split_of_the_run(self, run):
        store_density("runs/digits", "digits", run={"seed": 3})
        own, named = (report_of(run, "evaluate", "runs/digits", *name, "--samples", 1) for name in ([], ["digits"]))
        assert own == named

    @pytest.mark.parametrize("double", [False, True])
    def test_models_saved_by_the_api(self, run, double):
        model = cnf.density_model((3,), hidden=(8,), solver=Solver("rk4", step_size=0.5))
        cnf.save(model.double() if double else model, "mine")
        np.save("x.npy", np.random.default_rng(0).normal(size=(30, 3)))
        report = report_of(run, "evaluate", "mine", "x.npy")
        assert (report["nll"]["kind"], report["nfe_sample"]) == ("exact", 44)  # by dopri5, of the zero field
        status, _, err = run("evaluate", "mine")
        assert status == 2
        assert "not a run" in err

    def test_numerics_and_precision(self, run, table):
        loose = report_of(run, "evaluate", "runs/people", "--rtol", "1e-2", "--atol", "1e-2")
        assert loose["nll"]["tolerance"] == {"rtol": 1e-2, "atol": 1e-2}
        estimate = report_of(run, "evaluate", "runs/people", "--divergence", "hutchinson")
        assert (estimate["nll"]["kind"], estimate["nll"]["probes"]) == ("estimate", 1)
        half = report_of(run, "evaluate", "runs/people", "--precision", "bfloat16")
        assert half["nll_bfloat16"]["value"] == pytest.approx(half["nll"]["value"], abs=0.2)
        assert half["nll_bfloat16"]["value"] != half["nll"]["value"]

    def test_a_mixture_leaves_components_out_and_says_so(self, run):
        store_density("runs/mix", "moons", test_size=120, model={"extra": 3, "augmentation": "categorical"})
        pruned, full = (report_of(run, "evaluate", "runs/mix", *typed) for typed in ([], ["--prune", "0"]))
        assert (pruned["nll"]["kind"], pruned["nll"]["prune"]) == ("bound", 0.01)
        assert (full["nll"]["kind"], full["nll"]["prune"]) == ("exact", None)
        assert pruned["certificate"]["gap_max"] < 0.1
        assert "certificate" not in full
        assert pruned["nll"]["value"] == pytest.approx(full["nll"]["value"], abs=0.02)
        assert "components left    " in run("evaluate", "runs/mix")[1]

    @pytest.mark.parametrize(
        ("model", "said"),
        [
            ({"extra": 3, "augmentation": "categorical"}, "would bias the likelihood"),
            ({"residual_steps": 2}, "does not have one"),
        ],
    )
    def test_an_estimated_divergence_is_refused(self, run, model, said):
        store_density("runs/exact", "moons", test_size=20, model=model)
        status, _, err = run("evaluate", "runs/exact", "--divergence", "hutchinson")
        assert status == 2
        assert said in err

    def test_pixels_in_the_columns_of_a_table(self, run):
        store_density("runs/digits", "digits")
        assert run("sample", "runs/digits", "-n", 7, "--out", "new.csv")[0] == 0
        frame = pd.read_csv("new.csv")
        assert report_of(run, "evaluate", "runs/digits", "new.csv", "--samples", 1)["nll"]["kind"] == "bound"
        frame.iloc[0, 0] = 17
        frame.to_csv("new.csv", index=False)
        assert "x must hold whole numbers from 0 to 16" in run("evaluate", "runs/digits", "new.csv")[2]


class TestClasses:
    def test_a_density_given_the_class_classifies(self, run):
        write_greys("greys")
        write_greys("swapped", names=("dark", "bright"))
        store_density("runs/greys", "greys", conditional=True)
        report, swapped = (
            report_of(run, "evaluate", "runs/greys", *source, "--classify", "--samples", 4)
            for source in (["greys"], ["swapped"])
        )
        for found in (report, swapped):
            assert found["classifier"]["classes"] == 2
            assert found["classifier"]["samples"] == 4
        assert swapped["classifier"]["tested"] == 40
        _, out, _ = run("evaluate", "runs/greys", "swapped", "--classify", "--samples", 4)
        assert "40 samples, by the NLL given each of 2 classes: upper bound, 4 importance samples, rtol" in out

    def test_a_classifier(self, run):
        network, dataset = store_classifier("runs/wine", "wine")
        report = report_of(run, "evaluate", "runs/wine")
        with torch.no_grad():
            right = network(dataset.test.x).argmax(1) == dataset.test.y
        assert report["accuracy"] == pytest.approx(right.double().mean().item())
        assert report["tighter"]["rtol"] == pytest.approx(report["tolerance"]["rtol"] / 10)
        tight = report_of(run, "evaluate", "runs/wine", "--rtol", "1e-6")
        assert tight["tolerance"] == {"rtol": 1e-6, "atol": 1e-3}


def test_what_is_refused_is_one_line(run, tmp_path):
    write_greys("greys")
    write_greys("more", names=("dark", "light"))
    store_density("runs/greys", "greys", conditional=True)
    store_density("runs/plain", "greys")
    store_density("runs/moons", "moons")
    store_classifier("runs/classifier", "greys")
    cnf.save(spread(cnf.density_model((2,), hidden=(8,), context=2)), "mine")
    anode.save(anode.classifier_model((2,), 1, model="mlp"), "mlp")
    np.save("x.npy", np.random.default_rng(0).normal(size=(30, 2)))
    np.save("one.npy", np.zeros((1, 2)))
    for typed, message in (
        (["nowhere"], "nowhere is not the folder"),
        (["runs/plain", "--classify"], "--classify is for densities given the class, runs/plain"),
        (["runs/classifier", "--classify"], "--classify is for densities, runs/classifier is a classifier"),
        (["runs/classifier", "--samples", "4"], "--samples 4 is for densities, runs/classifier is a classifier"),
        (["runs/moons", "--prune", "0.1"], "--prune 0.1 is for mixtures of flows"),
        (["runs/moons", "--prune", "1"], "--prune 1 must be at least 0, which sums all components, and less than 1"),
        (["runs/classifier", "--prune", "0"], "--prune 0.0 is for densities, runs/classifier is a classifier"),
        (["runs/moons", "--samples", "4"], "--samples 4 is for bounds; this log-density is of kind 'exact'"),
        (["mlp", "--rtol", "1e-6"], "--rtol and --atol have no effect on mlp"),
        (["runs/greys", "more"], "more holds the class light, runs/greys knows bright, dark"),
        (["runs/moons", "greys"], "runs/moons was trained on 2"),
        (["mlp", "x.npy"], "mlp does not know which column of x.npy to predict: use train-flows predict mlp x.npy"),
        (["mine", "x.npy"], "mine is a density given 2 numbers without names: use it by cnf.load"),
        (["runs/moons", "--device", "cuda:99"], "--device cuda:99 cannot be used here"),
    ):
        status, out, err = run("evaluate", *typed)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert message in err
