"""Augmented neural ODEs: vector fields, solvers and blocks that drop into any network.

nn.Sequential(Augment(5), ODEBlock(MLPField(7)), nn.Linear(7, 10))
"""

from anode.blocks import Augment, ODEBlock
from anode.errors import InputError, SolverError
from anode.evaluations import Evaluations, count_evals
from anode.fields import Field, MLPField
from anode.solver import Solver

__all__ = [
    "Augment",
    "Evaluations",
    "Field",
    "InputError",
    "MLPField",
    "ODEBlock",
    "Solver",
    "SolverError",
    "count_evals",
]
