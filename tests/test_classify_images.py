"""train-flows classify on images, from a folder or an archive to its evaluation."""

import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import anode
from anode import storage
from train_flows import recipes
from train_flows.checkpoint import Run
from train_flows.data import classes
from train_flows.supervised import Supervised

TINY = ["--epochs", "2", "--filters", "4", "--batch-size", "16", "--extra", "1"]


def draw(folder, n, seed, size=8):
    """Grey images of vertical and of horizontal bars."""
    rng = np.random.default_rng(seed)
    for kind in ("down", "across"):
        (folder / kind).mkdir(parents=True)
        for i in range(n):
            image = rng.integers(0, 60, (size, size)).astype(np.uint8)
            at = rng.integers(size)
            image[(slice(None), at) if kind == "down" else (at, slice(None))] = 255
            Image.fromarray(image).save(folder / kind / f"{i}.png")


@pytest.fixture
def bars(tmp_path):
    draw(tmp_path / "bars" / "train", 60, 0)
    draw(tmp_path / "bars" / "test", 20, 1)
    return tmp_path / "bars"


def test_from_a_folder_to_its_evaluation(run, tmp_path, bars):
    status, out, err = run("classify", "bars", "--epochs", 25, "--lr", 1e-2, "--filters", 16, *TINY[4:])
    assert (status, err) == (0, "")
    folder = tmp_path / "runs" / "bars"
    for name in ("features.png", "curves.png", "mistakes.png"):
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    for word in ("108 samples to train on, 12 to validate on, 40 to test on", "accuracy", "NFE"):
        assert word in out
    records = Run(folder).records()
    assert {"train_accuracy", "test_loss", "test_accuracy", "nfe_forward", "nfe_backward"} <= set(records[-1])

    model, dataset = anode.load(folder), classes.load(str(bars))
    assert model.config["levels"] == 256
    assert model.config["field"] == "conv"
    with torch.no_grad():
        right = (model(dataset.test.x).argmax(1) == dataset.test.y).double().mean()
    result = json.loads((folder / "result.json").read_text())
    assert result["accuracy"] == pytest.approx(float(right))
    assert result["accuracy"] > 0.8
    shown = dataset.train.x[:1000], dataset.train.y[:1000]
    with torch.no_grad():
        learnt = model(shown[0])
    assert result["train_accuracy"] == pytest.approx(float((learnt.argmax(1) == shown[1]).double().mean()))
    assert result["train_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(learnt, shown[1])), rel=1e-4)
    assert result["nfe_backward"] == records[-1]["nfe_backward"]
    assert f"loss {result['train_loss']:.4g}" in out

    report = json.loads(run("evaluate", "runs/bars", "--json")[1])
    assert report == {name: result[name] for name in report}
    draw(tmp_path / "others", 10, 2)
    (tmp_path / "others" / "down").rename(tmp_path / "others" / "x")
    (tmp_path / "others" / "across").rename(tmp_path / "others" / "down")
    (tmp_path / "others" / "x").rename(tmp_path / "others" / "across")  # all labels are wrong
    wrong = json.loads(run("evaluate", "runs/bars", "others", "--json")[1])
    assert wrong["samples"] == 20
    assert wrong["accuracy"] < 0.3


def test_an_archive_becomes_a_folder_to_train_on(run, tmp_path, bars):
    with tarfile.open(tmp_path / "bars.tar.xz", "w:xz") as archive:
        archive.add(bars, "packed")
    assert run("unpack", "bars.tar.xz")[0] == 0
    status, out, _ = run("classify", "data/packed", *TINY)
    assert status == 0
    assert "runs/packed" in out


def test_digits_are_images(run):
    status, out, _ = run("classify", "digits", *TINY, "--train-size", 64, "--test-size", 30)
    assert status == 0
    assert "64 of 1,618 training images" in out
    config = storage.read_config("runs/digits", "classifier")
    assert (config["model"]["shape"], config["model"]["levels"]) == ([1, 8, 8], 17)
    assert json.loads(run("evaluate", "runs/digits", "--json")[1])["samples"] == 30


def test_mnist_smaller(run, real_data):
    options = [*TINY, "--image-size", 7, "--train-size", 64, "--test-size", 30, "--data-root", real_data]
    status, out, _ = run("classify", "mnist", *options)
    assert status == 0
    assert "64 of 60,000 training images" in out
    assert run("evaluate", "runs/mnist")[0] == 0


@pytest.mark.parametrize("options", [["--model", "resnet"], ["--field", "norm-conv", "--readout", "pool"]])
def test_networks_to_compare_with(run, bars, options):
    assert run("classify", "bars", *TINY, *options)[0] == 0
    assert run("evaluate", "runs/bars")[0] == 0


@pytest.mark.parametrize(("model", "extra"), [("mlp", 0), ("second-order", 1)])
def test_recipes_say_nothing_of_networks_they_are_not_for(run, bars, model, extra):
    typed = ["--model", model, "--epochs", 1, "--hidden", 8, *(["--extra", extra] if extra else [])]
    assert run("classify", "bars", *typed)[0] == 0
    assert anode.load("runs/bars").config["model"] == model


def test_a_folder_does_not_hide_a_function_of_its_name(run, tmp_path):
    (tmp_path / "spheres").mkdir()
    assert run("classify", "spheres", "--epochs", 1, "--hidden", 4)[0] == 0


@pytest.mark.parametrize("options", [{}, {"lift": "learned"}, {"stem": "conv"}, {"stem": "conv", "field": "norm-conv"}])
def test_states_are_in_float32_while_layers_are_in_bfloat16(options, monkeypatch):
    seen = []
    real = anode.ODEBlock.forward
    monkeypatch.setattr(anode.ODEBlock, "forward", lambda self, x: seen.append(x.dtype) or real(self, x))
    model = anode.classifier((1, 12, 12), 2, **{"field": "conv", "filters": 4, "extra": 1, "levels": 256, **options})
    x, y = torch.randint(256, (6, 1, 12, 12), dtype=torch.uint8), torch.zeros(6, dtype=torch.long)
    loss = Supervised(model, "cross-entropy", "bfloat16")((x, y))
    loss.backward()
    assert seen == [torch.float32]
    assert loss.dtype == torch.float32


def test_bfloat16_changes_the_layers_of_training_alone(run, bars):
    for precision in ("float32", "bfloat16"):
        assert run("classify", "bars", *TINY, "--precision", precision, "--out", precision)[0] == 0
    assert all(value.dtype == torch.float32 for value in storage.read_weights("bfloat16").values())
    losses = [Run(name).records()[-1]["loss"] for name in ("float32", "bfloat16")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]
    model = anode.classifier((1, 8, 8), 2, field="conv", filters=4)
    x, y = torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.long)
    rounded, exact = (Supervised(model, "cross-entropy", precision)((x, y)) for precision in ("bfloat16", "float32"))
    assert rounded.dtype == torch.float32
    assert rounded != exact


def test_a_run_ends_where_its_evaluations_exceed_the_bound(run, bars):
    """It reports the best weights until then; three steps of 6 evaluations are too few once the field has grown."""
    options = [*TINY[2:], "--epochs", 40, "--lr", 0.3, "--max-steps", 3]
    status, out, err = run("classify", "bars", *options)
    assert (status, err) == (0, "")
    assert "training ended early: step " in out
    assert "too many steps" in out
    assert "accuracy" in out
    result = json.loads((bars.parent / "runs" / "bars" / "result.json").read_text())
    assert any("training ended early" in note for note in result["notes"])
    assert len(Run("runs/bars").records()) < 41


def test_recipes_of_images():
    assert recipes.classify("mnist")["extra"] == 5
    assert recipes.classify("cifar10")["extra"] == 10
    assert recipes.classify("mnist")["field"] == "conv"
    assert recipes.classify("table.csv") == recipes.KINDS["table"]
    assert recipes.classify("mnist", "mlp") == {
        name: value for name, value in recipes.IMAGES.items() if name not in ("field", "extra")
    }


class TestRefuses:
    @pytest.mark.parametrize(
        ("args", "names"),
        [
            (["mnist"], ["mnist needs train-images-idx3-ubyte.gz", "data/MNIST/raw", "--download"]),
            (["svhn", "--data-root", "there"], ["train_32x32.mat", "there"]),
            (["empty"], ["empty", "CLASS"]),
            (["nofolder/"], ["'nofolder/'", "pass one of these, or the path of a table or of a folder of images"]),
            (["flat"], ["flat", "CLASS"]),
            (["truncated"], ["truncated/a/3.png"]),
            (["text"], ["text/b/notes.txt"]),
            (["sizes"], ["8x8", "9x9", "--image-size"]),
            (["bars", "--target", "kind"], ["--target kind is for tables"]),
            (["bars", "--train-size", "1000"], ["--train-size 1000", "108"]),
            (["bars", "--image-size", "0"], ["--image-size 0"]),
            (["bars", "--download"], ["--download"]),
            (["spheres", "--train-size", "10"], ["--train-size 10 is for images"]),
            (["bars", "--weight-decay", "-1"], ["--weight-decay -1"]),
            (["bars", "--model", "mlp", "--field", "conv"], ["model='mlp' has no maps"]),
            (["bars", "--model", "second-order"], ["extra=0 must be 1"]),
            (["bars", "--stem", "conv"], ["(1, 8, 8) is too small for a stem"]),
            (
                ["bars", "--precision", "bfloat16", "--gradient", "adjoint"],
                ["--precision bfloat16", "--gradient direct"],
            ),
        ],
        ids=lambda part: " ".join(part),
    )
    def test_bad_input(self, run, tmp_path, bars, args, names):
        (tmp_path / "empty").mkdir()
        for name in ("flat", "truncated", "text", "sizes"):
            draw(tmp_path / name, 20, 3)
            for old, new in (("across", "a"), ("down", "b")):
                (tmp_path / name / old).rename(tmp_path / name / new)
        for path in list((tmp_path / "flat").glob("*/*.png")):
            path.rename(tmp_path / "flat" / f"{path.parent.name}{path.name}")
        for kind in "ab":
            (tmp_path / "flat" / kind).rmdir()
        cut = tmp_path / "truncated" / "a" / "3.png"
        cut.write_bytes(cut.read_bytes()[:60])
        (tmp_path / "text" / "b" / "notes.txt").write_text("not an image")
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "sizes" / "b" / "5.png")
        status, _, err = run("classify", *args)
        assert status == 2, err
        assert len(err.splitlines()) == 1
        assert all(name in err for name in names), err
        assert not (tmp_path / "runs").exists()

    def test_evaluating_other_images(self, run, tmp_path, bars):
        assert run("classify", "bars", *TINY)[0] == 0
        draw(tmp_path / "large", 20, 1, size=9)
        draw(tmp_path / "other", 20, 1)
        (tmp_path / "other" / "down").rename(tmp_path / "other" / "up")
        for source, names in (
            ("large", ["1x9x9", "1x8x8"]),
            ("other", ["class up", "across, down"]),
            ("mnist", ["trained on bars", "mnist"]),
            ("nowhere", ["nowhere"]),
        ):
            status, _, err = run("evaluate", "runs/bars", source)
            assert status == 2
            assert len(err.splitlines()) == 1
            assert all(name in err for name in names), err
