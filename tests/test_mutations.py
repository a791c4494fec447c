"""Damaged and crafted run folders and tables end in a clean error, or in what was stored; and the harness notices."""

import os
import time

import pytest

from train_flows.benchmark import attempts
from train_flows.benchmark.attempts import tally
from train_flows.benchmark.mutated_runs import mutate_runs
from train_flows.benchmark.mutated_tables import mutate_tables

MUTATIONS = 200


def test_mutated_runs_are_refused_or_unchanged():
    found = mutate_runs(MUTATIONS, seed=0)
    assert found.failures == []
    assert sum(found.outcomes.values()) == MUTATIONS
    assert set(found.outcomes) == {"refused", "unchanged"}
    assert found.outcomes["refused"] > 0.9 * MUTATIONS


def test_mutated_tables_are_read_or_refused():
    found = mutate_tables(MUTATIONS, seed=0)
    assert found.failures == []
    assert sum(found.outcomes.values()) == MUTATIONS
    assert set(found.outcomes) == {"refused", "read"}
    assert min(found.outcomes.values()) > 10


class Careless:
    """A reader that comes to grief in every way."""

    def __init__(self, folder):
        self.folder = folder

    def mutate(self, rng):
        self.number = self.number + 1 if hasattr(self, "number") else 0
        return f"of kind {self.number}"

    def read(self):
        if self.number == 1:
            raise KeyError("shape")
        if self.number == 2:
            del [bytes(10**9) + b"1"][:]
        return "read"


class Slow(Careless):
    def read(self):
        try:
            time.sleep(60)
        except Exception:
            return "refused"
        return "read"


class Dying(Careless):
    def read(self):
        if self.number == 2:
            os._exit(1)
        return "read"


def slow(folder):
    attempts.SECONDS = 1
    return Slow(folder)


def test_other_errors_and_much_memory_are_failures():
    found = tally(Careless, 4, seed=0)
    assert found.outcomes == {"read": 2}
    assert found.failures[0] == "mutation 1 of seed 0, of kind 1: KeyError: 'shape'"
    assert "mutation 2" in found.failures[1]
    assert "MB were taken" in found.failures[1]


def test_a_reader_that_takes_long_is_a_failure():
    found = tally(slow, 1, seed=0)
    assert found.outcomes == {}
    assert "more than 1 s" in found.failures[0]


def test_a_process_that_dies_is_a_failure():
    (failure,) = tally(Dying, 4, seed=0).failures
    assert failure == "mutation 2 of seed 0, of kind 2: the process hung, or died"


@pytest.mark.parametrize("mutate", [mutate_runs, mutate_tables])
def test_none_is_none(mutate):
    assert mutate(0).outcomes == {}
