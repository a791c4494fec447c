"""Other files of a run that no program has written, with the digests that belong to them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from anode.reading import read_tensors
from anode.storage import CONFIG, WEIGHTS, digest_tensors
from train_flows.benchmark.crafted_configs import Craft
from train_flows.benchmark.damage import one_of
from train_flows.checkpoint import METRICS, POINTER, RESULT, STATE, STATE_FILE
from train_flows.state import digest_parts


def _json(folder: Path, rng: np.random.Generator) -> None:
    """What JSON can hold besides."""
    path = folder / one_of(rng, [CONFIG, METRICS, f"{STATE}/{POINTER}"])
    path.write_bytes(
        one_of(
            rng,
            [
                b"[" * 10**6,
                b'{"a":' * 10**6,
                b"9" * 10**5,
                b"NaN",
                b"null",
                b"[]",
                b'""',
                b'{"schema": 1, "kind": "density", "sha256": ""}',
                "{}".encode("utf-16"),
                b"\xff\xfe\x00",
                b'{"step": 4, "step": 4}\n',
                b'{"step": 1e999}\n{"step": 4}\n',
                b'{"step": 0}\n\n',
            ],
        )
    )


def _pointer(folder: Path, rng: np.random.Generator) -> None:
    """A pointer to somewhere else."""
    path = folder / STATE / POINTER
    pointer = json.loads(path.read_bytes())
    strange = ["../../x", "/etc", 10**30, -1, 5, 4.0, True, None, "4", "", "x" * 4000, [4], {"step": 4}]
    pointer[one_of(rng, ["step", "step", "bytes", "sha256"])] = one_of(rng, strange)
    path.write_text(json.dumps(pointer) if rng.random() < 0.8 else str(one_of(rng, strange)))


def _header(folder: Path, rng: np.random.Generator) -> None:
    """A header of safetensors that lies."""
    path = one_of(rng, [folder / WEIGHTS, *folder.glob(f"{STATE}/*/{STATE_FILE}")])
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    entry = header[one_of(rng, [name for name in header if name != "__metadata__"])]
    kind = one_of(rng, ["data_offsets", "shape", "dtype", "metadata", "length", "nested", "many"])
    if kind == "data_offsets":
        entry[kind] = one_of(rng, [[0, 2**62], [0, 2**64 - 1], [2**40, 2**41], [8, 0], [0, 0], [0, 4], [-1, 3], [], 7])
    elif kind == "shape":
        entry[kind] = one_of(rng, [[2**62], [2**32, 2**32], [0], [], [2**63, 0], [-1], [1.5], "x", [1] * 100])
    elif kind == "dtype":
        entry[kind] = one_of(rng, ["F64", "F16", "I32", "F8_E4M3", "BOOL", "C64", "U64", "x", None, 7])
    elif kind == "metadata":
        header["__metadata__"] = one_of(rng, [None, 7, {}, {"sha256": 7}, {"sha256": ""}, {"structure": "[]"}])
    elif kind == "many":
        header |= {f"empty{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(10_000)}
    text = b'{"a":' * 10**5 if kind == "nested" else json.dumps(header).encode()
    size = one_of(rng, [0, 1, 2**31, 2**63, 2**64 - 1]) if kind == "length" else len(text)
    path.write_bytes(size.to_bytes(8, "little") + text + rest)


def _weights(folder: Path, rng: np.random.Generator) -> None:
    """Weights of another model, with their digest."""
    tensors, header = read_tensors(folder / WEIGHTS)
    name = one_of(rng, sorted(tensors))
    kind = one_of(rng, ["missing", "further", "shape", "type", "types", "none"])
    if kind == "missing":
        del tensors[name]
    elif kind == "further":
        tensors["further"] = torch.zeros(3)
    elif kind == "shape":
        tensors[name] = tensors[name].reshape(1, -1, 1)
    elif kind == "type":
        tensors[name] = tensors[name].to(one_of(rng, [torch.float64, torch.int64, torch.bool, torch.float8_e5m2]))
    elif kind == "types":
        tensors = {name: tensor.to(torch.float8_e5m2) for name, tensor in tensors.items()}
    else:
        tensors = {}
    header["sha256"] = digest_tensors(tensors)
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors, header))


def _structure(folder: Path, rng: np.random.Generator) -> None:
    """A state of another structure, with its digest."""
    (path,) = folder.glob(f"{STATE}/*/{STATE_FILE}")
    tensors, _ = read_tensors(path)
    structure = one_of(
        rng,
        [
            "",
            "[]",
            "7",
            "null",
            "[" * 10**5,
            '{"dict": ' * 10**5,
            "9" * 10**5,
            '{"dict": []}',
            '{"dict": [["step", 5]]}',
            '{"dict": [["step"]]}',
            '{"dict": [[[], 4]]}',
            '{"dict": [["step", {"tensor": "99999"}]]}',
            '{"dict": [["step", {"tensor": []}]]}',
            '{"dict": [["step", {"float": "x"}]]}',
            '{"dict": [["step", {"float": []}]]}',
            '{"dict": 4}',
            '{"tuple": null}',
            '{"unknown": []}',
            '{"a": 1, "b": 2}',
            "{}",
        ],
    )
    header = {"structure": structure, "sha256": digest_parts(structure, tensors)}
    path.write_bytes(safetensors.torch.save(tensors, header))


def _records(folder: Path, rng: np.random.Generator) -> None:
    """Records among which is something else, with their digest."""
    path, pointer = folder / METRICS, folder / STATE / POINTER
    lines = path.read_bytes().splitlines()
    odd = [b"", b"garbage", b"[]", b"7", b"{}", b'{"step": "4"}', b'{"step": null}', b'{"step": true}', b"\xff\xfe"]
    odd += [b"[" * 10**5, b'{"step": ' + b"9" * 10**5 + b"}"]
    lines.insert(int(rng.integers(len(lines) + 1)), one_of(rng, odd))
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(content)
    about = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    pointer.write_text(json.dumps(json.loads(pointer.read_bytes()) | about))


def _result(folder: Path, rng: np.random.Generator) -> None:
    """A result that no run comes to."""
    odd = [b"[" * 10**6, b'{"nll":' * 10**5, b"9" * 10**5, b"null", b"[]", b"7", b"{}", b'{"nll": 7}', b'{"nll": {}}']
    figures = ['"x"', "[]", "null", "1" + "0" * 400]
    odd += [f'{{"nll": {{"value": {x}, "standard_error": 0.1, "kind": "exact"}}}}'.encode() for x in figures]
    (folder / RESULT).write_bytes(one_of(rng, odd))


FILES: dict[str, Craft] = {
    "odd JSON": _json,
    "a pointer elsewhere": _pointer,
    "a header that lies": _header,
    "weights of another model": _weights,
    "a state of another structure": _structure,
    "odd records": _records,
    "an odd result": _result,
}
