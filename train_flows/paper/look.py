"""What the images of an experiment are, found out before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anode import InputError
from train_flows.paper.image_trials import ImageTrial, load
from train_flows.paper.scale import CLASSES, FAMILIES, family


def look(wanted: Sequence[ImageTrial], seed: int, data_root: str, download: bool) -> dict[str, dict[str, Any]]:
    """Notes and a digest of every set of images, which is fetched and read if it can be.

    Raises:
        InputError: when images are missing or damaged, or their classes or channels are not those of their family.
    """
    sets = {}
    for trial in {trial.data: trial for trial in wanted}.values():
        dataset = load(trial, seed, data_root, download)
        channels = FAMILIES[family(trial.data)].shape[0]
        if (dataset.shape[0], dataset.outputs) != (channels, CLASSES):
            got = f"{dataset.outputs} classes of images with {dataset.shape[0]} channels"
            raise InputError(f"{trial.data} holds {got}, not {CLASSES} with {channels}: rename the folder")
        sizes = f"{len(dataset.train.x):,} images to train on, {len(dataset.test.x):,} to test on"
        sets[trial.data] = {"notes": [sizes, *dataset.notes], "sha256": dataset.digest()}
    return sets
