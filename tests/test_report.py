"""Comparing runs: what the table, the JSON and the picture say of them, and what is refused."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anode import storage
from train_flows import classify, comparison, curves, density, report
from train_flows.checkpoint import Run
from train_flows.command_line import cooked

TINY = ["--steps", "4", "--validate-every", "2", "--hidden", "8", "--batch-size", "64"]
PROGRAMS = {"density": (density, "moons", "nll"), "classifier": (classify, "spheres", "validation_loss")}


def records(kind, *values, start=0):
    """Records with the values of validation, ten steps apart; the first has no training before it."""
    criterion = PROGRAMS[kind][2]
    for i, value in enumerate(values, start):
        taken = {"loss": value + 0.5, "nfe_forward": 20 + i, "nfe_backward": 12 + i} if i else {}
        yield {"step": 10 * i, **taken, criterion: value, "seconds": 1.5 * i}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Write the folder of a run that was never trained."""
    monkeypatch.chdir(tmp_path)

    def written(folder, *values, kind="density", result=None, **settings):
        program, source, _ = PROGRAMS[kind]
        sections = cooked(program.Settings(), {"source": source, **settings})
        stored = {"model": {}, "settings": dataclasses.asdict(sections), "data": {"name": source, "sha256": "0"}}
        storage.write_config(folder, kind, stored)
        for record in records(kind, *values):
            Run(folder).log(record)
        if result is not None:
            Path(folder, "result.json").write_text(json.dumps(result))
        return folder

    return written


def nll(value, kind="exact"):
    return {"nll": {"value": value, "standard_error": 0.0125, "kind": kind}}


def cells(out, name):
    """The first line that begins with a name, in cells."""
    (line, *_) = [line for line in out.splitlines() if line.split() and line.split()[0] == name]
    return line.split()


def test_runs_that_were_trained(run):
    assert run("density", "moons", *TINY)[0] == 0
    assert run("density", "moons", *TINY, "--lr", "3e-3", "--out", "runs/slow")[0] == 0
    status, out, err = run("report", "runs/moons", "runs/slow", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["kind"], found["criterion"]) == ("density", "nll")
    for row, folder, lr in zip(found["runs"], ("runs/moons", "runs/slow"), (1e-2, 3e-3), strict=True):
        kept, result = Run(folder).records(), json.loads(Path(folder, "result.json").read_text())
        best = min(kept, key=lambda record: record["nll"])
        assert (row["run"], row["data"], row["settings"]) == (folder, "moons", {"lr": lr})
        assert row["best"] == {"value": best["nll"], "step": best["step"]}
        assert {name: row[name] for name in ("step", "loss", "nfe_forward", "nfe_backward", "seconds")} == {
            name: kept[-1][name] for name in ("step", "loss", "nfe_forward", "nfe_backward", "seconds")
        }
        assert row["test"] == {name: result["nll"][name] for name in ("value", "standard_error", "kind")}
    with Image.open("report.png") as picture:
        assert picture.width > 2 * picture.height
    status, out, _ = run("report", "runs/moons", "runs/slow", "--out", "figures/both.png")
    assert status == 0
    assert "figures/both.png" in out
    assert Path("figures/both.png").exists()


class TestTables:
    def test_figures_of_a_density(self, run, make):
        make("a", 3.0, 2.0, 2.5, result=nll(2.125, "bound"))
        status, out, _ = run("report", "a")
        assert status == 0
        found = ["a", "moons", "20", "2", "10", "3", "22.0", "14.0", "3", "2.1250", "+-", "0.0125", "(bound)"]
        assert cells(out, "a") == found
        assert "settings" not in out

    def test_figures_of_classifiers(self, run, make):
        result = {"accuracy": 0.75, "standard_error": 0.01, "nfe": 20}
        make("node", 0.5, 0.25, kind="classifier", result=result, extra=0)
        make("anode", 0.5, 0.125, kind="classifier", extra=5)
        status, out, _ = run("report", "node", "anode")
        assert status == 0
        assert "best validation loss" in out
        assert cells(out, "node")[-3:] == ["0.7500", "+-", "0.0100"]
        assert cells(out, "anode")[3:5] == ["0.125", "10"]
        assert cells(out, "anode")[-1] == "-"

    def test_a_run_without_records(self, run, make):
        make("begun")
        make("done", 3.0, 2.0, result=nll(2.0))
        status, out, _ = run("report", "begun", "done")
        assert status == 0
        assert cells(out, "begun") == ["begun", "moons", *["-"] * 8]
        status, out, _ = run("report", "begun", "--json", "--overwrite")
        (row,) = json.loads(out)["runs"]
        assert status == 0
        assert {name for name, value in row.items() if value is None} == set(row) - {"run", "data", "settings"}

    def test_what_is_not_a_number(self, run, make):
        make("broken", math.nan, 2.0, math.inf, math.nan)
        make("lost", math.nan, math.nan)
        status, out, _ = run("report", "broken", "lost")
        assert status == 0
        assert cells(out, "broken")[2:6] == ["30", "2", "10", "nan"]
        assert cells(out, "lost")[2:6] == ["10", "-", "-", "nan"]
        _, out, _ = run("report", "broken", "lost", "--json", "--overwrite")
        found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["runs"]
        assert [row["loss"] for row in found] == [None, None]
        assert [row["best"] for row in found] == [{"value": 2.0, "step": 10}, None]

    def test_settings_are_those_that_differ(self, run, make):
        make("a", 1.0, lr=0.01, hidden=(64, 64))
        make("b", 1.0, lr=0.02, hidden=(32,), out="elsewhere", device="cpu", overwrite=True)
        make("c", 1.0, lr=0.02, hidden=(32,), seed=3)
        status, out, _ = run("report", "a", "b", "c")
        assert status == 0
        settings = out.split("\n\n")[1]
        assert cells(settings, "settings") == ["settings", "hidden", "lr", "seed"]
        assert [cells(settings, name) for name in "abc"] == [
            ["a", "64", "64", "0.01", "0"],
            ["b", "32", "0.02", "0"],
            ["c", "32", "0.02", "3"],
        ]

    def test_many_settings_stand_below_each_other(self, run, make):
        make("a", 1.0, jitter=True)
        make("b", 1.0, hidden=(32,), likelihood_steps=7, lr=0.02)
        settings = run("report", "a", "b")[1].split("\n\n")[1]
        assert [line.split() for line in settings.splitlines()] == [
            ["settings", "a", "b"],
            ["jitter", "yes", "no"],
            ["hidden", "128", "128", "32"],
            ["likelihood-steps", "-", "7"],
            ["lr", "0.01", "0.02"],
        ]

    def test_a_setting_that_one_lacks_has_its_default(self, make):
        make("new", 1.0)
        make("old", 1.0)
        config = json.loads(Path("old/config.json").read_text())
        del config["settings"]["training"]["ema"]
        storage.write_config(
            "old", "density", {k: v for k, v in config.items() if k not in ("schema", "kind", "sha256")}
        )
        assert comparison.differing(comparison.read(["new", "old"])) == []

    def test_data_of_the_same_name_are_told_apart(self, make):
        make("a", 1.0, source="/here/table.csv")
        make("b", 1.0, source="/there/table.csv")
        make("c", 1.0, source="/there/table.csv")
        found = comparison.read(["a", "b", "c"])
        assert [each.data for each in found] == ["here/table.csv", "there/table.csv", "there/table.csv"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/moons"], ["moons"]),
        (["x/moons", "x/rings"], ["moons", "rings"]),
        (["x/moons", "y/moons", "y/rings"], ["x/moons", "y/moons", "rings"]),
        (["/moons", "/a/moons", "/b/a/moons"], ["/moons", "/a/moons", "b/a/moons"]),
    ],
)
def test_names_are_as_short_as_they_can_be(paths, names):
    assert list(comparison.short_names(map(Path, paths)).values()) == names


class TestPictures:
    def lines(self, axes):
        """The lines that are drawn, without the marks at their ends."""
        return [line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 1]

    def test_three_panels_of_the_records(self, make):
        make("a", 3.0, 2.0, 2.5)
        make("b", 4.0, 3.0, 3.5)
        figure = report.draw(comparison.read(["a", "b"]))
        loss, cost, against = figure.axes
        colors = [line.get_color() for line in loss.lines if len(line.get_xydata()) > 1]
        assert colors[:2] == colors[2:]
        assert colors[0] != colors[1]
        np.testing.assert_array_equal(self.lines(loss)[0], [[0, 3], [10, 2], [20, 2.5]])
        np.testing.assert_array_equal(self.lines(loss)[2], [[10, 2.5], [20, 3]])
        assert [text.get_text() for text in loss.get_legend().get_texts()] == ["validation NLL", "training loss"]
        np.testing.assert_array_equal(self.lines(cost)[0], [[10, 21], [20, 22]])
        np.testing.assert_array_equal(self.lines(cost)[2], [[10, 13], [20, 14]])
        assert [text.get_text() for text in cost.get_legend().get_texts()] == ["forward", "backward"]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
        assert self.lines(against) == []  # these records tell no evaluations of log_prob

    def test_evaluations_against_the_loss(self, make):
        make("a", 0.5, 0.25, math.nan, 0.125, kind="classifier")
        *_, against = report.draw(comparison.read(["a"])).axes
        np.testing.assert_array_equal(self.lines(against)[0], [[21, 0.25], [23, 0.125]])
        assert against.get_yscale() == "log"

    def test_no_evaluations_are_no_line(self, make):
        make("a", kind="classifier")
        for record in records("classifier", 0.5, 0.25, 0.125):
            Run("a").log(record | {"nfe_backward": 0.0})
        _, cost, _ = report.draw(comparison.read(["a"])).axes
        assert [text.get_text() for text in cost.get_legend().get_texts()] == ["forward"]

    def test_every_run_has_a_colour_of_its_own(self):
        steps = np.arange(3.0)
        for count in (1, 10, 11, 40):
            runs = {f"run {i}": {"step": steps, "loss": steps + i, "nfe": steps} for i in range(count)}
            panels = {"loss": {"loss": "loss"}, "nfe": {"nfe": "forward"}}
            figure = curves.of_runs(runs, panels, ("nfe", "loss"))
            colors = {line.get_color() for line in figure.axes[0].lines if len(line.get_xydata()) > 1}
            assert len(colors) == count


class TestRefusals:
    def test_bad_input_is_one_line(self, run, make):
        make("a", 1.0)
        make("spheres", 1.0, kind="classifier")
        Path("empty").mkdir()
        Path("taken.png").write_bytes(b"mine")
        storage.write_config("model", "density", {"model": {}})
        for args, words in (
            ([], ["no runs given"]),
            (["a", "nothing"], ["nothing is not the folder"]),
            (["a", "empty"], ["empty is not the folder", "config.json"]),
            (["a", "model"], ["model holds a model but no run"]),
            (["a", "spheres"], ["spheres is a classifier, a a density", "one kind"]),
            (["a", "./a/"], ["given more than once"]),
            (["a", "--out", "taken.png"], ["taken.png exists", "--overwrite"]),
            (["a", "--out", "a"], ["--out a must end in .png"]),
        ):
            status, out, err = run("report", *args)
            assert (status, out) == (2, "")
            assert err.count("\n") == 1
            assert all(word in err for word in words), err
        assert Path("taken.png").read_bytes() == b"mine"
        assert not Path("report.png").exists()

    def test_damaged_files_are_named(self, run, make):
        for content in (b"7\n", b'{"nll": 2}\n', b'{"step": "ten"}\n', b"\xff\xfe\n"):
            make("a")
            Path("a/metrics.jsonl").write_bytes(content)
            status, _, err = run("report", "a")
            assert status == 2
            assert "a/metrics.jsonl" in err
        for content in ("{", "[]", "{}", '{"nll": 3}', json.dumps(nll("low"))):
            make("b", 1.0)
            Path("b/result.json").write_text(content)
            status, _, err = run("report", "b")
            assert status == 2
            assert "b/result.json" in err

    def test_a_last_record_cut_short_is_left_out(self, make):
        make("a", 3.0, 2.0)
        with Path("a/metrics.jsonl").open("a") as file:
            file.write('{"step": 20, "nl')
        (found,) = comparison.read(["a"])
        assert found.figures()["step"] == 10
