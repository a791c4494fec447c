"""Pictures of a run: interpolations, snapshots while training, and the files that are written."""

import math

import pytest
import torch
from stored_runs import spread, store_classifier, store_density

from anode import Solver, SolverError
from cnf import density_model
from train_flows.data import Dataset, Split, class_contexts
from train_flows.figures import of_runs, table_plots
from train_flows.run import distributed
from train_flows.run.folder import Run
from train_flows.settings import Training

TIGHT = Solver(rtol=1e-9, atol=1e-9)
PART = Split(torch.randint(5, (6, 1, 2, 2), dtype=torch.uint8))
DATASET = Dataset("images", PART, PART, PART, columns=(), levels=5)


def wild(**options):
    """An untrained model of tiny images, far from the identity."""
    return spread(density_model((1, 2, 2), hidden=(8, 8), levels=5, solver=TIGHT, **options))


def norms(x):
    return x.flatten(1).norm(dim=1)


class TestInterpolation:
    def test_great_circle(self, float64):
        z0, z1 = torch.randn(2, 50, 3, 4)
        z1 = z1 * (norms(z0) / norms(z1)).view(-1, 1, 1)
        torch.testing.assert_close(of_runs.slerp(z0, z1, 0.0), z0)
        torch.testing.assert_close(of_runs.slerp(z0, z1, 1.0), z1)
        middle = of_runs.slerp(z0, z1, 0.5)
        torch.testing.assert_close(norms(middle), norms(z0))
        torch.testing.assert_close(norms(middle - z0), norms(middle - z1))
        torch.testing.assert_close(of_runs.slerp(z0, z0, 0.3), z0, rtol=1e-6, atol=1e-6)

    def test_orthogonal_points(self, float64):
        z0, z1 = torch.eye(2)[:, None]
        third = of_runs.slerp(z0, z1, 1 / 3)
        torch.testing.assert_close(third, torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]]))

    @pytest.mark.parametrize("options", [{}, {"extra": 1}, {"base": "mixture"}], ids=str)
    def test_ends_are_the_images(self, float64, options):
        x = torch.randint(5, (2, 6, 1, 2, 2), dtype=torch.uint8)
        between = of_runs.interpolate(wild(**options), *x, [0.0, 0.25, 1.0])
        assert between.shape == (6, 3, 1, 2, 2)
        assert torch.equal(between[:, 0], x[0].double())
        assert torch.equal(between[:, 2], x[1].double())
        assert set(between.unique().tolist()) <= set(range(5))

    def test_pairs_are_of_one_class(self):
        def data(y):
            c = class_contexts(torch.tensor(y), 2)
            part = Split(torch.arange(len(y), dtype=torch.uint8).view(-1, 1, 1, 1), torch.tensor(y), c)
            return Dataset("i", part, part, part, ("p",), levels=5, classes=("a", "b"), context=("a", "b"))

        assert of_runs.pairs_to_interpolate(data([0, 1])) is None
        start, end, c = of_runs.pairs_to_interpolate(data([0, 1, 1]))
        assert (start.item(), end.item(), c.tolist()) == (1, 2, [[0, 1]])


class TestSnapshots:
    def draw(self, tmp_path, model, records=()):
        run = Run(tmp_path, {"settings": {}})
        for record in records:
            run.log(record)
            run.save_state(record["step"], {})
        of_runs.draw_snapshot(run, Training(steps=6, validate_every=4), DATASET, model)
        return sorted(path.name for path in tmp_path.glob("samples/*"))

    def test_each_validation_has_one(self, tmp_path):
        assert self.draw(tmp_path, wild()) == ["step-000000.png"]
        assert self.draw(tmp_path, wild(), [{"step": 0}])[1:] == ["step-000004.png"]
        assert self.draw(tmp_path, wild(), [{"step": 4}])[2:] == ["step-000006.png"]
        assert len(self.draw(tmp_path, wild(), [{"step": 6}])) == 3  # the run has ended

    def test_they_are_of_the_same_noise_and_disturb_no_other(self, tmp_path):
        model, before = wild(), torch.get_rng_state()
        first = of_runs.sample_fixed_noise(model, 5)
        self.draw(tmp_path, model)
        assert torch.equal(torch.get_rng_state(), before)
        torch.randn(3)
        assert torch.equal(of_runs.sample_fixed_noise(model, 5), first)

    def test_a_failing_solve_leaves_a_note(self, tmp_path, monkeypatch, capsys):
        model = wild()

        def fail(*_, **__):
            raise SolverError("step underflow", 0.5, 100, Solver())

        monkeypatch.setattr(type(model), "sample", fail)
        assert self.draw(tmp_path, model) == []
        assert "note: the samples of step 0 are missing: step underflow" in capsys.readouterr().out

    def test_the_first_of_several_processes_draws(self, tmp_path, monkeypatch):
        monkeypatch.setattr(distributed, "rank", lambda: 1)
        assert self.draw(tmp_path, wild()) == []


class TestFiles:
    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        for name, value in {"FRAMES": 3, "FEWER_FRAMES": 2, "POINTS": 500, "CORNER_SAMPLES": 250}.items():
            monkeypatch.setattr(of_runs, name, value)

    def drawn(self, draw, dataset, model, **record):
        """Draw a run with a record, and return the names of the files, which are those returned."""
        run = Run.open("run")
        run.log({"step": 0, **record})
        found = draw(run, dataset, model)
        written = {path for path in run.folder.iterdir() if path.suffix in (".png", ".gif")}
        assert len(found) == len(written)
        assert written == set(found)
        return {path.name for path in written}

    @pytest.mark.parametrize(
        ("source", "model", "expected"),
        [
            ("moons", {}, {"samples.png", "flow.gif"}),
            ("digits", {}, {"samples.png", "flow.gif", "interpolations.png"}),
            ("digits", {"extra": 2, "augmentation": "categorical"}, {"samples.png", "flow.gif"}),
        ],
    )
    def test_of_a_density(self, source, model, expected):
        density, dataset = store_density("run", source, model=model)
        assert self.drawn(of_runs.draw_density, dataset, density, nll=1.0) == {*expected, "curves.png"}

    def test_of_a_density_given_the_class(self):
        density, dataset = store_density("run", "digits", conditional=True, image_size=4)
        pictures = {"samples.png", "flow.gif", "interpolations.png", "curves.png"}
        assert self.drawn(of_runs.draw_density, dataset, density) == pictures

    @pytest.mark.parametrize("given", [0, 2])
    @pytest.mark.parametrize("d", [1, 3])
    def test_of_a_table(self, d, given, monkeypatch):
        x = Split(torch.randn(60, d), c=torch.randn(60, given) if given else None)
        store_density("run", "moons")
        names = ("a", "b", "c", "d", "e")
        table = Dataset("t", x, x, x, names[:d], context=names[3 : 3 + given], is_table=True)
        columns = []
        corner = table_plots.corner
        monkeypatch.setattr(table_plots, "corner", lambda sets, names: columns.extend(names) or corner(sets, names))
        density = spread(density_model((d,), context=given, hidden=(8,)))
        assert self.drawn(of_runs.draw_density, table, density, nll=1.0) == {"samples.png", "curves.png"}
        assert columns == ([*names[:d], *["d (given)", "e (given)"][:given]] if d + given > 1 else [])

    @pytest.mark.parametrize(("source", "more"), [("spheres", set()), ("digits", {"mistakes.png"})])
    def test_of_a_classifier(self, source, more):
        network, dataset = store_classifier("run", source, model={"extra": 1})
        pictures = self.drawn(of_runs.draw_classifier, dataset, network, validation_loss=1.0)
        assert pictures == {"features.png", "curves.png", *more}

    def test_a_failing_solve_costs_the_pictures_after_it(self, monkeypatch, capsys):
        density, dataset = store_density("run", "moons")

        def fail(*_, **__):
            raise SolverError("step underflow", 0.5, 100, Solver())

        monkeypatch.setattr(type(density), "sample_paths", fail)
        assert self.drawn(of_runs.draw_density, dataset, density, nll=1.0) == {"curves.png"}
        assert "note: a picture is missing: step underflow" in capsys.readouterr().out


class TestCurves:
    RECORDS = (
        {"step": 0, "nll": 3.0, "nfe_log_prob": 20},
        {"step": 5, "loss": 1.5, "nll": 2.5, "nfe_forward": 0.0, "nfe_backward": 0.0},
        {"step": 10, "loss": 1.25, "nll": 2.0},
        {"step": 15, "loss": 1.75, "nll": 1.5, "nfe_forward": 9.0, "nfe_backward": 0.0},
        {"step": 20, "loss": 1.0, "nll": 1.0},
    )

    def test_solves_that_did_not_take_place_are_left_out(self):
        found = of_runs.drawn_records(self.RECORDS)
        assert [record["nll"] for record in found] == [3.0, 2.5, 2.0, 1.5, 1.0]
        solves = [name for record in found for name in record if name.startswith("nfe_")]
        assert solves == ["nfe_log_prob", "nfe_forward"]

    def test_likelihoods_of_images_are_in_bits(self, tmp_path):
        run = Run(tmp_path, {"settings": {}})
        for record in self.RECORDS:
            run.log(record)
        figure = of_runs.density_curves(run, DATASET)
        panels = [axes.get_ylabel() for axes in figure.axes]
        assert panels == ["negative log-likelihood in bits/dim", "evaluations of the field"]
        validation, training = figure.axes[0].lines
        assert validation.get_ydata()[-1] == pytest.approx(1.0 / (4 * math.log(2)))
        assert training.get_ydata()[0] == pytest.approx(1.5 / (4 * math.log(2)))
