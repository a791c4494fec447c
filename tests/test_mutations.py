"""Damaged and crafted run folders and tables end in a clean error, or in what was stored; and the harness notices."""

import contextlib
import os
import time

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
    """A reader that comes to grief in every way but one."""

    def __init__(self, folder):
        attempts.SECONDS = 3
        self.number = -1

    def mutate(self, rng):
        self.number += 1
        return f"of kind {self.number}"

    def read(self):
        if self.number == 1:
            raise KeyError("shape")
        if self.number == 2:
            return str(len(b"1" * 6 * 10**8))
        if self.number == 3:
            with contextlib.suppress(Exception):
                time.sleep(60)
        return "read"


class Dying(Careless):
    def read(self):
        if self.number == 2:
            os._exit(1)
        return "read"


def test_other_errors_much_memory_and_long_reads_are_failures():
    found = tally(Careless, 5, seed=0)
    assert found.outcomes == {"read": 2}
    error, memory, late = found.failures
    assert error == "mutation 1 of seed 0, of kind 1: KeyError: 'shape'"
    assert "MB were taken" in memory
    assert "more than 3 s" in late


def test_a_process_that_dies_is_a_failure():
    (failure,) = tally(Dying, 4, seed=0).failures
    assert failure == "mutation 2 of seed 0, of kind 2: the process hung, or died"
