"""What there is to compare of runs: their figures, and the settings that differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anode import CheckpointError, InputError, storage
from anode.classifiers import KIND as CLASSIFIER
from anode.reading import LARGEST_JSON, read_bytes
from cnf.models import KIND as DENSITY
from train_flows.checkpoint import RESULT, Run

CRITERIA = {DENSITY: "nll", CLASSIFIER: "validation_loss"}  # which validated figure decides on the best weights
LARGEST = 2**63  # of whole numbers in records
PLACES = ("source", "data_root", "download")  # settings of the data that say where they lie


@dataclass(frozen=True)
class Compared:
    """A run to compare.

    Attributes:
        folder: of the run.
        name: the shortest end of its path that no other run has.
        kind: of its model.
        data: the name of its data.
        settings: what it was trained by; not where.
        records: of its training, perhaps none yet.
        result: of ``result.json``; None for a run that is not finished.
    """

    folder: str
    name: str
    kind: str
    data: str
    settings: dict[str, Any]
    records: list[dict[str, Any]]
    result: dict[str, Any] | None

    @property
    def criterion(self) -> str:
        """The name of the figure of validation that decides on the best weights."""
        return CRITERIA[self.kind]

    def curve(self, name: str) -> np.ndarray:
        """A figure of all records, NaN where there is none."""
        return np.array([_number(record, name) for record in self.records], dtype=float)

    def figures(self) -> dict[str, Any]:
        """The last step with its figures, the best validation, and the test: None where there is no such figure."""
        last = self.records[-1] if self.records else {}
        names = ("step", "loss", "nfe_forward", "nfe_backward", "seconds")
        return {**{name: _number(last, name) for name in names}, "best": self._best(), "test": self._test()}

    def _best(self) -> dict[str, float | None] | None:
        values = self.curve(self.criterion)
        if not np.isfinite(values).any():
            return None
        best = int(np.argmin(np.where(np.isfinite(values), values, math.inf)))
        return {"value": float(values[best]), "step": _number(self.records[best], "step")}

    def _test(self) -> dict[str, Any] | None:
        if self.result is None:
            return None
        try:
            found = self.result["nll"] if self.kind == DENSITY else {**self.result, "value": self.result["accuracy"]}
            figures = {name: float(found[name]) for name in ("value", "standard_error")}
            return figures | {"kind": str(found["kind"]) if self.kind == DENSITY else "accuracy"}
        except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{self.folder}/{RESULT} has no test figure: write it anew with --resume") from error


def read(folders: Sequence[str]) -> list[Compared]:
    """Read runs of one kind.

    Raises:
        InputError: when there are none, one is given twice, is no run or is damaged, or their kinds differ.
    """
    if not folders:
        raise InputError("no runs given: pass the folders of some, such as runs/*")
    paths = [Path(folder).resolve() for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if paths.count(path) > 1:
            raise InputError(f"{folder} is given more than once: name each run once")
    configs = [_config(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        if config["kind"] != configs[0]["kind"]:
            raise InputError(
                f"{folder} is a {config['kind']}, {folders[0]} a {configs[0]['kind']}: compare runs of one kind"
            )
    names, sources = short_names(paths), short_names(Path(config["settings"]["data"]["source"]) for config in configs)
    return [
        Compared(
            folder,
            names[path],
            config["kind"],
            sources[Path(config["settings"]["data"]["source"])],
            _settings(config["settings"]),
            Run(folder).records(),
            _result(folder),
        )
        for folder, path, config in zip(folders, paths, configs, strict=True)
    ]


def differing(runs: Sequence[Compared]) -> list[str]:
    """The names of the settings in which runs differ."""
    first = runs[0].settings
    return [name for name in first if any(run.settings[name] != first[name] for run in runs)]


def short_names(paths: Iterable[Path]) -> dict[Path, str]:
    """For each path, as many of its last parts as tell it from the others.

    >>> short_names([Path("a/moons"), Path("b/moons"), Path("b/rings")])
    {PosixPath('a/moons'): 'a/moons', PosixPath('b/moons'): 'b/moons', PosixPath('b/rings'): 'rings'}
    """
    several = dict.fromkeys(paths)
    names = {}
    for path in several:
        count = 1
        while any(other.parts[-count:] == path.parts[-count:] for other in several if other != path):
            count += 1
        names[path] = str(Path(*path.parts[-count:]))
    return names


def _config(folder: str) -> dict[str, Any]:
    kind = storage.read_config(folder, DENSITY, CLASSIFIER)["kind"]
    return Run(folder).config(kind)


def _settings(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All that figures depend on, by name."""
    learnt = {name: value for name, value in sections["data"].items() if name not in PLACES}
    how = {
        name: value
        for section, values in sections.items()
        if section not in ("data", "run")
        for name, value in values.items()
    }
    return {**learnt, **how, "seed": sections["run"]["seed"]}


def _result(folder: str) -> dict[str, Any] | None:
    path = Path(folder) / RESULT
    try:
        return json.loads(read_bytes(path, LARGEST_JSON)) if path.is_file() else None
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is truncated or no JSON ({error}): write it anew with --resume") from error


def _number(record: dict[str, Any], name: str) -> float | None:
    value = record.get(name)
    if isinstance(value, int) and abs(value) > LARGEST:
        return None  # what no number of a figure holds
    return value if isinstance(value, int | float) else None
