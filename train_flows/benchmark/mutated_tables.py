"""Tables in every format, damaged and crafted, and what reading them comes to: numbers, or a clean error."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from anode import InputError
from train_flows.benchmark.attempts import Tally, tally
from train_flows.benchmark.damage import Bomb, damaged, one_of
from train_flows.data import tables

CRAFTED = 0.25  # of the mutations; the others are damage


def mutate_tables(count: int, seed: int = 0) -> Tally:
    """Read so many mutated tables; each has to be ``"read"``, as finite numbers, or ``"refused"`` in one line."""
    return tally(Tables, count, seed)


class Tables:
    """A table in every format, of which one at a time is mutated.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        frame = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["a", "b", "c"])
        self.folder = folder
        self.contents = {name: _written(frame, name) for name in tables.SUFFIXES}
        self.bomb = Bomb(folder / "executed")
        self.path = folder / "table.csv"

    def mutate(self, rng: np.random.Generator) -> str:
        """See :class:`~train_flows.benchmark.attempts.Subject`."""
        self.path.unlink(missing_ok=True)
        suffix = one_of(rng, self.contents)
        self.path = self.folder / f"table{suffix}"
        if rng.random() < CRAFTED:
            name = one_of(rng, [name for name in CRAFTS if suffix in CRAFTS[name][0]])
            content = CRAFTS[name][1](suffix, rng, self.bomb)
        else:
            name, content = damaged(self.contents[suffix], rng)
        self.path.write_bytes(content)
        return f"{self.path.name} {name}"

    def read(self) -> str:
        """See :class:`~train_flows.benchmark.attempts.Subject`."""
        try:
            table = tables.read(self.path)
        except InputError as error:
            if len(str(error).splitlines()) != 1:
                raise RuntimeError(f"the message is not one line: {error}") from error
            return "refused"
        finally:
            self.bomb.check()
        if not (table.values.dtype == np.float64 and np.isfinite(table.values).all()):
            raise RuntimeError("the table holds something else than finite numbers")
        if table.values.shape != (len(table.values), len(table.columns)):
            raise RuntimeError(f"{len(table.columns)} columns have names, of shape {table.values.shape}")
        return "read"


def _written(frame: pd.DataFrame, suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, frame.to_numpy())
    elif suffix == ".npz":
        np.savez(buffer, table=frame.to_numpy())
    elif suffix == ".parquet":
        frame.to_parquet(buffer)
    else:
        text = frame.to_csv(index=False).encode()
        buffer.write(gzip.compress(text) if suffix == ".csv.gz" else text)
    return buffer.getvalue()


def _array(suffix: str, content: bytes) -> bytes:
    """An NPY file as it is, or as the one of an NPZ file."""
    if suffix == ".npy":
        return content
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("table.npy", content)
    return buffer.getvalue()


def _text(suffix: str, text: bytes) -> bytes:
    return gzip.compress(text) if suffix == ".csv.gz" else text


def _header(suffix: str, rng: np.random.Generator, bomb: Bomb) -> bytes:
    """An array whose header declares something else than follows."""
    shapes = ["(1000000000000, 3)", "(9223372036854775807, 9223372036854775807)", "(-40, 3)", "(40, -3)", "(40, 3, 1)"]
    shapes += ["(40, 30)", "40", "()", "(40.0, 3)", "(True, 3)", "(40, 3", "(((" * 1000, "(0, 3)", f"({'1,' * 40})"]
    types = ["'<f8'", "'|O'", "'<c16'", "'<U4'", "'|S8'", "'<M8[s]'", "'|V8'", "[('a', '<f8')]", "'<f4'", "'|b1'"]
    types += ["'x'", "'|V1000000000000'", "7", "'<f16'", "None", "('<f8', (3,))", "'<f2'", "'<u8'"]
    shape, kind = (one_of(rng, names) if rng.random() < 0.7 else names[0] for names in (shapes, types))
    if rng.random() < 0.3:
        shape = "(40, 3)"
    text = f"{{'descr': {kind}, 'fortran_order': {one_of(rng, ['False', 'True', '7'])}, 'shape': {shape}, }}"
    length = len(text) if rng.random() < 0.9 else int(rng.integers(2**16))
    start = b"\x93NUMPY" + bytes([one_of(rng, (1, 2, 3)), 0])
    size = 2 if start[6] == 1 else 4
    return _array(suffix, start + length.to_bytes(size, "little") + text.encode() + rng.bytes(960))


def _pickle(suffix: str, rng: np.random.Generator, bomb: Bomb) -> bytes:
    if suffix not in (".npy", ".npz"):
        return bomb.pickled()
    buffer = io.BytesIO()
    np.save(buffer, np.array([[bomb, 1.0]] * 30, dtype=object), allow_pickle=True)
    return bomb.pickled() if rng.random() < 0.3 else _array(suffix, buffer.getvalue())


def _long_line(suffix: str, rng: np.random.Generator, bomb: Bomb) -> bytes:
    return _text(suffix, b"a,b\n" + one_of(rng, [b",", b"1", b" ", b'"', b"\0"]) * 2**22)


def _odd_fields(suffix: str, rng: np.random.Generator, bomb: Bomb) -> bytes:
    odd = ["1e999", "-inf", "nan", "9" * 400, "0x1F", "1_000", "True", "1+2j", "", '"', "١٢", "\ud800", "1,2"]
    odd += ["2020-01-01", "\u2028", "=1+1", "1e-400", "a\nb", "18446744073709551616", "'1'", "\x00", "\x1b[31m"]
    odd += ["9" * 5000]
    rows = [[f"{value:.3f}" for value in row] for row in rng.normal(size=(40, 2))]
    for _ in range(int(rng.integers(1, 4))):
        rows[int(rng.integers(40))][int(rng.integers(2))] = one_of(rng, odd)
    return _text(suffix, "\n".join(["a,b", *map(",".join, rows)]).encode("utf-8", "surrogatepass"))


def _odd_columns(suffix: str, rng: np.random.Generator, bomb: Bomb) -> bytes:
    """A Parquet file of columns that are no numbers, or odd ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    odd = [
        pa.array([[1.0]] * 40),
        pa.array([{"a": 1}] * 40),
        pa.array([b"1"] * 40),
        pa.array([None] * 40),
        pa.array(["1"] * 40).dictionary_encode(),
        pa.array([1] * 40, pa.decimal128(10)),
        pa.array([1] * 40, pa.duration("s")),
        pa.array([1] * 40, pa.time32("s")),
        pa.array([[("a", 1)]] * 40, pa.map_(pa.string(), pa.int64())),
        pa.array([True, None] * 20),
        pa.array([2**64 - 1] * 40, pa.uint64()),
        pa.array([2**40] * 40, pa.timestamp("s")),
    ]
    names = one_of(rng, [["a", "b"], ["a", "a"], ["", "b"], ["\n" * 50, "b"], ["b" * 10_000, "a"]])
    table = pa.Table.from_arrays([pa.array(rng.normal(size=40)), one_of(rng, odd)], names=names)
    about = [None, {b"pandas": b"{"}, {b"pandas": b"[" * 10_000}, {b"pandas": b'{"index_columns": [7]}'}]
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(one_of(rng, about)), buffer)
    return buffer.getvalue()


Craft = Callable[[str, np.random.Generator, Bomb], bytes]
CRAFTS: dict[str, tuple[tuple[str, ...], Craft]] = {
    "a header that lies": ((".npy", ".npz"), _header),
    "pickled": (tables.SUFFIXES, _pickle),
    "an endless line": ((".csv", ".csv.gz"), _long_line),
    "odd fields": ((".csv", ".csv.gz"), _odd_fields),
    "odd columns": ((".parquet",), _odd_columns),
}
