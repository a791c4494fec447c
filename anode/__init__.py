"""Augmented neural ODEs: vector fields, solvers and blocks for any network.

nn.Sequential(Augment(5), ODEBlock(MLPField(7)), nn.Linear(7, 10))
"""

from anode.blocks import MLP, Augment, ODEBlock, ResNet
from anode.classifiers import Classifier, ClassifierConfig, classifier_model, load, save
from anode.errors import CheckpointError, InputError, SolverError
from anode.evaluations import Evaluations, count_evals
from anode.fields import Field, MLPField
from anode.image_fields import ConvField, ConvStackField, NormConvField, UNetField
from anode.second_order import SecondOrderField
from anode.solver import Solver, with_solver
from anode.units import Normalize, ScalePixels

__all__ = [
    "MLP",
    "Augment",
    "CheckpointError",
    "Classifier",
    "ClassifierConfig",
    "ConvField",
    "ConvStackField",
    "Evaluations",
    "Field",
    "InputError",
    "MLPField",
    "NormConvField",
    "Normalize",
    "ODEBlock",
    "ResNet",
    "ScalePixels",
    "SecondOrderField",
    "Solver",
    "SolverError",
    "UNetField",
    "classifier_model",
    "count_evals",
    "load",
    "save",
    "with_solver",
]
