"""Pictures of densities of images: what they show, and that training goes on as if they were not drawn."""

import math

import numpy as np
import pytest
import torch
from matplotlib import image as files

from anode import Solver, SolverError, storage
from cnf import CategoricalFlow, density_model
from train_flows import image_pictures, image_plots, loop, processes
from train_flows.checkpoint import Run
from train_flows.data import Dataset
from train_flows.training import Training

TINY = ["--steps", "6", "--validate-every", "2", "--hidden", "8", "8", "--batch-size", "64"]
DATASET = Dataset("images", *[torch.randint(5, (6, 1, 2, 2))] * 3, columns=(), levels=5)
STEPS = [f"step-{step:06d}.png" for step in (0, 2, 4, 6)]


def wild(**options):
    """An untrained model of tiny images, far from the identity."""
    model = density_model((1, 2, 2), hidden=(8, 8), levels=5, solver=Solver(rtol=1e-9, atol=1e-9), **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def norms(x):
    return x.flatten(1).norm(dim=1)


class TestPlots:
    def test_images_stand_row_by_row_in_frames(self):
        images = np.arange(1.0, 6.0).reshape(5, 1, 1, 1) * np.ones((5, 1, 2, 3))
        shown = image_plots.tiles(images, 3, top=10.0)
        f = image_plots.FRAME
        line = [f] * 13
        first = [f, 0.1, 0.1, 0.1, f, 0.2, 0.2, 0.2, f, 0.3, 0.3, 0.3, f]
        second = [f, 0.4, 0.4, 0.4, f, 0.5, 0.5, 0.5, f, f, f, f, f]
        expected = np.array([line, first, first, line, second, second, line])
        np.testing.assert_allclose(shown[:, :, 0], expected)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_every_pixel_is_a_square_of_its_colour(self, tmp_path, channels):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (4, channels, 4, 5))
        image_plots.grid(images, 255).savefig(tmp_path / "grid.png")
        found = np.round(255 * files.imread(tmp_path / "grid.png")[:, :, :3])
        tiles = np.round(255 * image_plots.tiles(images, 2, 255)) * np.ones(3)
        scale = image_plots.PIXELS // max(tiles.shape)
        margin = image_plots.MARGIN
        inside = found[margin:-margin, margin:-margin]
        expected = tiles.repeat(scale, 0).repeat(scale, 1)
        assert inside.shape == expected.shape
        assert np.abs(inside - expected).max() <= 1
        assert (found[:margin] == 255).all()

    def test_gray_levels_are_the_same_in_all_sets(self):
        dark, light = np.full((4, 1, 2, 2), 3.0), np.full((9, 1, 2, 2), 12.0)
        figure = image_plots.squares({"dark": dark, "light": light}, top=16)
        shown = [axes.images[0].get_array() for axes in figure.axes]
        assert [panel[1, 1] for panel in shown] == [3 / 16, 12 / 16]
        assert [axes.get_title() for axes in figure.axes] == ["dark", "light"]
        assert shown[0].shape == shown[1].shape == (7, 7)  # two by two of each


class TestBetween:
    def test_great_circle(self, float64):
        z0, z1 = torch.randn(2, 50, 3, 4)
        z1 = z1 * (norms(z0) / norms(z1)).view(-1, 1, 1)
        torch.testing.assert_close(image_pictures.on_great_circle(z0, z1, 0.0), z0)
        torch.testing.assert_close(image_pictures.on_great_circle(z0, z1, 1.0), z1)
        middle = image_pictures.on_great_circle(z0, z1, 0.5)
        torch.testing.assert_close(norms(middle), norms(z0))
        torch.testing.assert_close(norms(middle - z0), norms(middle - z1))

    def test_orthogonal_points(self, float64):
        z0, z1 = torch.eye(2)[:, None]
        third = image_pictures.on_great_circle(z0, z1, 1 / 3)
        torch.testing.assert_close(third, torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]]))

    def test_a_point_and_itself(self):
        z = torch.randn(5, 2, 3, 3)
        torch.testing.assert_close(image_pictures.on_great_circle(z, z, 0.3), z)

    @pytest.mark.parametrize(
        "options", [{}, {"extra": 1}, {"base": "mixture"}, {"extra": 1, "base": "conditional"}], ids=str
    )
    def test_ends_are_the_images(self, float64, options):
        x = torch.randint(5, (2, 6, 1, 2, 2)).double()
        between = image_pictures.interpolated(wild(**options), *x, [0.0, 0.25, 1.0])
        assert between.shape == (6, 3, 1, 2, 2)
        assert torch.equal(between[:, 0], x[0])
        assert torch.equal(between[:, 2], x[1])
        assert set(between.unique().tolist()) <= set(range(5))

    def test_mixtures_of_flows_have_no_way_between_their_components(self):
        model = wild(extra=2, augmentation="categorical")
        assert isinstance(model.flow, CategoricalFlow)
        assert not image_pictures.interpolates(model)
        assert image_pictures.interpolates(wild())


def test_neighbours_are_the_nearest(monkeypatch):
    monkeypatch.setattr(image_pictures, "CHUNK", 7)
    x, others = torch.randn(3, 1, 2, 2), torch.randn(20, 1, 2, 2)
    found = image_pictures.nearest(x, others, 4)
    for i in range(3):
        order = sorted(range(20), key=lambda j: (x[i] - others[j]).square().sum().item())
        assert torch.equal(found[i], others[order[:4]])


def test_samples_are_of_the_same_noise_and_disturb_no_other():
    model = wild()
    before = torch.get_rng_state()
    first = image_pictures.alike(model, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(3)
    assert torch.equal(image_pictures.alike(model, 5), first)


class TestWhileTraining:
    OPTIONS = (*TINY, "--divergence", "hutchinson", "--ema", "0.9")

    def names(self, folder):
        return sorted(path.name for path in (folder / "samples").iterdir())

    def test_a_picture_at_every_validation_changes_nothing(self, run, undrawn, tmp_path, monkeypatch):
        assert run("density", "digits", *self.OPTIONS, "--out", "drawn")[0] == 0
        monkeypatch.setattr(image_pictures, "followed", lambda validate, *_: validate)
        assert run("density", "digits", *self.OPTIONS, "--out", "plain")[0] == 0
        assert self.names(tmp_path / "drawn") == STEPS
        assert not (tmp_path / "plain" / "samples").exists()
        drawn, plain = (storage.read_weights(name) for name in ("drawn", "plain"))
        assert all(torch.equal(drawn[name], plain[name]) for name in drawn)
        records = [[record["nll"] for record in Run(name).records()] for name in ("drawn", "plain")]
        assert records[0] == records[1]

    @pytest.mark.parametrize("step", [0, 3])
    def test_a_run_that_was_stopped_draws_the_same(self, run, undrawn, tmp_path, monkeypatch, step):
        assert run("density", "digits", *self.OPTIONS, "--out", "whole")[0] == 0
        asked = []

        class Signals:
            def __enter__(self):
                return lambda: (asked.append(1), len(asked) > step)[1]

            def __exit__(self, *_):
                pass

        with monkeypatch.context() as patch:
            patch.setattr(loop, "stop_signals", Signals)
            assert run("density", "digits", *self.OPTIONS, "--out", "parts")[0] == 0
        assert self.names(tmp_path / "parts") == STEPS[: 1 + step // 2]
        assert run("density", "--resume", "parts")[0] == 0
        assert self.names(tmp_path / "parts") == STEPS
        pictures = [
            [(tmp_path / name / "samples" / step).read_bytes() for step in STEPS] for name in ("whole", "parts")
        ]
        assert pictures[0] == pictures[1]
        assert len(set(pictures[0])) == len(STEPS)  # it learns

    def followed(self, tmp_path, model):
        validate = image_pictures.followed(lambda: {"nll": 1.5}, Run(tmp_path), model, Training(steps=6), DATASET)
        return validate()

    def test_a_failing_solve_leaves_a_note(self, tmp_path, monkeypatch, capsys):
        model = wild()

        def fail(*_, **__):
            raise SolverError("step underflow", 0.5, 100, Solver())

        monkeypatch.setattr(type(model), "sample", fail)
        assert self.followed(tmp_path, model) == {"nll": 1.5}
        assert "note: the samples of step 0 are missing: step underflow" in capsys.readouterr().out
        assert not (tmp_path / "samples").exists()

    def test_one_of_several_processes_draws(self, tmp_path, monkeypatch):
        monkeypatch.setattr(processes, "rank", lambda: 1)
        assert self.followed(tmp_path, wild()) == {"nll": 1.5}
        assert not (tmp_path / "samples").exists()
        monkeypatch.setattr(processes, "rank", lambda: 0)
        self.followed(tmp_path, wild())
        assert self.names(tmp_path) == ["step-000000.png"]

    def test_a_finished_run_draws_no_more(self, tmp_path):
        run = Run(tmp_path)
        run.log({"step": 6})
        self.followed(tmp_path, wild())
        assert not (tmp_path / "samples").exists()

    def test_overwriting_leaves_what_is_not_ours(self, tmp_path):
        (tmp_path / "samples").mkdir()
        for name in ("config.json", "temperatures.png", "samples/step-000500.png", "samples/mine.png"):
            (tmp_path / name).write_text('{"schema": 1, "kind": "density", "settings": {}}')
        Run.create(tmp_path, overwrite=True)
        assert [path.name for path in tmp_path.rglob("*.*")] == ["mine.png"]
        (tmp_path / "config.json").write_text('{"schema": 1, "kind": "density", "settings": {}}')
        (tmp_path / "samples" / "mine.png").unlink()
        Run.create(tmp_path, overwrite=True)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("augmented", [(), ("--extra", "1"), ("--extra", "2", "--augmentation", "categorical")])
def test_from_start_to_end(run, tmp_path, monkeypatch, augmented):
    monkeypatch.setattr(image_pictures, "FRAMES", 3)
    monkeypatch.setattr(image_pictures, "HELD", 1)
    status, out, err = run("density", "digits", *TINY, *augmented)
    assert (status, err) == (0, "")
    assert "missing" not in out
    found = {path.name for path in (tmp_path / "runs" / "digits").iterdir()}
    expected = {"samples.png", "neighbours.png", "temperatures.png", "flow.gif", "curves.png"}
    expected |= set() if "categorical" in augmented else {"interpolations.png"}
    assert {name for name in found if name.endswith((".png", ".gif"))} == expected


class TestSampling:
    def test_a_grid_of_all(self, run, tmp_path):
        cnf_model = wild()
        storage.save_model(tmp_path / "model", "density", cnf_model, cnf_model.config)
        assert run("sample", "model", "-n", "100", "--out", "grid.png")[0] == 0
        height, width = files.imread(tmp_path / "grid.png").shape[:2]
        across = 10 * 3 + 1  # ten images of two pixels, with a frame of one
        assert height == width == across * (image_plots.PIXELS // across) + 2 * image_plots.MARGIN
        status, _, err = run("sample", "model", "-n", "10001", "--out", "many.png")
        assert status == 2
        assert "-n 10001 is too many for a picture: pass at most 10000" in err

    def test_temperature(self, run, tmp_path):
        model = density_model((2,))
        storage.save_model(tmp_path / "model", "density", model, model.config)
        for name, temperature in (("warm", "1"), ("cool", "0.5")):
            assert run("sample", "model", "-n", "9", "--temperature", temperature, "--out", f"{name}.npy")[0] == 0
        np.testing.assert_allclose(np.load("cool.npy"), 0.5 * np.load("warm.npy"), rtol=1e-6)  # the field is zero

    @pytest.mark.parametrize(
        ("typed", "message"),
        [
            (("--temperature", "0"), "--temperature 0.0 must be a positive number"),
            (("--temperature", "nan"), "--temperature nan must be a positive number"),
            (
                ("--temperature", "0.8", "--log-prob"),
                "--log-prob is the density at --temperature 1, not that of samples",
            ),
        ],
    )
    def test_what_is_refused(self, run, typed, message):
        status, _, err = run("sample", "model", *typed)
        assert status == 2
        assert message in err
