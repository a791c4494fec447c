"""POWER, GAS, HEPMASS, MINIBOONE and BSDS300, prepared as by Papamakarios et al., from NPY and CSV files.

GAS is published as a pickle, which can run code, and BSDS300 as HDF5, which needs another library: the lines below
convert them once. The other files are read as published. All lie under ``--data-root``:

    power/data.npy                              as published
    gas/ethylene_CO.csv                         pandas.read_pickle("ethylene_CO.pickle").to_csv("ethylene_CO.csv", index=False)
    hepmass/1000_train.csv, 1000_test.csv       as published
    miniboone/data.npy                          as published
    bsds300/BSDS300.npz                         f = h5py.File("BSDS300.hdf5"); numpy.savez("BSDS300.npz", **{k: f[k][:] for k in
                                                ("train", "validation", "test")})

Figures are in nats of the normalised data, as in the literature.

References:
    Papamakarios, Pavlakou, Murray 2017, arXiv 1705.07057, appendix D, and its published code.
"""  # noqa: E501 - one command a line

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from anode import InputError
from anode.errors import check_choice

Splits = dict[str, np.ndarray]


def read(name: str, root: str | Path) -> Splits:
    """Return the tables ``train``, ``validation`` and ``test`` of a benchmark, prepared and normalised."""
    check_choice("table", name, BENCHMARKS)
    try:
        splits = BENCHMARKS[name](Path(root))
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename} does not exist: put the {name} files under --data-root (now {root})"
        ) from error
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"the {name} files under {root} are not in their published form ({error}): fetch them again"
        ) from error
    if not all(np.isfinite(values).all() for values in splits.values()):
        raise InputError(f"the {name} files under {root} hold values that are not finite: fetch them again")
    return splits


def _power(root: Path) -> Splits:
    rng = np.random.RandomState(42)
    data = _array(root / "power" / "data.npy")
    rng.shuffle(data)
    n = len(data)
    data = np.delete(data, [1, 3], axis=1)
    voltage, gap, meters = 0.01 * rng.rand(n, 1), 0.001 * rng.rand(n, 1), rng.rand(n, 3)
    data = data + np.hstack([gap, voltage, meters, np.zeros((n, 1))])
    return _normalised_without_test(_tenths(data))


def _gas(root: Path) -> Splits:
    import pandas as pd  # half a second, which other data need not wait for

    data = pd.read_csv(root / "gas" / "ethylene_CO.csv").drop(columns=["Meth", "Eth", "Time"])
    while (correlated := (data.corr() > 0.98).to_numpy().sum(axis=1)).max() > 1:
        data = data.drop(columns=data.columns[int(np.argmax(correlated > 1))])
    return _tenths(((data - data.mean()) / data.std()).to_numpy(np.float64))


def _hepmass(root: Path) -> Splits:
    import pandas as pd

    train, test = (pd.read_csv(root / "hepmass" / f"1000_{part}.csv", index_col=False) for part in ("train", "test"))
    signal = [frame[frame.iloc[:, 0] == 1].iloc[:, 1:].to_numpy(np.float64) for frame in (train, test)]
    train, test = signal[0], signal[1][:, : signal[0].shape[1]]  # the published test file has an extra column
    mean, std = train.mean(axis=0), train.std(axis=0, ddof=1)
    train, test = (train - mean) / std, (test - mean) / std
    repeats = np.array([np.unique(column, return_counts=True)[1][0] for column in train.T])  # of the smallest value
    train, test = train[:, repeats <= 5], test[:, repeats <= 5]
    tenth = int(0.1 * len(train))
    return {"train": train[:-tenth], "validation": train[-tenth:], "test": test}


def _miniboone(root: Path) -> Splits:
    return _normalised_without_test(_tenths(_array(root / "miniboone" / "data.npy")))


def _bsds300(root: Path) -> Splits:
    from train_flows.data import tables  # which imports pandas

    arrays = tables.read_arrays(root / "bsds300" / "BSDS300.npz")
    return {part: arrays[part] for part in tables.PARTS}


def _array(path: Path) -> np.ndarray:
    from train_flows.data import tables

    (array,) = tables.read_arrays(path).values()
    return array


def _tenths(data: np.ndarray) -> Splits:
    """The last tenth for testing, the last tenth of the rest for validation."""
    rest, test = np.split(data, [len(data) - int(0.1 * len(data))])
    train, validation = np.split(rest, [len(rest) - int(0.1 * len(rest))])
    return {"train": train, "validation": validation, "test": test}


def _normalised_without_test(splits: Splits) -> Splits:
    """Zero mean and unit variance over training and validation together."""
    seen = np.vstack([splits["train"], splits["validation"]])
    return {part: (values - seen.mean(axis=0)) / seen.std(axis=0) for part, values in splits.items()}


BENCHMARKS: dict[str, Callable[[Path], Splits]] = {
    "power": _power,
    "gas": _gas,
    "hepmass": _hepmass,
    "miniboone": _miniboone,
    "bsds300": _bsds300,
}
