"""Experiments on images, whose runs add up over several sittings: what is missing is trained, what is there is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from anode import InputError
from train_flows.paper.image_trials import ImageTrial, Place, attempt, load
from train_flows.paper.outcomes import Outcome, describe, records_of
from train_flows.paper.workers import each


@dataclass
class Sittings:
    """Trains trials with every seed, the first seed of all of them before the next, until time is up.

    Attributes:
        seeds: of the repetitions.
        workers: runs side by side.
        place: where and until when.
        write: keeps the plain values of the runs so far.
        stored: plain values of the runs of earlier sittings.
        missing: how many runs were not finished; known afterwards.
    """

    seeds: Sequence[int]
    workers: int
    place: Place
    write: Callable[..., None]
    stored: list[dict[str, Any]] = field(default_factory=list)
    missing: int = 0

    def __call__(self, wanted: Sequence[ImageTrial]) -> list[Outcome]:
        """The outcomes there are, in the order of seeds."""
        jobs = [(trial, seed) for seed in self.seeds for trial in wanted]
        found = {place: outcome for place, job in enumerate(jobs) if (outcome := self._stored(*job)) is not None}
        self.write(runs=_results(found), complete=False)
        waiting = [place for place in range(len(jobs)) if place not in found]
        for trial in {trial.data: trial for trial, _ in jobs}.values() if waiting else ():
            for note in load(trial, self.seeds[0], self.place.data_root).notes:  # fails here, if anywhere
                print(f"note: {trial.data}: {note}")
        with tqdm(total=len(jobs), initial=len(found), unit="run", disable=None) as bar:
            for i, outcome in each(attempt, [(*jobs[place], self.place) for place in waiting], self.workers):
                if outcome is None:
                    continue
                found[waiting[i]] = outcome
                self.write(runs=_results(found), complete=False)
                bar.write(describe(outcome))
                bar.update()
        self.missing = len(jobs) - len(found)
        if not self.missing:
            shutil.rmtree(self.place.states, ignore_errors=True)
        return [found[place] for place in sorted(found)]

    def _stored(self, trial: ImageTrial, seed: int) -> Outcome | None:
        about = {**trial.plain(), "seed": seed}
        for run in self.stored:
            if about.items() <= run.items():
                return Outcome(trial, seed, run["status"], records_of(run["history"]), run["machine"])
        return None


def _results(found: dict[int, Outcome]) -> list[dict[str, Any]]:
    return [found[place].result() for place in sorted(found)]


def read(path: Path, experiment: str) -> list[dict[str, Any]]:
    """The runs of earlier sittings; none where there is no file.

    Raises:
        InputError: when the file is damaged, or of another experiment.
    """
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_bytes())
        found, runs = content["experiment"], content["runs"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of results: pass another --out, or --overwrite") from error
    if found != experiment:
        raise InputError(f"{path} is of the experiment {found}, not of {experiment}: pass another --out")
    return runs
