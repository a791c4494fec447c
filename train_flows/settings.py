"""Settings of the training programs: one dataclass for each concern, and the one place that checks them together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from anode import CheckpointError, ClassifierConfig, InputError, Solver
from anode.errors import config
from cnf import DensityConfig
from cnf.flow_matching import COMPONENT_POINTS

Count = Annotated[int, Field(ge=1)]
CountFromZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Precision = Literal["float32", "bfloat16"]

TRAINING_SHARE = 0.9  # of --budget-minutes
LIKELIHOOD_SHARE = 1 / 6  # of the steps after flow matching, unless --likelihood-steps is given: they are slower
ENERGIES = ("kinetic", "frobenius", "acceleration")  # of paths
LIKELIHOOD, MATCHING, BOTH = "likelihood", "flow-matching", "flow-matching+likelihood"


@config
class Data:
    """Data of a run.

    Attributes:
        source: name of a data set, or path of a table or of a folder of images
        image_size: height and width to resize images to
        train_size: number of training samples; all if omitted
        test_size: number of test samples; all if omitted
        data_root: folder of MNIST, CIFAR-10, POWER and other named data sets
        download: download missing images to the data root
    """

    source: str | None = None
    image_size: Count | None = None
    train_size: Count | None = None
    test_size: Count | None = None
    data_root: str = "data"
    download: bool = False


@config
class DensityData(Data):
    """Data to learn.

    Attributes:
        given: columns of a table that are given; learn the density of the others given these
        kind: kind of a column that is found wrongly, such as rating=ordinal or id=drop
        bounds: bounds of a column, such as price=0: or share=0:100
        weights: column of a table that says how often each row counts
        missing: rows with missing cells: drop them, or model what is missing; auto drops up to a twentieth of the rows
        conditional: learn the density of images given their class, or of points in 2-D given their half of the plane
        jitter: add noise, as wide as the step, to columns of numbers on a grid; without, learn numbers as they are
    """

    given: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    bounds: tuple[str, ...] = ()
    weights: str | None = None
    missing: Literal["auto", "drop", "model"] = "auto"
    conditional: bool = False
    jitter: bool = True


@config
class LabelledData(Data):
    """Data to classify.

    Attributes:
        target: column of a table that holds the classes, or the numbers to predict by a regression
        removed_slices: validate on this many of ten slices of the plane, and train on the others
    """

    target: str | None = None
    removed_slices: Annotated[int, Field(ge=0, le=9)] = 0


@config
class Objective:
    """Loss of a density.

    Attributes:
        objective: loss to minimise; both names together train by flow matching first
        likelihood_steps: number of last steps that maximise likelihood; a sixth if omitted
        coupling: pairing of data and base points in flow matching, among equal or near contexts
        kinetic: weight of the kinetic energy of the paths
        frobenius: weight of the squared Frobenius norm of the Jacobian
        acceleration: weight of the squared acceleration, which makes solves cheap
        smoothing: share b of normal noise in training samples, sqrt(1 - b^2) x + b e, with their mean and covariance
        loosen: factor of the tolerances in training
    """

    objective: Literal["likelihood", "flow-matching", "flow-matching+likelihood"] = LIKELIHOOD
    likelihood_steps: Count | None = None
    coupling: Literal["independent", "optimal-transport"] = "independent"
    kinetic: Weight = 0.0
    frobenius: Weight = 0.0
    acceleration: Weight = 0.0
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    loosen: Positive = 10.0


@config
class Training:
    """Optimisation, counted in steps.

    Attributes:
        steps: number of optimiser steps
        batch_size: samples per step
        lr: learning rate of Adam
        schedule: course of the learning rate
        lr_warm_up: steps over which the learning rate rises from 0, at the start and after a restart
        clip: largest norm of the gradient
        weight_decay: weight decay of Adam
        ema: decay of the moving average of the weights that is validated and stored; 0 for none
        validate_every: steps between validations, records and saved states
        patience: stop after this many validations in a row without progress, or go from flow matching to likelihood;
            0 to take all steps
        likelihood_from: step at which likelihood follows flow matching, where a cosine restarts
        restart_lr: learning rate after the restart; that of the start if omitted
        precision: precision of the fields in training; states and figures keep theirs
        on_stiff: reaction to a failed solve: stop training, or skip the step
        max_skipped: give up after this many consecutive skipped steps
        kl_warm_up: steps over which the weight of the KL term of learned noise rises to 1
        measure: extra figures of every validation; costs are evaluations and NLL in double precision, of test samples
            or of validation samples
    """

    steps: Count = 600
    batch_size: Count = 512
    lr: Positive = 1e-2
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    lr_warm_up: CountFromZero = 0
    clip: Positive = 10.0
    weight_decay: Weight = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    validate_every: Count = 100
    patience: CountFromZero = 0
    likelihood_from: Count | None = None
    restart_lr: Positive | None = None
    precision: Precision = "float32"
    on_stiff: Literal["stop", "skip"] = "stop"
    max_skipped: CountFromZero = 10
    kl_warm_up: CountFromZero = 0
    measure: Literal["none", "costs", "validation-costs"] = "none"


@config
class Epochs:
    """Passes through the data, which `Training` counts in steps.

    Attributes:
        epochs: number of passes through the training samples
        keep: weights to keep: those of the best validation loss, or the last
        snapshots: epochs whose features are stored in features.npz
    """

    epochs: Count = 30
    keep: Literal["best", "last"] = "best"
    snapshots: tuple[CountFromZero, ...] = ()

    def in_steps(self, training: Training, samples: int) -> Training:
        """Count epochs in steps, with a record after each epoch."""
        per_epoch = samples // training.batch_size
        return dataclasses.replace(training, steps=self.epochs * per_epoch, validate_every=per_epoch)


@config
class RunSettings:
    """Where and how to run.

    Attributes:
        out: folder of the run; runs/DATA if omitted
        seed: seed of data, weights, batches and noise
        device: cpu, cuda, cuda:1 or mps; auto takes a CUDA GPU if there is one
        dtype: precision of weights, data and states
        deterministic: use deterministic algorithms only, slower on a GPU
        compile: compile vector fields, for faster steps after a minute
        tensorboard: write records for TensorBoard to the run folder as well
        overwrite: replace an existing run
        budget_minutes: stop after this time, saved for --resume
        init: folder of a run on other data, whose model and weights to start from
        resume: folder of a run to continue with its settings; more --steps or --epochs train it longer
    """

    out: str | None = None
    seed: Seed = 0
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    deterministic: bool = False
    compile: bool = False
    tensorboard: bool = False
    overwrite: bool = False
    budget_minutes: Positive | None = None
    init: str | None = None
    resume: str | None = None

    def deadline(self, started: float) -> float:
        """Return the ``time.monotonic()`` at which training stops; the rest of the budget is for the final figures."""
        return math.inf if self.budget_minutes is None else started + 60 * TRAINING_SHARE * self.budget_minutes


@config
class DensitySettings:
    """All settings of ``train-flows density``, by concern."""

    data: DensityData = DensityData()
    model: DensityConfig = DensityConfig()
    objective: Objective = Objective()
    training: Training = Training()
    run: RunSettings = RunSettings()

    def validate(self, typed: Collection[str] = ()) -> None:
        """Check that the settings go together; the model's own combinations are checked with the data, by its config.

        Args:
            typed: names of the options that were chosen explicitly; each of them must have an effect.
        """
        _check_effects(self, DENSITY_CONDITIONS, typed)
        check_training(self.training, self.model.solver, self.run)
        objective, last = self.objective.objective, self.objective.likelihood_steps
        if last is not None and last >= self.training.steps:
            raise InputError(f"--likelihood-steps {last} must be below --steps {self.training.steps}")
        if objective != LIKELIHOOD and (self.model.multiscale or self.model.blocks > 1):
            raise InputError(
                f"--objective {objective} is for one ODE: pass --no-multiscale --blocks 1, or --objective likelihood"
            )
        if self.model.residual_steps and objective == MATCHING:
            raise InputError(f"--objective {objective} leaves residual steps with Euler's errors: take {BOTH}")
        coupled, given = self.objective.coupling != "independent", self.data.conditional or self.data.given
        if coupled and given and self.model.mixes_flows:
            raise InputError(
                f"--coupling {self.objective.coupling} cannot serve both components and what is given: omit it, or one"
            )
        components = self.model.extra if self.model.augmentation == "categorical" else 0
        needed = max(2, COMPONENT_POINTS * components)
        if coupled and self.training.batch_size < needed:
            raise InputError(
                f"--coupling {self.objective.coupling} needs --batch-size {needed} or more"
                + (f", {COMPONENT_POINTS} for each of --extra {components}: " if components else ": ")
                + "pass it, or omit --coupling"
            )


@config
class ClassifySettings:
    """All settings of ``train-flows classify``, by concern."""

    data: LabelledData = LabelledData()
    model: ClassifierConfig = ClassifierConfig()
    epochs: Epochs = Epochs()
    training: Training = Training(batch_size=64, lr=1e-3, schedule="constant")
    run: RunSettings = RunSettings()

    def validate(self, typed: Collection[str] = ()) -> None:
        """Check that the settings go together; see :meth:`DensitySettings.validate`."""
        _check_effects(self, CLASSIFY_CONDITIONS, typed)
        check_training(self.training, self.model.solver, self.run)


_SOLVER = ("solver", "rtol", "atol", "first_step", "step_size", "gradient", "max_steps")
Conditions = Sequence[tuple[tuple[str, ...], str, Callable[[Any], bool]]]  # options, when they have an effect, a test
DENSITY_CONDITIONS: Conditions = (
    (ENERGIES, f"--objective {LIKELIHOOD} or {BOTH}", lambda s: s.objective.objective != MATCHING),
    (("coupling",), f"--objective {MATCHING} or {BOTH}", lambda s: s.objective.objective != LIKELIHOOD),
    (("likelihood_steps",), f"--objective {BOTH}", lambda s: s.objective.objective == BOTH),
    (("loosen",), "an adaptive --solver", lambda s: s.model.solver.adaptive),
    (("activation", "time"), "--field mlp, conv or stack", lambda s: s.model.field != "unet"),
    (("components",), "--base mixture", lambda s: s.model.base == "mixture"),
    (("certify",), "--residual-steps", lambda s: s.model.residual_steps > 0),
    ((*_SOLVER, *ENERGIES, "loosen"), "an ODE, not --residual-steps", lambda s: not s.model.residual_steps),
)
CLASSIFY_CONDITIONS: Conditions = (
    (("blocks",), "--model resnet", lambda s: s.model.model == "resnet"),
    ((*_SOLVER, "time"), "--model node or second-order", lambda s: s.model.model in ("node", "second-order")),
    (("activation",), "--field mlp or conv", lambda s: s.model.field != "norm-conv"),
)


def _check_effects(settings: Any, conditions: Conditions, typed: Collection[str]) -> None:
    for options, condition, holds in conditions:
        for name in options:
            if name in typed and not holds(settings):
                raise InputError(f"--{name.replace('_', '-')} has an effect with {condition} only: omit it")


def check_training(training: Training, solver: Solver, run: RunSettings) -> None:
    """Raise an error for settings of training, solver and run that exclude each other."""
    if training.schedule == "plateau" and training.lr_warm_up:
        raise InputError("--schedule plateau does not warm up the learning rate: pass lr_warm_up=0")
    if training.precision != "float32" and solver.gradient == "adjoint":
        raise InputError(f"--precision {training.precision} cannot be used with --gradient adjoint: take direct")
    if training.precision != "float32" and run.dtype != "float32":
        raise InputError(f"--precision {training.precision} and --dtype {run.dtype} exclude each other: omit one")


S = TypeVar("S")


def to_sections(settings: Any) -> dict[str, Any]:
    """Return plain values by section for ``config.json``, which has the model elsewhere, with the solver of figures."""
    sections = dataclasses.asdict(settings)
    solver = sections.pop("model")["solver"]
    return {**sections, "solver": solver}


def from_config(kind: type[S], path: object, config: Mapping[str, Any]) -> S:
    """Return the settings of a class that a run was started with, from the content of its ``config.json``.

    Raises:
        CheckpointError: if they are not settings of this version; ``path`` names the run.
    """
    constructor: Any = kind
    names = {field.name for field in dataclasses.fields(constructor().model)}
    try:
        model = {name: value for name, value in config["model"].items() if name in names}
        sections = dict(config["settings"])
        return constructor(model={**model, "solver": sections.pop("solver")}, **sections)
    except (InputError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} was started with settings that cannot be used ({error}): train again") from error
