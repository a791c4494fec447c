"""train-flows classify, from data to evaluation, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import anode
from anode import InputError, Solver, storage
from train_flows import classify, command_line, recipes
from train_flows.checkpoint import Run
from train_flows.data import classes
from train_flows.supervised import Supervised, measure, predicted
from train_flows.training import Epochs, Training

TINY = ["--epochs", "2", "--hidden", "8", "--batch-size", "256"]
FIGURES = {f"{part}_{figure}" for part in ("train", "validation", "test") for figure in ("loss", "accuracy")}


@pytest.fixture
def flowers(tmp_path):
    """A table of two columns and a class that depends on them, in words."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)) * [1, 100] + [0, 500]
    kind = np.where(x[:, 1] > 500, np.where(x[:, 0] > 0, "rose", "lily"), "oak")
    pd.DataFrame({"width": x[:, 0], "kind": kind, "height": x[:, 1]}).to_csv(tmp_path / "flowers.csv", index=False)
    return tmp_path / "flowers.csv"


def test_from_start_to_end(run, tmp_path):
    status, out, err = run("classify", "spheres", *TINY, "--extra", 2)
    assert (status, err) == (0, "")
    folder = tmp_path / "runs" / "spheres"
    files = {"config.json", "model.safetensors", "metrics.jsonl", "result.json", "features.png", "curves.png"}
    assert files <= {path.name for path in folder.iterdir()}
    records = Run(folder).records()
    assert len(records) == 3  # before training, and after each epoch
    assert FIGURES | {"step", "nfe_forward", "nfe_backward", "seconds", "loss"} <= set(records[-1])
    for word in ("accuracy", "(smooth-l1)", "(1000 samples", "NFE", "tighter", "seconds", "runs/spheres"):
        assert word in out

    dataset, model = classes.load("spheres"), anode.load(folder)
    assert model.config["extra"] == 2
    result = json.loads((folder / "result.json").read_text())
    with torch.no_grad():
        values = model(dataset.test.x)
    assert result["accuracy"] == pytest.approx(float(((values > 0) == (dataset.test.y > 0)).double().mean()))
    assert result["loss"] == pytest.approx(float(F.smooth_l1_loss(values, dataset.test.y)), rel=1e-5)
    assert {"command", "machine", "versions", "seed", "seconds", "standard_error"} <= set(result)

    report = json.loads(run("evaluate", "runs/spheres", "--json")[1])
    assert report == {name: result[name] for name in report}
    tight = json.loads(run("evaluate", "runs/spheres", "--rtol", 1e-6, "--atol", 1e-6, "--json")[1])
    assert tight["tolerance"] == {"rtol": 1e-6, "atol": 1e-6}
    assert tight["nfe"] > report["nfe"]
    assert tight["loss"] == pytest.approx(report["loss"], rel=1e-2)


def test_a_table_with_classes_in_words(run, tmp_path, flowers):
    status, out, _ = run("classify", "flowers.csv", "--target", "kind", "--epochs", 30, "--hidden", 16, "--lr", 1e-2)
    assert status == 0
    assert "(cross-entropy)" in out
    config = storage.read_config("runs/flowers", "classifier")
    assert config["classes"] == ["lily", "oak", "rose"]
    assert config["columns"] == ["width", "height"]
    report = json.loads(run("evaluate", "runs/flowers", "--json")[1])
    assert report["accuracy"] > 0.8

    table = pd.read_csv(flowers)
    table[["height", "kind", "width"]].head(50).to_csv(tmp_path / "reordered.csv", index=False)
    table.head(50).to_csv(tmp_path / "head.csv", index=False)
    reports = [
        json.loads(run("evaluate", "runs/flowers", f"{name}.csv", "--json")[1]) for name in ("reordered", "head")
    ]
    assert reports[0] == reports[1]
    model = anode.load("runs/flowers")
    pairs, _, _ = classes.read("head.csv", "kind", tuple(config["classes"]))
    assert reports[0]["accuracy"] == pytest.approx(float((model(pairs.x.float()).argmax(1) == pairs.y).double().mean()))


@pytest.mark.parametrize("model", ["resnet", "mlp", "second-order"])
def test_models_to_compare_with(run, model):
    extra = 13 if model == "second-order" else 0
    status, out, _ = run("classify", "wine", *TINY, "--model", model, "--extra", extra)
    assert status == 0
    assert ("NFE" in out) == (model == "second-order")
    assert run("evaluate", "runs/wine")[0] == 0


def test_the_adjoint_counts_its_evaluations(run):
    assert run("classify", "sines", *TINY, "--gradient", "adjoint")[0] == 0
    assert Run("runs/sines").records()[-1]["nfe_backward"] > 0


def test_fixed_steps_stay_as_trained(run):
    status, out, _ = run("classify", "sines", *TINY, "--solver", "euler", "--step-size", 0.25)
    assert status == 0
    assert "NFE                4" in out
    report = json.loads(run("evaluate", "runs/sines", "--json")[1])
    assert report["nfe"] == 4
    assert report["tolerance"] is None
    status, _, err = run("evaluate", "runs/sines", "--rtol", 1e-6)
    assert status == 2
    assert "no adaptive steps" in err


def test_seeds_reproduce_exactly(run):
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run("classify", "spheres", *TINY, "--seed", seed, "--out", out)[0] == 0
    a, b, c = (storage.read_weights(name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_stopped_run_goes_on_to_the_same_weights(run, monkeypatch):
    from train_flows import loop

    assert run("classify", "spheres", *TINY, "--out", "whole")[0] == 0
    taken = iter(range(100))
    stop = loop.stop_signals

    def soon():
        context = stop()

        class Soon:
            def __enter__(self):
                context.__enter__()
                return lambda: next(taken) >= 7

            def __exit__(self, *error):
                return context.__exit__(*error)

        return Soon()

    monkeypatch.setattr(loop, "stop_signals", soon)
    status, out, _ = run("classify", "spheres", *TINY, "--out", "parts")
    assert status == 0
    assert "continue with: train-flows classify --resume parts" in out
    monkeypatch.setattr(loop, "stop_signals", stop)
    assert run("classify", "--resume", "parts")[0] == 0
    whole, parts = (storage.read_weights(name) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert [r["step"] for r in Run("parts").records()] == [r["step"] for r in Run("whole").records()]


def test_the_best_weights_are_those_of_the_validation(run, monkeypatch):
    losses = iter([3.0, 9.0, 1.0, 9.0, 2.0, 0.0])  # of the validation and test parts, 17 samples each, in turn

    def measured(objective, pairs):
        return measure(objective, pairs) | ({"loss": next(losses)} if len(pairs.x) == 17 else {})

    monkeypatch.setattr(classify, "measure", measured)
    assert run("classify", "wine", *TINY)[0] == 0
    records = Run("runs/wine").records()
    assert [r["validation_loss"] for r in records] == [3.0, 1.0, 2.0]
    last = Run("runs/wine").load_state()["objective"]
    best = storage.read_weights("runs/wine")
    assert not all(torch.equal(best[name], last[f"model.{name}"]) for name in best)


def test_epochs_are_steps():
    assert Epochs(epochs=3, batch_size=10, lr=0.1).training(57) == Training(15, 10, 0.1, "constant", validate_every=5)


def test_recipes_name_settings_that_exist():
    known = {name for section in vars(classify.Settings()).values() for name in vars(section)}
    for recipe in (*recipes.CLASSIFY.values(), *recipes.KINDS.values()):
        assert set(recipe) <= known


def test_help_shows_the_recipe_of_the_data(run):
    assert "(default: 32 32)" in run("classify", "--help")[1]
    assert "(default: 256)" in run("classify", "mnist", "--help")[1]


class TestMeasures:
    def test_accuracy_of_classes_and_of_signs(self):
        identity = Supervised(torch.nn.Identity(), "cross-entropy")
        logits = torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 1, 3]])
        found = measure(identity, classes.Pairs(logits, torch.tensor([0, 1, 1])))
        assert found["accuracy"] == pytest.approx(2 / 3)
        assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, torch.tensor([0, 1, 1]))))
        signs = Supervised(torch.nn.Identity(), "smooth-l1")
        found = measure(signs, classes.Pairs(torch.tensor([[0.5], [-2.0]]), torch.tensor([[1.0], [1.0]])))
        assert found["accuracy"] == 0.5
        assert found["mse"] == pytest.approx((0.25 + 9) / 2)
        assert found["loss"] == pytest.approx((0.125 + 2.5) / 2)

    def test_predictions(self):
        assert predicted(torch.tensor([[0.1, 0.2], [3.0, -1.0]])).tolist() == [1, 0]
        assert predicted(torch.tensor([[0.1], [-0.2]])).tolist() == [True, False]

    def test_evaluations_are_those_of_a_solve(self):
        model = anode.classifier((2,), 1, solver=Solver("rk4", step_size=0.5))
        found = measure(Supervised(model, "mse"), classes.Pairs(torch.randn(7001, 2), torch.ones(7001, 1)))
        assert found["nfe"] == 8

    def test_unknown_losses_list_the_known(self):
        with pytest.raises(InputError, match="choose one of smooth-l1, mse, cross-entropy"):
            Supervised(torch.nn.Identity(), "hinge")


class TestData:
    def test_parts_are_apart(self):
        dataset = classes.load("spheres", seed=1)
        for one, other in ((dataset.train, dataset.test), (dataset.validation, dataset.test)):
            assert not set(map(tuple, one.x.tolist())) & set(map(tuple, other.x.tolist()))

    @pytest.mark.parametrize(("name", "shape", "outputs"), [("wine", 13, 3), ("breast-cancer", 30, 2)])
    def test_the_sets_of_scikit_learn(self, name, shape, outputs):
        dataset = classes.load(name)
        assert (dataset.shape, dataset.outputs, len(dataset.columns)) == ((shape,), outputs, shape)
        assert len(dataset.test.x) == (len(dataset.train.x) + len(dataset.validation.x) + len(dataset.test.x)) // 10

    def test_whole_numbers_are_classes_in_order(self, tmp_path):
        frame = pd.DataFrame({"x": np.arange(40.0), "y": [2.0, 10.0, 1.0, 2.0] * 10})
        frame.to_csv(tmp_path / "t.csv", index=False)
        pairs, columns, names = classes.read(tmp_path / "t.csv", "y")
        assert (columns, names) == (("x",), ("1", "2", "10"))
        assert pairs.y[:4].tolist() == [1, 2, 0, 1]

    def test_words_are_classes_as_they_are_written(self, tmp_path):
        rows = [f"{i},{word}" for i, word in enumerate(["01", "NA", " none", "1e3"] * 10)]
        (tmp_path / "t.csv").write_text("\n".join(["x,kind", *rows]) + "\n")
        assert set(classes.read(tmp_path / "t.csv", "kind")[2]) == {"01", "NA", "none", "1e3"}
        (tmp_path / "part.csv").write_text("x,kind\n1,01\n2,01\n")
        assert classes.read(tmp_path / "part.csv", "kind", ("01", "NA"))[0].y.tolist() == [0, 0]
        (tmp_path / "bare.csv").write_text("\n".join(f"{i}.5,{'ab'[i % 2]}" for i in range(40)) + "\n")
        assert classes.read(tmp_path / "bare.csv", "x1")[2] == ("a", "b")

    def test_infinite_labels_are_words_too(self, tmp_path):
        np.save(tmp_path / "t.npy", np.stack([np.random.randn(40), [1e300, np.inf] * 20], 1))
        names = classes.read(tmp_path / "t.npy", "x1")[2]
        assert names == ("1e+300", "inf")

    def test_numbers_are_classes_however_they_are_written(self, tmp_path):
        labels = np.arange(40.0) % 2
        np.savetxt(tmp_path / "t.csv", np.stack([np.random.randn(40), labels], 1), delimiter=",")
        np.save(tmp_path / "t.npy", np.stack([np.random.randn(40), labels], 1))
        assert classes.read(tmp_path / "t.csv", "x1")[2] == classes.read(tmp_path / "t.npy", "x1")[2] == ("0", "1")
        labels[7] = np.nan
        np.savetxt(tmp_path / "gap.csv", np.stack([np.random.randn(40), labels], 1), delimiter=",")
        with pytest.raises(InputError, match="x1 is missing in data row 8"):
            classes.read(tmp_path / "gap.csv", "x1")

    def test_the_target_behind_an_index_without_a_name(self, tmp_path):
        rows = [f"{i * 3 + 7}\t{i}\t{'ab'[i % 2]}" for i in range(40)]
        (tmp_path / "t.csv").write_text("\n".join(["\tx\tlabel", *rows]) + "\n")
        assert classes.read(tmp_path / "t.csv", "label")[2] == ("a", "b")

    def test_constant_columns_are_not_far_from_zero(self, tmp_path):
        frame = pd.DataFrame({"x": np.arange(40), "one": 1.0, "kind": ["a", "b"] * 20})
        frame.to_csv(tmp_path / "t.csv", index=False)
        assert classes.load(str(tmp_path / "t.csv"), target="kind").notes == ()

    def test_columns_far_from_zero_are_noted(self, tmp_path):
        frame = pd.DataFrame({"x": 1.7e9 + np.arange(40), "kind": ["a", "b"] * 20})
        frame.to_csv(tmp_path / "t.csv", index=False)
        assert "far from zero" in classes.load(str(tmp_path / "t.csv"), target="kind").notes[0]

    def test_two_points_are_no_test(self):
        assert "the same two points" in classes.load("g1d").notes[0]

    def test_columns_without_names(self, tmp_path):
        np.save(tmp_path / "t.npy", np.stack([np.random.randn(40), np.arange(40) % 2], 1))
        assert classes.read(tmp_path / "t.npy", "x1")[2] == ("0", "1")

    def test_a_class_without_training_samples_is_noted(self, tmp_path):
        kinds = ["a", "b"] * 20
        for i in range(40):
            rare = kinds.copy()
            rare[i] = "c"
            pd.DataFrame({"x": np.arange(40.0), "kind": rare}).to_csv(tmp_path / "t.csv", index=False)
            dataset = classes.load(str(tmp_path / "t.csv"), target="kind")
            assert bool(dataset.notes) == (2 not in dataset.train.y)


class TestRefuses:
    def refuse(self, run, tmp_path, args, names):
        before = sorted(tmp_path.rglob("*"))
        status, _, err = run(*args)
        assert status == 2, (args, err)
        assert len(err.splitlines()) == 1
        for name in names:
            assert name in err
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize(
        ("args", "names"),
        [
            ([], ["no data set"]),
            (["sphere"], ["sphere", "spheres", "wine"]),
            (["spheres", "--target", "x"], ["--target x", "drop it"]),
            (["no.csv", "--target", "x"], ["no.csv", "does not exist"]),
            (["flowers.csv"], ["flowers.csv", "--target COLUMN"]),
            (["flowers.csv", "--target", "colour"], ["colour", "width, kind, height"]),
            (["flowers.csv", "--target", "width"], ["width", "400 distinct values", "no classes"]),
            (["flowers.csv", "--target", "kind", "--extra", "-1"], ["extra=-1"]),
            (["flowers.csv", "--target", "kind", "--model", "mlp", "--extra", "3"], ["mlp"]),
            (["flowers.csv", "--target", "kind", "--model", "second-order", "--extra", "3"], ["extra=3", "must be 2"]),
            (["text.csv", "--target", "kind"], ["word", "text"]),
            (["one.csv", "--target", "kind"], ["one class only"]),
            (["gap.csv", "--target", "kind"], ["missing in data row 2"]),
            (["header.csv", "--target", "kind"], ["header.csv has 0 rows"]),
            (["twice.csv", "--target", "kind"], ["more than one column kind"]),
            (["only.csv", "--target", "kind"], ["0 other columns"]),
            (["huge.csv", "--target", "kind"], ["x is too large for single precision"]),
            (["missing.csv"], ["missing.csv does not exist"]),
            (["split.npz", "--target", "x0"], ["a table is one array"]),
            (["spheres-10000"], ["spheres-10000"]),
            (["spheres", "--seed", "100000000000000"], ["--seed 100000000000000"]),
            (["spheres", "--epochs", "0"], ["--epochs 0"]),
            (["spheres", "--lr", "0"], ["--lr 0"]),
            (["spheres", "--batch-size", "0"], ["--batch-size 0"]),
            (["spheres", "--rtol", "-1"], ["rtol=-1"]),
            (["spheres", "--solver", "rk5"], ["rk5"]),
            (["spheres", "--seed", "-1"], ["--seed -1"]),
            (["spheres", "--device", "warp"], ["warp"]),
            (["--resume", "nothing"], ["nothing"]),
        ],
        ids=lambda part: " ".join(part) if part and part[0].startswith("-") else "",
    )
    @pytest.mark.usefixtures("flowers")
    def test_bad_input(self, run, tmp_path, args, names):
        kinds = np.array(["a", "b"] * 20, dtype=object)
        pd.DataFrame({"word": ["x"] * 40, "kind": kinds}).to_csv(tmp_path / "text.csv", index=False)
        pd.DataFrame({"x": np.arange(40.0), "kind": "a"}).to_csv(tmp_path / "one.csv", index=False)
        pd.DataFrame({"kind": kinds}).to_csv(tmp_path / "only.csv", index=False)
        pd.DataFrame({"x": [1e39, 0] * 20, "kind": kinds}).to_csv(tmp_path / "huge.csv", index=False)
        (tmp_path / "header.csv").write_text("x,kind\n")
        (tmp_path / "twice.csv").write_text("x,kind,kind\n" + "1,a,b\n2,b,a\n" * 20)
        part = np.random.randn(40, 2)
        np.savez(tmp_path / "split.npz", train=part, validation=part, test=part)
        kinds[1] = None
        pd.DataFrame({"x": np.arange(40.0), "kind": kinds}).to_csv(tmp_path / "gap.csv", index=False)
        self.refuse(run, tmp_path, ["classify", *args], names)

    def test_after_training(self, run, tmp_path, flowers):
        assert run("classify", "flowers.csv", "--target", "kind", *TINY)[0] == 0
        assert run("classify", "spheres", *TINY)[0] == 0
        table = pd.read_csv(flowers)
        table.drop(columns="kind").to_csv(tmp_path / "bare.csv", index=False)
        table.drop(columns="width").to_csv(tmp_path / "narrow.csv", index=False)
        table.replace("oak", "elm").to_csv(tmp_path / "elms.csv", index=False)
        for args, names in (
            (["classify", "spheres"], ["runs/spheres exists", "--resume"]),
            (["classify", "--resume", "runs/spheres", "--epochs", "9"], ["--resume"]),
            (["density", "--resume", "runs/spheres"], ["holds a classifier model, not a density"]),
            (["sample", "runs/spheres"], ["holds a classifier model, not a density"]),
            (["evaluate", "runs/flowers", "bare.csv"], ["kind", "no column"]),
            (["evaluate", "runs/flowers", "narrow.csv"], ["1 columns", "2 (width, height)"]),
            (["evaluate", "runs/flowers", "elms.csv"], ["'elm'", "lily, oak, rose"]),
            (["evaluate", "runs/flowers", "wine"], ["trained on flowers.csv", "wine"]),
            (["evaluate", "runs/spheres", "flowers.csv"], ["trained on spheres"]),
            (["evaluate", "runs/spheres", "--divergence", "exact"], ["--divergence exact", "densities"]),
            (["evaluate", "runs/spheres", "--samples", "3"], ["--samples 3", "densities"]),
        ):
            self.refuse(run, tmp_path, args, names)
        table.iloc[:-1].to_csv(flowers, index=False)
        self.refuse(run, tmp_path, ["evaluate", "runs/flowers"], ["flowers.csv has changed"])
        self.refuse(run, tmp_path, ["classify", "--resume", "runs/flowers"], ["flowers.csv has changed"])

    def test_a_diverging_run_says_so(self, run):
        status, _, err = run("classify", "spheres", *TINY, "--rtol", 1e-9, "--atol", 1e-9, "--max-steps", 2)
        assert status == 1
        assert "too many steps" in err
        assert len(err.splitlines()) == 1


def test_settings_of_a_recipe_yield_to_what_is_typed():
    def parse(*args):
        return command_line.parse(
            classify.Settings(),
            list(args),
            "classify",
            "classifier",
            lambda s: recipes.classify(s.data.source),
            classes.known,
        )

    assert parse("digits").network.filters == recipes.CLASSIFY["digits"]["filters"]
    assert parse("digits", "--filters", "7").network.filters == 7
    assert parse("spheres").network == classify.Network()
