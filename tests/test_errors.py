"""Messages, choices, and configurations that check their values."""

import dataclasses
import json
import pickle
from typing import Annotated, Literal

import pytest
from pydantic import Field

from anode import InputError, Solver, SolverError
from anode.errors import check_choice, config

Activation = Literal["tanh", "silu"]


@config
class Numerics:
    """Numerics of the model.

    Attributes:
        rtol: relative tolerance.
    """

    rtol: Annotated[float, Field(gt=0)] = 1e-5
    method: Literal["dopri5", "rk4"] = "dopri5"
    step_size: Annotated[float, Field(gt=0)] | None = None

    def __post_init__(self):
        if self.method == "rk4" and self.step_size is None:
            raise InputError("method='rk4' takes fixed steps: pass a step_size")


@config
class Model:
    """A model.

    Attributes:
        hidden: widths of the hidden layers.
    """

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64, 64)
    activation: Activation | tuple[Activation, ...] = "tanh"
    levels: Annotated[int, Field(ge=2, le=256)] | None = None
    solver: Numerics = Numerics()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": (0,)}, "hidden=(0,): 0 must be at least 1"),
        ({"hidden": [3, "wide"]}, "hidden=[3, 'wide']: 'wide' must be a whole number"),
        ({"hidden": 3}, "hidden=3 must be a valid tuple"),
        ({"activation": "than"}, "activation='than' is unknown; choose one of tanh, silu (did you mean tanh?)"),
        ({"activation": ("tanh", "x")}, "activation=('tanh', 'x'): 'x' is unknown; choose one of tanh, silu"),
        ({"levels": 1}, "levels=1 must be at least 2"),
        ({"levels": 300}, "levels=300 must be at most 256"),
        ({"levels": 2.5}, "levels=2.5 must be a whole number, got a number with a fractional part"),
        ({"hiden": (1,)}, "hiden=(1,) is unknown; did you mean hidden?"),
        ({"zz": 1}, "zz=1 is unknown; choose one of hidden, activation, levels, solver"),
        ({"solver": {"rtol": -1}}, "solver.rtol=-1 must be greater than 0"),
        ({"solver": {"rtol": float("nan")}}, "solver.rtol=nan must be a finite number"),
        ({"solver": {"rtl": 1}}, "solver.rtl=1 is unknown; did you mean rtol?"),
        ({"solver": {"method": "rk4"}}, "solver: method='rk4' takes fixed steps: pass a step_size"),
    ],
)
def test_a_configuration_names_argument_value_and_remedy(fields, message):
    with pytest.raises(InputError) as caught:
        Model(**fields)
    assert str(caught.value) == message


def test_positional_arguments_are_named():
    with pytest.raises(InputError, match="rtol='x' must be a valid number"):
        Numerics("x")
    with pytest.raises(InputError, match=r"^method='rk4' takes fixed steps"):
        Numerics(1e-3, "rk4")


def test_a_configuration_survives_json_pickle_and_replace():
    model = Model((3,), solver=Numerics("1e-3"))
    assert Model(**json.loads(json.dumps(dataclasses.asdict(model)))) == model
    assert pickle.loads(pickle.dumps(model)) == model
    assert dataclasses.replace(model, hidden=[8]).hidden == (8,)
    assert hash(model) != hash(Model())
    with pytest.raises(InputError, match="0 must be at least 1"):
        dataclasses.replace(model, hidden=(0,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.hidden = (1,)


def test_choices_are_listed():
    check_choice("noise", "a", ("a", "b"))
    with pytest.raises(InputError, match=r"^noise='c' is unknown; choose one of a, b$"):
        check_choice("noise", "c", ("a", "b"))


def test_a_message_is_one_line_of_limited_length():
    message = str(InputError("a\nb\x1b " + 5000 * "x"))
    assert message.startswith("a b? x")
    assert len(message) < 2000


def test_a_solver_error_reaches_another_process():
    error = pickle.loads(pickle.dumps(SolverError("too many steps", 0.5, 7, Solver())))
    assert (error.cause, error.time, error.evaluations, error.solver) == ("too many steps", 0.5, 7, Solver())
    assert "at t = 0.5 after 7 evaluations" in str(error)
