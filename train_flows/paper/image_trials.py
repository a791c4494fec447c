"""One model on one set of images: training it, once a seed, in as many sittings as it takes."""

from __future__ import annotations

import dataclasses
import io
import math
import time
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from anode import InputError, classifier
from anode.storage import write_atomically
from train_flows.data import images
from train_flows.data.image_sets import PUBLISHED
from train_flows.data.labelled import Labelled, Pairs
from train_flows.errors import TrainingError
from train_flows.loop import shuffled_batches, train
from train_flows.paper.outcomes import SOLVER, Outcome, Place, ended
from train_flows.provenance import device_name
from train_flows.supervised import Supervised, measure
from train_flows.training import Training


@dataclass(frozen=True)
class ImageTrial:
    """One model on one set of images, with the paper's settings as defaults."""

    name: str  # in figures and tables
    data: str  # a set of train_flows.data.images, or a folder under the data root
    model: dict[str, Any] = field(default_factory=dict)  # arguments of anode.classifier that differ
    lr: float = 1e-3  # of Adam
    schedule: Literal["cosine", "plateau", "constant"] = "constant"  # of the learning rate
    weight_decay: float = 0.0
    epochs: int = 20
    batch_size: int = 256
    image_size: int | None = None  # height and width of the images; as they are when None
    train_size: int | None = None  # images to train on, at most; all when None
    test_size: int | None = None  # images to test on, at most; all when None
    classes: int | None = None  # the first so many classes alone; all when None

    def plain(self) -> dict[str, Any]:
        """All settings."""
        return asdict(self)


class Sitting:
    """The journal of a trial in one file, from which it goes on after a stop; an older one of another trial is ignored.

    Args:
        path: of the file.
        about: the trial and its seed as plain values.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.about = about
        self.records: list[dict[str, float]] = []

    def log(self, record: dict[str, Any]) -> None:
        """Keep one record."""
        self.records.append(record)

    def save_state(self, step: int, state: dict[str, Any]) -> None:
        """Write the state and all records."""
        buffer = io.BytesIO()
        torch.save({"about": self.about, "records": self.records, "state": state}, buffer)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, buffer.getvalue())

    def load_state(self, device: torch.device | str) -> dict[str, Any] | None:
        """The state of the last sitting, or None before the first."""
        if not self.path.exists():
            return None
        try:
            content = torch.load(self.path, map_location=device, weights_only=True)
        except Exception:  # torch and zipfile raise many kinds
            print(f"note: {self.path} is damaged: its run begins anew")
            return None
        if content["about"] != self.about:
            return None
        self.records = content["records"]
        return content["state"]


def attempt(trial: ImageTrial, seed: int, place: Place) -> Outcome | None:
    """Train the model of a trial and test it every epoch; a diverging solve is an outcome, not an error.

    Nothing is chosen by validation: all training images, or as many as asked for, are trained on, and the figures are
    those of the last epoch.
    Records hold means over the batches of the epoch for ``loss``, ``nfe_forward`` and ``nfe_backward``, and figures of
    the test images at its end; ``seconds`` are those of training alone.

    Returns:
        The outcome; None when the deadline came first, with the state kept for the next sitting.

    Raises:
        KeyboardInterrupt: when a signal asks to stop.
    """
    if time.time() > place.deadline:
        return None
    device = torch.device(place.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    deadline = time.monotonic() + place.deadline - time.time()
    dataset = load(trial, seed, place.data_root)
    train_part, test = dataset.train.to(device), dataset.test.to(device)
    torch.manual_seed(seed)
    options: dict[str, Any] = {"solver": SOLVER, **trial.model}
    model = classifier(dataset.shape, dataset.outputs, levels=dataset.levels, **options).to(device)
    objective = Supervised(model, "cross-entropy")
    batch_size = min(trial.batch_size, len(train_part.x))
    per_epoch = len(train_part.x) // batch_size
    same: dict[str, Any] = {
        "lr": trial.lr,
        "schedule": trial.schedule,
        "weight_decay": trial.weight_decay,
        "clip": math.inf,
    }
    training = Training(trial.epochs * per_epoch, batch_size, **same, validate_every=per_epoch)
    about = {**trial.plain(), "seed": seed}
    sitting = Sitting(place.states / f"{trial.data}-{trial.name}-{seed}.pt".replace(" ", "-"), about)

    def figures() -> dict[str, float]:
        found = measure(objective, test)
        return {"epoch": len(sitting.records)} | {f"test_{name}": value for name, value in found.items()}

    failure = None
    try:
        finished = train(
            objective,
            training,
            shuffled_batches(tuple(train_part), batch_size, seed),
            figures,
            lambda: None,
            sitting,
            device,
            criterion="test_loss",
            quiet=True,
            deadline=deadline,
        )
        if not finished:
            if time.monotonic() <= deadline:
                raise KeyboardInterrupt
            return None
    except TrainingError as error:
        failure = error
    status = ended(failure, sitting.records)
    sitting.path.unlink(missing_ok=True)
    records = [{**record, "seconds": record["seconds_training"]} for record in sitting.records]
    for record in records:
        for name in ("step", "lr", "seconds_training"):
            record.pop(name)
    return Outcome(trial, seed, status, records, device_name(device))


def load(trial: ImageTrial, seed: int, data_root: str, download: bool = False) -> Labelled:
    """The images of a trial, none of which are kept to validate on."""
    source = trial.data if images.known(trial.data) else str(_folder(trial.data, data_root))
    every = _read(source, data_root, download and trial.data in PUBLISHED, trial.image_size, trial.classes)
    tested = min(trial.test_size or math.inf, len(images.arranged(every, seed).test.x))
    dataset = images.arranged(every, seed, test_size=int(tested))
    train, size, notes = _joined(dataset), trial.train_size, dataset.notes
    if size is not None and size < len(train.x):
        notes = (f"{size:,} of {len(train.x):,} training images", *notes)
        train = Pairs(train.x[:size], train.y[:size])  # in random order already
    none = Pairs(train.x[:0], train.y[:0])
    return dataclasses.replace(dataset, train=train, validation=none, notes=notes)


def _folder(data: str, data_root: str) -> Path:
    folder = Path(data_root) / data
    if not folder.is_dir():
        raise InputError(
            f"--data {data}: {folder} is no folder of images: unpack it by train-flows unpack ARCHIVE {data_root}, or "
            "pass another --data-root"
        )
    return folder


@lru_cache(maxsize=4)  # many models are trained on the same images
def _read(source: str, data_root: str, download: bool, size: int | None, classes: int | None) -> images.Images:
    found = images.read(source, data_root, download, size)
    if classes is None or classes >= len(found.classes):
        return found
    test = None if found.test is None else _below(found.test, classes)
    notes = (*found.notes, f"the first {classes} of {len(found.classes)} classes")
    return found._replace(train=_below(found.train, classes), test=test, classes=found.classes[:classes], notes=notes)


def _below(part: Pairs, classes: int) -> Pairs:
    wanted = part.y < classes
    if not wanted.any():
        raise InputError(f"a part of the images holds none of the first {classes} classes: add some")
    return Pairs(part.x[wanted], part.y[wanted])


def _joined(dataset: Labelled) -> Pairs:
    """Training and validation images together."""
    parts = zip(dataset.train, dataset.validation, strict=True)
    return Pairs(*(torch.cat(pair) for pair in parts))
