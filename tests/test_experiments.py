"""Every experiment: its command lines parse, its figure and findings are made from run folders; some are run."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from anode import Solver, classifier_model
from train_flows import classify, density
from train_flows.command_line import parse, read
from train_flows.data import SEED_STRIDE, paper_functions
from train_flows.experiments import (
    EXPERIMENTS,
    anode_on_functions,
    anode_on_images,
    augmented_density,
    couplings,
    planar_flows,
    solver_cost,
    training_densities,
)
from train_flows.experiments.augmented_density import METRIC, METRICS
from train_flows.experiments.grid import Scale, jobs_of
from train_flows.experiments.results import Outcome, Results
from train_flows.forecasting.comparison import PARTS
from train_flows.forecasting.forecast import KIND as SERIES
from train_flows.forecasting.forecast import PROGRAM as FORECAST
from train_flows.forecasting.forecast import build, fit_to_data
from train_flows.forecasting.forecast_settings import ForecastSettings
from train_flows.forecasting.loading import load_series
from train_flows.run.folder import Run
from train_flows.settings import ClassifySettings, DensitySettings, to_sections

SHAPES = {"identity": 1, "g1d": 1, "intervals": 1, "spheres": 2, "sines": 2}
DATA = {"images": ("digits",), "densities": ("checkerboard",)}  # instead of the default
SCORES = dict.fromkeys(("mse", "rmse", "crps", "coverage_50", "coverage_90", "rmse_truth"), 0.5) | {"features": {}}
RECORD = ("loss", "train_mse", "train_accuracy", "train_nfe", "validation_loss", "test_loss", "test_accuracy", "kl")
RECORD += ("nfe_forward", "nfe_backward", "nll", "nfe_log_prob", "nll_test", "points_log_prob", *METRICS)
RECORD += ("gap_mean", "gap_error", "gap_max", "folded_mass", "w2", "w2_euler")


def settings_of(job):
    """The validated settings of a command line, with those of a model that are left to its data."""
    program, *line = job.words()
    if program == "classify":
        settings = parse(classify.PROGRAM, ClassifySettings(), line)[0]
        images = job.data not in SHAPES
        size = settings.data.image_size
        side = (size, size) if size else anode_on_images.shape(job.data, Scale())[1:] if images else None
        shape = (anode_on_images.shape(job.data, Scale())[0], *side) if images else (SHAPES[job.data],)
        return settings, (shape, 10 if images else 1)
    if program == "density":
        settings = parse(density.PROGRAM, DensitySettings(), line)[0]
        shape, levels = ((1, 8, 8), 17) if job.data == "digits" else ((2,), None)
        settings.model.validate(shape, levels=levels)
        return settings, None
    if program == "forecast":
        return parse(FORECAST, ForecastSettings(), line)[0], None
    kinds = {"reverse-kl": planar_flows.FlowSettings, "transport": couplings.TransportSettings}
    return read(kinds[program], line, program), None


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """Tables of the experiments on series: waves of a year with noise, under the names of the real ones."""
    root, noise = tmp_path_factory.mktemp("series"), np.random.default_rng(0)

    def table(start, end, names):
        days = pd.date_range(start, end)
        wave = np.sin(2 * np.pi * days.day_of_year.to_numpy() / 365.25)
        return pd.DataFrame({name: wave + noise.standard_normal(len(days)) for name in names}, index=days)

    weather = ("meantemp", "humidity", "wind_speed", "meanpressure")
    for part, *dates in (("Train", "2013-01-01", "2017-01-01"), ("Test", "2017-01-01", "2017-04-24")):
        table(*dates, weather).to_csv(root / f"DailyDelhiClimate{part}.csv", index_label="date")
    table("1990-01-01", "2004-01-01", ["Extent"])[::3].to_csv(root / "seaice.csv.gz", index_label="Date")
    return str(root)


IMAGES = [name for name, experiment in EXPERIMENTS.items() if experiment.kind == "images"]


@pytest.mark.parametrize(
    ("name", "size"), [*((name, "full") for name in EXPERIMENTS), *((name, "small") for name in IMAGES)]
)
def test_command_lines_are_valid(name, size, tmp_path, data_root):
    experiment = EXPERIMENTS[name]
    data = (experiment.data[0], experiment.data[-1]) if experiment.kind == "densities" else experiment.data
    for job in jobs_of(experiment, data, [0], Scale(size, data_root), tmp_path):
        settings, of_model = settings_of(job)
        if of_model:
            settings.model.validate(*of_model)
            assert (settings.epochs.keep, settings.training.clip) == ("last", 1e9)


def make_run(job, failed=False):
    """A run folder as the program leaves it, with an untrained model and figures that follow from the seed."""
    settings, of_model = settings_of(job)
    noise = np.random.default_rng([job.seed, *job.folder.name.encode()])
    model, sections, about = None, {"training": {}}, {}
    kind, arguments = "density", {}
    if isinstance(settings, planar_flows.FlowSettings):
        kind = planar_flows.KIND
        arguments = {name: getattr(settings, name) for name in ("target", "transform", "size")}
    elif isinstance(settings, couplings.TransportSettings):
        kind = couplings.KIND
    else:
        sections = to_sections(settings)
    if isinstance(settings, ForecastSettings):
        data = load_series(settings)
        settings = fit_to_data(settings, data)
        model = build(settings, data)
        kind, sections, arguments, about = SERIES, to_sections(settings), model.arguments, data.describe()
    if of_model:
        model = classifier_model(*of_model, config=settings.model)
        kind, arguments = "classifier", model.arguments
    sections["training"]["steps"] = 2
    run = Run.create(job.folder, kind, sections, arguments, about)
    if model:
        run.keep_best(model)
    if of_model:
        np.savez(job.folder / "features.npz", y=np.ones((5, 1)), epoch_0=np.ones((5, 2 + settings.model.extra)))
    for i in range(3):
        figures = {name: 3 - i + noise.random() for name in RECORD} | {"nll": 3 - i}
        run.log({"step": i, **figures, "seconds": i, "seconds_training": 0.5 * i})
        if failed and i == 1:
            (job.folder / "failed.json").write_text(json.dumps({"status": "too many steps"}))
            return
    nll = {"value": 1.0 + noise.random(), "standard_error": 0.1}
    result = {
        "classifier": {"accuracy": 1.0},
        "density": {"nll": nll, "nfe_log_prob": 40.0, "nfe_sample": 50.0},
        planar_flows.KIND: {"kl": 1.0, "standard_error": 0.1, "nfe_sample": 50.0},
        SERIES: {"scores": {part: {"model": SCORES, "last value": SCORES} for part in PARTS}, "nfe": 20.0},
        couplings.KIND: {"w2": 0.3, "w2_euler": 0.5, "nfe_sample": 50.0},
    }
    run.write_result(result[run.config["kind"]], ["some note"])


@pytest.mark.parametrize("failing", [(), (0, 1)])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_figures_and_findings_are_made_from_run_folders(name, failing, tmp_path, monkeypatch, data_root):
    monkeypatch.setattr(solver_cost, "TOLERANCES", (1e-2, 1e-5))
    monkeypatch.setattr(solver_cost, "REPEATS", 1)
    monkeypatch.setattr(solver_cost, "POINTS", 20)
    experiment, scale = EXPERIMENTS[name], Scale("quick", data_root)
    data = ("u1", "funnel") if name == "planar" else DATA.get(experiment.kind, experiment.data)
    jobs = jobs_of(experiment, data, (0, 1), scale, tmp_path)
    for job in jobs:
        make_run(job, failed=job.seed in failing)
    results = Results([job.outcome() for job in jobs])
    assert [o.status for o in results] == ["too many steps" if job.seed in failing else "success" for job in jobs]
    findings = experiment.findings(results)
    numbers = [value for value in findings.values() if isinstance(value, float)]
    if not failing and name not in ("feature-evolution", "augment-sweep"):
        assert numbers
        assert np.isfinite(numbers).all()
    figure = experiment.figure(results)
    figure.savefig(tmp_path / "figure.png")
    assert any(axes.lines or axes.collections or axes.images for axes in figure.axes) or len(failing) == 2


@pytest.mark.parametrize(
    ("name", "options"), [("nfe", ()), ("table1", ("--data", "digits")), ("planar", ()), ("conditional-transport", ())]
)
def test_an_experiment_from_command_to_figure(run, tmp_path, monkeypatch, name, options):
    monkeypatch.setattr(planar_flows, "TESTED", 100)
    monkeypatch.setattr(couplings, "TESTED", 100)
    command = ("paper", name, "--quick", "--workers", 1, "--seeds", 2, "--out", "results", *options)
    status, out, err = run(*command)
    assert (status, err) == (0, "")
    stem = "-".join([name, *options[1:], "quick"])
    content = json.loads((tmp_path / "results" / f"{stem}.json").read_text(), parse_constant=pytest.fail)
    assert (content["experiment"], content["size"], content["seeds"]) == (name, "quick", [0, 1])
    assert content["complete"]
    assert all(each["status"] == "success" for each in content["runs"])
    for row in content["summary"]:
        assert row["runs"] == row["succeeded"] == 2
        assert row["model"] in out
    assert (tmp_path / "results" / f"{stem}.png").read_bytes()[:4] == b"\x89PNG"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").glob("*/*/result.json")}
    assert run(*command)[0] == 0  # nothing is missing
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_experiments_are_listed_and_missing_runs_counted(run, tmp_path):
    status, out, _ = run("paper")
    assert status == 0
    assert all(name in out for name in EXPERIMENTS)
    status, out, _ = run("paper", "nfe", "--quick", "--workers", 1, "--budget-minutes", 1e-9)
    assert status == 0
    assert "2 runs are missing" in out
    assert json.loads((tmp_path / "paper" / "nfe-quick.json").read_text())["complete"] is False


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("nef",), "nfe"),
        (("nfe", "--seeds", "0"), "seeds"),
        (("nfe", "--data", "sines"), "--data sines"),
        (("nfe", "--small"), "--small"),
        (("couplings", "--data", "nothing"), "nothing"),
        (("couplings", "--data", "moons", "moons"), "twice"),
        (("planar", "--data", "u9"), "u1, u2, u3, u4"),
        (("conditional-transport", "--data", "weather"), "class, continuous"),
        (("table1", "--data", "cats"), "mnist, fashion"),
        (("table1", "--data", "some/mnist"), "is a path"),
        (("table1", "--small", "--quick"), "drop one"),
        (("nfe", "--out", "taken"), "taken is a file"),
        (("nfe", "--models", "ResNet"), "--models='ResNet' is unknown; choose one of NODE"),
    ],
)
def test_command_lines_that_make_no_sense_are_refused(run, tmp_path, typed, message):
    (tmp_path / "taken").write_text("mine")
    status, _, err = run("paper", *typed)
    assert (status, len(err.splitlines())) == (2, 1)
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def trained(label, seed=0, data="checkerboard", **figures):
    """An outcome with a record for each value of its figures."""
    records = [dict(zip(figures, values, strict=True)) for values in zip(*figures.values(), strict=True)]
    return Outcome(label, data, seed, "", None, "success", records)


def test_points_are_those_of_the_run(run, tmp_path):
    """Figures draw the points that the program trains on, with and without removed slices."""
    line = ("--epochs", 1, "--snapshots", 0, "--removed-slices", 3, "--seed", 5, "--out", "some", "--model", "resnet")
    assert run("classify", "spheres", *line)[0] == 0
    pairs = paper_functions.sample("spheres", paper_functions.TRAIN, 5 + SEED_STRIDE)
    outside, _ = paper_functions.split_slices(pairs, 3, torch.Generator().manual_seed(5 + 2 * SEED_STRIDE))
    stored = np.load(tmp_path / "some" / "features.npz")
    np.testing.assert_array_equal(stored["x"], outside[0][:: len(outside[0]) // 1000].numpy())
    x, y = anode_on_functions.points(trained("ResNet", 5, "spheres"))
    assert torch.equal(x, pairs[0][::3])
    assert set(y) == {-1, 1}


def test_the_best_learning_rate_has_the_least_mean_loss():
    losses = {"NODE, lr 0.001": 0.0, "NODE, lr 0.003, tuning": 0.2, "NODE, lr 0.01, tuning": 0.1}
    outcomes = [trained(label, data="sines", loss=[loss]) for label, loss in losses.items()]
    outcomes += [replace(trained("NODE, lr 0.03, tuning", data="sines", loss=[0.0]), status="too many steps")]
    assert anode_on_functions.best_rate(Results(outcomes), "NODE") == "NODE, lr 0.01"


@pytest.mark.parametrize("data", ["mnist", "cifar10", "svhn", "digits"])
@pytest.mark.parametrize("size", ["full", "small"])
def test_pairs_have_nearly_the_same_number_of_parameters(data, size):
    scale = Scale(size)
    node, anode = anode_on_images.pair(data, scale).values()
    counts = [anode_on_images.parameters(anode_on_images.shape(data, scale), each) for each in (node, anode)]
    assert counts[0] == pytest.approx(counts[1], rel=0.02)
    assert node["extra"] == 0 < anode["extra"]


def test_published_values_stand_next_to_the_measured():
    results = Results([Outcome("NODE", "mnist", 0, "", None, "too many steps", [{}])])
    assert "mnist: NODE, test accuracy in % (published, full size of mnist: 96.4 +- 0.5, reproduced 95.57 +- 0.32)" in (
        EXPERIMENTS["table1"].findings(results)
    )


def test_a_folder_of_images_has_ten_classes(run, tmp_path):
    for name in "abc":
        (tmp_path / "cifar10-few" / "train" / name).mkdir(parents=True)
    status, _, err = run("paper", "table1", "--data", "cifar10-few", "--data-root", tmp_path)
    assert (status, err.count("\n")) == (2, 1)
    assert "--data cifar10-few has 3 classes" in err


def test_solves_at_tolerances_are_what_they_say(monkeypatch):
    monkeypatch.setattr(solver_cost, "REPEATS", 1)
    rows = solver_cost.measure(classifier_model((2,), 1), torch.randn(50, 2))
    direct, adjoint = ([row for row in rows if row["gradient"] == kind] for kind in ("direct", "adjoint"))
    assert [row["tolerance"] for row in direct] == list(solver_cost.TOLERANCES)
    for loose, tight in pairwise(direct):
        assert tight["nfe_forward"] >= loose["nfe_forward"]
    assert direct[-1]["error"] < 1e-5 < direct[0]["error"]
    assert all(row["nfe_backward"] == 0 for row in direct)
    assert all(row["nfe_backward"] > 0 for row in adjoint)
    assert direct[-1]["bytes_kept"] > 5 * direct[0]["bytes_kept"]  # grows with the steps
    assert adjoint[-1]["bytes_kept"] == adjoint[0]["bytes_kept"] < direct[0]["bytes_kept"]
    monkeypatch.setattr(solver_cost, "REFERENCE", Solver(rtol=1e-9, atol=1e-9, max_steps=1))
    assert solver_cost.measure(classifier_model((2,), 1), torch.randn(5, 2)) == [
        {"status": "reference: too many steps"}
    ]


def test_kept_bytes_are_those_of_the_graph():
    x = torch.randn(100, 10, requires_grad=True)
    with solver_cost.kept_bytes() as kept:
        y = (x.exp() * 2).sum()
        assert kept() == 100 * 10 * 4  # the result of exp
        x.exp().sum()  # no one holds on to this
        assert kept() == 100 * 10 * 4
        y.backward()
    assert kept() == 0


def test_the_weight_is_that_of_the_fewest_evaluations_within_what_is_allowed():
    def group(weight, nfe, *values):
        label = training_densities.penalised(weight)
        return [trained(label, i, validation_nll=[x], nfe_validation=[nfe]) for i, x in enumerate(values)]

    plain, light = group(0.0, 50, 1.0, 2.0), group(1e-3, 30, 1.038, 2.0)
    chosen = training_densities.chosen_weight
    assert chosen(Results([*plain, *light, *group(3e-3, 20, 1.05, 2.0)])) == 1e-3
    assert chosen(Results([*plain, *light, *group(3e-3, 35, 1.0, 2.0)])) == 1e-3
    assert chosen(Results([*plain, *group(3e-3, 20, 1.05, 2.0)])) is None
    assert chosen(Results(light)) is None


def test_the_time_to_a_likelihood_is_when_it_is_reached_for_good():
    records = [{"seconds": float(i), "nll": nll} for i, nll in enumerate((3.0, 1.0, 2.0, 0.9, 0.8))]
    times = [training_densities.seconds_to(records, nll) for nll in (3.0, 1.0, 0.85, 0.5)]
    assert times == [0.0, 3.0, 4.0, math.inf]


@pytest.mark.parametrize(("data", "count"), [("checkerboard", 18), ("digits", 14)])
def test_variants_have_as_many_parameters_as_fit_into_those_of_the_plain_flow(data, count, tmp_path):
    jobs = jobs_of(EXPERIMENTS["augmented-density"], [data], [0], Scale(), tmp_path)
    assert len(jobs) == count
    dataset = density.load(settings_of(jobs[0])[0])
    settings = {job.label: settings_of(job)[0] for job in jobs}
    allowed = augmented_density.parameters(settings["p=0, free"].model, dataset)
    built = density.build(settings["p=0, free"], dataset)
    assert allowed == sum(p.numel() for p in built.parameters() if p.requires_grad)
    for label, each in settings.items():
        wider = replace(each.model, hidden=tuple(n + 1 for n in each.model.hidden))
        assert augmented_density.parameters(each.model, dataset) <= allowed
        if not label.startswith("p=0"):
            assert augmented_density.parameters(wider, dataset) > allowed
        chosen = augmented_density.CHOSEN.get(data, augmented_density.UNCHOSEN)
        assert each.objective.acceleration == (0 if label.endswith("free") else chosen[1])
        steps = 4 if label.startswith("residual steps") else 0
        lr = 5e-3 if steps else settings["p=0, free"].training.lr
        assert (each.model.residual_steps, each.training.lr) == (steps, lr)
        assert each.model.mixes_flows == ("mixture" in label and "base" not in label)


def test_mixtures_of_a_table_have_full_covariances(tmp_path):
    rows = "\n".join(f"{a},{b}" for a, b in torch.randn(100, 2).tolist())
    (tmp_path / "some.csv").write_text(f"a,b\n{rows}\n")
    for name in ("augmented-density", "augmented-tuning"):
        jobs = jobs_of(EXPERIMENTS[name], ["some.csv"], [0], Scale("quick", str(tmp_path)), tmp_path)
        for job in jobs:
            model = settings_of(job)[0].model
            assert model.correlated == (model.base == "mixture" or model.augmentation == "categorical")


def test_costs_compare_at_equal_and_at_best_likelihood():
    def of(label, seed, nll, cost, **further):
        figures = dict.fromkeys((*METRICS, "seconds", "points_log_prob"), cost)
        return trained(f"{label}, free", seed, nll_test=nll, **figures, **further)

    gaps = {"gap_mean": [9.0, 2e-3, 1e-3], "gap_error": [9.0, 2e-4, 1e-4], "gap_max": [9.0, 0.01, 0.02]}
    outcomes = [
        of("p=0", 0, [9.0, 3.0, 2.0], [1.0, 20.0, 40.0]),
        of("p=0", 1, [9.0, 3.0, 2.0], [1.0, 20.0, 40.0]),
        of("mixture (pruned)", 0, [9.0, 3.0, 1.0], [1.0, 10.0, 20.0], **gaps),
        of("mixture (pruned)", 1, [9.0, 3.0, 1.0], [1.0, 10.0, 80.0]),
        of("residual steps", 0, [9.0, 2.0, 2.5], [1.0, 4.0, 4.0], folded_mass=[9.0, 0.0, 0.2]),
    ]
    found = EXPERIMENTS["augmented-density"].findings(Results(outcomes))
    best = found["checkerboard, free: mixture (pruned) / p=0, at best NLL"]
    assert (best["nll"], best["nll_below"]) == (1, 2)
    assert best["work_log_prob_1e-05"] == best["seconds"] == pytest.approx(1)  # the mean of 1/2 and 2
    assert found["checkerboard, free: mixture (pruned), gap of pruning"] == {
        "mean": 2e-3,
        "error": 2e-4,
        "largest": 0.02,
    }
    assert found["checkerboard, free: residual steps, folded mass"] == 0.2
    assert found["checkerboard, free: residual steps / p=0, nfe_sample_1e-07"]["ratio"] == pytest.approx(0.1)
    assert "checkerboard, free: p=0, gap of pruning" not in found


def test_only_the_models_named_are_trained(run, tmp_path):
    command = ("paper", "augmented-density", "--quick", "--workers", 1, "--data", "checkerboard")
    assert run(*command, "--models", "p=0, free", "residual steps, free")[0] == 0
    content = json.loads((tmp_path / "paper" / "augmented-density-checkerboard-quick.json").read_text())
    assert content["complete"]
    assert [each["name"] for each in content["runs"]] == ["p=0, free", "residual steps, free"]
    (mass,) = (value for name, value in content["findings"].items() if name.endswith("folded mass"))
    assert mass == 0
    assert content["findings"]["checkerboard, free: residual steps / p=0, work_log_prob_1e-05"]["cost"] == 4


def test_settings_are_chosen_where_they_cost_least_at_no_loss():
    def tried(label, nfe_end, validation_nll=2.0, nfe_validation=50.0):
        last = {
            "validation_nll": [math.nan] * 2 + [validation_nll],
            "nfe_validation": [math.nan] * 2 + [nfe_validation],
        }
        return trained(label, 100, nll_test=[3.0, 2.5, 2.0], **{METRIC: [40.0, 40.0, nfe_end]}, **last)

    plain = {0.0: (2.0, 60.0), 1e-4: (1.99, 50.0), 1e-3: (2.019, 40.0), 1e-2: (2.03, 20.0), 1e-1: (2.5, 10.0)}

    def chosen(weights, mixtures):
        outcomes = [tried(f"acceleration {weight:g}", 40.0, *found) for weight, found in weights.items()]
        outcomes += [tried(f"categorical K={k}", *found) for k, found in mixtures.items()]
        findings = augmented_density.choose(Results(outcomes), "checkerboard")
        return findings["components"], findings["acceleration"]

    mixtures = {4: (40.0,), 8: (20.0,), 16: (10.0,), 32: (30.0,)}
    assert chosen(plain, mixtures) == (16, 1e-3)
    assert chosen(plain, {**mixtures, 16: (10.0, 2.1)}) == (8, 1e-3)  # never as good as the plain flow
    assert chosen({**plain, 0.0: (1.9, 60.0)}, mixtures)[1] == 1e-4  # all weights cost more than may be
