"""Continuous normalizing flows: densities to evaluate, sample and train, on the fields and solvers of ``anode``.

flow = load("runs/moons")
flow.sample(1000), flow.log_prob(x)
"""

from cnf.bases import Base, Mixture, Normal
from cnf.continuous import Continuous
from cnf.divergence import Rates, exact, hutchinson, probe_noise
from cnf.flow import Bound, Density, Flow
from cnf.flow_matching import FlowMatching
from cnf.lifts import Dequantize, Lift, LiftedFlow
from cnf.models import density_model, load, save
from cnf.objectives import InTurn, MaximumLikelihood
from cnf.planar import Planar
from cnf.reverse_kl import ReverseKL
from cnf.transforms import Compose, Logit, Path, Standardize, Transform, Transport
from cnf.whiten import Whiten

__all__ = [
    "Base",
    "Bound",
    "Compose",
    "Continuous",
    "Density",
    "Dequantize",
    "Flow",
    "FlowMatching",
    "InTurn",
    "Lift",
    "LiftedFlow",
    "Logit",
    "MaximumLikelihood",
    "Mixture",
    "Normal",
    "Path",
    "Planar",
    "Rates",
    "ReverseKL",
    "Standardize",
    "Transform",
    "Transport",
    "Whiten",
    "density_model",
    "exact",
    "hutchinson",
    "load",
    "probe_noise",
    "save",
]
