"""The comparison with other flows: they are what their package says, the clock is the same, and figures add up."""

import dataclasses
import itertools
import json
import math
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from anode import InputError
from cnf import Flow, FlowMatching, MaximumLikelihood, Normal, density_model
from train_flows import benchmark, data, density, gaussian, likelihood
from train_flows.benchmark import clock, contests, standings, tabular
from train_flows.benchmark.peers import Peer, build
from train_flows.data import Dataset

zuko = pytest.importorskip("zuko")
FLOWS = {"MAF": zuko.flows.MAF, "NSF": zuko.flows.NSF}
TINY = ["--minutes", "0.004", "--threads", "1"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(tabular.peers.SIZE, "hidden_features", (16, 16))


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)) @ np.array([[1, 0, 0], [2, 0.5, 0], [0, 1, 30]]) + [0, 10, 1000]
    pd.DataFrame(x, columns=["height", "weight", "age"]).to_csv(tmp_path / "people.csv", index=False)
    return tmp_path / "people.csv"


@pytest.fixture
def recipe():
    return density.parse(["moons", "--hidden", "4", "--batch-size", "8"])


def moons(levels=None):
    x = data.load("moons").train[:60]
    return Dataset("moons", x[:40], x[40:50], x[50:], ("x", "y"), levels)


def numbers():
    """Discrete data: any of 17 levels, and the same, one or two more, but none beyond the last."""
    first = torch.randint(17, (40_000, 1))
    x = torch.cat([first, (first + torch.randint(3, first.shape)).clamp(max=16)], 1).to(torch.uint8)
    return Dataset("numbers", x[:20_000], x[20_000:20_500], x[20_500:], ("x", "y"), 17)


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS.keys())
@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_a_peer_is_a_transform(float64, flow, context, shape):
    transform = Peer(flow(math.prod(shape), context, transforms=3).transform)
    x, c = torch.randn(4, *shape), torch.randn(4, context) if context else None
    z, log_det, _ = transform(x, c)
    jacobians = [
        torch.autograd.functional.jacobian(
            lambda y, i=i: transform(y[None], c if c is None else c[i : i + 1]).point, x[i]
        )
        for i in range(4)
    ]
    expected = torch.stack([torch.linalg.slogdet(j.reshape(x[0].numel(), -1)).logabsdet for j in jacobians])
    torch.testing.assert_close(log_det, expected, rtol=1e-9, atol=1e-9)
    back, log_det_back, _ = transform.inverse(z, c)
    torch.testing.assert_close(back, x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(transform.encode(x, c), z)
    torch.testing.assert_close(transform.decode(z, c), back)


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS.keys())
def test_a_peer_has_the_log_prob_of_its_package(float64, flow):
    theirs = flow(3, transforms=5, hidden_features=(16, 16))
    x = torch.randn(20, 3)
    torch.testing.assert_close(Flow(Peer(theirs.transform), Normal((3,))).log_prob(x), theirs().log_prob(x))


@pytest.mark.parametrize("name", FLOWS)
def test_a_peer_sees_real_data_standardised(float64, name):
    x = torch.randn(200, 3) * torch.tensor([1.0, 10.0, 0.1]) + 5
    ours = build(name, density_model((3,), data=x))
    (peer,) = [part for part in ours.modules() if isinstance(part, Peer)]
    theirs = Flow(peer, Normal((3,)))
    mean, scale = x.mean(0), x.std(0, correction=0)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob((x - mean) / scale) - scale.log().sum())
    assert len(peer.lazy.transforms) == 5


@pytest.mark.parametrize("name", FLOWS)
def test_a_peer_sees_discrete_data_dequantised(float64, name):
    x = numbers().train[:50]
    beside = density_model((2,), levels=17, data=x)
    ours = build(name, beside)
    (peer,) = [part for part in ours.modules() if isinstance(part, Peer)]
    standardize = beside.flow.transform.transforms[1]
    torch.manual_seed(1)
    found = ours.elbo(x)
    torch.manual_seed(1)
    s = 0.05 + 0.9 * (x + torch.rand(x.shape)) / 17
    z = (torch.log(s / (1 - s)) - standardize.mean) / standardize.scale
    slopes = 0.9 / (s * (1 - s)) / standardize.scale / 17
    torch.testing.assert_close(found, Flow(peer, Normal((2,))).log_prob(z) + slopes.log().sum(1))
    assert set(ours.sample(50).unique().tolist()) <= set(range(17))


def test_a_table_from_start_to_end(run, tmp_path, table, monkeypatch):
    status, out, err = run("benchmark", "tabular", table, *TINY, "--seeds", 1)
    assert (status, err) == (0, "")
    path = tmp_path / "benchmark-tabular.json"
    content = json.loads(path.read_text())
    assert {"command", "machine", "versions", "work"} <= set(content)
    (contest,) = content["contests"]
    assert (contest["data"], contest["seed"], contest["minutes"], contest["threads"]) == ("people.csv", 0, 0.004, 1)
    assert contest["samples"] == {"train": 240, "validation": 30, "test": 30}
    rows = {row["contender"]: row for row in contest["rows"]}
    assert list(rows) == ["CNF", "MAF", "NSF", "Gaussian"]
    dataset = data.load(str(table))
    log_scale = dataset.train.std(0, correction=0).log().sum().item()
    for row in rows.values():
        assert math.isfinite(row["value"])
        assert row["nll"] - row["value"] == pytest.approx(log_scale, abs=1e-4)
        assert row["contender"] in out
    assert rows["Gaussian"]["nll"] == pytest.approx(gaussian.nll(dataset))
    for name in contests.CONTENDERS:
        row = rows[name]
        assert row["status"] == "success"
        assert row["steps"] >= 1
        assert 0 < row["seconds_training"] < 3
        assert row["seconds_sampling"] > 0
        assert row["standard_error"] > 0
        assert (row["nfe_log_prob"] is not None) == (row["nfe_sample"] is not None) == (name == "CNF")
    assert rows["CNF"]["steps"] <= rows["CNF"]["steps_planned"]
    for difference, peer in zip(contest["differences"], ("MAF", "NSF"), strict=True):
        assert difference["of"] == f"CNF - {peer}"
        assert difference["value"] == pytest.approx(rows["CNF"]["value"] - rows[peer]["value"], abs=1e-9)
        assert difference["standard_error"] > 0

    before = path.read_bytes()
    assert "exists: pass another --out" in run("benchmark", "tabular", table, *TINY)[2]
    monkeypatch.setattr(tabular, "contest", None)  # to be called no more
    status, again, err = run("benchmark", "tabular", table, *TINY, "--seeds", 1, "--resume")
    assert (status, err, again) == (0, "", out)
    assert path.read_bytes() == before
    other = run("benchmark", "tabular", table, "--minutes", 1, "--threads", 1, "--seeds", 1, "--resume")
    assert other[0] == 2
    assert "of other minutes" in other[2]
    pd.read_csv(table).iloc[::-1].to_csv(table, index=False)
    assert "of other sha256" in run("benchmark", "tabular", table, *TINY, "--seeds", 1, "--resume")[2]
    assert path.read_bytes() == before


def test_contests_come_seed_by_seed_and_resume(run, tmp_path, table, monkeypatch):
    held = []

    def contest(dataset, recipe, seconds):
        if len(held) == 3:
            held.clear()
            raise KeyboardInterrupt
        held.append((dataset.name, recipe.run.seed, seconds))
        figure = {"value": float(len(held)), "standard_error": 3.0, "nll": 0.0}
        row = {"contender": "Gaussian", "value": 1.0, "nll": 1.0}
        about = {"unit": "nats", "samples": {"test": 5}}
        return {**about, "rows": [row], "differences": [{"of": "CNF - MAF", **figure}]}

    monkeypatch.setattr(tabular, "contest", contest)
    args = ("benchmark", "tabular", "moons", table, "--minutes", 2, "--threads", 1, "--seeds", 3)
    assert run(*args)[0] == 130
    contests = json.loads((tmp_path / "benchmark-tabular.json").read_text())["contests"]
    assert [(each["data"], each["seed"]) for each in contests] == [("moons", 0), ("people.csv", 0), ("moons", 1)]
    status, out, _ = run(*args, "--resume")
    assert status == 0
    assert held == [("people.csv", 1, 120), ("moons", 2, 120), ("people.csv", 2, 120)]
    assert "CNF - MAF      2.0000 +- 1.7321  from 1.0000 to 3.0000" in out


def test_differences_are_paired(monkeypatch, recipe):
    dataset = moons()
    log_p = dict(zip(contests.CONTENDERS, torch.randn(3, 50).double() + torch.randn(50) * 10, strict=True))
    monkeypatch.setattr(contests, "compete", lambda name, *_: ({"contender": name}, log_p[name]))
    found = contests.contest(dataset, recipe, 1.0)
    offset = dataset.train.std(0, correction=0).log().sum().item()
    for row in found["rows"][:3]:
        x = -log_p[row["contender"]].numpy()
        assert row["value"] == pytest.approx(x.mean() - offset)
        assert row["standard_error"] == pytest.approx(x.std(ddof=1) / 50**0.5)
    for difference, peer in zip(found["differences"], ("MAF", "NSF"), strict=True):
        x = (log_p[peer] - log_p["CNF"]).numpy()
        assert difference["value"] == pytest.approx(x.mean())
        assert difference["standard_error"] == pytest.approx(x.std(ddof=1) / 50**0.5)
        assert difference["standard_error"] < found["rows"][0]["standard_error"] / 3


def test_a_figure_that_is_not_finite_is_none(monkeypatch, recipe):
    log_p = dict(zip(contests.CONTENDERS, torch.tensor([[1.0, 2], [1, -math.inf], [0, 1]]).double(), strict=True))
    monkeypatch.setattr(contests, "compete", lambda name, *_: ({"contender": name, "status": "success"}, log_p[name]))
    found = contests.contest(moons(), recipe, 1.0)
    assert [row["value"] is None for row in found["rows"]] == [False, True, False, False]
    assert [figure["value"] for figure in found["differences"]] == [None, pytest.approx(-1.0)]
    assert "MAF -  NSF" in standings.line({**found, "data": "moons", "seed": 0})


def test_discrete_data_count_in_bits_and_share_their_noise(recipe):
    dataset = numbers()
    model = contests.enter("CNF", recipe, dataset).model
    unit = contests.unit_of(dataset, model)
    assert (unit.name, unit.offset, unit.nats) == ("bits/dim, upper bound", 0.0, 2 * math.log(2))
    first = contests._log_prob(model, dataset.test)[0]
    torch.rand(7)
    assert torch.equal(first, contests._log_prob(model, dataset.test)[0])


def test_the_gaussian_of_discrete_data_bounds_their_entropy():
    """Against the Gaussian of the moments in closed form, by the known variance of the noise."""
    dataset = numbers()
    x, test = dataset.train.double(), dataset.test.double()
    covariance = torch.cov(x.T, correction=0) + torch.eye(2) / 12
    gaussian = torch.distributions.MultivariateNormal(x.mean(0) + 0.5, covariance)
    # The log-density is quadratic in the noise, so that its mean is known.
    expected = -(gaussian.log_prob(test + 0.5).mean() - torch.linalg.inv(covariance).trace() / 24)
    assert contests._gaussian(dataset) == pytest.approx(expected.item(), abs=0.02)
    second = (15 * math.log(3) + math.log(3) - 2 / 3 * math.log(2)) / 17  # two of its values are one at level 15
    assert contests._gaussian(dataset) > math.log(17) + second


class Watch:
    """A clock that only work moves on."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def taking(self, seconds, result):
        def work(*args, **kwargs):
            self.now += seconds
            return result(*args)

        return work


@pytest.fixture
def watch(monkeypatch):
    """Flow matching takes 0.01 seconds a step, likelihood 0.2, a validation 0.1."""
    watch = Watch()
    monkeypatch.setattr(time, "monotonic", watch)

    def loss(objective, batch):
        return sum(weight.sum() for weight in objective.parameters())

    monkeypatch.setattr(FlowMatching, "forward", watch.taking(0.01, loss))
    monkeypatch.setattr(MaximumLikelihood, "forward", watch.taking(0.2, loss))
    monkeypatch.setattr(likelihood, "of_one_draw", watch.taking(0.1, lambda *_: {"nll": -watch.now}))
    return watch


def planned(settings, seconds):
    contender = contests.enter("CNF", settings, moons())

    def task_of(settings):
        return contender.task(settings, moons())

    return clock.fit_into(seconds, contender.settings, task_of), task_of


@pytest.mark.parametrize("objective", ["likelihood", "flow-matching", "flow-matching+likelihood"])
def test_steps_fit_into_the_time(watch, recipe, objective):
    recipe = dataclasses.replace(recipe, objective=dataclasses.replace(recipe.objective, objective=objective))
    settings, task_of = planned(recipe, 20.0)
    assert watch.now < 0.15 * 20
    timed = clock.train_for(20.0, task_of(settings), lambda: None)
    assert len(timed.begun) == settings.training.steps
    assert 0.9 * 20 < timed.seconds <= 0.951 * 20
    if objective == "flow-matching+likelihood":
        assert settings.objective.likelihood_steps / settings.training.steps == pytest.approx(1 / 6, rel=0.05)


def test_a_pilot_too_short_for_a_step_plans_few(watch, recipe, monkeypatch):
    monkeypatch.setattr(clock, "train_for", lambda *_: clock.Timed([], 3.0, None))
    settings, _ = planned(recipe, 20.0)
    assert 1 <= settings.training.steps <= 20 / (clock.PILOT * 20)


def test_a_constant_schedule_goes_on_until_time_is_up(watch, recipe):
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, schedule="constant"))
    settings, task_of = planned(recipe, 20.0)
    kept = []
    timed = clock.train_for(20.0, task_of(settings), lambda: kept.append(watch.now))
    assert 20 < timed.seconds < 20.5
    assert len(timed.begun) == pytest.approx((20 - 0.1 * len(kept)) / 0.2, abs=2)
    assert 10 <= len(kept) <= 25


def test_a_signal_is_not_a_deadline(monkeypatch, recipe):
    monkeypatch.setattr(clock, "train", lambda *_, **__: False)
    contender = contests.enter("MAF", recipe, moons())
    with pytest.raises(KeyboardInterrupt):
        clock.train_for(5.0, contender.task(contender.settings, moons()), lambda: None)


def test_training_that_fails_keeps_its_best_weights(monkeypatch, recipe):
    dataset = moons()
    forward, calls = MaximumLikelihood.forward, []

    def failing(objective, batch):
        calls.append(None)
        return forward(objective, batch) * (math.nan if len(calls) > 4 else 1.0)

    contender = contests.enter("MAF", recipe, dataset)
    untrained = contender.model.log_prob(dataset.test).double()
    settings = dataclasses.replace(
        contender.settings, training=dataclasses.replace(contender.settings.training, steps=50, validate_every=2)
    )
    monkeypatch.setattr(contests, "fit_into", lambda *_: settings)
    monkeypatch.setattr(MaximumLikelihood, "forward", failing)
    values = itertools.count(1.0)
    monkeypatch.setattr(likelihood, "of_one_draw", lambda *_: {"nll": next(values)})
    row, log_p = contests.compete("MAF", recipe, dataset, 30.0)
    assert row["status"].startswith("11 steps in a row came to nothing; step 14 failed: it has loss nan")
    assert row["steps"] == 15
    assert torch.equal(log_p, untrained)  # the first are the best


def test_contenders_begin_alike_and_with_their_own_settings(recipe):
    dataset = moons()
    cnf, maf = (contests.enter(name, recipe, dataset) for name in ("CNF", "MAF"))
    assert cnf.settings == recipe
    assert cnf.model.state_dict().keys() == cnf.trained.state_dict().keys()
    training = maf.settings.training
    assert (training.lr, training.batch_size, training.schedule) == (1e-3, 40, "constant")  # of 40 samples
    again = contests.enter("MAF", recipe, dataset).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in maf.model.state_dict().items())
    assert likelihood.log_scale(maf.model) == likelihood.log_scale(cnf.model)


def test_the_works_are_listed(run):
    for args in ([], ["--help"]):
        status, out, err = run("benchmark", *args)
        assert (status, err) == (0, "")
        assert [line.split()[0] for line in out.splitlines()] == list(benchmark.WORKS)
    assert run("benchmark", "--threads", 2)[2].startswith("error: work '--threads' is unknown: choose one of speed")
    assert "--repeats 0 must be at least 1" in run("benchmark", "image-block", "--repeats", 0)[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no data set given"),
        (["nonsense"], "neither a known data set"),
        (["missing.csv"], "missing.csv"),
        (["moons", "moons"], "named twice"),
        (["few.csv"], "has 12 rows: at least 20 are needed"),
        (["moons", "--minutes", "0"], "--minutes 0.0 must be a positive number"),
        (["moons", "--minutes", "nan"], "--minutes nan must be a positive number"),
        (["moons", "--seeds", "0"], "--seeds 0 must be at least 1"),
        (["moons", "--threads", "0"], "--threads 0 must be at least 1"),
        (["moons", "--resume", "--overwrite"], "--resume keeps what --overwrite replaces"),
        (["moons", "--out", "."], "is a folder"),
        (["moons", "--out", "few.csv"], "exists: pass another --out, or --overwrite, or --resume"),
        (["moons", "--out", "few.csv", "--resume"], "few.csv is no file of results"),
        (["moons", "--out", "{}.json", "--resume"], "is no file of results"),
        (["moons", "--out", "nowhere/x.json"], "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, args, message):
    np.savetxt(tmp_path / "few.csv", np.random.default_rng(0).normal(size=(12, 2)), delimiter=",")
    (tmp_path / "{}.json").write_text("{}")
    status, _, err = run("benchmark", "tabular", *args, *([] if "--threads" in args else ["--threads", "1"]))
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "benchmark-tabular.json").exists()


def test_without_zuko(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    assert "pip install 'augmented-flows[bench]'" in run("benchmark", "tabular", "moons")[2]
    with pytest.raises(InputError, match="MAF and NSF need zuko"):
        build("MAF", density_model((2,)))
