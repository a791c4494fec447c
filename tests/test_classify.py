"""train-flows classify as a user runs it: from data to figures, resuming, images and the experiments' options."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from stored_runs import have_same_weights, result_of
from torch.nn import functional as F

import anode
from anode import storage
from train_flows import classify
from train_flows.data import load_labelled_data
from train_flows.evaluation import accuracy
from train_flows.run.folder import Run

TINY = ("--epochs", 2, "--hidden", 8, "--batch-size", 256)
SMALL_IMAGES = ("--epochs", 2, "--hidden", 4, "--batch-size", 64)


@pytest.fixture
def flowers(tmp_path):
    """A table of two columns and a class that depends on them, in words."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)) * [1, 100] + [0, 500]
    kind = np.where(x[:, 1] > 500, np.where(x[:, 0] > 0, "rose", "lily"), "oak")
    pd.DataFrame({"width": x[:, 0], "kind": kind, "height": x[:, 1]}).to_csv(tmp_path / "flowers.csv", index=False)
    return tmp_path / "flowers.csv"


@pytest.fixture
def bars(tmp_path):
    """Images of a white bar, down or across, in a training and a test part."""
    for part, n in (("train", 60), ("test", 20)):
        rng = np.random.default_rng(n)
        for kind in ("down", "across"):
            (tmp_path / "bars" / part / kind).mkdir(parents=True)
            for i in range(n):
                image = rng.integers(0, 60, (8, 8)).astype(np.uint8)
                at = rng.integers(8)
                image[(slice(None), at) if kind == "down" else (at, slice(None))] = 255
                Image.fromarray(image).save(tmp_path / "bars" / part / kind / f"{i}.png")
    return "bars"


def records(folder):
    return Run.open(folder, "classifier").records()


def test_from_points_to_figures(run, tmp_path):
    status, out, err = run("classify", "spheres", *TINY, "--extra", 2)
    assert (status, err) == (0, "")
    files = {"config.json", "model.safetensors", "metrics.jsonl", "result.json", "features.png", "curves.png"}
    assert files <= {path.name for path in (tmp_path / "runs" / "spheres").iterdir()}
    assert len(records("runs/spheres")) == 3  # before training, and after each epoch
    figures = {f"{part}_{name}" for part in ("train", "validation", "test") for name in ("loss", "accuracy")}
    assert figures | {"train_mse", "nfe_forward", "nfe_backward", "loss"} <= set(records("runs/spheres")[-1])
    for words in (
        "accuracy",
        "(smooth-l1)",
        "(1000 samples",
        "NFE",
        "tighter",
        "seconds",
        "pictures           runs/spheres/curves.png, runs/spheres/features.png",
    ):
        assert words in out

    test, model = load_labelled_data("spheres").test, anode.load("runs/spheres")
    assert model.config.extra == 2
    with torch.no_grad():
        values = model(test.x)
    assert result_of("runs/spheres")["accuracy"] == pytest.approx(float(((values > 0) == (test.y > 0)).double().mean()))
    assert result_of("runs/spheres")["loss"] == pytest.approx(float(F.smooth_l1_loss(values, test.y)), rel=1e-5)
    report = json.loads(run("evaluate", "runs/spheres", "--json")[1])
    assert report == {name: result_of("runs/spheres")[name] for name in report}


def test_a_table_with_classes_in_words(run, flowers, undrawn):
    status, out, _ = run("classify", "flowers.csv", "--target", "kind", "--epochs", 8, "--hidden", 16, "--lr", 3e-2)
    assert status == 0
    assert "(cross-entropy)" in out
    about = storage.read_config("runs/flowers", "classifier")["data"]
    assert (about["classes"], about["columns"]) == (["lily", "oak", "rose"], ["width", "height"])
    assert result_of("runs/flowers")["accuracy"] > 0.8
    assert anode.load("runs/flowers").classes == ("lily", "oak", "rose")
    row = {"width": [1.0], "height": [900.0]}
    assert anode.load("runs/flowers").predict(pd.DataFrame(row)) == ["rose"]


def test_a_regression_in_the_units_of_its_target(run, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)) * [1e-3, 1e4]
    price = 5000 + 1e6 * x[:, 0] + 0.05 * x[:, 1] + rng.normal(size=400)
    pd.DataFrame({"a": x[:, 0], "price": price, "b": x[:, 1]}).to_csv(tmp_path / "rö w.csv", index=False)
    typed = ("--target", "price", "--epochs", 12, "--hidden", 16, "--lr", 1e-2)
    status, out, err = run("classify", "rö w.csv", *typed)
    assert (status, err.count("\n")) == (2, 1)
    assert "price holds 400 distinct values in 400 rows, which are not classes: pass --task regression" in err
    status, out, err = run("classify", "rö w.csv", *typed, "--task", "regression")
    assert (status, err) == (0, "")
    found = result_of("runs/rö w")
    test = load_labelled_data("rö w.csv", target="price", task="regression").test
    errors = anode.load("runs/rö w").predict(test.x) - test.y
    assert found["rmse"] == pytest.approx(errors.square().mean().sqrt().item(), rel=1e-5)
    assert found["rmse"] < 200 < 900 < found["rmse_of_mean"]
    assert f"RMSE of the mean {found['rmse_of_mean']:.4g}" in out
    assert {"train_rmse", "validation_rmse", "validation_loss"} <= set(records("runs/rö w")[-1])
    report = json.loads(run("evaluate", "runs/rö w", "--json")[1])
    assert report == {name: found[name] for name in report}
    assert run("evaluate", "runs/rö w", "rö w.csv")[0] == 0
    assert "(RMSE)" in run("report", "runs/rö w")[1]


@pytest.mark.parametrize(
    ("typed", "nfe"),
    [
        (("--model", "resnet", "--blocks", 2), 0),
        (("--model", "mlp", "--extra", 0), 0),
        (("--model", "second-order", "--extra", 13), 20),
        (("--solver", "euler"), 4),  # of steps of 0.25
        (("--gradient", "adjoint", "--dtype", "float64"), 20),
    ],
)
def test_networks_to_compare_with(run, undrawn, typed, nfe):
    status, _, err = run("classify", "wine", *TINY, *typed)
    assert (status, err) == (0, "")
    assert result_of("runs/wine")["nfe"] == pytest.approx(nfe, abs=8 if nfe == 20 else 0)
    assert (records("runs/wine")[-1]["nfe_backward"] > 0) == ("adjoint" in typed)
    assert run("evaluate", "runs/wine")[0] == 0


def test_a_stopped_run_goes_on_to_the_have_same_weights(run, undrawn, monkeypatch):
    assert run("classify", "spheres", *TINY, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        shuffled, late = classify.shuffled_batches, []

        def counted(*args):
            batch = shuffled(*args)
            return lambda step: (step == 7 and late.append(step), batch(step))[1]

        patch.setattr(classify, "shuffled_batches", counted)
        patch.setattr("train_flows.run.loop.time.monotonic", lambda: 1e9 if late else 0.0)
        status, out, _ = run("classify", "spheres", *TINY, "--out", "parts", "--budget-minutes", 9)
    assert status == 0
    assert "continue with: train-flows classify --resume parts" in out
    assert run("classify", "--resume", "parts")[0] == 0
    assert have_same_weights("whole", "parts")
    assert [record["step"] for record in records("parts")] == [record["step"] for record in records("whole")]


def test_a_finished_run_is_trained_for_more_epochs(run, undrawn):
    for out in ("one", "other"):
        assert run("classify", "spheres", *TINY, "--out", out)[0] == 0
        status, said, _ = run("classify", "--resume", out, "--epochs", 3)
        assert status == 0
        assert said.startswith(f"settings: those of {out}, but --epochs 3, from step ")
    assert have_same_weights("one", "other")
    steps = [record["step"] for record in records("one")]
    assert steps == [i * steps[1] for i in range(4)]
    assert Run.open("one").settings["epochs"]["epochs"] == 3
    status, _, err = run("classify", "--resume", "one", "--epochs", 3)
    assert status == 2
    assert "--epochs 3 must be more than the 3 epochs of one so far" in err
    assert "omit --lr" in run("classify", "--resume", "one", "--epochs", 4, "--lr", "1")[2]


def test_a_run_starts_from_the_weights_of_another(run, flowers, undrawn, tmp_path):
    assert run("classify", flowers, "--target", "kind", *TINY, "--out", "first")[0] == 0
    frame = pd.read_csv(flowers)
    some = frame[frame["kind"] != "oak"][["height", "width", "kind"]]  # of which one class is missing
    some.rename(columns={"kind": "species"}).to_csv(tmp_path / "some.csv", index=False)
    assert run("classify", "some.csv", "--target", "species", "--init", "first", "--epochs", 1)[0] == 0
    first, tuned = anode.load("first"), anode.load("runs/some")
    assert (tuned.config, tuned.outputs) == (first.config, 3)
    assert torch.equal(tuned.lift[0].mean, first.lift[0].mean)
    data = load_labelled_data("some.csv", target="species").match(Run.open("first").config["data"], "first")
    loss = accuracy.figures(first, data.validation)[0]["loss"]
    assert records("runs/some")[0]["validation_loss"] == pytest.approx(loss, rel=1e-4)
    assert run("evaluate", "runs/some")[0] == 0
    frame.replace("oak", "fern").to_csv(tmp_path / "more.csv", index=False)
    for args, words in (
        (("more.csv", "--target", "kind"), "more.csv holds the class fern, first knows"),
        (("spheres",), "spheres lacks classes, which first needs"),
        (("some.csv", "--extra", "1"), "--extra 1 contradicts --init first, whose weights are of --extra 5"),
    ):
        status, _, err = run("classify", *args, "--init", "first", "--out", "new")
        assert status == 2
        assert words in err


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_weights_that_are_kept(run, undrawn, monkeypatch, keep):
    losses, measure = iter([3.0, 1.0, 2.0]), accuracy.figures  # of the validation part, 17 samples like the test part

    def measured(model, data):
        found, classes = measure(model, data)
        return found | ({"loss": next(losses)} if data is parts.get("validation") else {}), classes

    parts, init = {}, classify.ClassifyTask.__init__
    monkeypatch.setattr(
        classify.ClassifyTask, "__init__", lambda task, *args: (init(task, *args), parts.update(task.parts))[0]
    )
    monkeypatch.setattr(accuracy, "figures", measured)
    assert run("classify", "wine", *TINY, "--keep", keep)[0] == 0
    assert [record["validation_loss"] for record in records("runs/wine")] == [3.0, 1.0, 2.0]
    last = Run.open("runs/wine", "classifier").load_state()["model"]
    best = storage.read_weights("runs/wine")
    assert all(torch.equal(best[name], last[name]) for name in best) == (keep == "last")


class TestExperiments:
    def test_features_of_some_epochs(self, run, undrawn):
        assert run("classify", "spheres", *TINY, "--extra", 1, "--snapshots", 0, 2, "--keep", "last")[0] == 0
        stored, train = np.load("runs/spheres/features.npz"), load_labelled_data("spheres").train
        np.testing.assert_array_equal(stored["x"], train.x[::3].numpy())
        with torch.no_grad():
            features = anode.load("runs/spheres").features(train.x[::3]).numpy()
        np.testing.assert_allclose(stored["epoch_2"], features, rtol=1e-5, atol=1e-5)
        assert set(stored) == {"x", "y", "epoch_0", "epoch_2"}
        assert np.abs(stored["epoch_0"] - stored["epoch_2"]).max() > 0.01

    def test_slices_of_the_plane_are_removed(self, run, undrawn):
        status, out, _ = run("classify", "spheres", *TINY, "--removed-slices", 3)
        assert status == 0
        kept, removed = (int(words.split()[0]) for words in out.splitlines()[1].split(", ")[:2])
        assert kept + removed == 3000
        assert removed == pytest.approx(900, abs=150)
        assert run("evaluate", "runs/spheres")[0] == 0


class TestImages:
    def test_from_a_folder_to_its_evaluation(self, run, tmp_path, bars):
        typed = ("--epochs", 2, "--hidden", 8, "--batch-size", 16, "--extra", 1)
        status, out, err = run("classify", bars, *typed)
        assert (status, err) == (0, "")
        for name in ("features.png", "curves.png", "mistakes.png"):
            assert (tmp_path / "runs" / "bars" / name).read_bytes()[:4] == b"\x89PNG"
        assert "108 samples to train on, 12 to validate on, 40 to test on" in out
        model, dataset = anode.load("runs/bars"), load_labelled_data(bars)
        assert (model.levels, model.config.field) == (256, "conv")
        with torch.no_grad():
            right = (model(dataset.test.x).argmax(1) == dataset.test.y).double().mean()
        assert result_of("runs/bars")["accuracy"] == pytest.approx(float(right))
        assert result_of("runs/bars")["nfe_backward"] == records("runs/bars")[-1]["nfe_backward"]

    @pytest.mark.parametrize(
        "typed",
        [
            ("--model", "resnet"),
            ("--field", "norm-conv", "--readout", "pool"),
            ("--model", "second-order", "--extra", 1, "--hidden", 8),
            ("--precision", "bfloat16", "--weight-decay", 1e-4, "--clip", 5),
        ],
        ids=lambda typed: " ".join(map(str, typed)),
    )
    def test_every_network_of_images(self, run, undrawn, bars, typed):
        assert run("classify", bars, *SMALL_IMAGES, *typed)[0] == 0
        assert all(value.dtype == torch.float32 for value in storage.read_weights("runs/bars").values())
        assert run("evaluate", "runs/bars")[0] == 0

    def test_digits_with_fewer_samples(self, run, undrawn):
        status, out, _ = run("classify", "digits", *SMALL_IMAGES, "--train-size", 64, "--test-size", 30)
        assert status == 0
        assert "64 of 1,618 training samples" in out
        model = storage.read_config("runs/digits", "classifier")["model"]
        assert (model["shape"], model["levels"]) == ([1, 8, 8], 17)
        assert json.loads(run("evaluate", "runs/digits", "--json")[1])["samples"] == 30

    def test_training_ends_early_where_a_solve_takes_too_many_steps(self, run, undrawn, bars):
        """It reports the best weights until then."""
        status, out, err = run(
            "classify", bars, "--hidden", 4, "--epochs", 40, "--lr", 0.3, "--max-steps", 3, "--batch-size", 16
        )
        assert (status, err) == (0, "")
        assert "training ended early: step " in out
        assert "too many steps" in out
        assert "training ended early" in result_of("runs/bars")["notes"][-1]
        assert len(records("runs/bars")) < 41
