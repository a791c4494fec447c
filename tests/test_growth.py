"""Learning rates that warm up and batches that double, against what they are by definition."""

import math

import numpy as np
import pytest
import torch

from anode import InputError
from train_flows import processes
from train_flows.checkpoint import Run
from train_flows.data.rows import Rows
from train_flows.growth import Growth, doubled
from train_flows.loop import shuffled_batches, train
from train_flows.training import Training

TINY = ("density", "moons", "--hidden", "8", "8", "--batch-size", "32", "--steps", "8", "--validate-every", "2")


class Slope(torch.nn.Module):
    """A parameter whose gradient is 1, which Adam moves by the learning rate."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        return self.weight


@pytest.mark.parametrize(
    ("training", "decay"),
    [
        (Training(steps=8, lr=0.1, schedule="constant", validate_every=1), lambda step: 1.0),
        (Training(steps=8, lr=0.1, validate_every=1), lambda step: (1 + math.cos(math.pi * step / 8)) / 2),
        (
            Training(steps=8, lr=0.1, restart=5, restart_lr=0.02, validate_every=1),
            lambda step: (
                (1 + math.cos(math.pi * step / 5)) / 2 if step < 5 else 0.1 * (1 + math.cos(math.pi * (step - 5) / 3))
            ),
        ),
    ],
)
def test_the_rate_warms_up(tmp_path, training, decay):
    slope, moved, run = Slope(), [], Run.create(tmp_path / "run")

    def validate():
        moved.append(-slope.weight.item())
        return {"nll": 0.0}

    cpu = torch.device("cpu")
    assert train(slope, training, lambda step: None, validate, lambda: None, run, cpu, growth=Growth(lr_warm_up=4))
    since = [step - (training.restart or 0) * (step >= (training.restart or 9)) for step in range(9)]
    expected = [0.1 * min(1, (n + 1) / 4) * decay(step) for step, n in enumerate(since)]
    assert [record["lr"] for record in run.records()][:8] == pytest.approx(expected[:8])
    np.testing.assert_allclose(np.diff(moved), expected[:8], rtol=1e-3)  # the first step with 1/4 of 0.1, not with 0


def test_doubled_batches_are_the_next_of_the_stream():
    batch = doubled(lambda place: torch.tensor([place]), (2, 4))
    assert [batch(step).tolist() for step in range(6)] == [[0], [1], [2, 3], [4, 5], [6, 7, 8, 9], [10, 11, 12, 13]]
    assert batch(3).tolist() == [4, 5]  # whatever was asked before
    assert doubled(len, ()) is len


def test_epochs_go_on_through_doubling():
    """Every sample comes once an epoch, with its target."""
    x = torch.arange(24)
    batch = doubled(shuffled_batches((x, 10 * x), 2, seed=1), (4, 6))
    seen = [batch(step) for step in range(8)]
    assert [len(each[0]) for each in seen] == [2, 2, 2, 2, 4, 4, 8, 8]
    assert all(torch.equal(10 * inputs, targets) for inputs, targets in seen)
    samples = torch.cat([inputs for inputs, _ in seen])
    assert sorted(samples[:24].tolist()) == list(range(24))


def test_tables_on_disk_too(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(80, dtype=np.float32).reshape(40, 2))
    rows = Rows(tmp_path / "x.npy", lambda: np.load(tmp_path / "x.npy", mmap_mode="r"), np.array([3, 7]))
    stream, batch = rows.batches(4, 0), doubled(rows.batches(4, 0), (1,))
    assert torch.equal(batch(2), torch.cat([stream(3), stream(4)]))


def test_processes_share_alike(monkeypatch):
    x = torch.arange(64)
    whole, shares = doubled(shuffled_batches(x, 8, seed=1), (1,))(3), []
    monkeypatch.setattr(processes, "count", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        shares.append(doubled(shuffled_batches(x, 8, seed=1), (1,))(3))
    assert [len(share) for share in shares] == [8, 8]
    assert sorted(torch.cat(shares).tolist()) == sorted(whole.tolist())


def test_a_run_grows_and_resumes(run, monkeypatch):
    """Each step of the run takes as many samples as it says, stopped and resumed or not."""
    monkeypatch.setattr("train_flows.density.report", lambda *_: None)
    growing = (*TINY, "--lr-warm-up", "3", "--double-at", "3", "6")
    assert run(*growing, "--out", "whole")[0] == 0
    assert run(*growing, "--out", "parts", "--budget-minutes", "1e-9")[0] == 0
    seen = []
    batches = shuffled_batches

    def watched(*args):
        batch = batches(*args)
        return lambda place: seen.append(place) or batch(place)

    monkeypatch.setattr("train_flows.density.shuffled_batches", watched)
    assert run("density", "--resume", "parts")[0] == 0
    assert seen == list(range(3 + 2 * 3 + 4 * 2))
    whole, parts = (
        [{name: x for name, x in record.items() if "seconds" not in name} for record in Run(folder).records()]
        for folder in ("whole", "parts")
    )
    assert whole == parts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lr-warm-up", "-1"), "--lr-warm-up -1 must be a number of steps from 0"),
        (("--lr-warm-up", "3", "--schedule", "plateau"), "--lr-warm-up 3 is of --schedule cosine or constant"),
        (("--double-at", "0"), "--double-at 0 must be steps from 1"),
        (("--double-at", "4", "2"), "--double-at 4 2 must be steps from 1, each after"),
        (("--double-at", "2", "2"), "--double-at 2 2 must be steps from 1, each after"),
        (("--double-at", "2", "8"), "--double-at 2 8 must lie below --steps 8"),
        (("--double-at", *"1234567", "--batch-size", "512"), "makes batches of 65536, of"),
    ],
)
def test_what_has_no_room_is_refused(run, options, message):
    status, _, err = run(*TINY, *options)
    assert status == 2
    assert message in err


def test_as_many_as_there_are_will_do():
    Growth(double_at=(1, 2)).check_with(Training(batch_size=25), samples=100)
    with pytest.raises(InputError, match="batches of 100, of 99 training samples"):
        Growth(double_at=(1, 2)).check_with(Training(batch_size=25), samples=99)
