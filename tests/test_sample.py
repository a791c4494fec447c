"""The program that draws samples: files of every kind, chunk by chunk, and what is refused."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image as files
from stored_runs import spread, store_classifier, store_density

import cnf
from anode import SolverError
from cnf import density_model
from train_flows import evaluation
from train_flows.data import load_density_data


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A stored density of three numbers, sampled 40 at a time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "CHUNK_SAMPLES", 40)
    model = spread(density_model((3,), torch.randn(50, 3), hidden=(8, 8)))
    cnf.save(model, "model")
    return model


class TestFiles:
    @pytest.mark.parametrize("typed", [(), ("--log-prob",)])
    def test_files_are_those_of_all_samples_at_once(self, run, model, typed):
        torch.manual_seed(4)
        with torch.no_grad():
            parts = [
                torch.cat([x, log_p[:, None]], 1) if typed else x
                for n in (40, 40, 40, 10)
                for x, log_p in [model.rsample_and_log_prob(n) if typed else (model.sample(n), None)]
            ]
        values, columns = torch.cat(parts).numpy(), ["x0", "x1", "x2", *(["log_prob"] if typed else [])]
        for name, save in (
            ("s.csv", lambda file: pd.DataFrame(values, columns=columns).to_csv(file, index=False)),
            ("s.npy", lambda file: np.save(file, values)),
        ):
            assert run("sample", "model", "-n", "130", "--out", name, "--seed", "4", *typed)[0] == 0
            wanted = io.BytesIO()
            save(wanted)
            with open(name, "rb") as file:
                assert file.read() == wanted.getvalue()

    @pytest.mark.usefixtures("model")
    @pytest.mark.parametrize("name", ["s.csv", "s.npy"])
    def test_rows_are_written_before_the_next_ones_are_drawn(self, name, run, tmp_path, monkeypatch):
        monkeypatch.setattr(evaluation, "CHUNK_SAMPLES", 2000)  # 24 kB, more than a file buffers
        drawn, sizes = cnf.Flow.sample, []

        def draw(*args):
            sizes.append(sum(path.stat().st_size for path in tmp_path.glob(f".{name}*")))
            return drawn(*args)

        monkeypatch.setattr(cnf.Flow, "sample", draw)
        assert run("sample", "model", "-n", "6000", "--out", name)[0] == 0
        assert sizes[0] < sizes[1] < sizes[2]

    @pytest.mark.usefixtures("model")
    def test_an_error_leaves_the_file_of_before(self, run, tmp_path, monkeypatch):
        (tmp_path / "s.csv").write_text("precious")
        drawn, calls = cnf.Flow.sample, []

        def draw(*args):
            calls.append(1)
            if len(calls) == 3:
                raise SolverError("step underflow", 0.5, 10, "dopri5")
            return drawn(*args)

        monkeypatch.setattr(cnf.Flow, "sample", draw)
        assert run("sample", "model", "-n", "130", "--out", "s.csv", "--overwrite")[0] == 1
        assert (tmp_path / "s.csv").read_text() == "precious"
        assert not list(tmp_path.glob(".s.csv*"))

    def test_columns_have_their_names_and_densities_their_kind(self, run, tmp_path):
        np.savetxt("t.csv", np.random.default_rng(0).normal(size=(60, 2)), delimiter=",", header="a,b", comments="")
        density, _ = store_density("runs/t", "t.csv", model={"extra": 1})
        options = ("--log-prob", "--samples", 2)
        assert run("sample", "runs/t", "-n", 9, *options)[0] == 0
        frame = pd.read_csv("samples.csv")
        assert list(frame.columns) == ["a", "b", "log_prob_bound"]
        x = torch.tensor(frame[["a", "b"]].to_numpy(), dtype=torch.float32)
        with torch.no_grad():
            found = density.log_prob(x, samples=2000)
        assert frame["log_prob_bound"].mean() == pytest.approx(found.mean().item(), abs=1.0)
        assert run("sample", "runs/t", "-n", 500, "--out", "new.png")[0] == 0
        assert (tmp_path / "new.png").stat().st_size > 10_000

    def test_a_column_of_log_densities_is_not_written_twice(self, run, tmp_path):
        np.savetxt(
            "t.csv", np.random.default_rng(0).normal(size=(60, 2)), delimiter=",", header="a,log_prob", comments=""
        )
        store_density("runs/t", "t.csv")
        status, out, _ = run("sample", "runs/t", "-n", 30, "--log-prob")
        assert status == 0
        assert "the data have a column log_prob, so the log-density of the model is model_log_prob" in out
        assert load_density_data("samples.csv").columns == ("a", "log_prob", "model_log_prob")
        assert run("evaluate", "runs/t", "samples.csv")[0] == 0  # which leaves the last column out

    def test_columns_of_a_grid_hold_values_of_it(self, run):
        rng = np.random.default_rng(0)
        columns = {"age": rng.normal(40, 9, 400), "visits": rng.poisson(5, 400)}
        pd.DataFrame({**columns, "height": rng.normal(170, 9, 400).round(1)}).to_csv("t.csv", index=False)
        store_density("runs/t", "t.csv")
        for name in ("s.csv", "s.npy"):
            status, out, _ = run("sample", "runs/t", "-n", 500, "--out", name, "--log-prob")
            assert status == 0
            assert "note: visits, height are rounded to the grid" in out
        frame = pd.read_csv("s.csv")
        np.testing.assert_array_equal(frame.to_numpy().astype(np.float32), np.load("s.npy"))
        assert set(frame.visits) >= {0, 1, 2}
        assert frame.visits.min() == 0
        assert (frame.visits % 1 == 0).all()
        assert {len(str(value).partition(".")[2]) for value in frame.height} == {1}
        assert frame.age.nunique() > 490

    def test_values_below_zero_are_noted(self, run):
        x = np.random.default_rng(0).normal(size=(400, 2))
        pd.DataFrame({"a": x[:, 0], "flux": np.abs(x[:, 1])}).to_csv("t.csv", index=False)
        store_density("runs/t", "t.csv")
        _, out, _ = run("sample", "runs/t", "-n", 300, "--out", "s.csv")
        count = (pd.read_csv("s.csv").flux < 0).sum()
        assert count > 0
        assert f"note: values below zero, where the data have none: flux ({count} of 300)" in out
        assert out.count("note") == 1

    def test_temperature(self, run):
        cnf.save(density_model((2,)), "model")
        for name, temperature in (("warm", "1"), ("cool", "0.5")):
            assert run("sample", "model", "-n", "9", "--temperature", temperature, "--out", f"{name}.npy")[0] == 0
        np.testing.assert_allclose(np.load("cool.npy"), 0.5 * np.load("warm.npy"), rtol=1e-6)  # the field is zero


@pytest.mark.parametrize("options", [{}, {"extra": 2, "augmentation": "categorical"}], ids=["flow", "mixture"])
def test_samples_given_values_of_columns(run, options):
    torch.manual_seed(0)
    c = 10 * torch.rand(50, 2) - 5
    flow = density_model((2,), context_data=c, **options)
    for weight in flow.parameters():
        torch.nn.init.normal_(weight, 0, 0.3)
    cnf.save(flow, "given", data={"columns": ["a", "b"], "context": ["u", "v"], "classes": []})
    assert run("sample", "given", "-n", 20, "--given", "u=-3.5", "v=2", "--log-prob", "--out", "s.csv")[0] == 0
    frame = pd.read_csv("s.csv")
    assert list(frame) == ["a", "b", "log_prob"]
    expected = flow.log_prob(frame[["a", "b"]], torch.tensor([[-3.5, 2.0]]).expand(20, 2)).detach()
    np.testing.assert_allclose(frame.log_prob, expected, atol=1e-3)
    status, _, err = run("sample", "given", "--given", "v=2", "--out", "x.csv")
    assert status == 2
    assert "given lacks u: pass a value for each of u, v" in err


def test_samples_are_of_their_class(run, tmp_path):
    store_density("runs/digits", "digits", conditional=True, image_size=4)
    assert run("sample", "runs/digits", "-n", 12, "--out", "all.csv", "--log-prob", "--samples", 2)[0] == 0
    frame = pd.read_csv("all.csv")
    assert list(frame.columns[-2:]) == ["label", "log_prob_bound"]
    assert frame["label"].tolist() == [*range(10), 0, 1]
    assert set(np.unique(frame.iloc[:, :16])) <= set(range(17))
    assert run("sample", "runs/digits", "-n", 3, "--label", "7", "--out", "seven.npy")[0] == 0
    assert np.load("seven.npy")[:, -1].tolist() == [7, 7, 7]
    for name, label in (("all.png", ()), ("seven.png", ("--label", "7"))):
        assert run("sample", "runs/digits", "-n", 25, "--out", name, *label)[0] == 0
    heights, widths = zip(*(files.imread(tmp_path / f"{name}.png").shape[:2] for name in ("all", "seven")), strict=True)
    assert heights[0] > 1.5 * widths[0]  # ten rows of three
    assert widths[1] == pytest.approx(heights[1], rel=0.1)


def test_what_is_refused_is_one_line(run, tmp_path):
    store_density("plain", "moons")
    store_density("digits", "digits", conditional=True, image_size=4)
    store_classifier("classifier", "spheres")
    cnf.save(density_model((2,), context=2), "given")
    (tmp_path / "taken.csv").write_text("mine")
    for typed, message in (
        (["nowhere"], "nowhere is not the folder"),
        (["classifier"], "classifier holds a classifier model, not a density or series model"),
        (["given"], "given lacks c0, c1: pass a value for each of c0, c1"),
        (["given", "--given", "c0=2", "c1=high"], "given c1: 'high' is not a number; pass one"),
        (["given", "--given", "c0=2", "c0=3"], "--given c0=2 c0=3 names a column more than once: pass one value"),
        (["given", "--given", "2", "3"], "--given 2 must be NAME=VALUE, such as species=Adelie"),
        (["plain", "--given", "x=3"], "--given x=3 is for densities given columns, plain is not: omit it"),
        (["plain", "--label", "dark"], "--label dark is for densities given the class, plain is not"),
        (["digits", "--label", "ten"], "--label ten is not a class of digits: choose one of 0, 1, 2"),
        (["plain", "--out", "taken.csv"], "--out taken.csv exists: pass another name, or --overwrite"),
        (["plain", "--out", "x.txt"], "--out x.txt must end in .csv, .npy, .png"),
        (["plain", "--samples", "4"], "--samples 4 has an effect with --log-prob only"),
        (["plain", "--log-prob", "--samples", "4"], "--samples 4 is for bounds"),
        (["plain", "--log-prob", "--out", "x.png"], "--log-prob needs a column, which pictures lack"),
        (["plain", "--temperature", "0.8", "--log-prob"], "--log-prob is the density at --temperature 1"),
        (["plain", "-n", "100001", "--out", "x.png"], "-n 100001 is too many for a picture: pass at most 100000"),
        (["digits", "-n", "10001", "--out", "x.png"], "-n 10001 is too many for a picture: pass at most 10000"),
    ):
        status, out, err = run("sample", *typed)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert message in err
    for typed in (["plain", "--temperature", "0"], ["plain", "--temperature", "nan"], ["plain", "-n", "0"]):
        status, _, err = run("sample", *typed)
        assert status == 2
        assert typed[1].lstrip("-") in err
    assert (tmp_path / "taken.csv").read_text() == "mine"
