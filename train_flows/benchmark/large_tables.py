"""The memory that training takes on a table of many gigabytes, beside that on a fiftieth of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from anode import InputError

COLUMNS = 16
ROWS = 100_000  # written together
SHARE = 1 / 50  # of the table, for the smaller one
EVERY = 0.02  # seconds between two looks at the memory
PEAKS = ("RssAnon", "VmHWM")  # of what Linux tells: memory of the process alone, and with the files it has mapped
OPTIONS = ("--hidden", "16", "16", "--batch-size", "512", "--device", "cpu")
PROGRAM = (  # ``train-flows``, to which both tables are large
    "import sys; from train_flows.data import stored; stored.LARGE = 0; "
    "from train_flows.__main__ import main; main(sys.argv[1:])"
)


def measure(gigabytes: float = 5.0, steps: int = 300, folder: str | Path | None = None) -> dict[str, Any]:
    """Train on synthetic rows on disk, in a process of its own, and see how much memory it takes.

    Args:
        gigabytes: of the larger table, 10^9 bytes of single precision each.
        steps: of each training.
        folder: where the tables are written, one after the other, and removed; a temporary one when omitted.

    Returns:
        For each ``table``, the larger first: ``gigabytes``, ``rows``, ``seconds`` and the peaks in megabytes,
        ``anonymous_megabytes`` (looked at every 20 ms) and ``resident_megabytes``, in which pages of files count; and
        ``anonymous_ratio`` and ``resident_ratio``, of the larger table to the smaller.

    Raises:
        InputError: when there is no room for the table, or the system does not tell the memory of a process.
    """
    if not Path("/proc/self/status").exists():
        raise InputError("the memory of a process is known on Linux only: run this there")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        if shutil.disk_usage(place).free < 1.2e9 * gigabytes:
            raise InputError(f"{place} has no room for {gigabytes:g} GB: name another folder, or fewer gigabytes")
        tables = [_train(Path(place), size, steps) for size in (gigabytes, SHARE * gigabytes)]
    ratios = {
        f"{kind}_ratio": tables[0][f"{kind}_megabytes"] / tables[1][f"{kind}_megabytes"]
        for kind in ("anonymous", "resident")
    }
    return {"table": tables, "steps": steps, "columns": COLUMNS, **ratios}


def _train(place: Path, gigabytes: float, steps: int) -> dict[str, Any]:
    table, started = place / "rows.npy", time.monotonic()
    rows = _write(table, gigabytes)
    typed = ["density", str(table), "--out", str(place / "run"), "--overwrite", "--steps", str(steps), *OPTIONS]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen([sys.executable, "-c", PROGRAM, *typed], stdout=said, stderr=subprocess.STDOUT) as process,
    ):
        anonymous, resident = _peaks(process)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"training on {rows} rows failed: {said.read().decode().strip()[-500:]}")
    table.unlink()
    return {
        "gigabytes": gigabytes,
        "rows": rows,
        "seconds": round(time.monotonic() - started, 1),
        "anonymous_megabytes": anonymous / 1e3,
        "resident_megabytes": resident / 1e3,
    }


def _write(path: Path, gigabytes: float) -> int:
    """Write normal rows, and count them."""
    rows, rng = int(gigabytes * 1e9 / (4 * COLUMNS)), np.random.default_rng(0)
    table = np.lib.format.open_memmap(path, "w+", np.float32, (rows, COLUMNS))
    for start in range(0, rows, ROWS):
        part = table[start : start + ROWS]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
    return rows


def _peaks(process: subprocess.Popen) -> list[int]:
    """Kilobytes at most of each of the ``PEAKS``, once the process has ended."""
    peaks = dict.fromkeys(PEAKS, 0)
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]))
        time.sleep(EVERY)
    return [peaks[name] for name in PEAKS]
