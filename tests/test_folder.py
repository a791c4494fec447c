"""Run folders: what is stored returns, and what a kill, a disk or a person has changed is noticed."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from anode import CheckpointError, InputError, classifier_model, save
from train_flows.run.folder import Run, provenance


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def run(folder):
    return Run.create(folder, "test", {"training": {"lr": 0.1}, "run": {"seed": 3}}, {"shape": [2]}, {"name": "moons"})


class TestFolder:
    def test_holds_what_the_run_was_started_with(self, run, folder):
        for opened in (run, Run.open(folder, "test"), Run.open(folder)):
            assert opened.config["model"] == {"shape": [2]}
            assert opened.config["data"] == {"name": "moons"}
            assert opened.settings == {"training": {"lr": 0.1}, "run": {"seed": 3}}
            assert torch.__version__.startswith(opened.config["versions"]["torch"])

    def test_must_be_of_the_kind_and_a_run(self, run, folder, tmp_path):
        with pytest.raises(CheckpointError, match="holds a test model, not a density"):
            Run.open(folder, "density")
        save(classifier_model((2,), 1), tmp_path / "model")
        with pytest.raises(CheckpointError, match="holds a model but not a run"):
            Run.open(tmp_path / "model")

    def test_is_not_replaced_without_asking(self, run, folder):
        run.log({"step": 0})
        (folder / "mine.txt").touch()
        with pytest.raises(InputError, match=r"run exists: pass another --out, continue with --resume .*run, or"):
            Run.create(folder, "test", {}, {}, {})
        again = Run.create(folder, "test", {}, {}, {}, overwrite=True)
        assert again.records() == []
        assert {path.name for path in folder.iterdir()} == {"config.json", "mine.txt"}

    def test_overwriting_leaves_other_folders_alone(self, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        with pytest.raises(InputError, match="is not a run, so --overwrite leaves it alone"):
            Run.create(folder, "test", {}, {}, {}, overwrite=True)
        assert (folder / "config.json").exists()

    def test_temporary_files_of_a_kill_are_not_content(self, folder):
        folder.mkdir()
        (folder / ".config.json.partial").write_text("{")
        assert list(Run.create(folder, "test", {}, {}, {}).folder.iterdir()) == [folder / "config.json"]

    def test_a_temporary_one_is_removed_with_its_run(self):
        run = Run.temporary()
        run.log({"step": 0})
        path = run.folder
        assert path.exists()
        del run
        assert not path.exists()


class TestRecords:
    def test_those_after_the_state_do_not_count(self, run):
        run.log({"step": 0})
        run.save_state(0, {})
        run.log({"step": 5})
        assert run.records() == [{"step": 0}]
        assert run.load_state() == {}
        assert (run.folder / "metrics.jsonl").read_text() == '{"step": 0}\n'

    def test_a_missing_state_is_noticed(self, run, folder):
        (folder / "metrics.jsonl").write_text('{"step": 0}\n{"step": 5}\n')
        assert run.records() == [{"step": 0}, {"step": 5}]
        with pytest.raises(CheckpointError, match=r"state.pt is missing although training has begun"):
            run.load_state()

    def test_altered_ones_are_noticed(self, run, folder):
        run.log({"step": 0, "loss": 1.5})
        run.save_state(0, {})
        path = folder / "metrics.jsonl"
        whole = path.read_text()
        for altered in (whole.replace("1.5", "1.4"), whole[:5], ""):
            path.write_text(altered)
            for load in (run.records, run.load_state):
                with pytest.raises(CheckpointError, match=r"metrics.jsonl was cut or edited"):
                    load()


class TestState:
    def test_returns(self, run):
        tensors = [torch.randn(2, 3), torch.randn(4, 6).bfloat16().T, torch.tensor([math.nan, -math.inf, -0.0])]
        plain = {"none": None, "int": 10**30, "float": math.inf, "tuple": (1, [2.5]), 0: {"step": 1}}
        run.save_state(5, {"tensors": tensors, "plain": plain})
        state = run.load_state()
        assert run.step == 5
        assert repr(state["plain"]) == repr(plain)
        for tensor, other in zip(tensors, state["tensors"], strict=True):
            torch.testing.assert_close(other, tensor, rtol=0, atol=0, equal_nan=True)

    def test_one_is_kept(self, run, folder):
        assert run.step == 0
        for step in (0, 5, 10):
            run.save_state(step, {})
        assert run.step == 10
        assert {path.name for path in folder.iterdir()} == {"config.json", "state.pt"}

    def test_every_byte_counts(self, run, folder):
        run.save_state(3, {"x": torch.randn(2)})
        content = (folder / "state.pt").read_bytes()
        for place in range(0, len(content), 7):
            (folder / "state.pt").write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
            with pytest.raises(CheckpointError, match=r"state.pt is damaged"):
                run.load_state()

    def test_other_objects_are_refused_on_loading(self, run):
        run.save_state(3, {"x": Path()})
        with pytest.raises(CheckpointError, match=r"state.pt does not hold a state"):
            run.load_state()


def test_the_best_weights_return(run):
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert not run.load_best(other)
    run.keep_best(model)
    assert run.load_best(other)
    assert torch.equal(model.weight, other.weight)
    with pytest.raises(CheckpointError, match="weights of another model"):
        run.load_best(nn.Linear(3, 2))


def test_the_result_says_where_it_comes_from(run, folder):
    assert run.result() is None
    run.write_result({"nll": {"value": 1.5, "kind": "exact"}}, ["jittered"])
    result = run.result()
    assert result["nll"] == {"value": 1.5, "kind": "exact"}
    assert (result["seed"], result["settings"], result["notes"]) == (3, {"training": {"lr": 0.1}}, ["jittered"])
    path = folder / "result.json"
    whole = json.loads(path.read_text())
    for altered in (whole | {"nll": {"value": 1.4}}, {}, [], 7):
        path.write_text(json.dumps(altered))
        with pytest.raises(CheckpointError, match=r"result.json was cut or edited"):
            run.result()


def test_provenance_shows_no_folders(monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["train-flows", "density", "/home/me/data.csv", "--out=/home/me/run", "--lr", "0.1"]
    )
    found = provenance()
    assert found["command"] == "train-flows density data.csv --out=run --lr 0.1"
    assert len(found.get("commit", 40 * "0")) == 40
