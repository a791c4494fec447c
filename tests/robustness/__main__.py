"""Measure in full what the tests of this folder check in short, and write ``assets/results/reliability.json``.

    python -m tests.robustness [--kills 30] [--programs 10] [--examples 2000] [--steps 10000] [--out FILE]

Run it from the project folder. The file is written after every part.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from anode.storage import write_json
from train_flows.run.folder import provenance

from .test_damaged_files import check_damaged_runs, check_damaged_tables
from .test_full_disk import fill_disk
from .test_kills import kill_programs, kill_small_runs
from .test_long_runs import measure_memory


def main() -> None:
    """Measure every part."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness")
    parser.add_argument("--kills", type=int, default=30, help="kills of small runs, at any moment")
    parser.add_argument("--programs", type=int, default=10, help="kills of train-flows density")
    parser.add_argument("--examples", type=int, default=2000, help="damaged runs, and as many damaged tables")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of the long run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    parser.add_argument("--out", type=Path, default=Path("assets/results/reliability.json"), help="file to write")
    args = parser.parse_args()
    parts = {
        "kills": lambda folder: kill_small_runs(args.kills, args.seed, folder),
        "programs": lambda folder: kill_programs(args.programs, args.seed, folder),
        "full-disk": fill_disk,
        "damaged-runs": lambda folder: dict(check_damaged_runs(args.examples, folder / "run")),
        "damaged-tables": lambda folder: dict(check_damaged_tables(args.examples, folder)),
        "long-run": lambda folder: measure_memory(args.steps),
    }
    result = {**provenance(), "command": "python -m tests.robustness", "seed": args.seed, "parts": {}}
    for name, measure in parts.items():
        with tempfile.TemporaryDirectory() as folder:
            result["parts"][name] = measure(Path(folder))
        write_json(args.out, result)
        print(name, result["parts"][name], flush=True)


if __name__ == "__main__":
    main()
