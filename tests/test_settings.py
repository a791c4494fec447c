"""Settings: every value is checked where it is made, and a run stores them as plain values by section."""

import dataclasses
import json

import pytest

from anode import CheckpointError, InputError
from cnf import density_model
from train_flows.settings import (
    ClassifySettings,
    DensitySettings,
    Epochs,
    RunSettings,
    Training,
    from_config,
    to_sections,
)


def stored(settings, **changes):
    """The content of the configuration of a run, as JSON gives it back."""
    model = {"shape": [2], **dataclasses.asdict(settings.model)}
    config = {"model": model, "settings": to_sections(settings)}
    for section, values in changes.items():
        config["settings"][section] = values
    return json.loads(json.dumps(config))


@pytest.mark.parametrize(
    "settings",
    [
        DensitySettings(),
        DensitySettings(
            data={"source": "t.csv", "given": ["age"]},
            model={"hidden": (8,), "extra": 2, "solver": {"method": "rk4", "step_size": 0.5}},
            training={"steps": 7, "likelihood_from": 3},
            run={"seed": 3, "budget_minutes": 1.5},
        ),
        ClassifySettings(epochs=Epochs(snapshots=(0, 3)), model={"activation": "silu"}),
    ],
)
def test_return_from_a_configuration(settings):
    assert from_config(type(settings), "run", stored(settings)) == settings


def test_the_stored_model_may_solve_in_another_way():
    settings = DensitySettings(model={"solver": {"method": "rk4", "step_size": 0.5}})
    config = stored(settings)
    config["model"] = density_model((2,)).arguments  # with the solver of figures
    assert from_config(DensitySettings, "run", config).model.solver == settings.model.solver


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"lr": "fast"}}, "training.lr='fast'"),
        ({"training": {"pace": 1}}, "training.pace=1 is unknown"),
        ({"pace": {}}, "pace"),
        ({"solver": {"method": "rk5"}}, "rk5"),
    ],
)
def test_what_no_program_stores_is_refused(changes, words):
    with pytest.raises(CheckpointError, match="run was started with settings that cannot be used") as error:
        from_config(DensitySettings, "run", stored(DensitySettings(), **changes))
    assert words in str(error.value)


def test_epochs_are_steps():
    training = Epochs(epochs=3).in_steps(Training(batch_size=10, lr=0.1), 57)
    assert training == Training(steps=15, batch_size=10, lr=0.1, validate_every=5)


def test_a_budget_leaves_time_for_figures():
    assert RunSettings(budget_minutes=10).deadline(started=100) == 100 + 540
    assert RunSettings().deadline(started=100) == float("inf")


def test_only_typed_options_must_have_an_effect():
    settings = DensitySettings(objective={"objective": "flow-matching", "acceleration": 0.1})
    settings.validate()
    with pytest.raises(InputError, match="--acceleration has an effect with --objective likelihood or"):
        settings.validate({"acceleration"})
