"""Augmented neural ODEs: vector fields, solvers and blocks that drop into any network.

nn.Sequential(Augment(5), ODEBlock(MLPField(7)), nn.Linear(7, 10))
"""

from anode.baselines import MLP, ResNet
from anode.blocks import Augment, ODEBlock
from anode.classifiers import classifier, load, save
from anode.conv_fields import ConvField
from anode.conv_stack import ConvStack
from anode.duration import Duration
from anode.errors import CheckpointError, InputError, SolverError
from anode.evaluations import Evaluations, count_evals
from anode.fields import Field, MLPField
from anode.frozen import FrozenField
from anode.odenet import NormConvField
from anode.planar_field import PlanarField
from anode.second_order import SecondOrderField
from anode.solver import Solver, with_solver
from anode.stages import Classifier
from anode.standardize import Pixels, Standardize
from anode.unet_field import UNetField

__all__ = [
    "MLP",
    "Augment",
    "CheckpointError",
    "Classifier",
    "ConvField",
    "ConvStack",
    "Duration",
    "Evaluations",
    "Field",
    "FrozenField",
    "InputError",
    "MLPField",
    "NormConvField",
    "ODEBlock",
    "Pixels",
    "PlanarField",
    "ResNet",
    "SecondOrderField",
    "Solver",
    "SolverError",
    "Standardize",
    "UNetField",
    "classifier",
    "count_evals",
    "load",
    "save",
    "with_solver",
]
