"""Data sets by name, their limits and descriptions, and other data in the order of a model."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refused

from train_flows.data import Dataset, Split, class_contexts, is_images, load_density_data, load_labelled_data
from train_flows.data.dataset import abbreviate, three_splits


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("mons", {}, r"data='mons' is unknown; choose one of .*moons.*digits.*power"),
        ("moons", {"jitter": False}, "--no-jitter is for tables from files, not for moons: leave it out"),
        ("moons", {"missing": "drop"}, "missing drop is for tables from files, not for moons"),
        ("digits", {"jitter": False}, "--no-jitter is for tables from files"),
        ("power", {"given": ["x0"]}, "--given .* is for tables from files, not for power"),
        ("moons", {"image_size": 8}, "--image-size 8 is for images, not for moons: leave it out"),
        ("t.csv", {"conditional": True}, "--conditional is for images and points by name, not for t.csv"),
        ("moons", {"download": True}, "--download is for images"),
        ("moons", {"train_size": 50_001}, "--train-size 50001 must be from 1 to 50000"),
        ("moons", {"test_size": 0}, "--test-size 0 must be from 1 to 10000"),
    ],
)
def test_unfit_options_of_densities(source, options, message):
    refused(message, load_density_data, source, **options)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("wein", {}, "data='wein' is unknown; choose one of g1d, .*spheres-3.*mnist.*wine"),
        ("moons", {}, "data='moons' is unknown"),
        ("spheres", {"target": "y"}, "--target y is for tables from files, not for spheres"),
        ("digits", {"target": "y"}, "--target y is for tables from files, not for digits"),
        ("wine", {"image_size": 8}, "--image-size 8 is for images"),
        ("t.csv", {"target": "y"}, "t.csv does not exist"),
    ],
)
def test_unfit_options_of_labelled_data(source, options, message):
    refused(message, load_labelled_data, source, **options)


def test_names_come_before_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("moons", "pets"):
        (tmp_path / name).mkdir()
    assert [is_images(name) for name in ("moons", "pets", "digits", "t.csv")] == [False, True, True, False]
    assert load_density_data("moons", test_size=5).shape == (2,)


@pytest.mark.parametrize("source", ["moons", "digits", "wine"])
def test_limits_draw_by_the_seed(source):
    load = load_labelled_data if source == "wine" else load_density_data
    whole, data, again, other = (
        load(source, seed=seed, train_size=size, test_size=size and 5)
        for seed, size in ((1, None), (1, 30), (1, 30), (2, 30))
    )
    assert [len(part) for part in (data.train, data.validation, data.test)] == [30, 3, 5]
    assert data.digest() == again.digest() != other.digest()
    total = f"{len(whole.train) + len(whole.validation):,}"
    assert data.notes[:2] == (f"30 of {total} training samples", f"5 of {len(whole.test):,} test samples")
    for part in ("train", "validation", "test"):
        rows, all_rows = ({tuple(row) for row in getattr(each, part).x.flatten(1).tolist()} for each in (data, whole))
        assert rows < all_rows
    unlimited = load(source, seed=1, train_size=len(whole.train), test_size=len(whole.test))
    assert (unlimited.digest(), unlimited.notes) == (whole.digest(), whole.notes)


def test_classes_without_training_samples_are_noted():
    data = load_labelled_data("digits", train_size=8)
    missing = sorted(set(map(str, range(10))) - set(map(str, data.train.y.tolist())))
    assert f"no training sample of class {abbreviate(missing)}" in data.notes


class TestSplitByClass:
    @pytest.mark.parametrize("counts", [(150, 40, 10), (500, 500), (3, 4, 193), (1, 2, 3, 94), (4,) * 5, (1,) * 30])
    def test_every_part_has_every_class(self, counts):
        """In proportion, as far as the parts reach; one sample of a class trains, another validates, a third tests."""
        y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))[torch.randperm(sum(counts))]
        x = torch.arange(len(y))[:, None]
        parts = three_splits(Split(x, y), seed=3)
        tenth = len(y) // 10
        assert [len(part) for part in parts] == [len(y) - 2 * tenth, tenth, tenth]
        assert sorted(torch.cat([part.x for part in parts]).flatten().tolist()) == x.flatten().tolist()
        for part, fewest in zip(parts, (1, 2, 3), strict=True):
            found = torch.bincount(part.y, minlength=len(counts)).tolist()
            for n, count in zip(counts, found, strict=True):
                if len(counts) <= tenth:
                    assert (count >= 1) == (n >= fewest)
                    assert abs(count - n * len(part) / len(y)) <= 3

    def test_training_samples_are_in_random_order(self):
        y = torch.arange(1000) // 500
        train, validation, _ = three_splits(Split(torch.arange(1000)[:, None], y), seed=0)
        assert 30 < train.y[:80].sum() < 50
        assert train.x[:, 0].diff().sign().mean(dtype=torch.float32).abs() < 0.1
        assert not torch.equal(validation.y, three_splits(Split(train.x, train.y), seed=1)[1].y)
        many = Split(train.x, torch.arange(len(train)) % 10)
        first = [len(set(three_splits(many, seed)[0].y[:10].tolist())) for seed in range(40)]
        assert np.mean(first) == pytest.approx(10 * (1 - 0.9**10), abs=0.6)  # classes among ten rows, four errors

    def test_classes_of_too_few_rows_are_noted(self, tmp_path):
        rng = np.random.default_rng(0)
        kinds = ["common"] * 195 + ["three"] * 3 + ["two"] * 2
        pd.DataFrame({"x": rng.normal(size=200), "kind": kinds}).to_csv(tmp_path / "t.csv", index=False)
        data = load_labelled_data(str(tmp_path / "t.csv"), target="kind")
        assert data.notes == ("no test sample of class two",)


def test_batches_come_with_contexts_or_labels():
    x, y = torch.arange(6.0).view(3, 2), torch.tensor([0, 2, 1])
    c, rows = class_contexts(y, 3), torch.tensor([2, 0])
    assert torch.equal(c, torch.eye(3)[y])
    assert torch.equal(Split(x).batch(rows), x[rows])
    for split, given in ((Split(x, y), y), (Split(x, y, c), c)):
        batch = split.batch(rows)
        assert torch.equal(batch[0], x[rows])
        assert torch.equal(batch[1], given[rows])
        assert torch.equal(split.head(2).x, x[:2])
        assert len(split.head()) == 3


class TestMatch:
    """Other data for a stored model."""

    def described(self, data):
        return json.loads(json.dumps(data.describe()))

    def table(self, path, columns, n=30):
        x = np.random.default_rng(len(columns)).normal(size=(n, len(columns)))
        frame = pd.DataFrame(x, columns=columns)
        if "kind" in columns:
            frame["kind"] = np.resize(["a", "b", "c"], n)
        frame.to_csv(path, index=False)
        return str(path)

    def test_columns(self, tmp_path):
        trained = self.described(load_density_data(self.table(tmp_path / "t.csv", ["b", "a", "c"])))
        assert trained["columns"] == ["b", "a", "c"]
        other = load_density_data(self.table(tmp_path / "o.csv", ["a", "c", "b"]), split=False)
        found = other.match(trained, "runs/t")
        assert torch.equal(found.test.x, other.test.x[:, [2, 0, 1]])
        assert found.columns == ("b", "a", "c")

    def test_columns_without_names_stand_as_they_are(self, tmp_path):
        named = load_density_data(self.table(tmp_path / "t.csv", ["x2", "x1", "x0"]))
        x = load_density_data(self.table(tmp_path / "o.csv", ["x0", "x1", "x2"]), split=False).test.x
        np.save(tmp_path / "o.npy", x.numpy())
        unnamed = load_density_data(str(tmp_path / "o.npy"), split=False)
        for trained, file, order in (
            (named, "o.csv", [2, 1, 0]),
            (named, "o.npy", [0, 1, 2]),
            (unnamed, "o.csv", [0, 1, 2]),
            (unnamed, "o.npy", [0, 1, 2]),
        ):
            found = load_density_data(str(tmp_path / file), split=False).match(self.described(trained), "runs/t")
            assert torch.equal(found.test.x, x[:, order])
            assert found.columns == trained.columns
        assert [self.described(data)["named"] for data in (named, unnamed)] == [True, False]

    def test_columns_of_classes_match_by_name(self, tmp_path):
        trained = self.described(
            load_labelled_data(self.table(tmp_path / "t.csv", ["x1", "kind", "x0"]), target="kind")
        )
        other = load_labelled_data(self.table(tmp_path / "o.csv", ["x0", "x1", "kind"]), target="kind", split=False)
        assert torch.equal(other.match(trained, "runs/t").test.x, other.test.x[:, [1, 0]])

    def test_pixels_in_columns_match_by_name(self, tmp_path):
        digits = load_density_data("digits", test_size=30)
        trained, pixels = self.described(digits), digits.test.x.flatten(1).numpy()
        reversed_names = pd.DataFrame(pixels, columns=digits.columns).iloc[:, ::-1]
        other_names = pd.DataFrame(pixels).add_prefix("p")
        for frame in (reversed_names, reversed_names.assign(log_prob=0.5), other_names):
            frame.to_csv(tmp_path / "o.csv", index=False)
            found = load_density_data(str(tmp_path / "o.csv"), split=False, model={}).match(trained, "runs/digits")
            assert torch.equal(found.test.x, digits.test.x.float())
            assert found.levels == 17

    def test_columns_to_spare(self, tmp_path):
        trained = self.described(load_density_data(self.table(tmp_path / "t.csv", ["b", "a"])))
        other = load_density_data(self.table(tmp_path / "o.csv", ["a", "b", "log_prob"]), split=False)
        found = other.match(trained, "runs/t")
        assert torch.equal(found.test.x, other.test.x[:, [1, 0]])
        assert found.notes == ("log_prob: left out, for runs/t was trained without",)

    def test_grids_and_heavy_tails_are_those_of_columns_of_the_model(self, tmp_path):
        rng = np.random.default_rng(0)
        x = np.stack([rng.integers(20, size=200), rng.normal(size=200).round(1), rng.standard_cauchy(200)], axis=1)
        trained = self.described(load_density_data(self.table(tmp_path / "t.csv", ["b", "c"])))
        pd.DataFrame(x, columns=["spare", "c", "b"]).to_csv(tmp_path / "o.csv", index=False)
        other = load_density_data(str(tmp_path / "o.csv"))
        assert (sorted(other.grids), other.heavy_tailed) == (["c", "spare"], ("b",))
        found = other.match(trained, "runs/t")
        assert (found.grids, found.heavy_tailed) == ({"c": other.grids["c"]}, ("b",))
        np.save(tmp_path / "o.npy", x[:, :0:-1])
        unnamed = load_density_data(str(tmp_path / "o.npy")).match(trained, "runs/t")
        assert (unnamed.columns, [*unnamed.grids], unnamed.heavy_tailed) == (("b", "c"), ["c"], ("b",))

    def test_other_columns(self, tmp_path):
        trained = self.described(load_density_data(self.table(tmp_path / "t.csv", ["b", "a", "c"])))
        for columns, message in (
            (["a", "b", "d"], "o.csv lacks the columns c of runs/t; it has a, b, d: rename them"),
            (["a", "b"], "o.csv lacks the columns c of runs/t; it has a, b: rename them"),
        ):
            other = load_density_data(self.table(tmp_path / "o.csv", columns), split=False)
            refused(message, other.match, trained, "runs/t")
        np.save(tmp_path / "o.npy", np.ones((30, 2)))
        other = load_density_data(str(tmp_path / "o.npy"), split=False)
        refused(r"o.npy has samples of shape 2.*runs/t was trained on 3.*\(b, a, c\)", other.match, trained, "runs/t")
        refused("o.npy has samples .* trained on 1x8x8", other.match, self.described(load_density_data("digits")), "r")

    def test_classes(self, tmp_path):
        trained = self.described(load_labelled_data(self.table(tmp_path / "t.csv", ["x", "kind", "z"]), target="kind"))
        path = self.table(tmp_path / "o.csv", ["z", "kind", "x"], n=4)
        frame = pd.read_csv(path).query("kind != 'a'")
        frame.to_csv(path, index=False)
        other = load_labelled_data(path, target="kind", split=False)
        found = other.match(trained, "runs/t")
        assert (other.classes, found.classes, found.columns) == (("b", "c"), ("a", "b", "c"), ("x", "z"))
        assert found.test.y.tolist() == [1, 2]
        np.testing.assert_allclose(found.test.x, frame[["x", "z"]], rtol=1e-6)
        frame.replace("c", "d").to_csv(path, index=False)
        other = load_labelled_data(path, target="kind", split=False)
        refused("o.csv holds the class d, runs/t knows a, b, c: rename", other.match, trained, "runs/t")

    def test_contexts_of_classes(self):
        def data(classes, y):
            parts = [Split(torch.zeros(len(y), 1, 2, 2, dtype=torch.uint8), torch.tensor(y))] * 3
            return Dataset("images", *parts, (), 256, classes, classes)

        trained = self.described(data(("cat", "dog", "eel"), [0, 1, 2]))
        found = data(("dog", "eel"), [1, 0, 1]).match(trained, "runs/pets")
        assert found.test.y.tolist() == [2, 1, 2]
        assert torch.equal(found.test.c, torch.eye(3)[[2, 1, 2]])
        refused("images lacks classes, which runs/pets needs", data((), [0]).match, trained, "runs/pets")
