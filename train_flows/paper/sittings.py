"""Experiments whose runs add up over several sittings: what is missing is trained, what is there is kept."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from anode import InputError
from train_flows.paper.outcomes import Outcome, Place, Tried, describe, records_of
from train_flows.paper.workers import each
from train_flows.provenance import provenance

RESULTS = ("status", "machine", "samples", "history")  # of a run; the rest is what was tried


@dataclass(frozen=True)
class How:
    """How the trials of an experiment are trained.

    Attributes:
        attempt: of a trial with a seed in that place; None where the time is up.
        look: what is known of every data set of some trials, notes and a digest among it; it fails where they are no
            good.
        workers: how many of some trials run side by side, where it was not said.
    """

    attempt: Callable[[Any, int, Place], Outcome | None]
    look: Callable[[Sequence[Any]], dict[str, dict[str, Any]]] = lambda wanted: {}
    workers: Callable[[Sequence[Any]], int] = lambda wanted: os.cpu_count() or 1


@dataclass
class Sittings:
    """Trains trials with every seed, the first seed of all of them before the next, until time is up.

    Attributes:
        seeds: of the repetitions.
        workers: runs side by side; None for as many as suit, known afterwards.
        place: where and until when.
        write: keeps plain values of what there is so far.
        how: they are trained.
        earlier: the content of the file of earlier sittings, to go on with; None to begin anew.
        missing: how many runs were not finished; known afterwards.
        others: plain values of earlier runs that were not asked for now; known afterwards.
        sets: what is known of every data set; known afterwards.
        trained: how many runs were finished in this sitting; known afterwards.
    """

    seeds: Sequence[int]
    workers: int | None
    place: Place
    write: Callable[..., None]
    how: How
    earlier: dict[str, Any] | None = None
    missing: int = 0
    others: list[dict[str, Any]] = field(default_factory=list)
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    trained: int = 0

    def __call__(self, wanted: Sequence[Tried], telling: Callable[[Tried], bool] = lambda trial: True) -> list[Outcome]:
        """The outcomes there are; with all seeds of the telling trials first, otherwise in the order of seeds."""
        wanted = list({_key(trial.plain()): trial for trial in wanted}.values())  # small sizes make some alike
        self._look(wanted)  # fails here, if anywhere, with earlier results untouched
        self.workers = self.workers or self.how.workers(wanted)
        if self.earlier is None:
            shutil.rmtree(self.place.states, ignore_errors=True)
        parts = [[trial for trial in wanted if telling(trial) is first] for first in (True, False)]
        jobs = [(trial, seed) for part in parts for seed in self.seeds for trial in part]
        found = self._stored(jobs)
        self._write(found)
        waiting = [place for place in range(len(jobs)) if place not in found]
        with tqdm(total=len(jobs), initial=len(found), unit="run", disable=None) as bar:
            for i, outcome in each(self.how.attempt, [(*jobs[place], self.place) for place in waiting], self.workers):
                if outcome is None:
                    continue
                found[waiting[i]] = outcome
                self.trained += 1
                self._write(found)
                bar.write(describe(outcome))
                bar.update()
        self.missing = len(jobs) - len(found)
        with contextlib.suppress(OSError):  # it is not there, or holds states of runs that were not asked for
            self.place.states.rmdir()
        return [found[place] for place in sorted(found)]

    @property
    def about(self) -> dict[str, Any]:
        """What there is to know of all runs."""
        return {"seeds": list(self.seeds), "workers": self.workers, "sets": self.sets, **self._sittings()}

    @property
    def caption(self) -> str:
        """What the data are."""
        return "\n".join(f"{data}: {'; '.join(known['notes'])}" for data, known in self.sets.items())

    def _sittings(self) -> dict[str, Any]:
        """Command, machine and versions of the first sitting, and of all later ones that trained something."""
        if not self.earlier:
            return {}  # this is the first
        later = [*self.earlier.get("later", ()), *([provenance()] if self.trained else [])]
        return {name: self.earlier[name] for name in provenance() if name in self.earlier} | {"later": later}

    def _look(self, wanted: Sequence[Tried]) -> None:
        known = (self.earlier or {}).get("sets", {})
        self.sets.update(self.how.look(wanted))
        for data, about in self.sets.items():
            if known.get(data, about)["sha256"] != about["sha256"]:
                raise InputError(f"the images of {data} have changed since the earlier runs: pass another --out")
            print(f"{data}: {'; '.join(about['notes'])}")

    def _stored(self, jobs: Sequence[tuple[Tried, int]]) -> dict[int, Outcome]:
        """The outcomes of earlier sittings by their place among the jobs; other runs are kept as they are."""
        places = {_key({**trial.plain(), "seed": seed}): place for place, (trial, seed) in enumerate(jobs)}
        found = {}
        for run in (self.earlier or {}).get("runs", ()):
            about = {name: x for name, x in run.items() if name not in RESULTS}
            place = places.get(_key(about))
            if place is None:
                self.others.append(run)
            else:
                trial, seed = jobs[place]
                about = (run["status"], records_of(run["history"]), run["machine"], run.get("samples"))
                found[place] = Outcome(trial, seed, *about)
        return found

    def _write(self, found: dict[int, Outcome]) -> None:
        runs = [found[place].result() for place in sorted(found)]
        self.write(runs + self.others, self.about, complete=False)


def _key(about: dict[str, Any]) -> str:
    return json.dumps(about, sort_keys=True)


def read(path: Path, experiment: str) -> dict[str, Any]:
    """The content of the file of earlier sittings; empty where there is none.

    Raises:
        InputError: when the file is damaged, or of another experiment.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
        found = content["experiment"]
        if not all({"seed", "status", "machine", "history"} <= set(run) for run in content["runs"]):
            raise KeyError("runs")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of results: pass another --out, or --overwrite") from error
    if found != experiment:
        raise InputError(f"{path} is of the experiment {found}, not of {experiment}: pass another --out")
    return content
