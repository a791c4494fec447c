"""The programs as a user runs them: density, evaluate, sample, and what they refuse."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import cnf
from anode import Solver, SolverError, storage
from train_flows import data, density, gaussian, likelihood, loop, recipes
from train_flows.checkpoint import Run
from train_flows.data import Dataset

COUPLED = ("--objective", "flow-matching", "--coupling", "optimal_transport")
TINY = ["--steps", "6", "--validate-every", "2", "--hidden", "8", "8", "--batch-size", "64"]


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) @ np.array([[1, 0, 0], [2, 0.5, 0], [0, 1, 30]]) + [0, 10, 1000]
    pd.DataFrame(x, columns=["height", "weight", "age"]).to_csv(tmp_path / "people.csv", index=False)
    return tmp_path / "people.csv"


def test_a_picture_density_from_start_to_end(run, tmp_path):
    status, out, err = run("density", "moons", *TINY)
    assert (status, err) == (0, "")
    folder = tmp_path / "runs" / "moons"
    files = {
        "config.json",
        "model.safetensors",
        "metrics.jsonl",
        "result.json",
        "samples.png",
        "flow.gif",
        "curves.png",
    }
    assert files <= {path.name for path in folder.iterdir()}
    for line in (
        "NLL ",
        "NLL, tighter",
        "inverse error",
        "NFE of log_prob",
        "NFE of sampling",
        "seconds",
        "runs/moons",
    ):
        assert line in out

    records = Run(folder).records()
    assert [record["step"] for record in records] == [0, 2, 4, 6]
    assert {"loss", "nll", "nfe_forward", "nfe_backward", "nfe_log_prob", "grad_norm", "lr", "seconds"} <= set(
        records[1]
    )

    status, out, _ = run("evaluate", "runs/moons", "--json")
    report, result = json.loads(out), json.loads((folder / "result.json").read_text())
    assert status == 0
    assert report["nll"] == result["nll"]
    assert report["nll"]["kind"] == "exact"
    assert report["nll"]["tolerance"] == {"rtol": 1e-5, "atol": 1e-5}
    assert report["nll_tighter"]["tolerance"] == {"rtol": pytest.approx(1e-6), "atol": pytest.approx(1e-6)}
    assert report["nll"]["probes"] is report["nll"]["samples"] is None
    assert report["nll_tighter"]["value"] == pytest.approx(report["nll"]["value"], abs=1e-3)
    assert 0 < report["inverse_error"] < 1e-3
    assert report["nfe_log_prob"] >= 14
    assert report["nfe_sample"] >= 14
    assert {"command", "machine", "versions", "seed", "seconds"} <= set(result)


def test_the_best_weights_are_kept_and_reported(run, undrawn, monkeypatch):
    values = iter([3.0, 1.0, 2.0, 2.5])
    validated, kept, reported = loop._validated, [], []
    write, measure = storage.write_weights, likelihood.measure

    def snapshot(state):
        return {name: tensor.clone() for name, tensor in state.items()}

    monkeypatch.setattr(loop, "_validated", lambda *a: validated(*a) | {"nll": next(values)})
    monkeypatch.setattr(storage, "write_weights", lambda folder, s: (kept.append(snapshot(s)), write(folder, s)))
    monkeypatch.setattr(
        likelihood, "measure", lambda model, *a: (reported.append(snapshot(model.state_dict())), measure(model, *a))[1]
    )
    assert run("density", "moons", *TINY)[0] == 0
    best, last = kept[1], Run("runs/moons").load_state()["objective"]
    assert len(kept) == 2
    for weights in (reported[0], cnf.load("runs/moons").state_dict()):
        assert all(torch.equal(best[name], weights[name]) for name in best)
    assert not all(torch.equal(best[name], last[f"model.{name}"]) for name in best)


def test_each_part_of_the_data_serves_its_purpose(run, table, undrawn, monkeypatch):
    seen = {}

    def watch(name):
        real = getattr(likelihood, name)
        watched = lambda model, x, *rest: (seen.setdefault(name, []).append(x), real(model, x, *rest))[1]  # noqa: E731
        monkeypatch.setattr(likelihood, name, watched)

    watch("of_one_draw")
    watch("nll")
    assert run("density", table, *TINY)[0] == 0
    parts = data.load(str(table))
    assert [torch.equal(x, parts.validation) for x in seen["of_one_draw"]] == [True] * 4
    assert [torch.equal(x, parts.test) for x in seen["nll"]] == [True] * 2
    standardize = cnf.load("runs/people").transform.transforms[0]
    torch.testing.assert_close(standardize.mean, parts.train.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(standardize.scale, parts.train.std(0, correction=0), rtol=1e-6, atol=1e-6)


def test_a_table_from_start_to_end(run, tmp_path, table):
    status, out, _ = run("density", "people.csv", *TINY)
    assert status == 0
    assert "full-covariance Gaussian" in out
    assert (tmp_path / "runs" / "people" / "samples.png").stat().st_size > 10_000

    flow = cnf.load("runs/people")
    x = flow.sample(2000)
    torch.testing.assert_close(x.mean(0), torch.tensor([0.0, 10.0, 1000.0]), rtol=0.1, atol=2.0)

    assert run("sample", "runs/people", "-n", 50, "--out", "new.csv", "--log-prob")[0] == 0
    frame = pd.read_csv("new.csv")
    assert list(frame.columns) == ["height", "weight", "age", "log_prob"]
    x = torch.tensor(frame[["height", "weight", "age"]].to_numpy(), dtype=torch.float32)
    torch.testing.assert_close(
        flow.log_prob(x).detach(), torch.tensor(frame.log_prob.to_numpy()).float(), rtol=1e-3, atol=1e-3
    )

    assert run("sample", "runs/people", "-n", 50, "--out", "new.npy")[0] == 0
    assert np.load("new.npy").shape == (50, 3)
    assert run("sample", "runs/people", "-n", 500, "--out", "new.png")[0] == 0
    assert (tmp_path / "new.png").stat().st_size > 10_000


def test_evaluate_on_other_data(run, table, undrawn):
    assert run("density", "people.csv", *TINY)[0] == 0
    frame = pd.read_csv(table)
    frame.iloc[:5].to_csv("few.csv", index=False)
    frame.iloc[:5][["age", "height", "weight"]].to_csv("reordered.csv", index=False)
    reports = [json.loads(run("evaluate", "runs/people", name, "--json")[1]) for name in ("few.csv", "reordered.csv")]
    assert reports[0]["nll"]["value"] == pytest.approx(reports[1]["nll"]["value"], abs=1e-4)
    flow = cnf.load("runs/people")
    x = torch.tensor(frame.iloc[:5].to_numpy(), dtype=torch.float32)
    assert reports[0]["nll"]["value"] == pytest.approx(-flow.log_prob(x).mean().item(), abs=1e-4)


def test_tolerances_of_evaluate(run):
    flow = cnf.density_model((2,), hidden=(32, 32))
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.35)
    cnf.save(flow, "wild")
    np.save("x.npy", np.random.default_rng(0).normal(size=(30, 2)))
    loose, tight = (
        json.loads(run("evaluate", "wild", "x.npy", "--rtol", tolerance, "--atol", tolerance, "--json")[1])
        for tolerance in ("1e-2", "1e-5")
    )
    assert loose["nll"]["tolerance"] == {"rtol": 1e-2, "atol": 1e-2}
    assert loose["nfe_log_prob"] < tight["nfe_log_prob"]
    assert tight["inverse_error"] < loose["inverse_error"] / 5
    assert abs(tight["nll"]["value"] - tight["nll_tighter"]["value"]) < 1e-3


def test_named_data_keep_the_split_of_the_run(run, undrawn):
    assert run("density", "digits", *TINY, "--seed", 3)[0] == 0
    own, named = (json.loads(run("evaluate", "runs/digits", *name, "--json")[1]) for name in ([], ["digits"]))
    assert own == named


def test_three_parts_in_one_file(run, undrawn):
    x = np.random.default_rng(0).normal(size=(200, 2))
    np.savez("parts.npz", train=x[:100], validation=x[100:150], test=x[150:])
    assert run("density", "parts.npz", *TINY)[0] == 0
    own, file = (json.loads(run("evaluate", "runs/parts", *name, "--json")[1]) for name in ([], ["parts.npz"]))
    assert own == file


def test_the_file_of_the_run_is_its_test_part(run, undrawn, table):
    assert run("density", "people.csv", *TINY)[0] == 0
    own, file = (json.loads(run("evaluate", "runs/people", *name, "--json")[1]) for name in ([], [table]))
    assert own == file


def test_jitter_is_told_apart(run, undrawn, tmp_path):
    x = np.random.default_rng(0).normal(size=(400, 2))
    x[:, 1] = x[:, 1].round()
    pd.DataFrame(x).to_csv("whole.csv", index=False)
    pd.DataFrame(x[:50]).to_csv("other.csv", index=False)
    status, out, _ = run("density", "whole.csv", *TINY, "--jitter")
    assert status == 0
    assert "note: 1: few distinct values; jittered" in out
    assert "jittered" in json.loads((tmp_path / "runs" / "whole" / "result.json").read_text())["notes"][0]
    assert "taken as it is" in run("evaluate", "runs/whole", "other.csv")[2]
    assert run("evaluate", "runs/whole")[2] == ""


@pytest.mark.parametrize("double", [False, True])
def test_models_saved_by_the_api_serve_the_programs(run, double):
    model = cnf.density_model((3,), hidden=(8,), solver=Solver("rk4", step_size=0.5))
    cnf.save(model.double() if double else model, "mine")
    np.save("x.npy", np.random.default_rng(0).normal(size=(30, 3)))
    assert json.loads(run("evaluate", "mine", "x.npy", "--json")[1])["nll"]["kind"] == "exact"
    assert json.loads(run("evaluate", "mine", "x.npy", "--json")[1])["nfe_sample"] == 44  # by dopri5, of the zero field
    assert run("sample", "mine", "--out", "s.csv")[0] == 0
    assert list(pd.read_csv("s.csv").columns) == ["x0", "x1", "x2"]
    status, _, err = run("evaluate", "mine")
    assert status == 2
    assert "no run" in err


def test_a_failing_picture_costs_no_figure(run, monkeypatch, tmp_path):
    def fail(*_):
        raise SolverError("step underflow", 0.5, 100, Solver())

    monkeypatch.setattr("train_flows.pictures.draw", fail)
    status, out, _ = run("density", "moons", *TINY)
    assert status == 0
    assert "picture is missing: step underflow" in out
    assert "NLL" in out
    assert json.loads((tmp_path / "runs" / "moons" / "result.json").read_text())["nll"]["kind"] == "exact"


def test_digits_are_reported_as_a_bound(run, tmp_path):
    status, out, _ = run("density", "digits", *TINY)
    assert status == 0
    assert "upper bound, 64 importance sample(s)" in out
    report = json.loads(run("evaluate", "runs/digits", "--json", "--samples", 2)[1])
    assert (report["nll"]["kind"], report["nll"]["samples"]) == ("bound", 2)
    assert report["nll_tighter"]["value"] == pytest.approx(report["nll"]["value"], abs=1e-2)  # of the same noise
    assert run("sample", "runs/digits", "-n", 16, "--out", "new.png")[0] == 0
    assert run("sample", "runs/digits", "-n", 16, "--out", "new.csv", "--log-prob", "--samples", 2)[0] == 0
    frame = pd.read_csv("new.csv")
    assert frame.columns[-1] == "log_prob_bound"
    assert set(np.unique(frame.iloc[:, :-1])) <= set(range(17))


def test_a_bound_of_estimates_is_of_one_sample(run, undrawn):
    status, out, _ = run("density", "digits", *TINY, "--divergence", "hutchinson")
    assert status == 0
    assert "estimated upper bound, one draw of uniform dequantisation as in FFJORD, 1 probe(s)" in out


def test_hutchinson_is_reported_as_an_estimate(run, undrawn):
    status, out, _ = run("density", "moons", *TINY, "--divergence", "hutchinson", "--probes", 2)
    assert status == 0
    assert "unbiased estimate, 2 probe(s)" in out
    estimate = json.loads(run("evaluate", "runs/moons", "--json")[1])
    exact = json.loads(run("evaluate", "runs/moons", "--json", "--divergence", "exact")[1])
    assert (estimate["nll"]["kind"], estimate["nll"]["probes"]) == ("estimate", 2)
    assert (exact["nll"]["kind"], exact["nll"]["probes"]) == ("exact", None)
    assert estimate["nll"]["value"] == pytest.approx(exact["nll"]["value"], abs=0.1)


@pytest.mark.parametrize("options", [["--solver", "rk4", "--step-size", "0.25"], ["--gradient", "adjoint"]])
def test_other_numerics(run, undrawn, options):
    assert run("density", "moons", *TINY, *options)[0] == 0
    assert cnf.load("runs/moons").config["solver"]["method"] == "dopri5"


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
def test_schedules(run, undrawn, schedule):
    assert run("density", "moons", *TINY, "--schedule", schedule)[0] == 0
    rates = [record["lr"] for record in Run("runs/moons").records()]
    assert rates[0] == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(0 if schedule == "cosine" else 1e-2, abs=1e-9)


def test_a_small_table_shrinks_the_batch(run, table, undrawn):
    status, out, _ = run("density", "people.csv", *TINY[:-1], "512")
    assert status == 0
    assert "the batch shrinks from 512 to the 320 training samples" in out


def test_the_gaussian_to_beat_is_the_gaussian():
    x, test = torch.randn(500, 3) @ torch.randn(3, 3) * 100, torch.randn(50, 3) * 100
    dataset = Dataset("t", x, x, test, ("a", "b", "c"))
    double = x.double()
    expected = torch.distributions.MultivariateNormal(double.mean(0), double.T.cov(correction=0))
    assert gaussian.nll(dataset) == pytest.approx(-expected.log_prob(test.double()).mean().item(), abs=1e-8)


def test_collinear_columns_have_no_gaussian():
    x = torch.randn(500, 2) @ torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]])
    assert gaussian.nll(Dataset("t", x, x, x, ("a", "b", "c"))) is None


def untimed(folder):
    """The records of a run without what the clock says."""
    return [{k: v for k, v in record.items() if not k.startswith("seconds")} for record in Run(folder).records()]


class TestResume:
    STAGES = ("--objective", "flow-matching+likelihood", "--likelihood-steps", "3", "--steer", "0.1", "--ema", "0.9")
    OPTIONS = (*TINY, "--divergence", "hutchinson", "--schedule", "plateau", *STAGES)

    def interrupt(self, monkeypatch, step):
        """Ask for a stop before the given step, as Ctrl-C would."""
        asked = []

        def stop_requested():
            asked.append(1)
            return len(asked) > step

        class Signals:
            def __enter__(self):
                return stop_requested

            def __exit__(self, *_):
                pass

        monkeypatch.setattr(loop, "stop_signals", Signals)

    @pytest.mark.parametrize("step", [0, 2, 3, 5])
    def test_continues_bit_for_bit(self, run, undrawn, monkeypatch, step):
        assert run("density", "moons", *self.OPTIONS, "--out", "whole")[0] == 0
        with monkeypatch.context() as patch:
            self.interrupt(patch, step)
            status, out, _ = run("density", "moons", *self.OPTIONS, "--out", "parts")
            assert status == 0
            assert "train-flows density --resume parts" in out
        status, out, _ = run("density", "--resume", "parts")
        assert status == 0
        assert "NLL" in out
        whole, parts = (storage.read_weights(name) for name in ("whole", "parts"))
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
        whole, parts = (untimed(name) for name in ("whole", "parts"))
        assert whole == parts

    def test_continues_in_a_fresh_process(self, run, undrawn, monkeypatch, tmp_path):
        assert run("density", "moons", *self.OPTIONS, "--out", "whole")[0] == 0
        with monkeypatch.context() as patch:
            self.interrupt(patch, 3)
            assert run("density", "moons", *self.OPTIONS, "--out", "parts")[0] == 0
        command = [sys.executable, "-m", "train_flows", "density", "--resume", tmp_path / "parts"]
        subprocess.run(command, cwd=tmp_path.parent, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=120)
        whole, parts = (storage.read_weights(name) for name in ("whole", "parts"))
        assert all(torch.equal(whole[name], parts[name]) for name in whole)

    def test_a_state_runs_no_code(self, run, undrawn, tmp_path):
        assert run("density", "moons", *TINY)[0] == 0

        class Bomb:
            def __reduce__(self):
                return pytest.fail, ("the state was executed",)

        (state,) = (tmp_path / "runs" / "moons" / "state").glob("*/state.safetensors")
        torch.save({"step": 6, "bomb": Bomb()}, state)
        status, _, err = run("density", "--resume", "runs/moons")
        assert status == 2
        assert "state.safetensors" in err

    def test_changed_data_are_noticed(self, run, undrawn, table):
        assert run("density", "people.csv", *TINY)[0] == 0
        frame = pd.read_csv(table)
        frame.iloc[::-1].to_csv(table, index=False)
        for command in (["density", "--resume", "runs/people"], ["evaluate", "runs/people"]):
            status, _, err = run(*command)
            assert status == 2
            assert "people.csv has changed" in err

    def test_takes_all_settings_from_the_run(self, run, undrawn):
        assert run("density", "moons", *TINY)[0] == 0
        status, _, err = run("density", "--resume", "runs/moons", "--lr", "0.5")
        assert status == 2
        assert "takes every setting but --device and --budget-minutes from the run" in err
        assert run("density", "--resume", "runs/moons", "--device", "cpu")[0] == 0

    def test_a_finished_run_is_reported_again(self, run, undrawn):
        _, before, _ = run("density", "moons", *TINY)
        status, after, _ = run("density", "--resume", "runs/moons")
        assert status == 0
        nll = [line for line in before.splitlines() if line.startswith("NLL")]
        assert nll == [line for line in after.splitlines() if line.startswith("NLL")]

    def test_damaged_state_is_named(self, run, undrawn, tmp_path):
        assert run("density", "moons", *TINY)[0] == 0
        (state,) = (tmp_path / "runs" / "moons" / "state").glob("*/state.safetensors")
        state.write_bytes(state.read_bytes()[:1000])
        status, _, err = run("density", "--resume", "runs/moons")
        assert status == 2
        assert "state.safetensors is truncated" in err

    def test_crafted_settings_are_refused(self, run, undrawn):
        assert run("density", "moons", *TINY)[0] == 0
        whole = storage.read_config("runs/moons", "density")
        for section, values, names in (
            ("training", {"lr": "fast"}, "lr='fast' is of another type"),
            ("training", {"pace": 1}, "'pace' is unknown"),
            ("model", [], "names no arguments"),
            ("run", {"seed": 0.5}, "seed=0.5 is of another type"),
        ):
            config = json.loads(json.dumps({k: v for k, v in whole.items() if k not in ("schema", "kind")}))
            section_before = config["settings"][section]
            config["settings"][section] = section_before | values if values else values
            storage.write_config("runs/moons", "density", config)
            status, _, err = run("density", "--resume", "runs/moons")
            assert status == 2
            assert names in err
            assert err.count("\n") == 1

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_while_the_test_part_is_measured(self, run, undrawn, monkeypatch, number):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells take from what runs in the background
        with monkeypatch.context() as patch:
            patch.setattr(density, "report", lambda *_: signal.raise_signal(number))
            status, out, err = run("density", "moons", *TINY)
        assert (status, err) == (0, "")
        assert "continue with: train-flows density --resume runs/moons" in out
        assert not Path("runs/moons/result.json").exists()
        assert run("density", "--resume", "runs/moons")[0] == 0
        assert Path("runs/moons/result.json").exists()

    def test_a_signal_saves_and_says_how_to_go_on(self, tmp_path):
        command = [sys.executable, "-m", "train_flows", "density", "moons", "--hidden", "8", "--steps", "100000"]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        metrics = tmp_path / "runs" / "moons" / "state" / "latest"
        deadline = time.monotonic() + 120
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "continue with: train-flows density --resume runs/moons" in out
        assert cnf.load(tmp_path / "runs" / "moons").sample(3).shape == (3, 2)


def test_a_failing_solve_says_where_and_keeps_the_run(run, undrawn):
    steep = ["--lr", "300", "--clip", "1e9", "--steps", "50", "--validate-every", "1"]
    status, _, err = run("density", "moons", *TINY, *steep)
    assert status == 1
    assert err.startswith("error: the")
    assert "step " in err
    assert "t = " in err or "gradient norm" in err
    assert "runs/moons" in err
    assert torch.isfinite(cnf.load("runs/moons").log_prob(torch.zeros(1, 2))).all()


class TestRefused:
    """Bad input: status 2, one line that names the thing, no traceback, nothing written."""

    def refuse(self, run, tmp_path, args, names):
        before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
        status, _, err = run(*args)
        assert status == 2
        assert err.count("\n") == 1
        assert err.startswith("error: ")
        assert "Traceback" not in err
        for name in names:
            assert name in err
        assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before

    @pytest.mark.parametrize(
        ("args", "names"),
        [
            (["dense", "moons"], ["'dense'", "density"]),
            (["density"], ["no data set"]),
            (["density", "mons"], ["'mons'", "moons"]),
            (["density", "no.csv"], ["no.csv", "does not exist"]),
            (["density", "moons", "--rtol", "-1"], ["rtol=-1"]),
            (["density", "moons", "--atol", "0"], ["atol=0"]),
            (["density", "moons", "--loosen", "-1"], ["--loosen -1"]),
            (["density", "moons", "--seed", "-1"], ["--seed -1"]),
            (["density", "moons", "--device", "meta"], ["--device meta"]),
            (["density", "moons", "--solver", "rk5"], ["rk5", "dopri5"]),
            (["density", "moons", "--device", "warp"], ["--device warp", "cpu"]),
            (["density", "moons", "--device", "cuda:99"], ["--device cuda:99"]),
            (["density", "moons", "--steps", "0"], ["--steps 0"]),
            (["density", "moons", "--batch-size", "-3"], ["--batch-size -3"]),
            (["density", "moons", "--lr", "nan"], ["--lr nan"]),
            (["density", "moons", "--hidden", "8", "0"], ["hidden=(8, 0)"]),
            (["density", "moons", "--divergence", "hutchinson", "--probes", "0"], ["probes=0"]),
            (["density", "power"], ["data.npy", "--data-root"]),
            (["density", "--resume", "nothing"], ["nothing", "config.json"]),
            (["evaluate", "nothing"], ["nothing", "config.json"]),
            (["sample", "nothing"], ["nothing", "config.json"]),
        ],
        ids=lambda part: " ".join(part) if "density" in part or "evaluate" in part else "",
    )
    def test_without_a_run(self, run, tmp_path, args, names):
        self.refuse(run, tmp_path, args, names)

    @pytest.fixture
    def trained(self, run, undrawn):
        assert run("density", "moons", *TINY)[0] == 0

    @pytest.mark.usefixtures("trained")
    def test_with_a_run(self, run, tmp_path):
        pd.DataFrame(np.random.randn(30, 3)).to_csv("wide.csv", index=False)
        pd.DataFrame(np.random.randn(30, 2), columns=["y", "z"]).to_csv("renamed.csv", index=False)
        for folder in ("mine", "foreign"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "thesis.tex").write_text("x")
        (tmp_path / "foreign" / "config.json").write_text('{"model_type": "bert"}')
        (tmp_path / "kept.csv").write_text("x")
        for args, names in [
            (["density", "moons"], ["runs/moons exists", "--overwrite", "--resume"]),
            (["density", "moons", "--out", "mine", "--overwrite"], ["mine is not a run"]),
            (["density", "moons", "--out", "foreign", "--overwrite"], ["foreign is not a run"]),
            (["evaluate", "foreign"], ["another program"]),
            (["density", "--resume", "foreign"], ["another program"]),
            (["evaluate", "runs/moons", "renamed.csv"], ["lacks the columns x", "y, z"]),
            (["evaluate", "runs/moons", "moons", "--seed", "-1"], ["--seed -1"]),
            (["evaluate", "runs/moons", "wide.csv"], ["3 columns", "2 (x, y)"]),
            (["evaluate", "runs/moons", "no.csv"], ["no.csv"]),
            (["evaluate", "runs/moons", "--rtol", "-1"], ["rtol=-1"]),
            (["evaluate", "runs/moons", "--device", "warp"], ["warp"]),
            (["sample", "runs/moons", "-n", "0"], ["-n 0"]),
            (["sample", "runs/moons", "--out", "kept.csv"], ["kept.csv exists"]),
            (["sample", "runs/moons", "--out", "s.xlsx"], ["s.xlsx", ".csv"]),
            (["sample", "runs/moons", "--out", "s.png", "--log-prob"], ["--log-prob"]),
            (["sample", "mine"], ["mine", "config.json"]),
        ]:
            self.refuse(run, tmp_path, args, names)

    @pytest.mark.usefixtures("trained")
    def test_a_truncated_run(self, run, tmp_path):
        weights = tmp_path / "runs" / "moons" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:500])
        for command in ("evaluate", "sample"):
            self.refuse(run, tmp_path, [command, "runs/moons"], ["model.safetensors", "truncated"])

    @pytest.mark.usefixtures("trained")
    def test_overwrite_replaces_a_run_and_nothing_else(self, run, tmp_path):
        (tmp_path / "runs" / "moons" / "mine.csv").write_text("x")
        assert run("density", "moons", *TINY, "--seed", 1, "--overwrite")[0] == 0
        assert (tmp_path / "runs" / "moons" / "mine.csv").read_text() == "x"
        assert storage.read_config("runs/moons", "density")["settings"]["run"]["seed"] == 1

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_an_unwritable_folder(self, run, tmp_path):
        (tmp_path / "locked").mkdir(mode=0o500)
        self.refuse(run, tmp_path, ["density", "moons", "--out", "locked/run"], ["locked"])


def test_seeds_make_runs_alike(run, undrawn):
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run("density", "moons", *TINY, "--seed", seed, "--out", out)[0] == 0
    a, b, c = (storage.read_weights(name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_recipes_name_settings_that_exist():
    settings = density.Settings()
    known = {name for section in vars(settings).values() for name in vars(section)}
    for recipe in recipes.DENSITY.values():
        assert set(recipe) <= known


def test_the_command_line_wins_over_the_recipe(table):
    assert density.parse(["moons"]).model.hidden == recipes.DENSITY["toy"]["hidden"]
    assert density.parse(["power"]).model.activation == recipes.DENSITY["table"]["activation"]
    assert density.parse([str(table)]).model.activation == recipes.DENSITY["table"]["activation"]
    other = density.parse([str(table), "--activation", "relu", "--no-whiten"]).model
    assert (other.activation, other.whiten) == (("relu",), False)
    assert density.parse([str(table), "--whiten"]).model.whiten


@pytest.mark.parametrize("command", [[], ["--help"]])
def test_help_lists_the_commands(run, command):
    status, out, _ = run(*command)
    assert status == 0
    assert "density" in out
    assert "evaluate" in out


def test_help_shows_the_recipe_of_the_data(run):
    assert "(default: 128 128)" in run("density", "--help")[1]
    assert "(default: 64 64)" in run("density", "moons", "--help")[1]


@pytest.mark.parametrize("command", ["density", "evaluate", "sample"])
def test_every_command_explains_its_options(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert "--seed" in out
    assert "--device" in out


class TestObjectives:
    def test_every_option_is_trained_stored_and_evaluated(self, run, undrawn):
        stages = ("--objective", "flow-matching+likelihood", "--likelihood-steps", "2", "--ema", "0.9")
        matching = ("--coupling", "optimal_transport", "--interpolation", "variance-preserving", "--sigma", "0.1")
        fields = ("--time", "squash", "--residual", "--base", "mixture", "--components", "3")
        status, _, err = run("density", "moons", *TINY, *stages, *matching, *fields)
        assert (status, err) == (0, "")
        config = Run("runs/moons").config("density")["model"]
        assert (config["base"], config["components"], config["residual"], config["time"]) == (
            "mixture",
            3,
            True,
            "squash",
        )
        assert run("sample", "runs/moons", "-n", "20", "--out", "new.csv")[0] == 0
        assert run("evaluate", "runs/moons")[0] == 0

    @pytest.mark.parametrize(
        "typed",
        [
            ("--extra", "2", "--posterior", "learned", "--samples", "3", "--warm-up", "4"),
            ("--extra", "1", "--augmentation", "frozen", "--base", "conditional", "--posterior", "learned"),
            ("--extra", "2", "--augmentation", "momentum"),
            ("--extra", "3", "--augmentation", "categorical", "--acceleration", "0.01"),
            ("--extra", "3", "--augmentation", "copies", "--posterior", "fitted", "--correlated"),
        ],
    )
    def test_augmented_densities_are_trained_sampled_and_evaluated(self, run, undrawn, tmp_path, typed):
        stages = () if "momentum" in typed else ("--objective", "flow-matching+likelihood", "--likelihood-steps", "3")
        status, _, err = run("density", "moons", *TINY, *typed, *stages)
        assert (status, err) == (0, "")
        assert Run("runs/moons").config("density")["model"]["extra"] == int(typed[1])
        exact = "categorical" in typed or "copies" in typed
        drawn = () if exact else ("--samples", "2")
        status, out, _ = run("evaluate", "runs/moons", *drawn)
        assert status == 0
        assert ("nats (exact" if exact else "upper bound, 2 importance sample(s)") in out
        assert run("sample", "runs/moons", "-n", "20", "--out", "new.csv", "--log-prob", *drawn)[0] == 0
        assert ("log_prob_bound" in (tmp_path / "new.csv").read_text()) != exact
        if exact:
            assert "--samples 2 is for bounds" in run("evaluate", "runs/moons", "--samples", "2")[2]
        assert "--samples 2 is of --log-prob" in run("sample", "runs/moons", "--out", "other.csv", "--samples", "2")[2]

    def test_energies_are_in_the_records(self, run, undrawn):
        weights = ("--kinetic", "0.01", "--frobenius", "0.01", "--steer", "0.1", "--energies", "acceleration")
        assert run("density", "moons", *TINY, *weights)[0] == 0
        assert all({"kinetic", "frobenius", "acceleration"} <= set(record) for record in Run("runs/moons").records())

    def test_stages_change_where_they_should(self, run, undrawn):
        stages = ("--objective", "flow-matching+likelihood", "--likelihood-steps", "2")
        assert run("density", "moons", *TINY, *stages)[0] == 0
        costs = [record["nfe_forward"] for record in Run("runs/moons").records()[1:]]
        assert costs[:2] == [0, 0]
        assert costs[2] > 0

    def test_reporting_energies_changes_nothing(self, run, undrawn):
        for name, asked in (("without", ()), ("with", ("--energies", "kinetic", "acceleration"))):
            assert run("density", "digits", *TINY, *asked, "--out", name)[0] == 0
        without, reported = (Run(name).records() for name in ("without", "with"))
        assert [record["loss"] for record in without[1:]] == [record["loss"] for record in reported[1:]]
        assert [record["nll"] for record in without] == [record["nll"] for record in reported]
        assert all(record["kinetic"] >= 0 for record in reported)

    def test_likelihood_has_a_sixth_of_the_steps_unless_told(self, run, undrawn):
        assert run("density", "moons", *TINY, "--objective", "flow-matching+likelihood", "--steps", "8")[0] == 0
        assert [record["nfe_forward"] > 0 for record in Run("runs/moons").records()[1:]] == [False, False, False, True]

    def test_a_recipe_has_no_penalties_where_nothing_is_solved(self, table):
        assert density.parse([str(table)]).objective.acceleration > 0
        assert density.parse([str(table), "--objective", "flow-matching"]).objective.acceleration == 0

    def test_digits_are_matched_too(self, run, undrawn):
        assert run("density", "digits", *TINY, "--objective", "flow-matching")[0] == 0

    @pytest.mark.parametrize(
        ("typed", "message"),
        [
            (("--kinetic", "-1"), "kinetic=-1.0 must be"),
            (("--steer", "1"), "steer=1.0 must lie"),
            (("--ema", "1"), "--ema 1.0 must lie"),
            (("--sigma", "0.1"), "--sigma 0.1 is for --objective flow-matching or flow-matching+likelihood"),
            (
                ("--objective", "flow-matching", "--acceleration", "1"),
                "--acceleration 1.0 is for --objective likelihood",
            ),
            (("--objective", "flow-matching", "--sigma", "-1"), "sigma=-1.0 must be"),
            (("--objective", "flow-matching+likelihood", "--likelihood-steps", "6"), "--likelihood-steps 6 must be"),
            (("--likelihood-steps", "2"), "--likelihood-steps 2 is for --objective flow-matching+likelihood"),
            (("--restart", "6"), "--restart 6 must be from 1 to 5"),
            (("--restart-lr", "-1"), "--restart-lr -1.0 must be a positive number"),
            (("--restart", "2", "--schedule", "constant"), "--restart 2 is of --schedule cosine"),
            (("--objective", "flow-matching", "--base", "conditional", "--extra", "1"), "--base conditional learns"),
            (("--base", "conditional"), "base='conditional' depends on augmented dimensions"),
            (("--extra", "3", "--augmentation", "momentum"), "extra=3: momentum needs"),
            (("--samples", "4"), "samples=4: the model has no bound"),
            (("--warm-up", "10"), "--warm-up 10 is for --posterior learned"),
            (("--base", "mixture", "--components", "0"), "components"),
            (("--components", "5"), "--components 5 is for --base mixture"),
            (("--correlated", "--extra", "2"), "--correlated True is for mixtures"),
            (("--filters", "7"), "--filters 7 is for --field conv"),
            (("--matching-kl", "2", "--objective", "flow-matching"), "--matching-kl 2.0 is for --posterior learned"),
            (("--probes", "3"), "--probes 3 is for --divergence hutchinson"),
            (("--matching-kl", "2"), "--matching-kl 2.0 is for --objective flow-matching"),
            (("--objective", "flow-matching", "--samples", "4"), "--samples 4 is for --objective likelihood"),
            ((*COUPLED, "--extra", "1", "--augmentation", "frozen"), "would tie base points"),
            ((*COUPLED, "--extra", "2", "--augmentation", "categorical"), "would tie base points"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, run, tmp_path, typed, message):
        status, _, err = run("density", "moons", *TINY, *typed)
        assert status == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1
        assert not (tmp_path / "runs").exists()
