"""A full disk stops a run with a message; once there is room, it continues to the same end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .small_runs import FILES, log_of, outcome, start
from .test_kills import finish


def fill_disk(folder: Path) -> dict[str, Any]:
    """Continue a run in a process whose files cannot grow, then in one whose files can.

    Returns:
        ``status``, the exit status of the first process; ``message``, the last line that it printed; ``identical``, 1
        if the run reached the same records, weights and NLL as one that had room.
    """
    finish(folder / "whole")
    run = folder / "run"
    process = start(run)
    while not (run / "state.pt").exists() and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    largest = max((run / name).stat().st_size for name in FILES if (run / name).exists())
    full = start(run, largest // 2)
    full.join()
    message = log_of(run).strip().splitlines()[-1].replace(f"{folder}/", "")
    finish(run)
    identical = int(outcome(run) == outcome(folder / "whole"))
    return {"status": full.exitcode, "message": message, "identical": identical}


def test_a_full_disk_costs_no_state(tmp_path):
    found = fill_disk(tmp_path)
    assert found["status"] == found["identical"] == 1
    for words in ("could not be written", "File too large", "the last state is whole", "--resume run"):
        assert words in found["message"]
