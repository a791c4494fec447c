"""Damaged files of runs are refused in one line or read as they were; damaged tables are refused or read as numbers."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import resource
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import cnf
from anode import CheckpointError, InputError
from train_flows.data import tables
from train_flows.run.folder import Run

from .small_runs import FILES, train_small

FIRST_EXAMPLES, SECONDS, MEGABYTES = 60, 20, 500  # in the suite; at most, for one example; at most, for all of them


def blocks(content: bytes) -> st.SearchStrategy[tuple[bytes, bytes, bytes]]:
    """Cut a content in three, of which the second is up to 64 bytes long."""
    cuts = st.tuples(st.integers(0, max(0, len(content) - 1)), st.integers(1, 64))
    return cuts.map(lambda cut: (content[: cut[0]], content[cut[0] : sum(cut)], content[sum(cut) :]))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Damage a content as disks, transfers and people do."""
    head, block, tail = draw(blocks(content))
    noise, bit = draw(st.binary(min_size=1, max_size=64)), draw(st.integers(0, 7))
    kinds = {
        "a bit flipped": head + bytes([block[0] ^ 1 << bit]) + block[1:] + tail,
        "replaced": head + noise + tail[len(noise) :],
        "inserted": head + noise + block + tail,
        "cleared": head + bytes(len(block)) + tail,
        "repeated": head + block + block + tail,
        "removed": head + tail,
        "moved": head + tail[:64] + block + tail[64:],
        "cut": head,
        "extended": content + noise,
        "emptied": b"",
        "noise": noise,
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]


def check_examples(examples: int, damage: st.SearchStrategy[Any], read: Callable[[Any], str]) -> Counter[str]:
    """Count the outcomes of reading damaged files, each in bounded time and all in bounded memory."""
    outcomes: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @seed(0)
    @settings(max_examples=examples, deadline=1000 * SECONDS, database=None, suppress_health_check=list(HealthCheck))
    @given(damage)
    def check(example: Any) -> None:
        outcomes[read(example)] += 1

    check()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024 * MEGABYTES
    return outcomes


def check_damaged_runs(examples: int, folder: Path) -> Counter[str]:
    """Damage one file of a run at a time; whatever a user loads is unchanged, or refused in one line."""
    train_small(folder)
    contents = {name: (folder / name).read_bytes() for name in FILES}
    whole = {name: plain(load(folder)) for name, load in LOADS.items()}
    damage = st.sampled_from(FILES).flatmap(lambda name: st.tuples(st.just(name), damaged(contents[name])))

    def read(example: tuple[str, bytes]) -> str:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        (folder / example[0]).write_bytes(example[1])
        refused = False
        for name, load in LOADS.items():
            try:
                assert plain(load(folder)) == whole[name], f"something else was read as {name}"
            except CheckpointError as error:
                refused = is_one_line(error)
        return "refused" if refused else "unchanged"

    return check_examples(examples, damage, read)


def is_one_line(error: InputError) -> bool:
    """Return True, or fail for a message of several lines."""
    assert len(str(error).splitlines()) == 1, error
    return True


def load_model(folder: Path) -> Any:
    """Load the model with its configuration."""
    model = cnf.load(folder)
    return [repr(model.config), model.state_dict()]


LOADS: dict[str, Callable[[Path], Any]] = {
    "config": lambda folder: Run.open(folder, "density").config,
    "model": load_model,
    "records": lambda folder: Run.open(folder, "density").records(),
    "result": lambda folder: Run.open(folder, "density").result(),
    "state": lambda folder: Run.open(folder, "density").load_state(),
}


def plain(value: Any) -> Any:
    """Replace tensors by their bytes, so that values compare."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.shape, value.numpy().tobytes())
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else repr(value)


def table_contents() -> dict[str, bytes]:
    """Return one table in every format."""
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["a", "b", "c"])
    npy, npz, parquet, text = io.BytesIO(), io.BytesIO(), io.BytesIO(), frame.to_csv(index=False).encode()
    np.save(npy, frame.to_numpy())
    np.savez(npz, table=frame.to_numpy())
    frame.to_parquet(parquet)
    packed = {".npy": npy.getvalue(), ".npz": npz.getvalue(), ".parquet": parquet.getvalue()}
    return {".csv": text, ".csv.gz": gzip.compress(text), **packed}


def odd_csv(suffix: str) -> st.SearchStrategy[bytes]:
    """Make a CSV file some of whose fields are not plain numbers."""
    fields = st.sampled_from(
        ["1e999", "-inf", "nan", "9" * 400, "0x1F", "1_000", "True", "1+2j", "", '"', "1,2", "\x00"]
    )
    odd = st.tuples(st.integers(0, 39), fields | st.text(max_size=20))

    def write(cells: list[tuple[int, str]]) -> bytes:
        rows = [f"{0.1 * i},{-0.1 * i}" for i in range(40)]
        for i, field in cells:
            rows[i] = f"{field},1.5"
        text = "\n".join(["a,b", *rows]).encode("utf-8", "surrogatepass")
        return gzip.compress(text) if suffix == ".csv.gz" else text

    return st.lists(odd, min_size=1, max_size=3).map(write)


def in_format(suffix: str, npy: bytes) -> bytes:
    """Return an NPY file, or the NPZ file that holds it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("table.npy", npy)
    return npy if suffix == ".npy" else buffer.getvalue()


def check_damaged_tables(examples: int, folder: Path) -> Counter[str]:
    """Damage one table at a time; it is read as finite numbers, or refused in one line."""
    contents = table_contents()
    odd = {".csv": odd_csv, ".csv.gz": odd_csv}

    def kinds(suffix: str) -> st.SearchStrategy[tuple[str, bytes]]:
        damage = damaged(contents[suffix])
        return st.tuples(st.just(suffix), damage | odd[suffix](suffix) if suffix in odd else damage)

    def read(example: tuple[str, bytes]) -> str:
        path = folder / f"table{example[0]}"
        path.write_bytes(example[1])
        try:
            parts = [tables.numbers(name, frame) for name, frame in tables.read(path).parts.items()]
        except InputError as error:
            is_one_line(error)
            return "refused"
        assert all(values.dtype == np.float64 and np.isfinite(values).all() for values in parts)
        return "read"

    return check_examples(examples, st.sampled_from(sorted(contents)).flatmap(kinds), read)


def test_damaged_runs_are_refused_or_unchanged(tmp_path):
    outcomes = check_damaged_runs(FIRST_EXAMPLES, tmp_path / "run")
    assert set(outcomes) <= {"refused", "unchanged"}
    assert outcomes["refused"] > 0.8 * FIRST_EXAMPLES


def test_damaged_tables_are_refused_or_read(tmp_path):
    outcomes = check_damaged_tables(2 * FIRST_EXAMPLES, tmp_path)
    assert set(outcomes) == {"refused", "read"}


class Bomb:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("name", ["state.pt", "config.json", "model.safetensors", "table.npy", "table.npz"])
def test_no_pickle_is_executed(tmp_path, name):
    bomb, path, state = Bomb(tmp_path / "executed"), tmp_path / "run" / name, io.BytesIO()
    train_small(tmp_path / "run")
    torch.save({"step": 40, "state": bomb}, state)
    array = io.BytesIO()
    np.save(array, np.array([[bomb, 1.0]] * 30, dtype=object), allow_pickle=True)
    if name == "state.pt":  # with the digest that belongs to it
        path.write_bytes(state.getvalue() + hashlib.sha256(state.getvalue()).hexdigest().encode())
    else:
        path.write_bytes(in_format(path.suffix, array.getvalue()) if "table" in name else pickle.dumps(bomb))
    loads = [lambda folder: tables.read(path)] if "table" in name else LOADS.values()
    for load in loads:
        with suppress(InputError):
            load(tmp_path / "run")
    assert not bomb.folder.exists()


def test_a_missing_state_does_not_start_over(tmp_path):
    run = train_small(tmp_path / "run")
    (tmp_path / "run" / "state.pt").unlink()
    with pytest.raises(CheckpointError, match=r"state.pt is missing although training has begun"):
        run.load_state()
