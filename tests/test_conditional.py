"""Densities given the class: what they learn, what they draw, and the classifier that they are."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image as files
from PIL import Image

import cnf
from anode import CheckpointError, Solver, storage
from train_flows import data, drift, generative, image_pictures, image_plots, likelihood, recipes
from train_flows.checkpoint import classes_of
from train_flows.data.dataset import indicators

TINY = ["--steps", 4, "--validate-every", 2, "--hidden", 8, 8, "--batch-size", 16]
LEARNING = [*TINY, "--objective", "likelihood", "--steps", 40, "--validate-every", 20, "--lr", 0.03]
GREYS = {"bright": (150, 256), "dark": (0, 100)}


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Train by the defaults: recipes of images are for larger ones."""
    monkeypatch.setattr(recipes, "density", lambda *_: {})


def greys(folder, n=60, names=tuple(GREYS)):
    """Grey images of noise, dark ones and bright ones, in folders of these names."""
    rng = np.random.default_rng(n)
    for name, (low, high) in zip(names, GREYS.values(), strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(low, high, (2, 2)).astype(np.uint8)).save(folder / name / f"{i}.png")


def model_of(shape=(1, 1, 1), levels=4, classes=3, **more):
    """A density whose field is far from zero, and so from that of other classes."""
    data = torch.randint(levels, (200, *shape))
    model = cnf.density_model(shape, levels=levels, hidden=(8, 8), context=classes, data=data, **more)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


class TestClassifier:
    def test_probabilities_are_those_of_the_cells(self):
        """P(x given k) is the integral of the density over the cell of x, here by the midpoint rule."""
        model, x = model_of(), torch.arange(4).view(4, 1, 1, 1)
        n = 500
        y = ((torch.arange(4 * n) + 0.5) / (4 * n)).view(-1, 1, 1, 1)
        wanted = []
        with torch.no_grad():
            for k in range(3):
                c = indicators(torch.full((len(y),), k), 3)
                wanted.append(model.flow.log_prob(y, c).exp().view(4, n).sum(1) / (4 * n))
        wanted = torch.stack(wanted, 1)
        assert (wanted[:, 0] - wanted[:, 1]).abs().max() > 0.05
        found = generative.log_given_each(model, x, 3, samples=20_000).exp()
        torch.testing.assert_close(found, wanted, rtol=0.03, atol=1e-3)

        best = wanted.argmax(1)
        assert len(best.unique()) > 1
        labels = torch.cat([best[:3], (best[3:] + 1) % 3])
        figures = generative.measure(model, x, indicators(labels, 3), samples=2000)
        assert figures["accuracy"] == 3 / 4
        assert figures["standard_error"] == pytest.approx(math.sqrt(4 / 6 * 2 / 6 / 4))
        assert (figures["tested"], figures["classes"]) == (4, 3)
        assert (figures["kind"], figures["samples"], figures["probes"]) == ("bound", 2000, None)

    @pytest.mark.parametrize("more", [{"divergence": "hutchinson"}, {"extra": 1}, {"dequantization": "learned"}, {}])
    def test_classes_see_the_same_noise_and_samples_do_not(self, more):
        model, x = model_of((1, 2, 1), **more), torch.ones(40, 1, 2, 1)
        for name, weight in model.named_parameters():
            if name.endswith("context"):
                torch.nn.init.zeros_(weight)  # so that only noise could tell the classes apart
        found = generative.log_given_each(model, x, 3, samples=2)
        assert torch.equal(found[:, :1].expand(-1, 3), found)
        assert len(found[:, 0].unique()) > 30
        torch.manual_seed(7)
        both = generative.log_given_each(model, torch.ones(5000, 1, 2, 1), 3, samples=1)  # two chunks
        assert not torch.equal(both[:2500], both[2500:])

    def test_the_nll_is_that_of_the_true_classes(self):
        model, x = model_of(), torch.randint(4, (200, 1, 1, 1))
        y = torch.randint(3, (200,))
        every = generative.log_given_each(model, x, 3, samples=100)
        figure, _ = likelihood.nll(model, (x, indicators(y, 3)), samples=100)
        assert figure["value"] == pytest.approx(-every.gather(1, y[:, None]).mean().item(), abs=0.02)
        other, _ = likelihood.nll(model, (x, indicators((y + 1) % 3, 3)), samples=100)
        assert abs(other["value"] - figure["value"]) > 0.02
        validated = [likelihood.of_one_draw(model, (x, indicators(y, 3)))["nll"] for _ in range(10)]
        assert np.mean(validated) == pytest.approx(figure["value"], abs=0.3)
        assert np.mean(validated) > figure["value"]


class TestPrograms:
    def test_what_is_learnt_of_two_classes(self, run, tmp_path):
        greys(tmp_path / "greys")
        greys(tmp_path / "others", n=12)
        greys(tmp_path / "swapped", n=12, names=("dark", "bright"))
        status, out, err = run("density", "greys", *LEARNING, "--conditional")
        assert (status, err) == (0, "")
        config = storage.read_config("runs/greys", "density")
        assert config["classes"] == ["bright", "dark"]
        assert config["model"]["context"] == 2
        assert (tmp_path / "runs" / "greys" / "samples.png").read_bytes()[:4] == b"\x89PNG"
        result = json.loads((tmp_path / "runs" / "greys" / "result.json").read_text())

        own, other, swapped = (
            json.loads(run("evaluate", "runs/greys", *source, "--classify", "--samples", 4, "--json")[1])
            for source in ((), ("others",), ("swapped",))
        )
        assert own["nll"]["value"] == pytest.approx(result["nll"]["value"], abs=0.1)  # of fewer samples
        assert {name: found["classifier"]["accuracy"] for name, found in (("own", own), ("other", other))} == {
            "own": 1.0,
            "other": 1.0,
        }
        assert swapped["classifier"]["accuracy"] == 0
        assert swapped["nll"]["value"] > other["nll"]["value"] + 2
        assert (other["classifier"]["tested"], other["classifier"]["samples"]) == (24, 4)
        _, out, _ = run("evaluate", "runs/greys", "others", "--classify", "--samples", 4)
        (line,) = (line for line in out.splitlines() if line.startswith("accuracy"))
        assert "1.0000 +- 0.0" in line
        assert "24 samples, by the NLL given each of 2 classes: upper bound, 4 importance sample(s), rtol" in line

    def test_samples_are_of_their_class(self, run, tmp_path):
        greys(tmp_path / "greys")
        assert run("density", "greys", *LEARNING, "--conditional")[0] == 0
        options = ("--log-prob", "--samples", 2)
        assert run("sample", "runs/greys", "-n", 61, "--out", "all.csv", *options)[0] == 0
        frame = pd.read_csv("all.csv")
        assert list(frame.columns[-2:]) == ["label", "log_prob_bound"]
        assert frame["label"].tolist() == (["bright", "dark"] * 31)[:61]
        means = frame.groupby("label")[list(frame.columns[:4])].mean().mean(axis=1)
        assert means["bright"] > means["dark"] + 80
        assert run("sample", "runs/greys", "-n", 61, "--out", "dark.csv", "--label", "dark")[0] == 0
        dark = pd.read_csv("dark.csv")
        assert set(dark["label"]) == {"dark"}
        assert dark.iloc[:, :4].to_numpy().mean() == pytest.approx(means["dark"], abs=25)
        assert run("sample", "runs/greys", "-n", 5, "--out", "all.npy")[0] == 0
        assert np.load("all.npy")[:, -1].tolist() == [0, 1, 0, 1, 0]
        for name, label in (("all.png", ()), ("dark.png", ("--label", "dark"))):
            assert run("sample", "runs/greys", "-n", 25, "--out", name, *label)[0] == 0
        heights, widths = zip(
            *(files.imread(tmp_path / f"{name}.png").shape[:2] for name in ("all", "dark")), strict=True
        )
        assert widths[0] > 3 * heights[0]  # a row for each of two classes
        assert widths[1] == heights[1]  # a square of one class

    def test_digits_from_start_to_end(self, run, undrawn):
        sizes = ["--image-size", 4, "--train-size", 64, "--test-size", 20]
        assert run("density", "digits", *TINY, *sizes, "--conditional")[0] == 0
        assert run("density", "--resume", "runs/digits")[0] == 0
        status, out, _ = run("evaluate", "runs/digits", "--classify", "--samples", 1)
        assert status == 0
        assert "20 samples, by the NLL given each of 10 classes" in out
        assert run("sample", "runs/digits", "-n", 3, "--label", "7")[0] == 0
        assert pd.read_csv("samples.csv")["label"].tolist() == [7, 7, 7]
        status, _, err = run("sample", "runs/digits", "--label", "ten", "--out", "no.csv")
        assert status == 2
        assert "--label ten is no class of runs/digits: choose one of 0, 1, 2" in err

    def test_classes_that_change_are_other_data(self, run, undrawn, tmp_path):
        greys(tmp_path / "greys")
        assert run("density", "greys", *TINY, "--conditional")[0] == 0
        assert run("density", "greys", *TINY, "--out", "runs/plain")[0] == 0
        (tmp_path / "greys" / "dark").rename(tmp_path / "greys" / "dim")
        assert run("evaluate", "runs/plain")[0] == 0  # the same images
        status, _, err = run("evaluate", "runs/greys")
        assert status == 2
        assert "greys has changed since runs/greys was trained on it" in err

    @pytest.mark.parametrize(
        ("typed", "message"),
        [
            (["moons"], "--conditional is for images, not for moons: drop it"),
            (["nowhere"], "data='nowhere' is neither a known data set"),
            (["flat"], "--conditional is for images in classes, flat has none: put the images in FOLDER/CLASS/"),
            (
                ["greys", "--objective", "flow-matching", "--coupling", "optimal_transport"],
                "--coupling optimal_transport would make base points tell of the class",
            ),
        ],
    )
    def test_refused(self, run, tmp_path, typed, message):
        greys(tmp_path / "greys")
        greys(tmp_path / "flat")
        for i, path in enumerate(sorted((tmp_path / "flat").glob("*/*.png"))):
            path.rename(tmp_path / "flat" / f"{i}.png")
        for name in GREYS:
            (tmp_path / "flat" / name).rmdir()
        status, _, err = run("density", *typed, *TINY, "--conditional")
        assert status == 2
        assert message in err
        assert err.count("\n") == 1
        assert not (tmp_path / "runs").exists()

    def test_refused_of_runs(self, run, undrawn, tmp_path):
        greys(tmp_path / "greys")
        greys(tmp_path / "more", names=("dark", "light"))
        assert run("density", "greys", *TINY, "--conditional")[0] == 0
        assert run("density", "greys", *TINY, "--out", "runs/plain")[0] == 0
        assert run("classify", "greys", "--epochs", 1, "--filters", 4, "--out", "runs/classifier")[0] == 0
        cnf.save(cnf.density_model((2,), hidden=(8,), context=2), "mine")
        np.save("x.npy", np.random.default_rng(0).normal(size=(30, 2)))
        for typed, message in (
            (("evaluate", "runs/plain", "--classify"), "--classify is for densities given the class, runs/plain"),
            (("evaluate", "runs/classifier", "--classify"), "--classify is for densities, runs/classifier is a classi"),
            (("evaluate", "runs/greys", "more"), "more holds the class light, runs/greys knows bright, dark"),
            (("evaluate", "runs/greys", "more/dark"), "more/dark holds no classes, which runs/greys is a density giv"),
            (("evaluate", "runs/greys", "x.npy"), "x.npy holds no classes, which runs/greys is a density given"),
            (("sample", "runs/plain", "--label", "dark"), "--label dark is for densities given the class, runs/plain"),
            (("sample", "mine"), "mine is a density given 2 numbers that are no classes: use it by cnf.load"),
            (("evaluate", "mine", "x.npy"), "mine is a density given 2 numbers that are no classes"),
        ):
            status, _, err = run(*typed)
            assert status == 2
            assert message in err
            assert err.count("\n") == 1


@pytest.mark.parametrize("classes", [["bright"], ["bright", 2], "ab"])
def test_classes_that_do_not_fit_the_model(classes):
    with pytest.raises(CheckpointError, match="holds other classes than its model takes"):
        classes_of({"model": {"context": 2}, "classes": classes}, "run")


@pytest.mark.usefixtures("run")
def test_no_way_between_test_images_of_different_classes(tmp_path):
    greys(tmp_path / "greys")
    dataset = data.load("greys", conditional=True, test_size=2, seed=1)
    assert len(dataset.classes.test.unique()) == 2
    assert image_pictures._pairs(dataset) is None


def test_rows_hold_their_class():
    x = np.repeat(np.array([3.0, 1.0, 2.0, 1.0]), 4).reshape(4, 1, 2, 2)
    figure = image_plots.in_classes({"data": (x, np.array([2, 0, 1, 0]))}, ("a", "b", "c"), 3.0)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    shown = np.asarray(axes.images[0].get_array()).squeeze()
    for tick, wanted in zip(axes.get_yticks(), ([1, 1], [2, 0], [3, 0]), strict=True):
        row = shown[int(tick) + 1]
        assert [row[2], row[5]] == pytest.approx([value / 3 for value in wanted])


@pytest.mark.parametrize("more", [{}, {"extra": 2, "augmentation": "categorical"}])
def test_paths_end_at_samples_of_their_class(more):
    model, c = model_of((1, 2, 1), **more), indicators(torch.arange(30) % 3, 3)
    ends = []
    for draw in (lambda: model.sample(30, c), lambda: model.sample_paths(30, [0.0, 0.5, 1.0], c)[-1]):
        torch.manual_seed(3)
        ends.append(draw())
    assert torch.equal(*ends)
    torch.manual_seed(3)
    assert not torch.equal(model.sample(30, c.roll(1, 0)), ends[0])


@pytest.mark.parametrize("field", ["mlp", "conv", "stack", "unet"])
def test_every_field_is_told_the_class(field):
    more = {"solver": Solver("rk4", step_size=0.5), "divergence": "hutchinson", "multiscale": field == "stack"}
    x = torch.randint(4, (5, 1, 4, 4))
    model = cnf.density_model((1, 4, 4), field=field, hidden=(4, 4), filters=4, levels=4, context=2, data=x, **more)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    found = generative.log_given_each(model, x, 2, samples=1)
    assert (found[:, 0] != found[:, 1]).all()


def test_drift_is_of_the_true_classes():
    model = model_of()
    fixed, adaptive = (model.with_solver(solver) for solver in (Solver("rk4", step_size=0.5), Solver()))
    x, c = torch.randint(4, (600, 1, 1, 1)), indicators(torch.randint(3, (600,)), 3)
    torch.manual_seed(5)
    found = drift.compare(fixed, adaptive, (x, c))
    torch.manual_seed(5)
    with torch.no_grad():
        wanted = -fixed.elbo(x[:500], c[:500]).double().mean().item()
    assert found["nll_training_solver"] == pytest.approx(wanted, abs=1e-6)
    assert 0 < abs(found["drift"]) < 0.1
