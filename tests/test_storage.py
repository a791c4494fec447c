"""Stored models: damaged and crafted files are refused in one line, and writes are atomic."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from anode import CheckpointError, InputError, classifier_model, load, save, storage


@pytest.fixture
def folder(tmp_path):
    save(classifier_model((2,), 1, hidden=(8, 8)), tmp_path / "model")
    return tmp_path / "model"


def refuse(folder, names):
    with pytest.raises(CheckpointError, match=names) as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) == 1


def craft(folder, **arguments):
    """Change arguments of the model, and give both files the digests that belong to them."""
    content = storage.read_config(folder)
    weights = storage.read_weights(folder)
    storage.write_config(folder, content["kind"], content["model"] | arguments)
    storage.write_weights(folder, weights)


def test_models_keep_their_type_and_loading_draws_no_random_numbers(folder):
    save(classifier_model((2,), 1).double(), folder)
    state = torch.get_rng_state()
    assert load(folder)(torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator())).dtype == torch.float64
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_of_another_step_are_loaded_into_a_model(folder):
    model, other = classifier_model((2,), 1, hidden=(8, 8)), classifier_model((2,), 1, hidden=(8, 9))
    storage.load_weights(folder, model)
    stored = storage.read_weights(folder)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"weights of another model \(body"):
        storage.load_weights(folder, other)


class TestDamage:
    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_missing_files(self, folder, name):
        (folder / name).unlink()
        refuse(folder, "is not the folder of a classifier or series model|model.safetensors is missing")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_truncated_files(self, folder, name, share):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])
        refuse(folder, f"{name} is truncated")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_files_that_are_too_large_are_not_read(self, folder, name):
        os.truncate(folder / name, 2**35)  # a hole, which takes no space
        refuse(folder, "at most .* are read")

    def test_altered_weights(self, folder):
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-3] ^= 1
        (folder / "model.safetensors").write_bytes(bytes(content))
        refuse(folder, "digest")

    def test_altered_config(self, folder):
        path = folder / "config.json"
        path.write_text(path.read_text().replace("relu", "tanh"))
        refuse(folder, "edited")

    def test_weights_of_another_model(self, folder, tmp_path):
        save(classifier_model((2,), 1, hidden=(8, 9)), tmp_path / "other")
        shutil.copy(tmp_path / "other" / "model.safetensors", folder / "model.safetensors")
        refuse(folder, "belongs to another config.json")

    def test_foreign_safetensors(self, folder):
        save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
        refuse(folder, "does not have a digest")


class TestForeignConfigs:
    @pytest.mark.parametrize("content", ['{"model_type": "bert"}', "[1, 2]", "7"])
    def test_other_programs(self, folder, content):
        (folder / "config.json").write_text(content)
        refuse(folder, "another program")

    @pytest.mark.parametrize("content", ["[" * 10**6, "9" * 10**4, '{"schema": 2, "kind": NaN, "sha256": 2}'])
    def test_odd_json(self, folder, content):
        (folder / "config.json").write_text(content)
        refuse(folder, "config.json is (truncated|not a valid)")

    @pytest.mark.parametrize(("schema", "version"), [(1, r"wrote it \(0.1\)"), (99, "wrote it$")])
    def test_other_schemas(self, folder, schema, version):
        content = json.loads((folder / "config.json").read_text()) | {"schema": schema}
        storage.write_json(folder / "config.json", content)
        refuse(folder, f"has schema {schema}; this version reads schema 2. Train again, or install .*{version}")

    def test_other_kinds(self, folder):
        storage.write_config(folder, "density", {})
        refuse(folder, "holds a density model, not a classifier or series model")
        assert storage.read_config(folder, "classifier", "density")["kind"] == "density"


class TestCrafted:
    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            ({"hidden": [8, 9]}, "layers"),
            ({"hidden": [10**9, 10**9]}, "layers"),
            ({"hidden": [8] * 10**6}, "at most 100 items"),
            ({"hidden": [10**30, 8]}, "does not describe"),
            ({"hidden": "88"}, "hidden='88'"),
            ({"blocks": "x"}, "blocks='x' must be a whole number"),
            ({"model": "resnet", "blocks": 10**6}, "blocks=1000000 must be at most 1000"),
            ({"solver": {"max_steps": "x"}}, "max_steps"),
            ({"width": 8}, "width=8 is unknown"),
            ({"shape": [3]}, r"mean is \(2,\)"),
            ({"shape": None}, "does not describe"),
            ({"data": [1]}, "does not describe"),
            ({"extra": 1}, "layers"),
            ({"stem": "conv"}, "images"),
            ({"activation": "sine\n" * 1000}, "'sine"),
        ],
        ids=lambda part: str(part)[:30],
    )
    def test_arguments(self, folder, arguments, names):
        craft(folder, **arguments)
        refuse(folder, names)

    @pytest.mark.parametrize("change", [lambda x: x.long(), lambda x: x.to(torch.float8_e5m2), lambda x: x[None]])
    def test_types_and_shapes(self, folder, change):
        weights = storage.read_weights(folder)
        storage.write_weights(folder, {name: change(tensor) for name, tensor in weights.items()})
        refuse(folder, "one type|lift.0.mean")

    def test_no_weights(self, folder):
        storage.write_weights(folder, {})
        refuse(folder, "one type")


class TestWriting:
    def test_numbers_that_are_not_finite_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="not finite"):
            storage.write_config(tmp_path / "new", "density", {"alpha": float("inf")})
        assert not (tmp_path / "new").exists()

    def test_a_failed_write_leaves_the_old_file(self, folder, monkeypatch):
        before = (folder / "model.safetensors").read_bytes()
        monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save(classifier_model((2,), 1, hidden=(8, 8)), folder)
        assert (folder / "model.safetensors").read_bytes() == before
        assert not list(folder.glob(".*"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_models_load_to_the_gpu(folder):
    x = torch.randn(50, 2)
    torch.testing.assert_close(load(folder, "cuda")(x.cuda()).cpu(), load(folder)(x), rtol=1e-4, atol=1e-4)
