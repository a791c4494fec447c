"""Short versions of what ``train-flows benchmark reliability`` measures."""

import json

import pytest

from train_flows.benchmark import endurance, kills, scaling


def test_killed_runs_come_to_the_same(tmp_path):
    found = kills.survive(3, seed=1, folder=tmp_path)
    assert found["identical"] == found["kills"] == 3


def test_runs_that_differ_are_told_apart(tmp_path):
    table = kills._table(tmp_path)
    one = kills._trained(table, tmp_path / "one")
    assert kills.same(one, one)
    weights = {name: tensor.clone() for name, tensor in one.weights.items()}
    next(iter(weights.values())).flatten()[0] += 1e-6
    assert not kills.same(one, one._replace(weights=weights))
    assert not kills.same(one, one._replace(records=one.records[:-1]))


def test_a_full_disk_costs_no_checkpoint(tmp_path):
    found = kills.refuse(tmp_path)
    assert found["status"] == 1
    assert found["identical"]
    for word in ("could not be written", "File too large", "--resume run"):
        assert word in found["message"]


def test_memory_stays_what_it_is():
    assert endurance.soak(500)["growth"] < 0.02


def test_saving_is_timed(tmp_path):
    found = endurance.saving(4, tmp_path / "run")
    assert 0 < found["seconds_saving"] < found["seconds"]
    assert found["share"] == found["seconds_saving"] / found["seconds"]


def test_the_parts_are_kept_in_one_file(run, tmp_path):
    command = ["benchmark", "reliability", "--mutations", 5, "--parts", "mutated-tables", "mutated-runs"]
    status, out, err = run(*command)
    assert (status, err) == (0, "")
    found = json.loads((tmp_path / "reliability.json").read_text())["parts"]
    for part in ("mutated-tables", "mutated-runs"):
        assert sum(found[part]["outcomes"].values()) == 5
        assert not found[part]["failures"]
        assert part in out
    assert run(*command)[0] == 2  # the file exists
    (tmp_path / "reliability.json").write_text("[]")
    assert run(*command, "--resume")[0] == 2
    assert run(*command, "--mutations", 0, "--overwrite")[0] == 2


@pytest.mark.parametrize("typed", [["--processes", 0], ["--steps", 0], ["--out", "x.txt"]])
def test_scaling_refuses_nonsense(run, typed):
    status, _, err = run("benchmark", "scaling", *typed)
    assert status == 2
    assert err.count("\n") == 1


def test_throughputs_are_compared(monkeypatch):
    monkeypatch.setattr(scaling, "_throughput", lambda settings, count, run: 100.0 * count**0.5)
    rows = scaling.throughputs(scaling.Settings(processes=(1, 4)))
    assert rows == [
        {"processes": 1, "samples_a_second": 100.0, "times_faster": 1.0},
        {"processes": 4, "samples_a_second": 200.0, "times_faster": 2.0},
    ]
