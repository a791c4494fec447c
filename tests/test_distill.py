"""Distilling a density: the regression against closed forms, and the program from a stored run to a table."""

import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from stored_runs import have_same_weights, result_of, spread, store_classifier, store_density, write_greys
from tasks import without_times

import cnf
from anode import Solver, storage
from cnf import ResidualSteps, density_model, watch_determinants
from train_flows import density, distill
from train_flows.data import load_density_data
from train_flows.data.dataset import Split
from train_flows.run.folder import Run

TINY = ("--regression-steps", "3", "--train-steps", "4")
MIXTURE = {"extra": 3, "augmentation": "categorical", "posterior": "fitted"}


@pytest.fixture
def table(tmp_path):
    """A table of three correlated columns in different units, and one of unit scale."""
    mixing = np.array([[1, 0, 0, 0], [2, 0.5, 0, 1], [0, 1, 30, 0]])
    x = np.random.default_rng(0).normal(size=(300, 3)) @ mixing + [0, 10, 1000, 0]
    x += np.random.default_rng(1).normal(size=x.shape)
    pd.DataFrame(x, columns=["height", "weight", "age", "place"]).to_csv(tmp_path / "people.csv", index=False)
    return tmp_path / "people.csv"


def untimed(folder):
    return without_times(Run.open(folder, "density").records())


def test_evaluations_of_pruned_mixtures_include_the_gate():
    mixture = {**MIXTURE, "hidden": (8, 8), "posterior": "normal"}
    teacher = spread(density_model((2,), solver=Solver("rk4", step_size=0.5), **mixture))
    student = spread(density_model((2,), residual_steps=3, **mixture))
    found = [distill.measured(model, Split(torch.randn(150, 2)))["nfe_log_prob"] for model in (teacher, student)]
    assert found == [8 + 4, 3 + 3]


@pytest.mark.usefixtures("float64")
class TestRegression:
    MATRIX = torch.tensor([[0.3, 0.4], [-0.4, 0.2]], dtype=torch.float64)

    def linear(self, x, **values):
        """Return a density whose field is linear: that of MATRIX for an ODE, zero for residual steps."""
        flow = density_model((2,), x, hidden=(), time="none", **values)
        if "residual_steps" not in values:
            flow.split()[1].field.layers[0].weight.data.copy_(self.MATRIX)
        return flow

    @pytest.mark.parametrize("n", [1, 3])
    def test_an_exact_linear_flow(self, n):
        """Steps I - B / n with B = n (I - exp(-A / n)) are exactly the flow of dx/dt = A x."""
        x = torch.randn(500, 2) @ torch.tensor([[1.0, 0.5], [0.0, 2.0]]) + 3
        teacher, student = self.linear(x), self.linear(x, residual_steps=n)
        assert distill.regress(teacher, student, Split(x), 600, seed=0) < 2e-5
        factor = torch.eye(2) - student.split()[1].field.layers[0].weight / n
        torch.testing.assert_close(factor, torch.matrix_exp(-self.MATRIX / n), rtol=0, atol=1e-5)
        torch.testing.assert_close(student.encode(x), teacher.encode(x), rtol=0, atol=1e-4)
        torch.testing.assert_close(student.log_prob(x), teacher.log_prob(x), rtol=0, atol=1e-3)

    def test_states_are_those_of_the_path_of_every_row(self):
        x = torch.randn(50, 2) @ torch.tensor([[1.0, 0.5], [0.0, 2.0]]) + 3
        teacher = self.linear(x)
        states, c = distill.states_of(teacher, Split(x), 4)
        assert (states.shape, c) == ((50, 5, 2), None)
        start = teacher.split()[0].encode(x)
        for i, state in enumerate(states.unbind(1)):
            wanted = start @ torch.matrix_exp(-self.MATRIX.T * i / 4)
            torch.testing.assert_close(state, wanted, rtol=0, atol=1e-4)

    def test_all_but_the_field_is_the_teachers(self):
        """The density is then that of its mixture next to its static transforms; contexts are standardised alike."""
        x, c = torch.randn(50, 2), 1000 + torch.randn(50, 1)
        options = {"activation": "silu", "base": "mixture", "components": 3, "whiten": True}
        teacher = density_model((2,), x, context_data=c, hidden=(8,), **options)
        torch.nn.init.normal_(teacher.split()[1].field.layers[-1].weight)
        config = distill.student_config(teacher.description, 4)
        assert config.activation == ("tanh", "silu")
        student = density_model((2,), context=1, config=config)
        distill.copy_weights(teacher, student)
        assert torch.equal(student.context_scale(c), teacher.context_scale(c))
        y, log_det, _ = teacher.split()[0](x)
        torch.testing.assert_close(student.log_prob(x, c), teacher.base.log_prob(y) + log_det)

    def test_steps_of_the_field_of_one_flow_are_eulers_of_its_ode(self):
        """Their error falls with 1 / n; in a mixture of flows the field is new."""
        x, errors = torch.randn(50, 2), []
        for values in ({}, MIXTURE):
            teacher = density_model((2,), x, hidden=(8,), **values)
            torch.nn.init.normal_(teacher.split()[1].field.layers[-1].weight, std=0.3)
            for n in (8, 16, 32):
                student = density_model((2,), hidden=(8,), residual_steps=n, **values)
                distill.copy_weights(teacher, student)
                errors.append((student.log_prob(x) - teacher.log_prob(x)).abs().mean().item())
        assert errors[0] > 1.8 * errors[1] > 3.2 * errors[2] > 0
        assert errors[3] == errors[4] == errors[5] > errors[0]


class TestRuns:
    @pytest.mark.parametrize(
        ("model", "typed", "data"),
        [
            ({}, (), {}),
            (MIXTURE, (), {}),
            ({**MIXTURE, "posterior": "normal", "whiten": True}, ("--certify",), {}),
            ({"base": "mixture", "components": 2, "activation": ("softplus", "tanh")}, ("--steps", "2"), {}),
            ({"divergence": "hutchinson", "probes": 2}, (), {}),
            ({**MIXTURE, "time": "squash"}, (), {"given": ("place",)}),
        ],
        ids=["plain", "mixture", "certified", "base", "hutchinson", "conditional"],
    )
    def test_a_run_like_any_other(self, run, table, undrawn, model, typed, data):
        teacher, dataset = store_density("teacher", str(table), model=model, training={"batch_size": 64}, **data)
        status, out, err = run("distill", "teacher", *TINY, *typed)
        assert (status, err) == (0, "")
        assert "regression on the states of 240 samples: the error of a step is " in out
        assert "\nleast determinant  -" in out
        student, steps = cnf.load("teacher-distilled"), 2 if "--steps" in typed else 4
        assert isinstance(student.split()[1], ResidualSteps)
        assert (student.description.residual_steps, student.description.certify) == (steps, "--certify" in typed)
        for name, value in teacher.split()[0].state_dict().items():
            assert torch.equal(student.split()[0].state_dict()[name], value)
        figures = result_of("teacher-distilled")
        found = figures["distillation"]
        assert found["student"]["nll"]["value"] == pytest.approx(figures["nll"]["value"], abs=1e-5)
        assert found["teacher"]["nll"]["kind"] == ("estimate" if "probes" in model else "exact")
        assert found["student"]["nfe_log_prob"] == steps < found["teacher"]["nfe_log_prob"]
        assert found["teacher"]["folds"] is None
        assert found["student"]["folds"] == pytest.approx(figures["folds"], rel=1e-4)
        with torch.no_grad(), watch_determinants() as determinants:
            student.log_prob(dataset.test.x, dataset.test.c)
        assert (
            found["student"]["folds"]["least_data"] >= torch.cat(determinants).min().item() - 1e-4
        )  # of all components
        if "probes" not in model:
            with torch.no_grad():
                wanted = -teacher.log_prob(dataset.test.x, dataset.test.c).mean().item()
            assert found["teacher"]["nll"]["value"] == pytest.approx(wanted, rel=1e-4)
        status, out, err = run("evaluate", "teacher-distilled")
        assert (status, err) == (0, "")
        assert f"{figures['nll']['value']:.4f}" in out
        given = ("--given", "place=0.5") if data else ()
        status, _, err = run("sample", "teacher-distilled", "-n", "20", "--log-prob", "--overwrite", *given)
        assert (status, err) == (0, "")
        assert np.isfinite(pd.read_csv("samples.csv").to_numpy()).all()

    def test_folds_are_named(self, run, table, undrawn, monkeypatch):
        """Steps of a steep field fold: their NLL is then too low."""
        store_density("teacher", str(table))

        def fold(task, *_):
            torch.nn.init.normal_(task.model.split()[1].field.layers[-1].weight, std=8)
            task.run.keep_best(task.model)
            task.run.log({"step": 0, "nll": 0.0, "seconds": 0.0})
            return []

        monkeypatch.setattr(distill, "fit", fold)
        monkeypatch.setattr(density, "report", lambda _, run, *rest: run.write_result({}))
        status, out, _ = run("distill", "teacher", *TINY)
        assert status == 0
        assert "the steps fold" in out
        figures = result_of("teacher-distilled")
        assert figures["distillation"]["student"]["folds"]["least_data"] < 0
        assert figures["distillation"]["student"]["folds"]["mass"] > 0
        assert "for they fold" in figures["notes"][-1]

    def test_seed_precision_and_smoothing_are_those_of_the_teacher(self, run, table, undrawn):
        options = {"training": {"ema": 0.9, "weight_decay": 1e-3}, "run": {"seed": 3, "dtype": "float64"}}
        store_density("teacher", str(table), **options)
        assert run("distill", "teacher", *TINY, "--out", "student")[0] == 0
        settings = storage.read_config("student")["settings"]
        assert (settings["run"]["seed"], settings["run"]["dtype"]) == (3, "float64")
        assert (settings["training"]["ema"], settings["training"]["weight_decay"]) == (0.9, 1e-3)
        assert storage.read_config("student")["data"]["sha256"] == storage.read_config("teacher")["data"]["sha256"]

    @pytest.mark.parametrize("step", [0, 2])  # 0: only the regression is done
    def test_a_resumed_run_equals_a_whole_one_bit_by_bit(self, run, table, undrawn, monkeypatch, step):
        store_density("teacher", str(table), model=MIXTURE, training={"batch_size": 64})
        assert run("distill", "teacher", *TINY, "--out", "whole")[0] == 0
        with monkeypatch.context() as patch:
            if step:
                shuffled = density.shuffled_batches

                def stopping(*args):
                    batch = shuffled(*args)
                    return lambda now: (now == step and signal.raise_signal(signal.SIGTERM), batch(now))[1]

                patch.setattr(density, "shuffled_batches", stopping)
            else:
                patch.setattr(distill, "fit", lambda *_: signal.raise_signal(signal.SIGTERM))
            status, _, err = run("distill", "teacher", *TINY, "--out", "parts")
        assert (status, err) == (130, "stopped; continue with: train-flows density --resume parts\n")
        assert Run.open("parts", "density").step < 4
        assert run("density", "--resume", "parts")[0] == 0
        assert have_same_weights("whole", "parts")
        assert untimed("whole") == untimed("parts")
        assert result_of("whole")["nll"] == result_of("parts")["nll"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ({"residual_steps": 2}, "has 2 residual steps already"),
            ({"extra": 2}, "has 2 augmented dimensions"),
            ({"extra": 4, "augmentation": "momentum"}, "has 4 augmented dimensions"),
            ({"blocks": 2}, "has 2 ODEs in a row"),
        ],
    )
    def test_models(self, run, table, model, message):
        store_density("teacher", str(table), model=model)
        status, out, err = run("distill", "teacher", *TINY)
        assert (status, out) == (2, "")
        assert err.startswith(f"error: teacher {message}")
        assert not Path("teacher-distilled").exists()

    def test_data(self, run, tmp_path):
        write_greys(tmp_path / "greys", 20, side=4)
        store_density("images", "greys")
        assert run("distill", "images")[2].startswith("error: images is a density of images")
        rows = np.random.default_rng(0).normal(size=(200, 65))
        pd.DataFrame(rows, columns=[f"c{i}" for i in range(65)]).to_csv("wide.csv", index=False)
        store_density("wide", str(tmp_path / "wide.csv"))
        assert run("distill", "wide")[2].startswith("error: wide has 65 dimensions")

    def test_what_is_not_a_trained_density(self, run, table):
        store_classifier("classifier", "spheres")
        assert "holds a classifier model, not a density model" in run("distill", "classifier")[2]
        assert "is not the folder of a density model" in run("distill", "nowhere")[2]
        cnf.save(density_model((2,)), "saved")
        assert "holds a model but not a run" in run("distill", "saved")[2]
        _, dataset = store_density("teacher", str(table))
        frame = pd.read_csv(table)
        frame.iloc[::-1].to_csv(table, index=False)
        assert load_density_data(str(table)).digest() != dataset.digest()
        assert "people.csv has changed since teacher was trained" in run("distill", "teacher")[2]

    def test_folders_and_numbers(self, run, table, undrawn):
        store_density("teacher", str(table))
        assert "--out teacher is the run to distil" in run("distill", "teacher", "--out", "teacher", "--overwrite")[2]
        Path("taken").mkdir()
        Path("taken", "file").touch()
        assert "--out taken exists: pass another" in run("distill", "teacher", "--out", "taken")[2]
        for option in ("--steps", "--regression-steps", "--train-steps"):
            status, _, err = run("distill", "teacher", option, "0")
            assert status == 2
            assert f"{option} 0" in err
        assert run("distill", "teacher", *TINY)[0] == 0
        assert run("distill", "teacher", *TINY)[0] == 0
        assert Path("teacher-distilled-2").is_dir()
