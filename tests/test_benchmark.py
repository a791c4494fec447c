"""Benchmarks: contenders do the same work, the clock ends training in time, and figures add up."""

import itertools
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris

from anode import InputError, MLPField
from cnf import Flow, MaximumLikelihood, Normal, ResidualSteps, density_model
from train_flows import benchmark, data, density
from train_flows.benchmark import density_contest, image_block, packages, small_tables, speed, timing
from train_flows.benchmark.zuko_peers import Peer, peer
from train_flows.command_line import parse
from train_flows.data import Dataset, Split
from train_flows.evaluation import likelihood
from train_flows.run.loop import Trainer
from train_flows.settings import DensitySettings

zuko = pytest.importorskip("zuko")
PEERS = {"MAF": zuko.flows.MAF, "NSF": zuko.flows.NSF}
ROOT = Path(__file__).parent.parent
CONTENDERS = packages.contenders(compile=False)
ON_TORCH = {name: make for name, make in CONTENDERS.items() if "diffrax" not in name}  # JAX compiles for seconds
ONE_SEED = ("--seeds", 1, "--threads", 1)


def recipe(*options):
    args = ["moons", "--hidden", "4", "--batch-size", "8", *options]
    return parse(density.PROGRAM, DensitySettings(), args)[0]


def moons():
    x = data.load_density_data("moons").train.head(60).x
    return Dataset("moons", Split(x[:40]), Split(x[40:50]), Split(x[50:]), ("x", "y"))


def levels():
    """Discrete data: any of 17 levels, and the same, one or two more, but none beyond the last."""
    first = torch.randint(17, (40_000, 1))
    x = torch.cat([first, (first + torch.randint(3, first.shape)).clamp(max=16)], 1).to(torch.uint8)
    return Dataset("levels", Split(x[:20_000]), Split(x[20_000:20_500]), Split(x[20_500:]), ("x", "y"), 17)


def test_the_works_are_listed(run):
    for args in ([], ["--help"]):
        status, out, err = run("benchmark", *args)
        assert (status, err) == (0, "")
        assert [line.split()[0] for line in out.splitlines()] == list(benchmark.WORKS)
    assert "work='--threads' is unknown; choose one of speed" in run("benchmark", "--threads", 2)[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["speed", "--works", "cnf-3d"], "cnf-3d"),
        (["speed", "--repeats", "0"], "--repeats 0 must be at least 1"),
        (["speed", "--out", "some.csv"], "must end in .json"),
        (["speed", "--against", "."], "lacks the package anode"),
        (["image-block", "--out", "there.json"], "exists"),
        (["image-block", "--repeat", "1"], "--repeats"),
        (["scaling", "--processes", "0"], "processes"),
        (["tabular"], "no data set given"),
        (["tabular", "nonsense"], "is unknown"),
        (["tabular", "few.csv"], "has 12 rows: at least 20 are needed"),
        (["tabular", "moons", "--minutes", "0"], "--minutes 0.0 must be greater than 0"),
        (["tabular", "moons", "--seeds", "0"], "--seeds 0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, args, message):
    np.savetxt(tmp_path / "few.csv", np.random.default_rng(0).normal(size=(12, 2)), delimiter=",")
    (tmp_path / "there.json").write_text("{}")
    status, _, err = run("benchmark", *args)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


# Speed


def results(contender, x, exact):
    """Samples; and where they are not estimates, densities and gradients."""
    points = contender.points(x)
    contender.step(points)
    with torch.no_grad():
        found = [np.asarray(contender.sample(points))]
        return [*found, np.asarray(contender.log_prob(points)), *contender.gradients()] if exact else found


@pytest.mark.parametrize(
    ("name", "exact"), [*((name, True) for name in CONTENDERS), *((name, False) for name in ON_TORCH)]
)
def test_contenders_compute_the_same_flow(name, exact):
    """Densities, samples and gradients at equal weights, with the exact trace."""
    field = MLPField(3, (6, 5, 4), "tanh", time="concat").double()
    with torch.no_grad():
        for layer in field.layers:
            layer.weight *= 2
    x = np.random.default_rng(0).normal(size=(7, 3))
    reference = CONTENDERS["torchdiffeq, direct"](packages.FlowSpec(field, "tanh", 1e-10))
    contender = CONTENDERS[name](packages.FlowSpec(field, "tanh", 1e-8, exact))
    expected, found = results(reference, x, True), results(contender, x, exact)
    for a, b in zip(found, expected if exact else expected[:1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    shapes = [tuple(part.shape) for layer in packages.layers_of(field) for part in layer]
    assert [gradient.shape for gradient in contender.gradients()] == shapes


def test_a_probe_of_the_trace_is_unbiased():
    field = MLPField(3, (8,), "tanh", time="concat").double()
    x = torch.randn(1, 3, dtype=torch.float64).expand(4000, 3).clone()
    exact, estimated = (
        CONTENDERS["torchdiffeq, direct"](packages.FlowSpec(field, "tanh", 1e-4, which)) for which in (True, False)
    )
    with torch.no_grad():
        found = estimated.log_prob(x)
        assert abs(found.mean() - exact.log_prob(x[:1])) < 4 * found.std() / 4000**0.5


def test_rows_have_errors_and_evaluations_beside_their_seconds(run, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "missing", lambda: ["torchdyn"])
    monkeypatch.setattr(speed, "contenders", lambda _: ON_TORCH)
    options = "--works cnf-2d --quick --repeats 1 --seeds 2 --threads 1 --no-compile"
    status, out, _ = run("benchmark", "speed", *options.split())
    assert status == 0
    assert "note: torchdyn are not installed" in out
    assert out.endswith("benchmark-speed.json, benchmark-speed.png\n")
    assert (tmp_path / "benchmark-speed.png").exists()
    content = json.loads((tmp_path / "benchmark-speed.json").read_text())
    assert {"command", "machine", "versions", "packages", "work"} <= set(content)
    for task in ("step, exact", "step, one probe", "log_prob", "sample"):
        for seed in (0, 1):
            own = [row for row in content["rows"] if (row["task"], row["seed"]) == (task, seed)]
            assert {row["contender"] for row in own} == set(ON_TORCH)
            assert all(row["seconds"] > 0 for row in own)
            assert all((row["error"] is None) == (task == "step, one probe") for row in own)
            assert all(row["error"] is None or 0 < row["error"] < 1e-2 for row in own)
    steps = {row["contender"]: row["evaluations"] for row in content["rows"] if row["task"] == "step, exact"}
    assert steps["torchdiffeq, adjoint (FFJORD)"] > steps["torchdiffeq, direct"] > 0


def test_the_figure_has_one_scale_of_ratios():
    rows = [
        {"work": "cnf-2d", "task": task, "contender": name, "seed": 0, "seconds": seconds, "tolerance": 1e-5}
        for task in ("sample", "step, exact")
        for name, seconds in (("ours, checkpoint", 0.5), ("ours, direct", 0.25), ("zuko", 2.0))
    ]
    first, second = speed.draw({"rows": rows}).axes
    assert [axes.get_title().splitlines()[0] for axes in (first, second)] == ["training step,", "10,000 samples,"]
    assert first.get_xlim() == second.get_xlim()
    np.testing.assert_allclose([bar.get_width() for bar in first.patches], [0, -1, 2])  # of the binary logarithm
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names == ["Augmented Flows, checkpoint", "Augmented Flows, direct", "zuko"]


def test_ratios_are_geometric_means_over_seeds():
    def row(contender, seed, seconds):
        about = {"work": "w", "task": "t", "evaluations": 7, "error": None}
        return {**about, "contender": contender, "seed": seed, "seconds": seconds}

    ours = speed.OURS
    rows = [row(ours, 0, 1.0), row("zuko", 0, 2.0), row(ours, 1, 2.0), row("zuko", 1, 16.0), row("big", 0, None)]
    cells = {line.split()[0]: line.split()[-1] for line in speed.table(rows).splitlines()[1:]}
    assert (float(cells["zuko"]), cells["big"]) == (4, "-")


def test_the_median_of_ratios():
    found = timing.median_ratio([(x, 1.1 * x) for x in (1.0, 50.0, 3.0)] + [(1.0, 2.0), (1.0, 0.5)])
    assert (found["low"], found["ratio"], found["high"]) == pytest.approx((0.5, 1.1, 2.0))


def test_a_checkout_against_itself(run, tmp_path):
    status, out, _ = run("benchmark", "speed", "--against", ROOT, "--minutes", 1e-4)
    assert status == 0
    content = json.loads((tmp_path / "benchmark-speed.json").read_text())
    rows = content["rows"]
    assert [row["task"].partition(": ")[0] for row in rows[::3]] == list(timing.FLOWS)
    assert all(row["evaluations"] == row["evaluations_before"] > 0 for row in rows)
    assert all(row["ratio"] == pytest.approx(np.median([now / old for old, now in row["runs"]])) for row in rows)
    assert f"{content['ratio']:.3f}" in out


def greedy():
    return torch.zeros(2**50)


def test_work_that_lacks_memory_is_none():
    assert timing.in_child(greedy) is None


def allocation(megabytes):
    def work():
        return sum(torch.ones(250_000).sum() for _ in range(3)) + torch.ones(250_000 * megabytes).sum()

    work()  # its memory is used again
    return lambda: (work(), torch.ones(250_000 * (megabytes + 100)).sum())


def test_the_peak_is_the_memory_above_that_before():
    found = timing.peak_megabytes(allocation, 50)
    if found is None:
        pytest.skip("the system does not report memory")
    assert 95 < found < 200


# Image block


def test_every_image_block_is_timed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(image_block, "peak_megabytes", lambda *_, **__: 1.0)  # in a child process
    status, out, _ = run("benchmark", "image-block", "--quick", "--repeats", 1, "--threads", 1)
    assert status == 0
    rows = json.loads((tmp_path / "benchmark-image-block.json").read_text())["rows"]
    assert [row["contender"] for row in rows] == list(image_block.CONTENDERS)
    assert all(row["contender"] in out and row["evaluations"] > 0 for row in rows)
    assert rows[0]["times_faster"] == 1


def test_image_blocks_solve_the_same_ode():
    """From equal weights: time as a channel is one field, however it is written."""
    sizes = image_block.Sizes(6, 4, 8)
    steps = {name: image_block.Step(name, sizes, torch.device("cpu")) for name in image_block.CONTENDERS}
    reference, t, x = steps[image_block.REFERENCE], torch.tensor(0.3), torch.randn(4, 6, 6, 6)
    for name, step in steps.items():
        torch.testing.assert_close(step.x, reference.x)
        found, expected = step.block.field(t, x), reference.block.field(t, x)
        inside = (..., slice(1, -1), slice(1, -1)) if "bias" in name else ...  # they differ along the border
        torch.testing.assert_close(found[inside], expected[inside], rtol=1e-4, atol=1e-5)
        assert ("bias" in name) == bool((found - expected).abs().max() > 1e-3)


# Density contest


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(density_contest.PEER_SIZE, "hidden_features", (16, 16))


@pytest.mark.parametrize("flow", PEERS.values(), ids=PEERS.keys())
@pytest.mark.parametrize(("shape", "context"), [((3,), 2), ((1, 2, 2), 0)])
def test_a_peer_is_a_transform(float64, flow, shape, context):
    transform = Peer(flow(math.prod(shape), context, transforms=3).transform)
    x, c = torch.randn(4, *shape), torch.randn(4, context) if context else None
    z, log_det, _ = transform(x, c)

    def image(y, i):
        return transform(y[None], c if c is None else c[i : i + 1]).point

    jacobians = [torch.autograd.functional.jacobian(lambda y, i=i: image(y, i), x[i]) for i in range(4)]
    expected = torch.stack([torch.linalg.slogdet(j.reshape(x[0].numel(), -1)).logabsdet for j in jacobians])
    torch.testing.assert_close(log_det, expected, rtol=1e-9, atol=1e-9)
    back, log_det_back, _ = transform.inverse(z, c)
    torch.testing.assert_close(back, x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(transform.decode(z, c), back)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_sees_the_data_of_the_cnf(float64, small, name):
    """Real data are standardised, and the log_prob is that of the package; discrete data are dequantised."""
    x = torch.randn(200, 3) * torch.tensor([1.0, 10.0, 0.1]) + 5
    ours = peer(name, density_model((3,), data=x))
    (theirs,) = [part.lazy for part in ours.modules() if isinstance(part, Peer)]
    assert len(theirs.transforms) == 5
    package = PEERS[name](3, transforms=5, hidden_features=(16, 16))
    package.transform = theirs
    mean, scale = x.mean(0), x.std(0, correction=0)
    torch.testing.assert_close(ours.log_prob(x), package().log_prob((x - mean) / scale) - scale.log().sum())

    x = levels().train.x[:50]
    cnf = density_model((2,), levels=17, data=x)
    ours = peer(name, cnf)
    (part,) = [part for part in ours.modules() if isinstance(part, Peer)]
    standardize = cnf.flow.transform.transforms[1]
    torch.manual_seed(1)
    found = ours.elbo(x).value
    torch.manual_seed(1)
    s = 0.05 + 0.9 * (x + torch.rand(x.shape)) / 17
    z = (torch.log(s / (1 - s)) - standardize.mean) / standardize.scale
    slopes = 0.9 / (s * (1 - s)) / standardize.scale / 17
    torch.testing.assert_close(found, Flow(part, Normal((2,))).log_prob(z) + slopes.log().sum(1))
    assert set(ours.sample(50).unique().tolist()) <= set(range(17))


def test_a_table_from_start_to_end(run, tmp_path, small):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1300, 3)) @ np.array([[1, 0, 0], [2, 0.5, 0], [0, 1, 30]]) + [0, 10, 1000]
    pd.DataFrame(x, columns=["height", "weight", "age"]).to_csv(tmp_path / "people.csv", index=False)
    status, out, err = run("benchmark", "tabular", "people.csv", "--minutes", 0.01, *ONE_SEED)
    assert (status, err) == (0, "")
    content = json.loads((tmp_path / "benchmark-tabular.json").read_text())
    assert {"command", "machine", "versions", "work"} <= set(content)
    (contest,) = content["contests"]
    assert (contest["data"], contest["seed"], contest["minutes"]) == ("people.csv", 0, 0.01)
    assert contest["samples"] == {"train": 1040, "validation": 130, "test": 130}
    rows = {row["contender"]: row for row in contest["rows"]}
    assert list(rows) == ["CNF", "residual steps", "MAF", "NSF", "Gaussian"]
    dataset = data.load_density_data("people.csv")
    log_scale = dataset.train.x.std(0, correction=0).log().sum().item()
    for row in rows.values():
        assert row["nll"] - row["value"] == pytest.approx(log_scale, abs=1e-4)
        assert row["contender"] in out
    assert rows["Gaussian"]["nll"] == pytest.approx(likelihood.gaussian_nll(dataset))
    for name in ("CNF", "residual steps", *PEERS):
        row = rows[name]
        assert row["status"] == "success"
        assert (row["nfe_log_prob"] is None) == (row["nfe_sample"] is None) == (name in PEERS)
    model = contest["recipe"]["residual steps"]["model"]
    assert (model["residual_steps"], model["augmentation"], model["extra"]) == (8, "categorical", 8)
    assert rows["residual steps"]["nfe_log_prob"] == 8 * 8
    assert rows["residual steps"]["mass"] == 0
    for difference in contest["differences"]:
        above, below = (rows[name]["value"] for name in difference["of"].split(" - "))
        assert difference["value"] == pytest.approx(above - below, abs=1e-6)
    pairs = [f"{a} - {b}" for a in ("CNF", "residual steps") for b in PEERS]
    assert [difference["of"] for difference in contest["differences"]] == [*pairs, "residual steps - CNF"]
    assert "exists" in run("benchmark", "tabular", "people.csv", "--minutes", 0.01, *ONE_SEED)[2]


def test_small_tables_add_up_and_are_compared_in_pairs(run, tmp_path, monkeypatch, undrawn):
    train = density.main
    monkeypatch.setattr(density, "main", lambda args: train([*args, "--steps", "2", "--validate-every", "1"]))
    monkeypatch.setattr(small_tables, "OF_SKLEARN", {"iris": load_iris})
    monkeypatch.setattr(small_tables, "FILES", {})
    for seeds in (1, 2):
        assert run("benchmark", "small-tables", "--seeds", seeds)[0] == 0
    assert run("benchmark", "small-tables", "--seeds", 9, "--budget-minutes", "1e-9")[0] == 0
    contests = json.loads(Path("small-tables.json").read_text())["contests"]
    assert [contest["seed"] for contest in contests] == [0, 1]
    load_iris(as_frame=True).data.to_csv("iris.csv", index=False)
    for seed, contest in enumerate(contests):
        cnf, gaussian = (row["value"] for row in contest["rows"])
        assert gaussian == pytest.approx(likelihood.gaussian_nll(data.load_density_data("iris.csv", seed=seed)))
        (difference,) = contest["differences"]
        assert difference["value"] == pytest.approx(cnf - gaussian)
        assert difference["standard_error"] < 0.05  # of one model next to nearly the same


def test_differences_are_paired_and_figures_finite_or_none(monkeypatch):
    log_p = dict(zip(("CNF", *PEERS), torch.randn(3, 10).double() + torch.randn(10) * 10, strict=True))
    log_p["NSF"][3] = -math.inf
    measured = iter(log_p.values())
    monkeypatch.setattr(density_contest, "compete", lambda *_: ({"status": "success"}, next(measured)))
    found = density_contest.contest(moons(), {"CNF": recipe()}, 1.0)
    x = (log_p["MAF"] - log_p["CNF"]).numpy()
    paired, infinite = found["differences"]
    assert paired["value"] == pytest.approx(x.mean())
    assert paired["standard_error"] == pytest.approx(x.std(ddof=1) / 10**0.5)
    assert paired["standard_error"] < found["rows"][0]["standard_error"] / 2
    assert infinite["value"] is None
    assert "NSF -" in density_contest.line({**found, "data": "moons", "seed": 0})
    shown = density_contest.table([{**found, "data": "moons", "minutes": 1.0}]).splitlines()[1].split()
    assert shown[-2:] == [f"{paired['value']:+.3f} ± {paired['standard_error']:.3f}".split()[-1], "-"]


def folding(x):
    """Residual steps on the line that turn it around at 0 and leave it elsewhere, on a wide normal base."""
    flow = density_model((1,), residual_steps=1, hidden=(1,), activation=("tanh",), time="none")
    (steps,) = [part for part in flow.modules() if isinstance(part, ResidualSteps)]
    first, last = steps.field.layers
    with torch.no_grad():
        first.weight.fill_(1.0), first.bias.zero_(), last.weight.fill_(2.0), last.bias.zero_()
    return flow


def test_the_density_of_a_contender_that_folds_is_divided_by_its_integral(monkeypatch):
    """z = x - 2 tanh x falls where tanh(x)^2 < 1/2."""
    x = torch.tensor([[-3.0], [0.0], [0.5], [3.0]])
    dataset = Dataset("line", Split(x), Split(x), Split(x), ("x",))
    task = density_contest.enter("residual steps", recipe("--residual-steps", "4", "--extra", "0"), dataset)
    task.validated = folding(x)
    with torch.no_grad():
        raw = density_contest.measure(task.validated, x)
    monkeypatch.setattr(density_contest, "train_for", lambda *_: {"status": "success"})
    row, log_p = density_contest.compete(task, dataset, 1.0)
    assert row["negative_data"] == 0.5
    assert row["mass"] >= 0.5
    torch.testing.assert_close(log_p, raw.double() - math.log1p(row["mass"]))


def test_the_gaussian_of_discrete_data_bounds_their_entropy():
    """Against the Gaussian of the moments in closed form, by the known variance of the noise."""
    dataset = levels()
    x, test = dataset.train.x.double(), dataset.test.x.double()
    covariance = torch.cov(x.T, correction=0) + torch.eye(2) / 12
    gaussian = torch.distributions.MultivariateNormal(x.mean(0) + 0.5, covariance)
    # The log-density is quadratic in the noise, so that its mean is known.
    expected = -(gaussian.log_prob(test + 0.5).mean() - torch.linalg.inv(covariance).trace() / 24)
    assert density_contest.gaussian_nll(dataset) == pytest.approx(expected.item(), abs=0.02)
    second = (15 * math.log(3) + math.log(3) - 2 / 3 * math.log(2)) / 17  # two of its values are one at level 15
    assert density_contest.gaussian_nll(dataset) > math.log(17) + second


@pytest.mark.parametrize(
    ("objective", "schedule"),
    [("likelihood", "cosine"), ("flow-matching", "constant"), ("flow-matching+likelihood", "cosine")],
)
def test_training_and_its_schedule_end_with_the_time(monkeypatch, objective, schedule):
    """A look at the clock takes 0.05 seconds; each of two stages has half of the time and begins at the full rate."""
    monkeypatch.setattr(time, "monotonic", itertools.count(0, 0.05).__next__)
    rates, step = [], Trainer.step

    def stepped(trainer):
        rates.append(trainer.optimizer.param_groups[0]["lr"] / 0.5)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", stepped)
    chosen = recipe("--objective", objective, "--lr", "0.5", "--schedule", schedule)
    row = density_contest.train_for(density_contest.enter("CNF", chosen, moons()), 20.0)
    assert 19.5 < row["seconds_training"] < 21
    assert row["steps"] == len(rates)
    assert 10 <= row["validations"] <= 25
    rises = [i for i, (rate, following) in enumerate(itertools.pairwise(rates)) if following > rate]
    if objective == "flow-matching+likelihood":
        assert rises == [pytest.approx(len(rates) / 2, rel=0.1)]
    else:
        assert rises == []
        assert rates[-1] < 0.01 if schedule == "cosine" else rates[-1] == 1


def test_training_that_fails_keeps_its_best_weights(monkeypatch):
    dataset = moons()
    task = density_contest.enter("MAF", recipe(), dataset)
    untrained = task.validated.log_prob(dataset.test.x).detach()
    monkeypatch.setattr(
        MaximumLikelihood, "forward", lambda objective, *_, **__: math.nan * next(objective.parameters()).sum()
    )
    row, log_p = density_contest.compete(task, dataset, 30.0)
    assert row["status"].startswith("11 steps in a row failed; step 10 failed: it has loss nan")
    torch.testing.assert_close(log_p.float(), untrained)


def test_contenders_begin_alike_and_with_their_own_settings():
    dataset = moons()
    cnf, maf = (density_contest.enter(name, recipe(), dataset) for name in ("CNF", "MAF"))
    assert cnf.settings.model == recipe().model
    assert cnf.model.state_dict().keys() == cnf.validated.state_dict().keys()
    training = maf.settings.training
    assert (training.lr, training.batch_size, training.schedule) == (1e-3, 40, "constant")  # of 40 samples
    again = density_contest.enter("MAF", recipe(), dataset).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in maf.model.state_dict().items())
    assert likelihood.log_scale(maf.model) == likelihood.log_scale(cnf.model)


def test_without_zuko(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    assert "pip install 'augmented-flows[bench]'" in run("benchmark", "tabular", "moons")[2]
    with pytest.raises(InputError, match="MAF and NSF need zuko"):
        peer("MAF", density_model((2,)))
