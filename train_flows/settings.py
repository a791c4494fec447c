"""Settings of the training programs: one dataclass for each concern, and the one place that checks them together."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

from pydantic import Field

from anode.errors import config

Count = Annotated[int, Field(ge=1)]
CountFromZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Precision = Literal["float32", "bfloat16"]
ObjectiveName = Literal["likelihood", "flow-matching", "flow-matching+likelihood"]

TRAINED = 0.9  # share of a time budget that is for training; the rest is left for figures and pictures


@config
class DensityData:
    """Data to learn.

    Attributes:
        source: name of a data set, or the path of a table or of a folder of images.
        jitter: add noise to the columns of a table that have few distinct values.
        data_root: folder of POWER, ..., and of MNIST, Fashion-MNIST, CIFAR-10 and SVHN.
        download: download missing images to the data root.
        image_size: resize images to this height and width.
        train_size: number of training images to draw; all if omitted.
        test_size: number of test images to draw; all if omitted.
        conditional: learn the density of images given their class.
    """

    source: str | None = None
    jitter: bool = False
    data_root: str = "data"
    download: bool = False
    image_size: Count | None = None
    train_size: Count | None = None
    test_size: Count | None = None
    conditional: bool = False


@config
class LabelledData:
    """Data to classify.

    Attributes:
        source: name of a data set, or the path of a table or of a folder of images.
        target: column of the classes of a table.
        data_root: folder of MNIST, Fashion-MNIST, CIFAR-10 and SVHN.
        download: download missing images to the data root.
        image_size: resize images to this height and width.
        train_size: number of training samples to draw; all if omitted.
        test_size: number of test samples to draw; all if omitted.
        removed_slices: number of ten slices of the plane to validate on instead of training on them.
    """

    source: str | None = None
    target: str | None = None
    data_root: str = "data"
    download: bool = False
    image_size: Count | None = None
    train_size: Count | None = None
    test_size: Count | None = None
    removed_slices: Annotated[int, Field(ge=0, le=9)] = 0


@config
class Objective:
    """Loss of a density.

    Attributes:
        objective: loss to minimise; both names together train by flow matching first.
        likelihood_steps: number of last steps that maximise likelihood; a sixth if omitted.
        coupling: pairing of data and base points in flow matching.
        kinetic: weight of the kinetic energy of the paths.
        frobenius: weight of the squared Frobenius norm of the Jacobian.
        acceleration: weight of the squared acceleration, which makes solves cheap.
        loosen: factor of the tolerances in training.
    """

    objective: ObjectiveName = "likelihood"
    likelihood_steps: Count | None = None
    coupling: Literal["independent", "optimal-transport"] = "independent"
    kinetic: Weight = 0.0
    frobenius: Weight = 0.0
    acceleration: Weight = 0.0
    loosen: Positive = 10.0


@config
class Training:
    """Optimisation, counted in steps.

    Attributes:
        steps: number of optimiser steps.
        batch_size: samples per step.
        lr: learning rate of Adam.
        schedule: course of the learning rate.
        lr_warm_up: steps over which the learning rate rises from 0, at the start and after a restart.
        clip: largest norm of the gradient.
        weight_decay: weight decay of Adam.
        ema: decay of the moving average of the weights that is validated and stored; 0 for none.
        validate_every: steps between validations, records and saved states.
        likelihood_from: step at which likelihood follows flow matching, where a cosine restarts.
        restart_lr: learning rate after the restart; that of the start if omitted.
        precision: precision of the fields in training; states and figures keep theirs.
        on_stiff: reaction to a failed solve: stop training, or skip the step.
        max_skipped: give up after this many consecutive skipped steps.
        kl_warm_up: steps over which the weight of the KL term of learned noise rises to 1.
        measure: extra figures of every validation; costs are evaluations and NLL in double precision.
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
    likelihood_from: Count | None = None
    restart_lr: Positive | None = None
    precision: Precision = "float32"
    on_stiff: Literal["stop", "skip"] = "stop"
    max_skipped: CountFromZero = 10
    kl_warm_up: CountFromZero = 0
    measure: Literal["none", "costs"] = "none"


@config
class Epochs:
    """Passes through the data, which `Training` counts in steps.

    Attributes:
        epochs: number of passes through the training samples.
        keep: weights to keep: those of the best validation loss, or the last.
        snapshots: epochs whose features are stored in features.npz.
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
        out: folder of the run; runs/DATA if omitted.
        seed: seed of data, weights, batches and noise.
        device: cpu, cuda, cuda:1 or mps; auto takes a CUDA GPU if there is one.
        dtype: precision of weights, data and states.
        deterministic: use deterministic algorithms only, slower on a GPU.
        compile: compile vector fields, for faster steps after a minute.
        tensorboard: write records for TensorBoard to the run folder as well.
        overwrite: replace an existing run.
        budget_minutes: stop after this time, saved for --resume.
        resume: folder of a run to continue with its settings.
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
    resume: str | None = None

    def deadline(self, started: float) -> float:
        """Return the time of ``time.monotonic()`` at which training stops; infinity without a budget."""
        return math.inf if self.budget_minutes is None else started + 60 * TRAINED * self.budget_minutes
