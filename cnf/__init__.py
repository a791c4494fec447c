"""Continuous normalizing flows: densities to evaluate, sample and train, on the fields and solvers of ``anode``.

flow = load("runs/moons")
flow.sample(1000), flow.log_prob(x)
"""

from cnf.bases import Base, Mixture, Normal
from cnf.continuous import Continuous
from cnf.divergence import exact_divergence, hutchinson_divergence
from cnf.flow import Density, Flow
from cnf.multiscale import Multiscale, Squeeze
from cnf.planar import Planar, PlanarField
from cnf.transforms import Compose, Logit, SolveOptions, Standardize, Transform, Whiten

__all__ = [
    "Base",
    "Compose",
    "Continuous",
    "Density",
    "Flow",
    "Logit",
    "Mixture",
    "Multiscale",
    "Normal",
    "Planar",
    "PlanarField",
    "SolveOptions",
    "Squeeze",
    "Standardize",
    "Transform",
    "Whiten",
    "exact_divergence",
    "hutchinson_divergence",
]
