"""train-flows density as a user runs it: from data to figures, resuming, and data of every kind."""

import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from stored_runs import have_same_weights, let_time_run_out, result_of, write_greys
from tasks import without_times

import cnf
from anode import storage
from train_flows import density
from train_flows.data import load_density_data
from train_flows.evaluation import likelihood
from train_flows.figures import of_runs
from train_flows.run.folder import Run

TINY = ("--steps", "6", "--validate-every", "2", "--hidden", "8", "8", "--batch-size", "64")
STAGES = ("--objective", "flow-matching+likelihood", "--likelihood-steps")


@pytest.fixture
def people(tmp_path):
    """A table of three correlated columns in different units."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) @ np.array([[1, 0, 0], [2, 0.5, 0], [0, 1, 30]]) + [0, 10, 1000]
    pd.DataFrame(x, columns=["height", "weight", "age"]).to_csv(tmp_path / "people.csv", index=False)
    return tmp_path / "people.csv"


def test_smoothed_batches_keep_mean_and_covariance():
    """As many noisy copies as to see it, of few correlated samples in different units; all noise is the Gaussian."""
    x = torch.randn(50, 3) @ torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.5, 30.0], [0.0, 0.0, 20.0]]) + 10
    many = x.repeat(4000, 1)
    for share, correlation in ((0.0, 1.0), (0.6, 0.8), (1.0, 0.0)):
        smooth = density.smoothed(lambda _: many, x, share)(0)
        torch.testing.assert_close(smooth.mean(0), x.mean(0), rtol=0, atol=0.1)
        torch.testing.assert_close(smooth.T.cov(), x.T.cov(correction=0), rtol=0.02, atol=0.2)
        found = torch.stack([smooth[:, 0], many[:, 0]]).corrcoef()[0, 1].item()
        assert found == pytest.approx(correlation, abs=0.01)
    assert density.smoothed(lambda _: (x, x[:, :1]), x, 0.5)(0)[1].equal(x[:, :1])  # contexts stay


@pytest.fixture
def greys(tmp_path):
    """Images in two classes, bright ones and dark ones."""
    write_greys(tmp_path / "greys", 40, side=4)
    return "greys"


def untimed(folder):
    return without_times(Run.open(folder, "density").records())


class TestRuns:
    def test_from_points_to_figures(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr(of_runs, "POINTS", 5000)
        monkeypatch.setattr(of_runs, "FRAMES", 3)
        status, out, err = run("density", "moons", *TINY)
        assert (status, err) == (0, "")
        folder = tmp_path / "runs" / "moons"
        files = {"config.json", "model.safetensors", "metrics.jsonl", "state.pt", "result.json"}
        assert files | {"samples.png", "flow.gif", "curves.png"} <= {path.name for path in folder.iterdir()}
        assert out.startswith(
            "recipe for points (moons): gradient direct; command line: steps 6, validate every 2, hidden"
        )
        for words in ("NLL ", "NLL, tighter", "inverse error", "NFE of log_prob", "NFE of sampling", "seconds"):
            assert words in out
        pictures = ", ".join(f"runs/moons/{name}" for name in ("curves.png", "samples.png", "flow.gif"))
        assert out.endswith(f"pictures           {pictures}\n")
        records = Run.open(folder, "density").records()
        assert [record["step"] for record in records] == [0, 2, 4, 6]
        assert {"loss", "nll", "nfe_forward", "nfe_backward", "nfe_log_prob", "grad_norm", "lr"} <= set(records[1])
        assert result_of(folder)["nll"]["kind"] == "exact"
        assert result_of(folder)["nll_tighter"]["value"] == pytest.approx(result_of(folder)["nll"]["value"], abs=1e-3)
        assert {"command", "machine", "versions", "seed", "seconds"} <= set(result_of(folder))

    def test_a_table_in_its_own_units(self, run, people, undrawn):
        status, out, _ = run("density", "people.csv", *TINY)
        assert status == 0
        assert "full-covariance Gaussian" in out
        x = cnf.load("runs/people").sample(2000)
        torch.testing.assert_close(x.mean(0), torch.tensor([0.0, 10.0, 1000.0]), rtol=0.1, atol=2.0)
        own = json.loads(run("evaluate", "runs/people", "--json")[1])
        assert own["nll"] == result_of("runs/people")["nll"]

    @pytest.mark.parametrize(
        "options", [(), ("--certify", "--extra", "0"), ("--extra", "1", "--augmentation", "joint")]
    )
    def test_residual_steps_of_a_table(self, run, people, undrawn, options):
        status, out, err = run("density", people, *TINY, "--residual-steps", "3", *options)
        assert (status, err) == (0, "")
        assert "least determinant  1 at data" in out
        folder = Path("runs/people")
        assert result_of(folder)["folds"]["mass"] == 0
        assert result_of(folder)["nfe_log_prob"] == 3
        assert cnf.load(folder).description.certify == ("--certify" in options)
        status, out, err = run("density", people, "--init", folder, "--steps", "4", "--out", "again")
        assert (status, err) == (0, "")
        assert "residual" not in out.splitlines()[0]

    def test_each_part_of_the_data_serves_its_purpose(self, run, people, undrawn, monkeypatch):
        seen = {"validation_nll": [], "measure": []}
        for name, data in seen.items():
            real = getattr(likelihood, name)

            def spied(model, x, *rest, real=real, data=data, **more):
                data.append(x)
                return real(model, x, *rest, **more)

            monkeypatch.setattr(likelihood, name, spied)
        assert run("density", people, *TINY)[0] == 0
        dataset = load_density_data(str(people))
        assert [torch.equal(part.x, dataset.validation.x) for part in seen["validation_nll"]] == [True] * 4
        assert [torch.equal(part.x, dataset.test.x) for part in seen["measure"]] == [True]
        standardize = cnf.load("runs/people").transform.transforms[0]
        torch.testing.assert_close(standardize.mean, dataset.train.x.mean(0), rtol=1e-6, atol=1e-6)

    def test_a_small_table_by_its_size(self, run, people, undrawn):
        status, out, _ = run("density", "people.csv", "--steps", "4", "--validate-every", "1", "--patience", "2")
        assert status == 0
        assert out.startswith("recipe for small table (people.csv): ")
        assert "smoothing 0.096; command line: steps 4, validate every 1, patience 2\n" in out  # sqrt(3 / (320 + 3))
        assert storage.read_config("runs/people", "density")["settings"]["objective"]["smoothing"] == 0.096

    def test_training_without_progress_stops_and_says_so(self, run, people, undrawn):
        ruin = ("--lr", "3", "--ema", "0", "--validate-every", "1", "--patience", "3")
        status, out, _ = run("density", "people.csv", *ruin)
        assert status == 0
        assert "stopped at step 3 of 550, after 3 validations without progress: best weights are those of step 0" in out
        assert "the stored model is the untrained one" in out
        _, out, _ = run("density", people.name, *ruin, "--init", "runs/people", "--out", "tuned")
        assert f"no step had a better validation NLL than the weights of {Path('runs/people').resolve()}\n" in out
        assert "untrained" not in out
        assert len(result_of("runs/people")["notes"]) == 2
        figures = result_of("runs/people")
        assert figures["nll"]["value"] == pytest.approx(figures["gaussian_nll"], abs=1e-3)

    def test_columns_that_are_given(self, run, people, undrawn):
        assert run("density", "people.csv", *TINY, "--given", "age")[0] == 0
        stored = storage.read_config("runs/people", "density")
        assert (stored["model"]["shape"], stored["model"]["context"], stored["data"]["context"]) == ([2], 1, ["age"])
        assert run("evaluate", "runs/people", people)[0] == 0

    @pytest.mark.parametrize(
        ("typed", "kind"),
        [
            (("--extra", "2", "--posterior", "learned", *STAGES, "3"), "bound"),
            (("--extra", "3", "--augmentation", "momentum", "--objective", "likelihood"), "bound"),
            (
                ("--extra", "3", "--augmentation", "categorical", "--posterior", "fitted", "--acceleration", "1"),
                "exact",
            ),
            (
                ("--base", "mixture", "--time", "squash", *STAGES, "3", "--coupling", "optimal-transport"),
                "exact",
            ),
            (("--divergence", "hutchinson", "--kinetic", "0.1", "--frobenius", "0.1", "--ema", "0.9"), "estimate"),
            (("--objective", "likelihood", "--gradient", "adjoint", "--schedule", "plateau"), "exact"),
            (("--objective", "flow-matching", "--schedule", "constant", "--dtype", "float64"), "exact"),
        ],
        ids=lambda typed: " ".join(typed[:4]) if isinstance(typed, tuple) else None,
    )
    def test_every_kind_of_density(self, run, people, undrawn, typed, kind):
        status, _, err = run("density", "people.csv", *TINY, *typed)
        assert (status, err) == (0, "")
        assert result_of("runs/people")["nll"]["kind"] == kind
        assert storage.read_config("runs/people", "density")["model"]["solver"]["method"] == "dopri5"
        assert run("sample", "runs/people", "-n", "20", "--log-prob")[0] == 0
        columns = pd.read_csv("samples.csv").columns
        assert columns[-1] == ("log_prob" if kind == "exact" else f"log_prob_{kind}")

    def test_the_stage_follows_from_the_step(self, run, people, undrawn):
        assert run("density", "people.csv", *TINY, *STAGES, "2")[0] == 0
        assert [record["nfe_forward"] > 0 for record in untimed("runs/people")[1:]] == [False, False, True]
        assert run("density", "people.csv", *TINY, *STAGES[:2], "--steps", "8", "--out", "sixth")[0] == 0
        assert [record["nfe_forward"] > 0 for record in untimed("sixth")[1:]] == [False, False, False, True]

    def test_fixed_steps_are_compared_with_adaptive_ones(self, run, people, undrawn):
        typed = ("--objective", "likelihood", "--solver", "rk4", "--step-size", "0.5")
        status, out, _ = run("density", "people.csv", *TINY, *typed)
        assert status == 0
        best = min(untimed("runs/people"), key=lambda record: record["nll"])
        assert result_of("runs/people")["drift"] == best["drift"]
        assert best["drift"] == pytest.approx(best["nll_training_solver"] - best["nll"], abs=1e-4)
        assert "drift of training" in out
        assert untimed("runs/people")[1]["nfe_forward"] == 8

    def test_costs_of_every_validation(self, run, people, undrawn):
        assert run("density", "people.csv", *TINY, "--measure", "costs")[0] == 0
        assert all(record["nfe_sample_1e-07"] >= 14 for record in untimed("runs/people"))
        assert all(np.isfinite(record["nll_test"]) for record in untimed("runs/people"))

    def test_a_failing_solve_says_where_and_keeps_the_run(self, run, undrawn):
        steep = ("--lr", "1e5", "--steps", "50", "--validate-every", "1", "--max-steps", "50")
        status, _, err = run("density", "moons", *TINY, *steep)
        assert status == 1
        assert err.startswith("error: ")
        assert "step " in err
        assert "runs/moons" in err
        assert torch.isfinite(cnf.load("runs/moons").log_prob(torch.zeros(1, 2))).all()


class TestResuming:
    OPTIONS = (*TINY, "--divergence", "hutchinson", "--schedule", "plateau", "--ema", "0.9", *STAGES, "3")

    @pytest.mark.parametrize("steps", [0, 3])  # 0: only the validation before training
    def test_continues_bit_for_bit(self, run, people, undrawn, monkeypatch, steps):
        assert run("density", people, *self.OPTIONS, "--out", "whole")[0] == 0
        with monkeypatch.context() as patch:
            let_time_run_out(patch, density, steps)
            budget = "9" if steps else "1e-9"
            status, out, _ = run("density", people, *self.OPTIONS, "--out", "parts", "--budget-minutes", budget)
        assert status == 0
        assert "its time was up; continue with: train-flows density --resume parts" in out
        assert Run.open("parts", "density").step < 6
        assert "its time was up" in result_of("parts")["notes"][-1]
        status, out, _ = run("density", "--resume", "parts")
        assert status == 0
        assert out.startswith("settings: those of parts")
        assert have_same_weights("whole", "parts")
        assert untimed("whole") == untimed("parts")

    def test_refuses_other_settings_and_data(self, run, people, undrawn):
        assert run("density", "people.csv", *TINY)[0] == 0
        status, _, err = run("density", "people.csv", "--resume", "runs/people", "--lr", "0.5", "--no-whiten")
        assert status == 2
        assert "from the run: omit people.csv, --lr, --whiten" in err
        frame = pd.read_csv(people)
        frame.iloc[::-1].to_csv(people, index=False)
        status, _, err = run("density", "--resume", "runs/people")
        assert status == 2
        assert "people.csv has changed" in err

    @pytest.mark.parametrize("start", [0, 5])
    def test_a_finished_run_is_trained_longer(self, run, people, undrawn, start):
        """Twice the same, and again from its own length; the stage that has begun keeps its first step."""
        for out in ("one", "other"):
            assert run("density", people, *TINY, *([*STAGES, 1] if start else []), "--out", out)[0] == 0
            status, said, _ = run("density", "--resume", out, "--steps", "9")
            assert status == 0
            assert said.startswith(
                f"settings: those of {out}, but --steps 9, from step 6 on; the cosine of the learning"
            )
        assert have_same_weights("one", "other")
        records = untimed("one")
        assert records == untimed("other")
        found = {record["step"]: record for record in records}
        assert sorted(found) == sorted({0, 2, 4, 6, 8, 9, start})
        assert [step for step, record in found.items() if "matching_loss" in record] == ([2, 4, 5] if start else [])
        assert found[8]["lr"] == pytest.approx(5e-3 * (1 + np.cos(np.pi * (8 - start) / (9 - start))) / 2)
        opened = Run.open("one", "density")
        assert (opened.settings["training"]["steps"], opened.step) == (9, 9)
        assert result_of("one")["settings"]["training"]["steps"] == 9
        status, out, _ = run("density", "--resume", "one")
        assert status == 0
        assert "training is complete at step" in out
        status, _, err = run("density", "--resume", "one", "--steps", "9")
        assert status == 2
        assert "--steps 9 must be more than the 9 steps of one so far" in err

    def test_a_signal_while_the_test_part_is_measured(self, run, people, undrawn, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(density, "report", lambda *_: signal.raise_signal(signal.SIGTERM))
            status, _, err = run("density", "people.csv", *TINY)
        assert (status, err) == (130, "stopped; continue with: train-flows density --resume runs/people\n")
        assert not Path("runs/people/result.json").exists()
        assert run("density", "--resume", "runs/people")[0] == 0
        assert Path("runs/people/result.json").exists()


class TestImages:
    def test_digits_are_reported_as_a_bound(self, run, undrawn):
        out = run("density", "digits", *TINY, "--image-size", "4")[1]
        assert "bits/dim (upper bound, one draw of uniform dequantisation as in FFJORD" in out
        assert all(record["acceleration"] >= 0 for record in untimed("runs/digits"))

    @pytest.mark.parametrize(("typed", "field"), [((), "stack"), (("--image-size", "4"), "mlp")])
    def test_a_folder_by_the_recipe_of_its_size(self, run, greys, tmp_path, monkeypatch, undrawn, typed, field):
        drawn = []
        monkeypatch.setattr(of_runs, "draw_snapshot", lambda *_: drawn.append(1))
        tiny = ("--steps", "2", "--validate-every", "1", "--batch-size", "16", "--hidden", "4", "4")
        status, _, err = run("density", greys, *tiny, *typed)
        assert (status, err) == (0, "")
        assert storage.read_config("runs/greys", "density")["model"]["field"] == field
        assert len(drawn) == 3
        assert "drift" in result_of("runs/greys")  # of rk4
        assert run("evaluate", "runs/greys", greys)[0] == 0

    def test_a_density_given_the_class(self, run, greys, undrawn):
        learning = ("--steps", "60", "--validate-every", "30", "--batch-size", "32", "--image-size", "2")
        status, _, err = run("density", greys, *learning, "--hidden", "16", "16", "--conditional")
        assert (status, err) == (0, "")
        stored = storage.read_config("runs/greys", "density")
        assert (stored["data"]["classes"], stored["model"]["context"]) == (["bright", "dark"], 2)
        assert run("density", "--resume", "runs/greys")[0] == 0
        report = json.loads(run("evaluate", "runs/greys", "--classify", "--samples", 4, "--json")[1])
        assert report["classifier"]["accuracy"] == 1
        assert run("sample", "runs/greys", "-n", 61)[0] == 0
        frame = pd.read_csv("samples.csv")
        assert frame["label"].tolist() == ["bright", "dark"] * 30 + ["bright"]
        means = frame.groupby("label")[list(frame.columns[:4])].mean().mean(axis=1)
        assert means["bright"] > means["dark"] + 60


class TestFromAnotherRun:
    """Fine-tuning on other data: model, columns and standardisation are those of the first run."""

    @pytest.fixture
    def other(self, tmp_path, people):
        """Columns in another order, in a file whose name holds a blank and Unicode."""
        frame = pd.read_csv(people)[["age", "height", "weight"]].iloc[:200] * 2
        frame.to_csv(tmp_path / "другие данные.csv", index=False)
        return "другие данные.csv"

    def test_starts_from_its_weights(self, run, people, other, undrawn):
        assert run("density", people, *TINY, "--out", "first")[0] == 0
        status, out, _ = run("density", other, "--init", "first", "--steps", "2", "--validate-every", "1")
        assert status == 0
        assert "model and weights: those of first; command line: steps 2, validate every 1" in out
        first, tuned = cnf.load("first"), cnf.load("runs/другие данные")
        assert tuned.config == first.config
        dataset = load_density_data(other).match(Run.open("first").config["data"], "first")
        assert dataset.columns == ("height", "weight", "age")
        before = likelihood.validation_nll(first, dataset.validation)["nll"]
        assert untimed("runs/другие данные")[0]["nll"] == pytest.approx(before, rel=1e-5)
        for name, weight in first.transform.transforms[0].state_dict().items():
            assert torch.equal(weight, tuned.transform.transforms[0].state_dict()[name])
        assert untimed("runs/другие данные")[1]["nfe_forward"] > 0  # likelihood alone
        figures = json.loads(run("evaluate", "runs/другие данные", "--json")[1])
        assert figures["nll"] == result_of("runs/другие данные")["nll"]
        assert run("density", "--resume", "runs/другие данные", "--steps", "3")[0] == 0

    def test_refuses_what_contradicts_it(self, run, people, other, greys, undrawn):
        assert run("density", people, *TINY, "--out", "first")[0] == 0
        assert run("density", other, "--init", "first", "--hidden", "8", "8", "--steps", "1", "--out", "same")[0] == 0
        for command, names in (
            (
                ("density", other, "--hidden", "8"),
                "--hidden 8 contradicts --init first, whose weights are of --hidden 8 8",
            ),
            (("density", other, "--dtype", "float64"), "--dtype float64 contradicts"),
            (("density", other, "--given", "age"), "--given age contradicts"),
            (("density", greys, "--objective", "likelihood"), "has samples of shape 1x4x4"),
            (("classify", other, "--target", "age"), "holds a density model, not a classifier"),
        ):
            status, _, err = run(*command, "--init", "first", "--out", "new")
            assert status == 2
            assert names in err
            assert not Path("new").exists()
