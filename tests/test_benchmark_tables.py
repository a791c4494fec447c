"""The five density-estimation benchmarks on small files of the true format."""

import numpy as np
import pandas as pd
import pytest

from anode import InputError
from train_flows.data import benchmark_tables, load_density_data

RNG = np.random.default_rng(0)


def check(splits, sizes, dims, normalised=False):
    assert [splits[part].shape for part in ("train", "validation", "test")] == [(n, dims) for n in sizes]
    if normalised:
        seen = np.concatenate([splits["train"], splits["validation"]])
        np.testing.assert_allclose(seen.mean(0), 0, atol=1e-9)
        np.testing.assert_allclose(seen.std(0), 1, atol=1e-9)


@pytest.mark.parametrize(("name", "dims", "kept"), [("power", 8, 6), ("miniboone", 43, 43)])
def test_npy(tmp_path, name, dims, kept):
    (tmp_path / name).mkdir()
    np.save(tmp_path / name / "data.npy", RNG.normal(size=(1000, dims)) * 50 + 7)
    check(benchmark_tables.read(name, tmp_path), [810, 90, 100], kept, normalised=True)
    data = load_density_data(name, data_root=tmp_path)
    assert (data.is_table, data.columns[1], len(data.train)) == (True, "x1", 810)


def test_gas_drops_correlated_columns(tmp_path):
    (tmp_path / "gas").mkdir()
    free = RNG.normal(size=(500, 8))
    columns = np.concatenate([RNG.normal(size=(500, 3)), free, 3 * free + 1e-3], 1)
    names = ["Time", "Meth", "Eth", *[f"R{i}" for i in range(16)]]
    pd.DataFrame(columns, columns=names).to_csv(tmp_path / "gas" / "ethylene_CO.csv", index=False)
    check(benchmark_tables.read("gas", tmp_path), [405, 45, 50], 8)


def test_hepmass_keeps_signal_and_drops_repeats(tmp_path):
    (tmp_path / "hepmass").mkdir()
    for part, n, spare in (("train", 1000, []), ("test", 400, ["mass"])):
        x = RNG.normal(size=(n, 27))
        x[:, 4] = RNG.integers(3, size=n)
        frame = pd.DataFrame(x, columns=[f"f{i}" for i in range(27)])
        frame.insert(0, "# label", np.arange(n) % 2)
        frame[spare] = 1000.0
        frame.to_csv(tmp_path / "hepmass" / f"1000_{part}.csv", index=False)
    check(benchmark_tables.read("hepmass", tmp_path), [450, 50, 200], 26)


def test_bsds300(tmp_path):
    (tmp_path / "bsds300").mkdir()
    parts = {part: RNG.normal(size=(n, 63)) for part, n in (("train", 50), ("validation", 20), ("test", 30))}
    np.savez(tmp_path / "bsds300" / "BSDS300.npz", **parts)
    splits = benchmark_tables.read("bsds300", tmp_path)
    check(splits, [50, 20, 30], 63)
    np.testing.assert_array_equal(splits["test"], parts["test"])


@pytest.mark.parametrize(
    ("name", "file", "write", "message"),
    [
        ("gas", "ethylene_CO.csv", lambda path: path.write_text("a\n1.0\n"), "not in their published form"),
        ("bsds300", "BSDS300.npz", lambda path: path.write_bytes(b"PK\3\4 and so on"), r"BSDS300\.npz is damaged"),
        ("bsds300", "BSDS300.npz", lambda path: np.savez(path, train=np.ones((9, 63))), "not in their published form"),
        ("miniboone", "data.npy", lambda path: np.save(path, np.full((100, 43), np.nan)), "not finite"),
    ],
)
def test_other_content_is_refused(tmp_path, name, file, write, message):
    (tmp_path / name).mkdir()
    write(tmp_path / name / file)
    with pytest.raises(InputError, match=message):
        load_density_data(name, data_root=tmp_path)


@pytest.mark.parametrize("name", benchmark_tables.BENCHMARKS)
def test_missing_files_are_named(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}.*--data-root"):
        load_density_data(name, data_root=tmp_path)
