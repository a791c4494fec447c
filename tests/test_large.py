"""Tables that stay on disk, and files of samples that are written as they are drawn."""

import dataclasses
import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import cnf
from anode import InputError, SolverError, storage
from cnf import density_model
from train_flows import data, held_out, likelihood, sample
from train_flows.benchmark import large_tables
from train_flows.checkpoint import Run
from train_flows.data import large, rows, stored, tabular
from train_flows.moments import Moments

TINY = ["--steps", "6", "--validate-every", "2", "--hidden", "8", "8", "--batch-size", "64"]


@pytest.fixture
def x():
    """Rows that are sorted, so that neighbours are alike; the last column counts them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5003, 3)) @ np.array([[1, 0.9, 0], [0, 0.1, 30], [0, 0, 5]]) + [0, 10, 1000]
    return np.column_stack([x[x[:, 0].argsort()], np.arange(len(x))])


@pytest.fixture
def small(monkeypatch):
    """Take all NPY and Parquet files for large ones, and read them in small pieces."""
    monkeypatch.setattr(stored, "LARGE", 0)
    monkeypatch.setattr(stored, "ROWS", 700)
    monkeypatch.setattr(large, "PART", 300)
    monkeypatch.setattr(rows, "BLOCK", 160)
    monkeypatch.setattr(rows, "POOL", 16_000)


def write(path, x):
    if path.suffix == ".npy":
        np.save(path, x)
    else:
        pd.DataFrame(x, columns=list("abcd")[: x.shape[1]]).to_parquet(path, row_group_size=900)
    return str(path)


def numbers_of(batch, steps):
    """The last column of so many batches: the numbers of their rows."""
    return [row for step in range(steps) for row in batch(step)[:, -1].int().tolist()]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
class TestTheDataSet:
    def test_the_parts_are_disjoint_and_cover_the_table(self, tmp_path, x, suffix):
        dataset = data.load(write(tmp_path / f"t{suffix}", x), seed=3)
        assert dataset.columns == (("x0", "x1", "x2", "x3") if suffix == ".npy" else ("a", "b", "c", "d"))
        assert len(dataset.validation) == len(dataset.test) == 300
        assert dataset.size == 5003 - 600
        train = dataset.disk._read(np.arange(dataset.size), 1)
        joined = np.concatenate([train, dataset.validation, dataset.test])
        np.testing.assert_array_equal(joined[joined[:, 3].argsort()], x.astype(np.float32))
        assert len(dataset.validation[:50, 3].unique()) == 50
        assert dataset.validation[:50, 3].std() > 1000  # from all over the table

    def test_another_seed_is_another_split(self, tmp_path, x, suffix):
        path = write(tmp_path / f"t{suffix}", x)
        first, again, other = (data.load(path, seed).test for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_what_stands_for_the_training_rows_has_their_moments(self, tmp_path, x, suffix):
        dataset = data.load(write(tmp_path / f"t{suffix}", x))
        train = dataset.disk._read(np.arange(dataset.size), 1).astype(np.float64)
        assert len(dataset.train) == 300
        np.testing.assert_allclose(dataset.train.double().mean(0), train.mean(0), rtol=1e-5, atol=1e-5)
        scale = train.std(0)
        own = np.cov(dataset.train.double().T, bias=True) / np.outer(scale, scale)
        np.testing.assert_allclose(own, np.corrcoef(train.T), atol=1e-4)
        raw = np.random.default_rng(0).choice(train, 300, replace=False)
        assert np.abs(raw.mean(0) - train.mean(0)).max() > 1e-3  # a sample alone would not do

    def test_an_epoch_meets_every_row_at_most_once(self, tmp_path, x, suffix):
        dataset = data.load(write(tmp_path / f"t{suffix}", x))
        batch = dataset.disk.batches(64, seed=0)
        held = {*dataset.validation[:, 3].int().tolist(), *dataset.test[:, 3].int().tolist()}
        seen = numbers_of(batch, 60)  # of 68 batches at most
        assert len(set(seen)) == len(seen) == 60 * 64
        assert not held.intersection(seen)
        assert np.std(seen[:64]) > 1000  # neighbours do not stay together
        assert batch(0).dtype == torch.float32
        row = batch(0)[5]
        np.testing.assert_array_equal(row, x[int(row[3])].astype(np.float32))

    def test_batches_are_a_function_of_the_step(self, tmp_path, x, suffix):
        path = write(tmp_path / f"t{suffix}", x)
        batch, again = (data.load(path).disk.batches(100, seed=5) for _ in range(2))
        wanted = [batch(step) for step in range(100)]  # more than two epochs
        for step in np.random.default_rng(0).permutation(100).tolist():
            assert torch.equal(again(step), wanted[step])
        assert not torch.equal(data.load(path).disk.batches(100, seed=6)(0), wanted[0])
        assert not torch.equal(wanted[0], wanted[50])

    def test_the_digest_is_that_of_the_file(self, tmp_path, x, suffix):
        path = tmp_path / f"t{suffix}"
        dataset = data.load(write(path, x))
        assert dataset.digest() == hashlib.sha256(path.read_bytes()).hexdigest()

    @pytest.mark.parametrize("size", [1, 7, 4403])
    def test_batches_of_every_size(self, tmp_path, x, suffix, size):
        assert len(data.load(write(tmp_path / f"t{suffix}", x)).disk.batches(size, 0)(1)) == size


@pytest.mark.usefixtures("small")
class TestRefused:
    """In the words of small tables."""

    def refuse(self, monkeypatch, path, said=None):
        with pytest.raises(InputError) as caught:
            data.load(path)
        monkeypatch.setattr(stored, "LARGE", 2**30)
        with pytest.raises(InputError) as wanted:
            data.load(path)
        assert str(caught.value) == str(wanted.value)
        assert said in str(caught.value)

    @pytest.mark.parametrize("suffix", [".npy", ".parquet"])
    @pytest.mark.parametrize(
        ("value", "said"), [(np.nan, "x: column y holds missing values in 2 of 5003"), (np.inf, "infinite values")]
    )
    def test_not_finite(self, monkeypatch, tmp_path, x, suffix, value, said):
        x[[1000, -1], 1] = value  # the last block, too
        x[-2, 2] = np.nan
        path = write(tmp_path / f"t{suffix}", x)
        said = said.replace("x:", f"{path}:").replace("column y", "column x1" if suffix == ".npy" else "column b")
        self.refuse(monkeypatch, path, said)

    def test_text(self, monkeypatch, tmp_path, x):
        frame = pd.DataFrame(x, columns=list("abcd")).astype({"b": str})
        frame.loc[4000, "b"] = "many"
        frame.to_parquet(tmp_path / "t.parquet", row_group_size=900)
        self.refuse(monkeypatch, str(tmp_path / "t.parquet"), "in 1 of 5003 rows (first in data row 4001: 'many')")

    def test_dates(self, monkeypatch, tmp_path, x):
        pd.DataFrame(x).assign(day=pd.Timestamp("2020-01-01")).rename(columns=str).to_parquet(tmp_path / "t.parquet")
        self.refuse(monkeypatch, str(tmp_path / "t.parquet"), "column day")

    @pytest.mark.parametrize(("scale", "said"), [(0, "x0 is constant"), (1e40, "x0 is too large")])
    def test_columns_without_a_density(self, monkeypatch, tmp_path, x, scale, said):
        x[:, 0] = scale * x[:, 3] + 1
        self.refuse(monkeypatch, write(tmp_path / "t.npy", x), said)

    @pytest.mark.parametrize("suffix", [".npy", ".parquet"])
    def test_truncated_files(self, monkeypatch, tmp_path, x, suffix):
        path = tmp_path / f"t{suffix}"
        write(path, x)
        path.write_bytes(path.read_bytes()[:20_000])
        self.refuse(monkeypatch, str(path), "damaged" if suffix == ".npy" else "cannot be read as Parquet")

    @pytest.mark.parametrize("rows", [5002, 5004])
    def test_other_than_the_rows_it_says(self, tmp_path, x, rows):
        table = dataclasses.replace(stored.open_large(write(tmp_path / "t.parquet", x)), rows=rows)
        with pytest.raises(InputError, match=f"says {rows} rows and holds 5003"):
            large.load(table)

    @pytest.mark.parametrize(
        "values", [np.zeros((19, 2)), np.zeros((30, 2, 2)), np.ones((30, 2)) * 1j, np.zeros((30, 1))]
    )
    def test_no_tables(self, monkeypatch, tmp_path, values):
        np.save(tmp_path / "t.npy", values)
        self.refuse(monkeypatch, str(tmp_path / "t.npy"), "t.npy")

    def test_jitter(self, tmp_path, x):
        with pytest.raises(InputError, match=r"t\.npy is too large for --jitter"):
            data.load(write(tmp_path / "t.npy", x), jitter=True)

    def test_no_room_for_a_copy(self, monkeypatch, tmp_path, x):
        monkeypatch.setattr(large.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 4 * x.size - 1}))
        assert data.load(write(tmp_path / "t.npy", x)).size
        with pytest.raises(InputError, match="TMPDIR"):
            data.load(write(tmp_path / "t.parquet", x))


def test_small_tables_stay_in_memory(tmp_path, x):
    path = write(tmp_path / "t.npy", x)
    dataset, known = data.load(path), tabular.load(path)
    assert dataset.disk is None
    assert dataset.size == len(dataset.train) == 5003 - 1000
    assert dataset.digest() == known.digest()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_every_sort(tmp_path, x, dtype, order):
    values = np.asarray(x.astype(dtype), order=order)
    np.save(tmp_path / "t.npy", values)
    dataset = data.load(str(tmp_path / "t.npy"))
    batch = dataset.disk.batches(64, seed=0)(3)
    np.testing.assert_array_equal(batch, values[batch[:, 3].int()].astype(np.float32))


def test_columns_of_few_values_are_reported(tmp_path, x, small):
    x[:, 1] = np.random.default_rng(0).integers(5, size=len(x))
    x[:, 2] = 1000 * x[:, 0] - 2 * x[:, 3]
    first, *others = data.load(write(tmp_path / "t.npy", x)).notes
    assert "300 to validate and to test on, each" in first
    few, linear = others
    assert few.startswith("x1: few distinct values")
    assert "adding noise" in few
    assert linear.startswith("x0, x2, x3: almost linear")


@pytest.mark.usefixtures("small")
def test_rare_values_and_repeated_columns_do_no_harm(tmp_path, x):
    held = data.load(write(tmp_path / "t.npy", x)).disk.held
    x[:, 1], x[:, 2] = 0, x[:, 3]
    x[np.setdiff1d(np.arange(len(x)), held)[:2], 1] = 7
    dataset = data.load(write(tmp_path / "t.npy", x))
    assert [note.split(":")[0] for note in dataset.notes[1:]] == ["x1", "x2, x3"]
    torch.testing.assert_close(dataset.train[:, 1].std().item(), 7 * (2 / 4403) ** 0.5, rtol=0.01, atol=0)


@pytest.mark.usefixtures("small", "undrawn")
class TestPrograms:
    @pytest.mark.parametrize("suffix", [".npy", ".parquet"])
    def test_a_large_table_from_start_to_end(self, run, tmp_path, x, suffix, monkeypatch):
        path = write(tmp_path / f"t{suffix}", x)
        status, out, err = run("density", path, *TINY)
        assert (status, err) == (0, "")
        assert "4403 samples to train on, 300 to validate on" in out
        assert "note: a table of 5,003 rows stays on disk" in out
        assert "full-covariance Gaussian" in out

        train = data.load(path).disk._read(np.arange(4403), 1).astype(np.float64)
        standardize = cnf.load("runs/t").transform.transforms[0]
        torch.testing.assert_close(standardize.mean.double(), torch.from_numpy(train.mean(0)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(standardize.scale.double(), torch.from_numpy(train.std(0)), rtol=1e-4, atol=1e-5)

        report = json.loads(run("evaluate", "runs/t", "--json")[1])
        assert report["nll"] == json.loads((tmp_path / "runs" / "t" / "result.json").read_text())["nll"]

    def test_resuming_is_bit_identical(self, run, tmp_path, x, monkeypatch):
        path = write(tmp_path / "t.npy", x)
        assert run("density", path, *TINY, "--out", "whole")[0] == 0
        validations = []

        def stop_at_the_second(validate):
            def validated(*args):
                validations.append(1)
                if len(validations) == 2:
                    signal.raise_signal(signal.SIGTERM)
                return validate(*args)

            return validated

        with monkeypatch.context() as patch:
            patch.setattr(likelihood, "of_one_draw", stop_at_the_second(likelihood.of_one_draw))
            assert "stopped" in run("density", path, *TINY, "--out", "parts")[1]
        assert run("density", "--resume", "parts")[0] == 0
        whole, parts = (Run(name).load_state()["objective"] for name in ("whole", "parts"))
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
        np.save(path, x[::-1])
        assert "has changed" in run("density", "--resume", "parts")[2]

    @pytest.mark.parametrize("options", [(), ("--extra", "1")])
    @pytest.mark.parametrize("suffix", [".npy", ".parquet"])
    def test_evaluating_in_portions_is_evaluating_at_once(self, run, tmp_path, x, suffix, options, monkeypatch):
        assert run("density", write(tmp_path / "t.npy", x), *TINY, "--out", "run", *options)[0] == 0
        other = write(tmp_path / f"other{suffix}", x[::10])
        monkeypatch.setattr(stored, "ROWS", 150)
        assert isinstance(held_out.samples("run", other), held_out.Portions)
        assert [len(part) for part in held_out.samples("run", other)] == [150, 150, 150, 51]
        command = ("evaluate", "run", other, "--json", *(("--samples", "4") if options else ()))
        portions = json.loads(run(*command)[1])
        monkeypatch.setattr(stored, "LARGE", 2**30)
        whole = json.loads(run(*command)[1])
        close = {"rel": 0.1, "abs": 0.05} if options else {"rel": 1e-5}  # other draws of a bound
        for name in ("nll", "nll_tighter"):
            assert portions[name]["value"] == pytest.approx(whole[name]["value"], **close)
            assert portions[name]["standard_error"] == pytest.approx(whole[name]["standard_error"], **close)
        assert portions["inverse_error"] == pytest.approx(whole["inverse_error"], rel=0.5)

    def test_bad_rows_are_found_before_the_first_solve(self, run, tmp_path, x, monkeypatch):
        assert run("density", write(tmp_path / "t.npy", x), *TINY, "--out", "run")[0] == 0
        x[-1, 0] = np.nan
        other = write(tmp_path / "other.npy", x)
        monkeypatch.setattr(likelihood, "measure", None)
        status, _, err = run("evaluate", "run", other)
        assert status == 2
        assert "column x0 holds missing values in 1 of 5003 rows (first in data row 5003" in err


class TestSamples:
    @pytest.fixture
    def model(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sample, "CHUNK", 40)
        model = density_model((3,), hidden=(8, 8), data=torch.randn(50, 3))
        cnf.save(model, "model")
        return model

    @pytest.mark.parametrize("typed", [(), ("--log-prob",)])
    def test_files_are_those_of_all_samples_at_once(self, run, model, typed):
        for name in ("s.csv", "s.npy"):
            assert run("sample", "model", "-n", "130", "--out", name, "--seed", "4", *typed)[0] == 0
        torch.manual_seed(4)
        parts = [sample.draw(model, n, bool(typed)) for n in (40, 40, 40, 10)]
        values = np.concatenate([np.concatenate(part, axis=1) for part in parts])
        columns = ["x0", "x1", "x2", *(["log_prob"] if typed else [])]
        for name, save in (
            ("s.csv", lambda file: pd.DataFrame(values, columns=columns).to_csv(file, index=False)),
            ("s.npy", lambda file: np.save(file, values)),
        ):
            wanted = io.BytesIO()
            save(wanted)
            with open(name, "rb") as file:
                assert file.read() == wanted.getvalue()

    @pytest.mark.usefixtures("model")
    def test_parts_are_written_as_they_come(self, run, tmp_path, monkeypatch):
        sizes = []

        def draw(*args):
            (part,) = tmp_path.glob(".s.npy.partial")
            sizes.append(part.stat().st_size)
            return drawn(*args)

        drawn = sample.draw
        monkeypatch.setattr(sample, "draw", draw)
        assert run("sample", "model", "-n", "4000", "--out", "s.npy")[0] == 0
        assert len(sizes) == 100
        assert sizes[-1] > 30_000  # of 48,128, but for what a buffer holds

    @pytest.mark.usefixtures("model")
    def test_an_error_leaves_the_file_of_before(self, run, tmp_path, monkeypatch):
        (tmp_path / "s.csv").write_text("precious")

        def draw(*args, calls=[]):  # noqa: B006 - counts
            calls.append(1)
            if len(calls) == 3:
                raise SolverError("step underflow", 0.5, 10, "dopri5")
            return drawn(*args)

        drawn = sample.draw
        monkeypatch.setattr(sample, "draw", draw)
        assert run("sample", "model", "-n", "130", "--out", "s.csv", "--overwrite")[0] == 1
        assert (tmp_path / "s.csv").read_text() == "precious"
        assert not list(tmp_path.glob(".s.csv*"))

    @pytest.mark.usefixtures("model")
    def test_a_kill_leaves_no_half_file(self, tmp_path):
        command = [sys.executable, "-m", "train_flows", "sample", "model", "-n", "100000000", "--out", "s.npy"]
        with subprocess.Popen(command, cwd=tmp_path) as process:
            deadline = time.monotonic() + 60
            while not any(part.stat().st_size > 1e5 for part in tmp_path.glob(".s.npy.partial")):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.02)
            process.kill()
        assert not (tmp_path / "s.npy").exists()

    @pytest.mark.usefixtures("model")
    def test_pictures_are_of_as_many_as_can_be_seen(self, run):
        status, _, err = run("sample", "model", "-n", "10000000", "--out", "s.png")
        assert status == 2
        assert "-n 10000000 is too many for a picture: pass at most 100000" in err


def test_moments_of_parts_are_those_of_all(x):
    moments = Moments()
    for part in torch.from_numpy(x).split(600):
        moments.add(part)
    assert moments.count == len(x)
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.scatter / len(x), np.cov(x.T, bias=True), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is known on Linux only")
def test_memory_is_measured_while_a_program_trains(tmp_path):
    row = large_tables._train(tmp_path, 0.0002, steps=2)
    assert row["rows"] == 3125
    assert 10 < row["anonymous_megabytes"] < row["resident_megabytes"]
    assert Run(tmp_path / "run").config("density")["data"]["notes"][0].startswith("a table of 3,125 rows stays on disk")
    assert not (tmp_path / "rows.npy").exists()


def test_no_room_for_the_rows_to_measure(tmp_path):
    with pytest.raises(InputError, match="has no room for 1e\\+09 GB"):
        large_tables.measure(1e9, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_files_written_piece_by_piece_appear_when_whole(tmp_path):
    with storage.written_atomically(tmp_path / "x") as file:
        file.write(b"one")
        assert not (tmp_path / "x").exists()
        file.write(b"two")
    assert (tmp_path / "x").read_bytes() == b"onetwo"
