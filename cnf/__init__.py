"""Continuous normalizing flows: densities to evaluate, sample and train, on the fields and solvers of ``anode``.

flow = load("runs/moons")
flow.sample(1000), flow.log_prob(x)
"""

from cnf.bases import Base, Mixture, Normal
from cnf.continuous import Continuous
from cnf.divergence import exact_divergence, exact_jacobian, hutchinson_divergence
from cnf.flow import Density, Flow
from cnf.flow_matching import FlowMatching
from cnf.kullback_leibler import MaximumLikelihood, ReverseKL
from cnf.lifted_flow import LiftedFlow
from cnf.lifts import Dequantize, Lift, VariationalAugment
from cnf.mixture_flow import MixtureFlow
from cnf.models import DensityConfig, density_model, load, save
from cnf.multiscale import Multiscale, Squeeze
from cnf.planar import Planar, PlanarField
from cnf.residual_steps import ResidualSteps, watch_determinants
from cnf.transforms import Compose, Logit, SolveOptions, Standardize, Tails, Transform, Whiten

__all__ = [
    "Base",
    "Compose",
    "Continuous",
    "Density",
    "DensityConfig",
    "Dequantize",
    "Flow",
    "FlowMatching",
    "Lift",
    "LiftedFlow",
    "Logit",
    "MaximumLikelihood",
    "Mixture",
    "MixtureFlow",
    "Multiscale",
    "Normal",
    "Planar",
    "PlanarField",
    "ResidualSteps",
    "ReverseKL",
    "SolveOptions",
    "Squeeze",
    "Standardize",
    "Tails",
    "Transform",
    "VariationalAugment",
    "Whiten",
    "density_model",
    "exact_divergence",
    "exact_jacobian",
    "hutchinson_divergence",
    "load",
    "save",
    "watch_determinants",
]
