"""The settings that runs store: what every program refuses of them, and what older runs may lack."""

import dataclasses
import json

import pytest

from anode import CheckpointError, storage
from train_flows import classify, density, sections
from train_flows.checkpoint import Run
from train_flows.settings import Source
from train_flows.training import Training

PROGRAMS = {"density": (density, "moons"), "classifier": (classify, "spheres")}
TINY = ["--steps", "2", "--validate-every", "2", "--hidden", "4", "--batch-size", "64"]


def written(folder, kind, change):
    """The folder of a run that was never trained, with other settings than its program stores."""
    program, source = PROGRAMS[kind]
    settings = dataclasses.asdict(program.Settings())
    settings["data"]["source"] = source
    change(settings)
    data = {"name": source, "sha256": "0"}
    storage.write_config(folder, kind, {"model": {}, "settings": settings, "data": data})
    return Run(folder)


@pytest.mark.parametrize("kind", PROGRAMS)
def test_sections_are_those_of_the_programs(kind):
    settings = PROGRAMS[kind][0].Settings()
    fields = {field.name: type(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    assert sections.SECTIONS[kind] == fields


@pytest.mark.parametrize("kind", PROGRAMS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda settings: settings.pop("training"), "of training"),
        (lambda settings: settings.update(training=[]), "of training"),
        (lambda settings: settings["training"].update(pace=1), "'pace' is unknown"),
        (lambda settings: settings["training"].update(batch_size=0), "--batch-size 0"),
        (lambda settings: settings["guards"].update(max_skipped=-1), "--max-skipped -1"),
        (lambda settings: settings.update(numerics=7), "of numerics"),
        (lambda settings: settings.update(run={"seed": -1}), "--seed -1"),
        (lambda settings: settings.pop("run"), "of run"),
        (lambda settings: settings.update(data={}), "where they lie"),
        (lambda settings: settings["data"].update(source=None), "where they lie"),
        (lambda settings: settings["data"].update(source="\0"), "where they lie"),
        (lambda settings: settings["data"].update(source="\ud800"), "where they lie"),
        (lambda settings: settings["data"].update(pace=1), "'pace' is unknown"),
        (lambda settings: settings.update(pace={}), "'pace' of its settings is unknown"),
    ],
)
def test_what_no_program_stores_is_refused(tmp_path, kind, change, words):
    with pytest.raises(CheckpointError, match="does not say how the run was started") as error:
        written(tmp_path, kind, change).config(kind)
    assert words in str(error.value)


def test_settings_are_those_of_the_kind(tmp_path):
    for kind, foreign in (("density", {"target": "x"}), ("classifier", {"jitter": True})):
        with pytest.raises(CheckpointError, match=f"'{next(iter(foreign))}' is unknown"):
            written(tmp_path / kind, kind, lambda settings, foreign=foreign: settings["data"].update(foreign)).config(
                kind
            )


def test_what_came_later_has_its_defaults(tmp_path):
    def older(settings):
        del settings["data"]["jitter"], settings["run"]["data_seed"]
        del settings["training"]["ema"]

    found = written(tmp_path, "density", older).config("density")["settings"]
    assert found["data"] == vars(Source(source="moons"))
    assert found["run"]["data_seed"] is None
    assert found["training"] == vars(Training())


def test_every_program_refuses_in_one_line(run, monkeypatch):
    monkeypatch.setattr("train_flows.pictures.draw", lambda *_: None)
    assert run("density", "moons", *TINY)[0] == 0
    weights, config = (
        storage.read_weights("runs/moons"),
        json.loads((Run("runs/moons").folder / "config.json").read_text()),
    )
    for section, value in (("training", None), ("objective", [7]), ("data", {}), ("run", {"seed": -1})):
        whole = {name: each for name, each in config.items() if name not in ("schema", "kind", "sha256")}
        settings = {name: each for name, each in config["settings"].items() if name != section or value is not None}
        whole["settings"] = settings | ({} if value is None else {section: value})
        storage.write_config("runs/moons", "density", whole)
        storage.write_weights("runs/moons", weights)
        for command in (["evaluate"], ["report"], ["density", "--resume"]):
            status, out, err = run(*command, "runs/moons")
            assert (status, out) == (2, "")
            assert err.count("\n") == 1
            assert f"settings of {section}" in err
