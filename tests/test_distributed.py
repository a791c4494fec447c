"""Two connected processes against one with the whole batch, and a single process as a group of one."""

import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from tasks import Quadratic, without_times

from anode import InputError, Solver, SolverError
from train_flows.run import TrainingError, distributed
from train_flows.run.folder import Run
from train_flows.run.loop import train
from train_flows.settings import Training

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "accelerate", "pydantic", "torchdiffeq"])
TRAINING = Training(steps=12, lr=0.1, validate_every=4, ema=0.9)
CPU = torch.device("cpu")


def start_together(work, folder):
    """Run ``work(folder)`` in two connected processes; what they return or raise goes to files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [CONTEXT.Process(target=_connected, args=(work, folder, rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    return processes


def together(work, folder):
    """Return what ``work(folder)`` returned, or the message of what it raised, in each of two connected processes."""
    for process in start_together(work, folder):
        process.join(120)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _connected(work, folder, rank, port):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ["LOCAL_RANK"] = str(rank)
    distributed.connect(CPU)
    torch.manual_seed(3)
    try:
        found = work(folder)
    except (Exception, KeyboardInterrupt) as error:
        found = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"{rank}.pt")


def _agree(folder):
    """Call everything that communicates."""
    rank = distributed.rank()
    distributed.wait()

    def fail():
        raise InputError("only the first one sees this")

    def halve(part):
        if part == 3:  # of rank 1
            raise SolverError("too many steps", 0.5, 9, Solver())
        return part / 2

    errors = []
    for raising in (lambda: distributed.from_first(fail), lambda: distributed.shared_out([0, 2, 4, 3], halve)):
        try:
            raising()
        except (InputError, SolverError) as error:
            errors.append(str(error))
    return {
        "group": (rank, distributed.count()),
        "everywhere": (distributed.everywhere(True, CPU), distributed.everywhere(rank == 0, CPU)),
        "gathered": distributed.gathered(rank),
        "from_first": distributed.from_first(lambda: f"rank {rank}"),
        "first_alone": distributed.first_alone(lambda: (folder / "x").exists() or (folder / "x").touch()),
        "means": distributed.means({"loss": float(rank)}),
        "shared_out": distributed.shared_out([0, 2, 4], halve),
        "share": distributed.share_of(torch.arange(5)).tolist(),
        "errors": errors,
    }


def test_two_processes_agree(tmp_path):
    first, second = together(_agree, tmp_path)
    assert (first.pop("group"), second.pop("group")) == ((0, 2), (1, 2))
    assert (first.pop("share"), second.pop("share")) == ([0, 2, 4], [1, 3])
    assert (first.pop("first_alone"), second.pop("first_alone")) == (None, True)
    assert first == second
    assert first["everywhere"] == (True, False)
    assert first["gathered"] == [0, 1]
    assert first["from_first"] == "rank 0"
    assert first["means"] == {"loss": 0.5}
    assert first["shared_out"] == [0.0, 1.0, 2.0]
    assert first["errors"][0] == "only the first one sees this"
    assert "too many steps at t = 0.5" in first["errors"][1]


def _quadratic(folder):
    task = Quadratic(TRAINING)
    run = Run.create(folder / "run", "test", {}, {}, {})
    train(task, run)
    return task.weight.detach(), run.records()


def test_the_gradient_of_two_is_that_of_one(tmp_path):
    """So are weights and records."""
    weight, records = _quadratic(tmp_path / "one")
    for other, others in together(_quadratic, tmp_path):
        torch.testing.assert_close(other, weight, rtol=1e-5, atol=1e-6)
        assert [record["step"] for record in others] == [0, 4, 8, 12]
        for record, one in zip(without_times(others), without_times(records), strict=True):
            assert {name: record[name] for name in ("loss", "nll") if name in record} == pytest.approx(
                {name: one[name] for name in ("loss", "nll") if name in one}, rel=1e-4
            )


def _noisy(folder):
    """Train with different noise in each process; a signal to rank 1 stops both, once."""
    task, stop = Quadratic(TRAINING), folder / "stop"
    clean, batch = task.objective, task.batch
    task.objective = lambda batch, step: clean(batch + torch.randn(2), step)

    def interrupted(step):
        if distributed.rank() and step == 6 and stop.exists():
            stop.unlink()
            signal.raise_signal(signal.SIGTERM)
        return batch(step)

    task.batch = interrupted
    begun = (folder / "run").exists()
    distributed.wait()
    train(task, Run.open(folder / "run") if begun else Run.create(folder / "run", "test", {}, {}, {}))
    return task.weight.detach()


def test_a_run_of_two_continues_bit_for_bit(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = together(_noisy, tmp_path / "whole")
    (tmp_path / "cut" / "stop").touch()
    assert together(_noisy, tmp_path / "cut") == 2 * ["KeyboardInterrupt: "]
    assert Run.open(tmp_path / "cut" / "run").step == 7
    for weight in together(_noisy, tmp_path / "cut"):
        assert torch.equal(weight, whole[0])
    records = [without_times(Run.open(tmp_path / name / "run").records()) for name in ("whole", "cut")]
    assert records[0] == records[1]


def _failing(folder):
    failure = SolverError("too many steps", 0.5, 9, Solver())
    train(Quadratic(TRAINING, {2} if distributed.rank() else (), failure), Run.create(folder / "run", "t", {}, {}, {}))


def test_a_failed_solve_of_one_ends_both(tmp_path):
    for message in together(_failing, tmp_path):
        assert message.startswith("TrainingError: step 2 failed: its solve failed: too many steps")


def _endless(folder):
    task = Quadratic(Training(steps=10**6, validate_every=100))
    train(task, Run.create(folder / "run", "test", {}, {}, {}))


def test_a_process_that_dies_ends_the_other(tmp_path):
    both = start_together(_endless, tmp_path)
    while not (tmp_path / "run" / "state.pt").exists():
        time.sleep(0.01)
        assert all(process.is_alive() for process in both)
    both[1].kill()
    both[0].join(60)
    assert torch.load(tmp_path / "0.pt").startswith("TrainingError: another process exited; see its output")


def test_one_process_is_a_group_of_one():
    assert (distributed.rank(), distributed.count()) == (0, 1)
    assert distributed.started() == (0, 1)
    assert distributed.shared_out([1, 2, 3], lambda part: 2 * part) == [2, 4, 6]
    assert distributed.everywhere(True, CPU)
    assert not distributed.everywhere(False, CPU)
    assert Path("x") == distributed.from_first(lambda: Path("x")) == distributed.first_alone(lambda: Path("x"))
    assert issubclass(TrainingError, RuntimeError)
