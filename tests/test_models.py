"""The constructor from plain values, stored models, and objectives."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from anode import CheckpointError, InputError, MLPField, Solver, storage
from cnf import Continuous, Flow, LiftedFlow, MaximumLikelihood, Normal, density_model, load, save

VARIANTS = {
    "plain": ({"shape": (2,)}, lambda: torch.randn(5, 2)),
    "three layers": ({"shape": (3,), "hidden": (8, 8, 8), "time": "concat"}, lambda: torch.randn(5, 3)),
    "hutchinson": ({"shape": (2,), "divergence": "hutchinson", "probes": 2}, lambda: torch.randn(5, 2)),
    "white": ({"shape": (2,), "whiten": True}, lambda: torch.randn(5, 2)),
    "images": ({"shape": (1, 4, 4), "levels": 17}, lambda: torch.randint(17, (5, 1, 4, 4))),
    "convolutions": (
        {"shape": (1, 4, 4), "levels": 17, "field": "conv", "filters": 4, "time": "concat"},
        lambda: torch.randint(17, (5, 1, 4, 4)),
    ),
    "scales": (
        {"shape": (1, 8, 8), "levels": 17, "field": "stack", "hidden": (4,), "multiscale": True, "blocks": 2},
        lambda: torch.randint(17, (5, 1, 8, 8)),
    ),
    "U-Net": (
        {"shape": (1, 4, 4), "levels": 17, "field": "unet", "hidden": (4, 8), "dequantization": "learned"},
        lambda: torch.randint(17, (5, 1, 4, 4)),
    ),
    "joint": ({"shape": (2,), "extra": 1, "posterior": "learned"}, lambda: torch.randn(5, 2)),
    "frozen": (
        {"shape": (2,), "extra": 2, "augmentation": "frozen", "base": "conditional"},
        lambda: torch.randn(5, 2),
    ),
    "momentum": ({"shape": (2,), "extra": 2, "augmentation": "momentum"}, lambda: torch.randn(5, 2)),
    "categorical": (
        {"shape": (2,), "extra": 3, "augmentation": "categorical", "posterior": "fitted", "correlated": True},
        lambda: torch.randn(5, 2),
    ),
    "solver": ({"shape": (2,), "solver": Solver("rk4", step_size=0.25)}, lambda: torch.randn(5, 2)),
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    options, draw = VARIANTS[request.param]
    x = draw()
    return density_model(**options, data=torch.cat([x] * 3)), x


def test_a_stored_model_rebuilds_itself(variant, tmp_path):
    model, x = variant
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert type(loaded) is type(model)
    assert loaded.config == json.loads(json.dumps(model.config))
    assert not loaded.training
    torch.manual_seed(0)
    expected = model.elbo(x)
    torch.manual_seed(0)
    assert torch.equal(loaded.elbo(x), expected)


def test_the_untrained_flow_is_the_gaussian_of_the_data(float64):
    x = torch.randn(500, 2) * torch.tensor([3.0, 0.2]) + 1
    flow = density_model((2,), data=x)
    expected = torch.distributions.Normal(x.mean(0), x.std(0, correction=0)).log_prob(x).sum(1)
    torch.testing.assert_close(flow.log_prob(x), expected)


def test_the_untrained_white_flow_is_the_gaussian_of_full_covariance(float64):
    x = torch.randn(500, 3) @ torch.randn(3, 3) + 1
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov(correction=0))
    flow = density_model((3,), whiten=True, data=x)
    torch.testing.assert_close(flow.log_prob(x), gaussian.log_prob(x))


def test_kinds_of_model():
    assert isinstance(density_model((2,)), Flow)
    assert isinstance(density_model((1, 4, 4), levels=17), LiftedFlow)


def test_float64_models_keep_their_type(tmp_path):
    model = density_model((2,)).double()
    save(model, tmp_path)
    assert load(tmp_path).log_prob(torch.randn(3, 2, dtype=torch.float64)).dtype == torch.float64


def test_a_model_composed_by_hand_is_not_stored(tmp_path):
    with pytest.raises(InputError, match="state_dict"):
        save(Flow(Continuous(MLPField(2)), Normal((2,))), tmp_path)


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path):
        save(density_model((2,), hidden=(8, 8)), tmp_path / "model")
        return tmp_path / "model"

    def refuse(self, folder, names):
        with pytest.raises(CheckpointError, match=names) as caught:
            load(folder)
        assert len(str(caught.value).splitlines()) == 1

    def craft(self, folder, **arguments):
        """Change arguments of the model, and give both files the digests that belong to them."""
        config = storage.read_config(folder, "density")
        config["model"] |= arguments
        del config["schema"], config["kind"]
        weights = storage.read_weights(folder)
        storage.write_config(folder, "density", config)
        storage.write_weights(folder, weights)

    def test_missing_folder(self, tmp_path):
        self.refuse(tmp_path / "nothing", "nothing is not the folder of a density")

    def test_missing_weights(self, folder):
        (folder / "model.safetensors").unlink()
        self.refuse(folder, "missing")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_truncated_files(self, folder, name, share):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])
        self.refuse(folder, f"{name} is truncated")

    def test_altered_weights(self, folder):
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-3] ^= 1
        (folder / "model.safetensors").write_bytes(bytes(content))
        self.refuse(folder, "digest")

    def test_altered_config(self, folder):
        config = (folder / "config.json").read_text().replace("tanh", "relu")
        (folder / "config.json").write_text(config)
        self.refuse(folder, "edited")

    def test_other_schema(self, folder):
        content = json.loads((folder / "config.json").read_text()) | {"schema": 99}
        del content["sha256"]
        content["sha256"] = storage._digest_config(content)
        (folder / "config.json").write_text(json.dumps(content))
        self.refuse(folder, "schema 99")

    @pytest.mark.parametrize("content", ['{"model_type": "bert"}', "[1, 2]", "7"])
    def test_foreign_config(self, folder, content):
        (folder / "config.json").write_text(content)
        self.refuse(folder, "of another program")

    def test_other_kind(self, folder):
        storage.write_config(folder, "classifier", {"model": {}})
        self.refuse(folder, "classifier")

    def test_weights_of_another_model(self, folder, tmp_path):
        save(density_model((2,), hidden=(8, 9)), tmp_path / "other")
        shutil.copy(tmp_path / "other" / "model.safetensors", folder / "model.safetensors")
        self.refuse(folder, "another config.json")

    def test_foreign_safetensors(self, folder):
        save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
        self.refuse(folder, "digest")

    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            ({"hidden": [8, 9]}, "layers"),
            ({"hidden": [10**9, 10**9]}, "layers"),
            ({"hidden": [8] * 10**6}, "more layers than there are weights for"),
            ({"hidden": [10**30, 8]}, "do not serve"),
            ({"hidden": "88"}, "hidden='88' is of another type"),
            ({"residual": "yes"}, "residual='yes' is of another type"),
            ({"solver": {"max_steps": True}}, "solver=.* is of another type"),
            ({"width": 8}, "'width' is unknown"),
            ({"shape": [3]}, r"mean is \(2,\)"),
            ({"whiten": True}, "missing"),
            ({"activation": "sine\n" * 1000}, "'sine"),
        ],
        ids=lambda part: str(part)[:30],
    )
    def test_crafted_arguments(self, folder, arguments, names):
        self.craft(folder, **arguments)
        self.refuse(folder, names)

    def test_crafted_types(self, folder):
        weights = storage.read_weights(folder)
        for change in (lambda x: x.long(), lambda x: x.to(torch.float8_e5m2), lambda x: x[None]):
            storage.write_weights(folder, {name: change(tensor) for name, tensor in weights.items()})
            self.refuse(folder, "type|transforms.0.mean")
        storage.write_weights(folder, {})
        self.refuse(folder, "not all of one type")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_files_of_another_size_are_not_read(self, folder, name):
        os.truncate(folder / name, 2**35)  # a hole, which takes no space
        self.refuse(folder, "at most .* are read")

    @pytest.mark.parametrize("content", ["[" * 10**6, "9" * 10**4, '{"schema": NaN, "kind": 1, "sha256": 2}'])
    def test_odd_json(self, folder, content):
        (folder / "config.json").write_text(content)
        self.refuse(folder, "config.json")

    def test_numbers_that_json_does_not_know_are_not_written(self, folder, tmp_path):
        with pytest.raises(InputError, match="not finite"):
            storage.write_config(tmp_path / "new", "density", {"model": {"alpha": float("inf")}})
        assert not (tmp_path / "new").exists()

    def test_loading_takes_no_random_numbers(self, folder):
        torch.manual_seed(3)
        expected = torch.randn(4)
        torch.manual_seed(3)
        load(folder)
        assert torch.equal(torch.randn(4), expected)

    def test_a_failed_write_leaves_the_old_file(self, folder, monkeypatch):
        before = (folder / "model.safetensors").read_bytes()
        monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save(density_model((2,), hidden=(8, 8)), folder)
        assert (folder / "model.safetensors").read_bytes() == before
        assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"divergence": "guess"}, "guess"),
        ({"solver": {"rtol": -1.0}}, "rtol"),
        ({"data": torch.randn(5, 3)}, r"\(5, 3\)"),
        ({"levels": 1}, "levels=1"),
        ({"levels": 4, "alpha": 0.7}, "alpha"),
        ({"levels": 4, "data": torch.randn(5, 2)}, "0 to 3"),
        ({"data": torch.tensor([[1.0, float("nan")]])}, "finite"),
        ({"data": torch.zeros(0, 2)}, "not empty"),
        ({"probes": 0}, "probes=0"),
    ],
)
def test_bad_input_is_named(options, names):
    with pytest.raises(InputError, match=names):
        density_model((2,), **options)


def test_likelihood_is_the_mean_over_the_batch():
    flow = density_model((2,))
    x = torch.randn(6, 2)
    torch.testing.assert_close(MaximumLikelihood(flow)(x), -flow.log_prob(x).mean())


def test_conditional_batches_are_pairs():
    flow = density_model((2,), context=3)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, c = torch.randn(6, 2), torch.randn(6, 3)
    torch.testing.assert_close(MaximumLikelihood(flow)((x, c)), -flow.log_prob(x, c).mean())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_models_move_to_the_gpu(tmp_path):
    save(density_model((2,), data=torch.randn(100, 2)), tmp_path)
    flow = load(tmp_path, "cuda")
    assert flow.sample(5).device.type == "cuda"
    x = torch.randn(50, 2)
    torch.testing.assert_close(flow.log_prob(x.cuda()).cpu(), load(tmp_path).log_prob(x), rtol=1e-4, atol=1e-4)
