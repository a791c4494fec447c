"""Comparing runs: what the table, the JSON and the picture say of them, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stored_runs import report_of, untrained

from anode import storage
from train_flows import report
from train_flows.run.folder import Run

CRITERIA = {"density": "nll", "classifier": "validation_loss"}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Write the folder of a run that was never trained, with records ten steps apart."""
    monkeypatch.chdir(tmp_path)

    def written(folder, *values, kind="density", source="moons", result=None, loss=lambda step: "loss", **settings):
        run = untrained(folder, source, kind, **settings)
        for i, value in enumerate(values):
            trained = {loss(10 * i): value + 0.5, "nfe_forward": 20 + i, "nfe_backward": 12 + i} if i else {}
            run.log({"step": 10 * i, **trained, CRITERIA[kind]: value, "seconds": 1.5 * i})
            run.save_state(10 * i, {})
        if result is not None:
            run.write_result(result)

    return written


def nll(value, kind="exact"):
    return {"nll": {"value": value, "standard_error": 0.0125, "kind": kind}}


def cells(out, name):
    """The first line that begins with a name, in cells."""
    (line, *_) = [line for line in out.splitlines() if line.split() and line.split()[0] == name]
    return line.split()


class TestTables:
    def test_figures_of_a_density(self, run, make):
        make("a", 3.0, 2.0, 2.5, result=nll(2.125, "bound"))
        status, out, _ = run("report", "a")
        assert status == 0
        found = ["a", "moons", "20", "2", "10", "3", "22.0", "14.0", "3", "2.1250", "+-", "0.0125", "(bound)"]
        assert cells(out, "a") == found
        assert "settings" not in out
        with Image.open("report.png") as picture:
            assert picture.width > 2 * picture.height

    def test_figures_of_classifiers(self, run, make):
        result = {"accuracy": 0.75, "standard_error": 0.01, "nfe": 20}
        make("node", 0.5, 0.25, kind="classifier", result=result, model={"extra": 0})
        make("anode", 0.5, 0.125, kind="classifier", model={"extra": 5})
        status, out, _ = run("report", "node", "anode", "--out", "figures/both.png")
        assert status == 0
        assert "best validation loss" in out
        assert cells(out, "node")[-3:] == ["0.7500", "+-", "0.0100"]
        assert cells(out, "anode")[3:5] == ["0.125", "10"]
        assert cells(out, "anode")[-1] == "-"
        assert Path("figures/both.png").exists()

    def test_a_run_without_records(self, run, make):
        make("begun")
        make("done", 3.0, 2.0, result=nll(2.0))
        assert cells(run("report", "begun", "done")[1], "begun") == ["begun", "moons", *["-"] * 8]
        (row,) = report_of(run, "report", "begun", "--overwrite")["runs"]
        assert {name for name, value in row.items() if value is None} == set(row) - {"run", "data", "settings"}

    def test_what_is_not_a_number(self, run, make):
        make("broken", math.nan, 2.0, math.inf, math.nan)
        make("lost", math.nan, math.nan)
        status, out, _ = run("report", "broken", "lost")
        assert status == 0
        assert cells(out, "broken")[2:6] == ["30", "2", "10", "nan"]
        assert cells(out, "lost")[2:6] == ["10", "-", "-", "nan"]
        _, out, _ = run("report", "broken", "lost", "--json", "--overwrite")
        found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["runs"]
        assert [row["loss"] for row in found] == [None, None]
        assert [row["best"] for row in found] == [{"value": 2.0, "step": 10}, None]

    def test_settings_are_those_that_differ(self, run, make):
        make("a", 1.0, model={"hidden": [64, 64]})
        make("b", 1.0, training={"lr": 0.02}, model={"hidden": [32]}, run={"out": "elsewhere", "device": "cpu"})
        make("c", 1.0, training={"lr": 0.02}, model={"hidden": [32]}, run={"seed": 3})
        settings = run("report", "a", "b", "c")[1].split("\n\n")[1]
        assert cells(settings, "settings") == ["settings", "lr", "hidden", "seed"]
        rows = [["a", "0.01", "64", "64", "0"], ["b", "0.02", "32", "0"], ["c", "0.02", "32", "3"]]
        assert [cells(settings, name) for name in "abc"] == rows

    def test_many_settings_stand_below_each_other(self, run, make):
        make("a", 1.0, data={"jitter": True}, model={"hidden": [128, 128]})
        make("b", 1.0, data={"jitter": False}, model={"hidden": [32]}, objective={"likelihood_steps": 7})
        settings = run("report", "a", "b")[1].split("\n\n")[1]
        assert [line.split() for line in settings.splitlines()] == [
            ["settings", "a", "b"],
            ["jitter", "yes", "no"],
            ["hidden", "128", "128", "32"],
            ["likelihood-steps", "-", "7"],
        ]

    def test_data_of_the_same_name_are_told_apart(self, make):
        for name, source in (("a", "/here/table.csv"), ("b", "/there/table.csv"), ("c", "/there/table.csv")):
            make(name, 1.0, source=source)
        found = report.read(["a", "b", "c"])
        assert [each.data for each in found] == ["/here/table.csv", "/there/table.csv", "/there/table.csv"]


class TestPictures:
    def lines(self, axes):
        """The lines that are drawn, without the marks at their ends."""
        return [line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 1]

    def test_three_panels_of_the_records(self, make):
        make("a", 3.0, 2.0, 2.5)
        make("b", 4.0, 3.0, 3.5)
        figure = report.draw(report.read(["a", "b"]))
        loss, cost, against = figure.axes
        colors = [line.get_color() for line in loss.lines if len(line.get_xydata()) > 1]
        assert colors[:2] == colors[2:]
        assert colors[0] != colors[1]
        np.testing.assert_array_equal(self.lines(loss)[0], [[0, 3], [10, 2], [20, 2.5]])
        np.testing.assert_array_equal(self.lines(loss)[2], [[10, 2.5], [20, 3]])
        assert [text.get_text() for text in loss.get_legend().get_texts()] == [
            "validation",
            "training, with any penalties",
        ]
        np.testing.assert_array_equal(self.lines(cost)[0], [[10, 21], [20, 22]])
        np.testing.assert_array_equal(self.lines(cost)[2], [[10, 13], [20, 14]])
        words = ["training step, forward", "training step, backward"]
        assert [text.get_text() for text in cost.get_legend().get_texts()] == words
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
        assert self.lines(against) == []  # these records lack evaluations of log_prob

    def test_evaluations_against_the_loss(self, make):
        make("a", 0.5, 0.25, math.nan, 0.125, kind="classifier")
        *_, against = report.draw(report.read(["a"])).axes
        np.testing.assert_array_equal(self.lines(against)[0], [[21, 0.25], [23, 0.125]])
        assert against.get_yscale() == "log"

    def test_no_evaluations_are_no_line(self, make):
        make("a", kind="classifier")
        for i in range(3):
            Run.open("a").log({"step": i, "validation_loss": 1.0, "nfe_forward": 20.0, "nfe_backward": 0.0})
        Run.open("a").save_state(2, {})
        _, cost, _ = report.draw(report.read(["a"])).axes
        assert [text.get_text() for text in cost.get_legend().get_texts()] == ["training step, forward"]

    def test_the_loss_of_flow_matching_has_a_panel_of_its_own(self, make):
        make("a", 3.0, 2.0, 2.5, loss=lambda step: "loss" if step > 10 else "matching_loss")
        figure = report.draw(report.read(["a"]))
        loss, matching, *_ = figure.axes
        assert matching.get_ylabel() == "loss of flow matching"
        np.testing.assert_array_equal(matching.lines[0].get_xydata(), [[10, 2.5]])
        np.testing.assert_array_equal(loss.lines[2].get_xydata(), [[20, 3]])


class TestRefusals:
    def test_bad_input_is_one_line(self, run, make):
        make("a", 1.0)
        make("spheres", 1.0, kind="classifier")
        Path("empty").mkdir()
        Path("taken.png").write_bytes(b"mine")
        storage.write_config("model", "density", {})
        for args, words in (
            ([], ["no runs given"]),
            (["a", "nothing"], ["nothing is not the folder"]),
            (["a", "empty"], ["empty is not the folder", "config.json"]),
            (["a", "model"], ["model holds a model but not a run"]),
            (["a", "spheres"], ["spheres is a classifier, a a density", "one kind"]),
            (["a", "./a/"], ["given more than once"]),
            (["a", "--out", "taken.png"], ["taken.png exists", "--overwrite"]),
            (["a", "--out", "a"], ["--out a must end in .png"]),
        ):
            status, out, err = run("report", *args)
            assert (status, out, err.count("\n")) == (2, "", 1)
            assert all(word in err for word in words), err
        assert Path("taken.png").read_bytes() == b"mine"
        assert not Path("report.png").exists()

    def test_damaged_files_are_named(self, run, make):
        make("a", 1.0)
        Path("a/metrics.jsonl").write_bytes(b"7\n")
        assert "a/metrics.jsonl" in run("report", "a")[2]
        make("b", 1.0)
        for content in ("{", "[]", "{}", json.dumps(nll(2.0))):
            Path("b/result.json").write_text(content)
            assert "b/result.json" in run("report", "b")[2]
