"""The command line: what is listed, what a recipe sets, and that a mistake is one line that names it."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from train_flows import classify, command_line, density, evaluate, experiments, predict, recipes, report, sample
from train_flows.benchmark import density_contest, image_block, irregular_series, scaling, small_tables, speed
from train_flows.command_line import name_advice, name_options, options_of, parse
from train_flows.settings import ClassifySettings, DensitySettings

TINY = ("--steps", "6", "--validate-every", "2", "--hidden", "8", "8", "--batch-size", "64")
MATCHING = ("--objective", "flow-matching")
STEPS = ("--residual-steps", "4")
CATEGORICAL = ("--extra", "2", "--augmentation", "categorical")
BENCHMARKS = (speed, scaling, image_block, irregular_series, density_contest, small_tables)
PROGRAMS = {"density": (density.PROGRAM, DensitySettings()), "classify": (classify.PROGRAM, ClassifySettings())}


def settings(*args, command="density"):
    return parse(*PROGRAMS[command], args)[0]


class TestHelp:
    @pytest.mark.parametrize("command", [[], ["--help"]])
    def test_lists_the_commands(self, run, command):
        status, out, _ = run(*command)
        assert status == 0
        assert {"density", "classify", "evaluate", "sample", "report", "paper", "benchmark"} <= set(out.split())

    def test_does_not_wait_for_slow_packages(self):
        for args, absent in (
            (["--help"], {"torch", "numpy"}),
            (["density", "--help"], {"torch._dynamo", "scipy", "sklearn", "pandas", "matplotlib", "accelerate"}),
        ):
            code = f"import sys; from train_flows.__main__ import main; main({args}); print(*sys.modules)"
            out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
            assert not absent & set(out.splitlines()[-1].split())

    def test_ends_quietly_without_a_reader(self):
        reader, writer = os.pipe()
        os.close(reader)
        call = [sys.executable, "-m", "train_flows", "--help"]
        done = subprocess.run(call, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr) == (141, "")

    def test_the_version(self, run):
        assert run("--version") == (0, f"train-flows {version('augmented-flows')}\n", "")

    @pytest.mark.parametrize("module", [density, classify, evaluate, predict, sample, report, experiments, *BENCHMARKS])
    def test_every_option_is_explained(self, module):
        hidden = module.PROGRAM.api_only if hasattr(module, "PROGRAM") else ()
        for option in options_of(PROGRAMS[module.PROGRAM.name][1] if hidden else module.Settings):
            assert option.name in hidden or (option.help and option.help[-1] != "."), option.name

    def test_what_can_be_left_out_is_in_brackets(self, run):
        assert "evaluate RUN [DATA] [OPTION ...]" in run("evaluate", "--help")[1]
        assert "paper [EXPERIMENT] [OPTION ...]" in run("paper", "--help")[1]
        assert "relative tolerance; that of the run if omitted" in run("evaluate", "--help")[1]

    @pytest.mark.parametrize("command", ["density", "classify", "evaluate", "sample", "report"])
    def test_fits_two_screens(self, run, monkeypatch, command):
        monkeypatch.setenv("COLUMNS", "80")
        status, out, _ = run(command, "--help")
        assert status == 0
        assert len(out.splitlines()) <= 60

    @pytest.mark.parametrize(("command", "most"), [("density", 58), ("classify", 50)])
    def test_all_options_are_few(self, run, command, most):
        program, default = PROGRAMS[command]
        hidden = set(program.api_only)
        options = {option.name for option in options_of(default)} - hidden
        assert len(options - {"source", "resume"}) <= most
        out = run(command, "moons" if command == "density" else "spheres", "--help-all")[1]
        assert all(f"--{name.replace('_', '-')}" in out for name in options - {"source"})
        assert set(program.common) <= options

    def test_shows_the_recipe_of_the_data(self, run):
        assert "(default: 128 128)" in run("density", "--help")[1]
        assert "(default: 64 64)" in run("density", "moons", "--help")[1]
        assert "(default: 256)" in run("classify", "mnist", "--help")[1]


class TestRecipes:
    @pytest.mark.parametrize(("program", "known"), [("density", recipes.DENSITY), ("classify", recipes.CLASSIFY)])
    def test_name_options_that_exist(self, program, known):
        options = {option.name for option in options_of(PROGRAMS[program][1])}
        for recipe in known.values():
            assert set(recipe) <= options
            command_line.with_options(PROGRAMS[program][1], recipe)

    def test_the_command_line_wins_over_the_recipe_over_defaults(self, tmp_path):
        table = tmp_path / "table.csv"
        table.write_text("x,y\n")
        found = settings(str(table))
        assert (found.model.activation, found.model.whiten) == (("tanh", "silu"), True)
        typed = settings(str(table), "--activation", "relu", "--no-whiten", "--rtol=1e-3")
        assert (typed.model.activation, typed.model.whiten, typed.model.solver.rtol) == (("relu",), False, 1e-3)
        assert (typed.model.solver.gradient, typed.training.lr) == ("direct", found.training.lr)
        assert settings("moons").model.hidden == (64, 64)

    @pytest.mark.parametrize(("rows", "size"), [(20, 8), (32, 8), (120, 24), (256, 64), (5000, 64)])
    def test_batches_of_few_rows_are_small(self, tmp_path, rows, size):
        (tmp_path / "t.csv").write_text("x,y\n")
        args = (str(tmp_path / "t.csv"), "--target", "y")
        assert parse(*PROGRAMS["classify"], args, rows)[0].training.batch_size == size
        assert parse(*PROGRAMS["classify"], [*args, "--batch-size", "50"], rows)[0].training.batch_size == 50

    def test_fixed_steps_have_a_size(self):
        assert settings("moons", "--solver", "rk4").model.solver.step_size == 0.25
        assert settings("moons", "--solver", "rk4", "--step-size", "0.1").model.solver.step_size == 0.1

    @pytest.mark.parametrize(
        ("typed", "expected"),
        [
            (("moons", *MATCHING), {"hidden": (64, 64)}),
            (("mnist",), {"field": "stack", "multiscale": True, "alpha": 1e-6, "solver": "rk4"}),
            (("cifar10", *MATCHING), {"field": "unet", "alpha": 0.05, "kinetic": 0.0}),
            (("svhn", "--image-size", "16"), {"hidden": (512, 512), "acceleration": 0.02}),
            (("power", *MATCHING), {"whiten": True, "acceleration": 0.0}),
            (("power", "--base", "mixture"), {"correlated": True}),
            (("digits", "--base", "mixture"), {"correlated": False}),
        ],
        ids=lambda typed: " ".join(typed) if isinstance(typed, tuple) else None,
    )
    def test_densities(self, typed, expected):
        found = {option.name: option.default for option in options_of(settings(*typed))}
        assert {name: found[name] for name in expected} == expected

    @pytest.mark.parametrize(
        ("typed", "expected"),
        [
            (("mnist",), {"field": "conv", "hidden": (64,), "extra": 5, "time": "none"}),
            (("cifar10",), {"field": "conv", "hidden": (64,), "extra": 10}),
            (("mnist", "--model", "mlp"), {"field": "mlp", "hidden": (32, 32), "extra": 0}),
            (("mnist", "--field", "mlp"), {"field": "mlp", "hidden": (32, 32), "extra": 5}),
            (("wine",), {"extra": 5, "epochs": 100, "gradient": "direct"}),
            (("spheres",), {"extra": 0, "epochs": 30, "batch_size": 64}),
        ],
        ids=lambda typed: " ".join(typed) if isinstance(typed, tuple) else None,
    )
    def test_classifiers(self, typed, expected):
        found = {option.name: option.default for option in options_of(settings(*typed, command="classify"))}
        assert {name: found[name] for name in expected} == expected

    @pytest.mark.parametrize(("rows", "name"), [(144, "small table"), (999, "small table"), (1000, "table")])
    def test_tables_by_their_size(self, tmp_path, rows, name):
        (tmp_path / "table.csv").write_text("x,y\n")
        args = [str(tmp_path / "table.csv")]
        found, line = parse(*PROGRAMS["density"], args, rows, 13)
        assert line.startswith(f"recipe for {name} (table.csv): ")
        assert (found.objective.smoothing > 0) == (name == "small table")
        assert found.training.patience > 0
        assert found.training.steps % found.training.validate_every == 0
        frequent = parse(*PROGRAMS["density"], [*args, "--validate-every", "5"], rows, 13)[0]
        assert 5 * frequent.training.patience == found.training.validate_every * found.training.patience
        typed = parse(*PROGRAMS["density"], [*args, "--patience", "0", "--lr", "0.1"], rows, 13)[0]
        assert (typed.training.patience, typed.training.lr) == (0, 0.1)
        short = parse(*PROGRAMS["density"], [*args, "--steps", "60"], rows, 13)[0]
        assert short.training.validate_every == 6  # ten validations at least

    @pytest.mark.parametrize(("rows", "columns"), [(100, 4), (5000, 4), (None, 1)])
    def test_residual_steps_of_tables_are_mixed(self, tmp_path, rows, columns):
        (tmp_path / "table.csv").write_text("x,y\n")
        args = [str(tmp_path / "table.csv"), "--residual-steps", "4"]
        size = () if rows is None else (rows, columns)
        model = parse(*PROGRAMS["density"], args, *size)[0].model
        model.validate((columns,))
        assert model.residual_steps == 4
        assert model.activation == ("tanh", "silu")
        if rows != 100:
            assert (model.extra, model.augmentation, model.posterior) == (8, "categorical", "fitted")
        for unmixed in (("--extra", "0"), ("--augmentation", "joint"), ("--base", "mixture")):
            plain = parse(*PROGRAMS["density"], [*args, *unmixed], *size)[0].model
            plain.validate((columns,))
            assert (plain.extra, plain.augmentation, plain.posterior) == (0, "joint", "normal")

    @pytest.mark.parametrize("typed", [("--steps", "60"), ("--objective", "likelihood", "--steps", "60")])
    def test_residual_steps_of_tables_in_few_steps_of_training(self, tmp_path, typed):
        (tmp_path / "table.csv").write_text("x,y\n")
        assert settings(str(tmp_path / "table.csv"), "--residual-steps", "4", *typed).training.steps == 60

    @pytest.mark.parametrize("source", ["table.csv", "digits", "moons"])
    def test_residual_steps_have_no_options_of_an_ode(self, tmp_path, source):
        (tmp_path / "table.csv").write_text("x,y\n")
        args = [str(tmp_path / source) if source == "table.csv" else source, *STEPS]
        found, line = parse(*PROGRAMS["density"], args, 100, 2)
        assert (found.objective.acceleration, found.objective.loosen) == (0, DensitySettings().objective.loosen)
        assert found.model.solver == DensitySettings().model.solver
        assert "gradient" not in line

    def test_residual_steps_of_points(self):
        found = settings("moons", "--residual-steps", "4")
        found.model.validate((2,))
        assert (found.model.residual_steps, found.model.hidden, found.training.steps) == (4, (64, 64), 1200)
        assert (found.objective.objective, found.objective.acceleration) == ("likelihood", 0)
        certified = settings("moons", "--residual-steps", "4", "--certify", "--activation", "silu")
        certified.model.validate((2,))

    def test_one_line_says_what_was_chosen(self):
        line = parse(*PROGRAMS["density"], ["moons", "--steps", "7", "--out", "mine"])[1]
        assert line == "recipe for points (moons): gradient direct, hidden 64 64; command line: steps 7"


@pytest.mark.parametrize(
    ("message", "renamed"),
    [
        ("steps=0 must be at least 1", "--steps 0 must be at least 1"),
        ("hidden=(8, 0): 0 must be", "--hidden 8 0: 0 must be"),
        ("method='rk5' is unknown", "--solver rk5 is unknown"),
        ("use one scale (multiscale=False)", "use one scale (--no-multiscale)"),
        ("shape=(2,) and levels=17", "shape=(2,) and levels=17"),  # not options
        ('gradient="direct" is not for', "--gradient direct is not for"),
        ("leave out multiscale and blocks", "leave out --multiscale and --blocks"),
        ("leave out data, or levels", "leave out data, or levels"),
    ],
)
def test_messages_of_the_api_name_options(message, renamed):
    assert name_options(message) == renamed


def test_advice_names_options_of_the_program():
    advice = "with dopri5 (rtol=0.1): loosen rtol and atol, raise max_steps, or regularise"
    assert name_advice(advice) == "with dopri5 (rtol=0.1): loosen --rtol and --atol, raise --max-steps, or regularise"
    assert name_advice(advice, options_of(evaluate.Settings)).endswith("--atol, raise max_steps, or regularise")


class TestRefused:
    """Bad input: status 2, one line that names the thing, no traceback, nothing written."""

    def refuse(self, run, tmp_path, args, names):
        before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
        status, _, err = run(*args)
        assert status == 2, err
        assert err.count("\n") == 1
        assert err.startswith("error: ")
        for name in names:
            assert name in err
        assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before

    @pytest.mark.parametrize(
        ("args", "names"),
        [
            (["train", "moons"], ["'train'", "choose one of density"]),
            (["densty", "moons"], ["'densty'", "did you mean density?"]),
            (["density"], ["no data set"]),
            (["density", "mons"], ["'mons'", "did you mean moons?"]),
            (["density", "no.csv"], ["no.csv", "does not exist"]),
            (["density", "moons", "extra"], ["extra is not an option of density"]),
            (["density", "moons", "--stps", "3"], ["--stps is not an option of density; did you mean --steps"]),
            (["density", "moons", "--clip", "3"], ["--clip is not an option of density"]),
            (["density", "moons", "--steps", "many"], ["--steps", "'many'", "--help"]),
            (["density", "moons", "--field", "cnn"], ["--field cnn is unknown; choose one of mlp, conv"]),
            (["density", "moons", "--rtol", "-1"], ["--rtol -1.0 must be"]),
            (["density", "moons", "--device", "cuda:99"], ["--device cuda:99"]),
            (["density", "moons", "--solver", "rk5"], ["rk5", "dopri5"]),
            (["density", "moons", "--steps", "0"], ["--steps 0 must be at least 1"]),
            (["density", "moons", "--lr", "nan"], ["--lr nan"]),
            (["density", "moons", "--hidden", "8", "0"], ["--hidden 8 0"]),
            (["density", "power"], ["data.npy", "--data-root"]),
            (["density", "wine.csv", "--conditional"], ["--conditional is for images and points by name"]),
            (["density", "moons", "--given", "x"], ["--given", "tables"]),
            (["density", "moons", "--coupling", "optimal-transport"], ["--coupling", "--objective flow-matching"]),
            (["density", "moons", "--certify"], ["--certify has an effect with --residual-steps only"]),
            (["density", "moons", *STEPS, *MATCHING], ["flow-matching leaves residual steps", "+likelihood"]),
            (["density", "moons", *STEPS, "--solver", "rk4"], ["--solver", "an ODE, not --residual-steps"]),
            (["density", "moons", *STEPS, "--rtol", "1e-3"], ["--rtol", "an ODE, not --residual-steps"]),
            (["density", "moons", *STEPS, "--acceleration", "1"], ["--acceleration", "an ODE, not --residual-steps"]),
            (["density", "moons", *STEPS, "--loosen", "3"], ["--loosen", "an ODE, not --residual-steps"]),
            (["density", "moons", *STEPS, "--activation", "silu"], ["bounded field", "--certify"]),
            (["density", "moons", *STEPS, "--divergence", "hutchinson"], ["--residual-steps 4", "determinants"]),
            (["density", "moons", *STEPS, "--blocks", "2"], ["--residual-steps 4", "--blocks"]),
            (["density", "moons", "--residual-steps", "-1"], ["--residual-steps -1"]),
            (["density", "moons", *MATCHING, "--acceleration", "1"], ["--acceleration", "--objective likelihood"]),
            (["density", "moons", "--likelihood-steps", "2"], ["--likelihood-steps", "flow-matching+likelihood"]),
            (
                ["density", "moons", *TINY, "--objective", "flow-matching+likelihood", "--likelihood-steps", "6"],
                ["--likelihood-steps 6 must be below --steps 6"],
            ),
            (["density", "digits", *MATCHING, "--blocks", "2"], ["--objective flow-matching is for one ODE"]),
            (
                ["density", "moons", *MATCHING, "--coupling", "optimal-transport", "--batch-size", "1"],
                ["--coupling optimal-transport needs --batch-size 2 or more"],
            ),
            (["density", "moons", "--extra", "3", "--augmentation", "momentum"], ["--extra 3 must be 2"]),
            (["density", "moons", "--augmentation", "categorical"], ["--extra 0 must be at least 1"]),
            (["density", "moons", "--posterior", "learned"], ["--posterior learned", "extra"]),
            (["density", "moons", "--components", "5"], ["--components", "--base mixture"]),
            (["density", "moons", "--field", "conv"], ["--field conv is for images"]),
            (["density", "digits", "--field", "unet", "--time", "concat"], ["--time", "--field mlp, conv or stack"]),
            (["density", "moons", "--solver", "rk4", "--loosen", "3"], ["--loosen", "adaptive"]),
            (["density", "moons", "--step-size", "0.1"], ["--step-size 0.1", "dopri5"]),
            (["density", "moons", "--precision", "bfloat16", "--gradient", "adjoint"], ["--precision bfloat16"]),
            (["density", "moons", "--precision", "bfloat16", "--dtype", "float64"], ["--dtype float64"]),
            (
                ["density", "moons", "--conditional", *CATEGORICAL, *MATCHING, "--coupling", "optimal-transport"],
                ["--coupling optimal-transport cannot serve both components and what is given"],
            ),
            (
                ["density", "moons", *CATEGORICAL, *MATCHING, "--coupling", "optimal-transport"],
                ["--coupling optimal-transport needs --batch-size", "500 for each of --extra"],
            ),
            (["density", "--resume", "nothing", "--lr", "1"], ["--resume nothing", "omit --lr"]),
            (["classify"], ["no data set"]),
            (["classify", "spheres", "--target", "x"], ["--target x is for tables"]),
            (["classify", "wine", "--model", "second-order", "--extra", "3"], ["--extra 3 must be 13"]),
            (["classify", "wine", "--model", "mlp", "--rtol", "1"], ["--rtol", "--model node or second-order"]),
            (["classify", "wine", "--blocks", "3"], ["--blocks", "--model resnet"]),
            (["classify", "wine", "--removed-slices", "2"], ["--removed-slices 2", "plane"]),
            (["classify", "wine", "--train-size", "1000"], ["--train-size 1000"]),
            (["classify", "wine", "--image-size", "8"], ["--image-size 8 is for images"]),
            (["classify", "digits", "--model", "second-order"], ["--extra 0 must be 1"]),
            (["classify", "digits", "--stem", "conv", "--image-size", "4"], ["too small for a stem"]),
            (["classify", "mnist"], ["mnist", "--download"]),
            (["density", "moons", "--init", "nothing"], ["nothing", "config.json"]),
            (["density", "--resume", "nothing", "--steps", "9", "--init", "x"], ["--resume nothing", "omit --init"]),
            (["paper", "nfee"], ["nfee", "did you mean nfe?"]),
            (["paper", "ffjord", "--data", "mons"], ["--data mons", "did you mean moons?"]),
            (["benchmark", "sped"], ["sped", "did you mean speed?"]),
            (["density", "moons", "--solver", "dopr5"], ["did you mean dopri5?"]),
            (["sample", "nothing", "-n", "0"], ["-n 0 must be at least 1"]),
            (["sample", "nothing", "--temperature", "0"], ["--temperature 0.0 must be greater than 0"]),
            (["evaluate"], ["RUN"]),
            (["evaluate", "nothing"], ["nothing", "config.json"]),
            (["evaluate", "nothing", "--sed", "1"], ["--sed is not an option of evaluate; did you mean --seed"]),
        ],
        ids=lambda part: " ".join(part)[:60],
    )
    def test_without_a_run(self, run, tmp_path, args, names):
        self.refuse(run, tmp_path, args, names)

    def test_tables_and_folders(self, run, tmp_path):
        rng = np.random.default_rng(0)
        frame = pd.DataFrame(rng.normal(size=(60, 2)), columns=["width", "height"])
        frame.assign(kind=["a", "b"] * 30).to_csv("flowers.csv", index=False)
        frame.to_csv("numbers.csv", index=False)
        for name in ("flat", "apart/a", "apart/b", "empty"):
            (tmp_path / name).mkdir(parents=True)
        for i, size in enumerate((8, 8, 9)):
            Image.fromarray(np.zeros((size, size), np.uint8)).save(tmp_path / "apart" / "ab"[i % 2] / f"{i}.png")
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "flat" / f"{i}.png")
        for args, names in (
            (["classify", "flowers.csv"], ["--target", "width, height, kind"]),
            (["classify", "flowers.csv", "--target", "colour"], ["colour", "width, height, kind"]),
            (["classify", "numbers.csv", "--target", "width"], ["width", "60"]),
            (["classify", "flat"], ["flat"]),
            (["classify", "apart"], ["8x8", "9x9", "--image-size"]),
            (["classify", "empty"], ["empty"]),
            (["density", "numbers.csv", "--given", "colour"], ["colour", "width"]),
            (["density", "flat", "--no-jitter"], ["--no-jitter is for tables"]),
        ):
            self.refuse(run, tmp_path, args, names)

    def test_with_a_run(self, run, tmp_path, undrawn):
        pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2))).to_csv("points.csv", index=False)
        assert run("density", "points.csv", *TINY)[0] == 0
        for folder in ("mine", "foreign", "old"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "thesis.tex").write_text("x")
        (tmp_path / "foreign" / "config.json").write_text('{"model_type": "bert"}')
        (tmp_path / "old" / "config.json").write_text('{"schema": 1, "kind": "density", "sha256": "0", "model": {}}')
        for args, names in (
            (["density", "points.csv", "--out", "runs/points"], ["runs/points exists", "--overwrite", "--resume"]),
            (["density", "points.csv", "--out", "mine", "--overwrite"], ["mine is not a run"]),
            (["density", "points.csv", "--out", "foreign", "--overwrite"], ["foreign is not a run"]),
            (["density", "--resume", "foreign"], ["foreign"]),
            (
                ["density", "--resume", "old"],
                ["old", "has schema 1; this version reads schema 2. Train again, or install"],
            ),
            (["evaluate", "old"], ["old", "has schema 1; this version reads schema 2. Train again, or install"]),
            (["classify", "--resume", "runs/points"], ["runs/points"]),
        ):
            self.refuse(run, tmp_path, args, names)
        assert run("density", "points.csv", *TINY, "--seed", 1, "--overwrite")[0] == 0
        stored = json.loads((tmp_path / "runs" / "points" / "config.json").read_text())
        assert stored["settings"]["run"]["seed"] == 1
