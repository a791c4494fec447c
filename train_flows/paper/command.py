"""The command line of ``train-flows paper``: which experiments there are, and what is refused before one runs."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import tyro

from anode import InputError
from train_flows.data.image_sets import PUBLISHED
from train_flows.paper.scale import Scale, family
from train_flows.settings import Device, Flag, check_seed

ON_FUNCTIONS = {
    "flow-1d": "ODE solutions on the line keep their order, ResNet steps cross (ANODE, fig. 3)",
    "resnet-vs-node": "training losses of ResNet and NODE in d = 1, 2 and on separable data (fig. 5)",
    "feature-evolution": "features while training, with their evaluations (fig. 6, 8 left)",
    "node-vs-anode": "training losses in d = 1, 2 and the flows learnt (fig. 7)",
    "nfe": "evaluations while training (fig. 8 right)",
    "generalization": "values at unseen inputs, validation loss with slices removed (fig. 9)",
    "augment-sweep": "loss, evaluations and time against the number of extra dimensions",
    "tolerance": "error, time, memory and evaluations against tolerance (Neural ODEs, fig. 3)",
}
ON_IMAGES = {
    "image-curves": "losses, evaluations and accuracy by the number of extra channels (fig. 10, 11)",
    "table1": "test accuracy of NODE and ANODE with as many parameters (table 1, fig. 12, 14)",
    "param-efficiency": "the same with fewer and fewer parameters",
    "weight-decay": "accuracy and evaluations by weight decay, with and without augmentation",
    "stability": "loss and evaluations when few images are overfitted (fig. 13)",
    "odenet": "test error of ODE-Net, residual network and perceptron (Neural ODEs, table 1)",
}
ON_DENSITIES = {
    "path-energies": "evaluations and likelihood of densities trained with and without a penalty on acceleration",
    "couplings": "evaluations of flow matching by the coupling of base and data points",
    "ffjord": "time to the likelihood that FFJORD's recipe reaches",
    "augmented-density": "evaluations of plain and augmented densities of as many parameters, at equal likelihood",
    "augmented-tuning": "the settings of augmented-density, chosen on validation data with seeds of their own",
    "planar": "depth of planar flows against width of continuous ones, by reverse KL (Neural ODEs, fig. 4)",
}
OTHER_SEEDS = {"augmented-tuning": 100}  # the first one, of what must not look at seeds that others report
EXPERIMENTS = ON_FUNCTIONS | ON_IMAGES | ON_DENSITIES


@dataclass(frozen=True)
class Settings:
    """What to do, and how often."""

    experiment: tyro.conf.Positional[str | None] = None
    seeds: int = 5  # repetitions, with seeds from the first
    first_seed: int | None = None  # 0 when omitted, 100 for augmented-tuning
    quick: Flag = False  # a minute at most, to see that it runs; its figures mean nothing
    out: Path = Path("paper")  # folder of EXPERIMENT.json and EXPERIMENT.png
    workers: int | None = None  # runs side by side: when omitted one a core, or up to 4 that fit on a GPU
    overwrite: Flag = False  # replace existing results

    @property
    def all_seeds(self) -> range:
        """Those of the repetitions."""
        chosen = OTHER_SEEDS.get(self.experiment or "", 0) if self.first_seed is None else self.first_seed
        return range(chosen, chosen + self.seeds)


@dataclass(frozen=True)
class Sets:
    """For the experiments on images and densities."""

    data: tuple[str, ...] = ()  # images (mnist, ..., folders under the data root) or densities (moons, ..., tables)
    data_root: str = "data"  # where they are
    device: Device | None = None  # when omitted, a GPU where there is one for images, the CPU for densities
    budget_minutes: float | None = None  # stop after so long; --resume goes on
    resume: Flag = False  # keep the runs there are, and train what is missing


@dataclass(frozen=True)
class Images:
    """For the experiments on images alone."""

    download: Flag = False  # fetch those of the four that are not there
    small: Flag = False  # for CPUs: 2,000 images at most, of 16 pixels a side at most, half the filters and epochs


@dataclass(frozen=True)
class Command:
    """Reproduce a figure of a paper; without an experiment, list them."""

    settings: Settings = field(default_factory=Settings)
    sets: Sets = field(default_factory=Sets)
    images: Images = field(default_factory=Images)

    @property
    def scale(self) -> Scale:
        """The size of an experiment on images."""
        return Scale("quick" if self.settings.quick else "small" if self.images.small else "full")

    @property
    def module(self) -> ModuleType:
        """The experiment."""
        return importlib.import_module(f"train_flows.paper.{(self.settings.experiment or '').replace('-', '_')}")

    @property
    def data(self) -> tuple[str, ...]:
        """What to train on: the experiment's own in its order, then others by alphabet, however they were typed."""
        own = tuple(self.module.DATA)
        asked = sorted(self.sets.data, key=lambda name: (own.index(name) if name in own else len(own), name))
        return tuple(asked) or own


@dataclass(frozen=True)
class Files:
    """Where an experiment leaves its results."""

    results: Path
    picture: Path
    states: Path  # of unfinished runs


def files(command: Command) -> Files:
    """The files to write, once everything typed is known to be good.

    Raises:
        InputError: for what cannot be meant, or would overwrite results.
    """
    settings, sets, images = command.settings, command.sets, command.images
    name = settings.experiment
    if name not in EXPERIMENTS:
        raise InputError(f"experiment {name!r} is unknown: choose one of {', '.join(EXPERIMENTS)}")
    for option in ("seeds", "workers"):
        if (value := getattr(settings, option)) is not None and value < 1:
            raise InputError(f"--{option} {value} must be at least 1")
    for seed in settings.all_seeds:
        check_seed(seed)
    if name not in ON_IMAGES:
        _check_unused(images, name, ON_IMAGES)
    if name in ON_FUNCTIONS:
        _check_unused(sets, name, [*ON_IMAGES, *ON_DENSITIES])
    _check_sets(settings, sets, images)
    if name in ON_IMAGES:
        for data in sets.data:
            family(data)
    if settings.out.exists() and not settings.out.is_dir():
        raise InputError(f"--out {settings.out} is a file: pass a folder")
    size = command.scale.size
    shown = command.data if sets.data else ()
    stem = "-".join([name, *shown, *([size] if name in ON_IMAGES and size != "full" else [])])
    found = Files(*(settings.out / f"{stem}{suffix}" for suffix in (".json", ".png", "-unfinished")))
    for path in (found.results, found.picture):
        if path.exists() and not (settings.overwrite or sets.resume):
            ways = "--overwrite" if name in ON_FUNCTIONS else "--overwrite, or --resume"
            raise InputError(f"{path} exists: pass another --out, or {ways}")
    settings.out.mkdir(parents=True, exist_ok=True)
    return found


def _check_unused(options: Images | Sets, name: str, users: Iterable[str]) -> None:
    typed = [option.name for option in dataclasses.fields(options) if vars(options)[option.name] != option.default]
    if typed:
        shown = ", ".join(f"--{option.replace('_', '-')}" for option in typed)
        raise InputError(f"{shown} is for {', '.join(users)}, not for {name}: drop it")


def _check_sets(settings: Settings, sets: Sets, images: Images) -> None:
    for data in sets.data:
        if Path(data).name != data:
            raise InputError(f"--data {data} is a path: pass the name of the folder, and where it is as --data-root")
    if len(set(sets.data)) < len(sets.data):
        raise InputError(f"--data {' '.join(sets.data)} names a set twice: drop one")
    if sets.budget_minutes is not None and not sets.budget_minutes > 0:
        raise InputError(f"--budget-minutes {sets.budget_minutes} must be a positive number")
    if images.small and settings.quick:
        raise InputError("--small and --quick are two sizes: drop one")
    if images.download and sets.data and not set(sets.data) & set(PUBLISHED):
        raise InputError(f"--download is for {', '.join(PUBLISHED)}, not for {' '.join(sets.data)}: drop it")
    if sets.resume and settings.overwrite:
        raise InputError("--resume keeps what --overwrite replaces: drop one")
