"""Grids of runs: only what is missing is trained, interrupted runs are continued, failures are recorded."""

import json
import signal
import sys
import time
from itertools import pairwise

import pytest

from anode import InputError, SolverError
from train_flows.experiments import grid
from train_flows.experiments.grid import Experiment, Job, Scale, jobs_of, prepare, run_missing, words
from train_flows.run import TrainingError
from train_flows.run.folder import Run

STEPS = 2


class Program:
    """A program that trains nothing; ``todo`` says by seed what happens in the next run."""

    def __init__(self):
        self.lines, self.todo = [], {}

    def main(self, args):
        self.lines.append(args)
        print("trained")
        options = dict(pairwise(args))
        if "--resume" in options:
            run = Run.open(options["--resume"])
        else:
            seed = int(options["--seed"])
            run = Run.create(options["--out"], "some", {"training": {"steps": STEPS}, "run": {"seed": seed}}, {}, {})
            run.log({"step": 0, "seconds_training": 0.0})
        todo = self.todo.pop(run.settings["run"]["seed"], None)
        if isinstance(todo, BaseException):
            raise todo
        run.log({"step": STEPS, "loss": 0.5, "seconds_training": 1.0})
        run.write_result({"accuracy": 1.0})


@pytest.fixture
def program(monkeypatch):
    made = Program()
    monkeypatch.setitem(sys.modules, "some_program", made)
    monkeypatch.setitem(grid.PROGRAMS, "some", "some_program")
    return made


def jobs(folder, seeds=2, command="some {data} --extra 5"):
    experiment = Experiment("", ("spheres",), "functions", lambda data, scale: {"ANODE p=5": command}, lambda r: None)
    folder.mkdir(parents=True, exist_ok=True)
    return jobs_of(experiment, experiment.data, range(seeds), Scale("full", "there"), folder)


def train(todo, **options):
    return run_missing(todo, **{"workers": 1, "device": "cpu", **options})


def test_a_run_is_a_command_line_in_a_folder_of_its_own(tmp_path, program):
    (job,) = jobs(tmp_path, seeds=1)
    (outcome,) = train([job], deadline=time.time() + 600)
    folder = tmp_path / "spheres-ANODE-p=5-0"
    line, minutes = program.lines[0][:-1], float(program.lines[0][-1])
    expected = f"spheres --extra 5 --seed 0 --out {folder} --data-root there --device cpu --budget-minutes"
    assert line == expected.split()
    assert 9.9 < minutes <= 10
    assert (outcome.status, outcome.records[-1]["loss"]) == ("success", 0.5)
    assert outcome.command == "train-flows some spheres --extra 5 --seed 0"
    assert job.log.read_text() == f"{outcome.command}\ntrained\n"


def test_finished_runs_are_kept_and_missing_ones_are_trained(tmp_path, program):
    assert len(train(jobs(tmp_path, seeds=1), deadline=time.time() - 1)) == 0
    assert len(train(jobs(tmp_path, seeds=1))) == 1
    assert "--budget-minutes" not in program.lines[0]
    assert [outcome.seed for outcome in train(jobs(tmp_path, seeds=3))] == [0, 1, 2]
    assert [line[3] for line in program.lines] == ["--seed"] * 3
    assert len(train(jobs(tmp_path, seeds=3))) == 3
    assert len(program.lines) == 3


def test_an_interrupted_run_stops_all_and_is_continued(tmp_path, program):
    program.todo[0] = KeyboardInterrupt("stopped")
    todo = jobs(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(todo)
    assert len(program.lines) == 1
    assert [outcome.status for outcome in train(todo)] == ["success"] * 2
    assert program.lines[1] == ["--resume", str(todo[0].folder), "--device", "cpu"]


SOLVE = SolverError("too many steps", 0.5, 100, "some solver")


@pytest.mark.parametrize(("cause", "status"), [(SOLVE, "too many steps"), (None, "non-finite loss")])
def test_a_training_that_diverges_is_an_outcome(tmp_path, program, cause, status):
    error = TrainingError("step 1 failed", solving=True)
    error.__cause__ = cause
    program.todo[0] = error
    assert [outcome.status for outcome in train(jobs(tmp_path))] == [status, "success"]
    assert json.loads((tmp_path / "spheres-ANODE-p=5-0" / "failed.json").read_text())["status"] == status
    assert len(train(jobs(tmp_path))) == 2
    assert len(program.lines) == 2  # it is not tried again


def test_other_errors_end_the_experiment(tmp_path, program):
    full = TrainingError("the disk is full")
    full.__cause__ = OSError(28, "No space left on device")
    for error in (full, InputError("no such data")):
        program.todo[0] = error
        with pytest.raises(type(error), match=str(error)):
            train(jobs(tmp_path / type(error).__name__))


def test_a_run_of_another_command_line_is_not_mixed_in(tmp_path, program):
    todo = jobs(tmp_path, seeds=1)
    train(todo)
    prepare(todo, overwrite=False)
    changed = jobs(tmp_path, seeds=1, command="some {data} --extra 5 --lr 0.1")
    with pytest.raises(InputError, match="was started as 'train-flows some spheres --extra 5 --seed 0'"):
        prepare(changed, overwrite=False)
    prepare(changed, overwrite=True)
    assert list(tmp_path.iterdir()) == []
    (outcome,) = train(changed)
    assert outcome.command.endswith("--lr 0.1 --seed 0")


def test_the_most_telling_runs_come_first(tmp_path):
    runs = {"moons": {"plain": "", "other": ""}, "rings": {"plain": "", "third": ""}}
    experiment = Experiment("", tuple(runs), "densities", lambda data, _: runs[data], lambda r: None, first=("plain",))
    found = jobs_of(experiment, experiment.data, (3, 4), Scale(), tmp_path)
    first = [("plain", data, seed) for seed in (3, 4) for data in runs]
    rest = [(label, data, seed) for seed in (3, 4) for label, data in (("other", "moons"), ("third", "rings"))]
    assert [(job.label, job.data, job.seed) for job in found] == first + rest


def test_command_lines_have_options_and_names_of_data_or_paths():
    options = {"hidden": (8, 4), "multiscale": False, "whiten": True, "lr": 1e-3}
    assert words("density {data}", options) == "density {data} --hidden 8 4 --no-multiscale --whiten --lr 0.001"
    scale = Scale("full", "/there")
    assert [scale.source(name) for name in ("moons", "spheres", "mnist")] == ["moons", "spheres", "mnist"]
    assert scale.source("protein.csv.gz") == "/there/protein.csv.gz"


CLASSIFY = "classify {data} --model resnet --train-size 64 --test-size 20"


def test_processes_change_nothing(tmp_path):
    def results(folder, workers):
        command = f"{CLASSIFY} --epochs 2"
        return train(jobs(tmp_path / folder, command=command), workers=workers)

    alone, together = results("alone", 1), results("together", 2)
    for one, two in zip(alone, together, strict=True):
        assert (one.seed, one.status) == (two.seed, "success")
        assert [r.get("loss") for r in one.records] == [r.get("loss") for r in two.records]


def test_a_signal_ends_the_processes_with_their_state_saved(tmp_path):
    todo = [Job("NODE", "spheres", 0, f"{CLASSIFY} --epochs 100000", tmp_path / "run", "spheres")]

    def stop(*_):
        if (todo[0].folder / "state.pt").exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.raise_signal(signal.SIGTERM)

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(todo, workers=2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert Run.open(todo[0].folder).load_state() is not None
    assert todo[0].outcome() is None


class Deadly(Job):
    """A run whose process dies."""

    def words(self):
        signal.raise_signal(signal.SIGKILL)


def test_the_death_of_a_process_is_explained(tmp_path):
    with pytest.raises(TrainingError, match="lower --workers"):
        train([Deadly("NODE", "spheres", 0, CLASSIFY, tmp_path / "run", "spheres")], workers=2)
