"""Continuous normalizing flows: densities to evaluate, sample and train, on the fields and solvers of ``anode``.

flow = load("runs/moons")
flow.sample(1000), flow.log_prob(x)
"""

from cnf.augment import VariationalAugment
from cnf.bases import Base, Conditional, Normal
from cnf.categorical import CategoricalFlow
from cnf.continuous import Continuous
from cnf.density import Bound, Density, Ends
from cnf.dequantize import Dequantize
from cnf.divergence import Rates, exact, hutchinson, probe_noise
from cnf.flow import Flow
from cnf.flow_matching import FlowMatching
from cnf.lifted_flow import LiftedFlow, Weighted
from cnf.lifts import Lift, Lifted, Lifts, Through
from cnf.mixture import Mixture
from cnf.models import density_model, load, save
from cnf.multiscale import Multiscale, Squeeze, multiscale
from cnf.objectives import InTurn, MaximumLikelihood, WarmedUp, WarmStarted
from cnf.planar import Planar
from cnf.reverse_kl import ReverseKL
from cnf.transforms import Compose, Logit, PathOptions, Standardize, Transform, Transport
from cnf.whiten import Whiten

__all__ = [
    "Base",
    "Bound",
    "CategoricalFlow",
    "Compose",
    "Conditional",
    "Continuous",
    "Density",
    "Dequantize",
    "Ends",
    "Flow",
    "FlowMatching",
    "InTurn",
    "Lift",
    "Lifted",
    "LiftedFlow",
    "Lifts",
    "Logit",
    "MaximumLikelihood",
    "Mixture",
    "Multiscale",
    "Normal",
    "PathOptions",
    "Planar",
    "Rates",
    "ReverseKL",
    "Squeeze",
    "Standardize",
    "Through",
    "Transform",
    "Transport",
    "VariationalAugment",
    "WarmStarted",
    "WarmedUp",
    "Weighted",
    "Whiten",
    "density_model",
    "exact",
    "hutchinson",
    "load",
    "multiscale",
    "probe_noise",
    "save",
]
