"""Continuous normalizing flows: densities to evaluate, sample and train, on the fields and solvers of ``anode``.

flow = load("runs/moons")
flow.sample(1000), flow.log_prob(x)
"""

from cnf.bases import Normal
from cnf.continuous import Continuous
from cnf.divergence import Rates, exact, hutchinson, probe_noise
from cnf.flow import Density, Flow
from cnf.lifts import Dequantize, Lift, LiftedFlow
from cnf.models import density_model, load, save
from cnf.objectives import MaximumLikelihood
from cnf.transforms import Compose, Logit, Standardize, Transform, Transport

__all__ = [
    "Compose",
    "Continuous",
    "Density",
    "Dequantize",
    "Flow",
    "Lift",
    "LiftedFlow",
    "Logit",
    "MaximumLikelihood",
    "Normal",
    "Rates",
    "Standardize",
    "Transform",
    "Transport",
    "density_model",
    "exact",
    "hutchinson",
    "load",
    "probe_noise",
    "save",
]
