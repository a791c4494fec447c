"""Comparisons at equal likelihood: where the curves meet, what is measured, and that variants are of equal size."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from anode import InputError, Solver, count_evals
from cnf import LiftedFlow, density_model
from train_flows import density
from train_flows.data import Dataset
from train_flows.paper import augmented_density, augmented_tuning
from train_flows.paper.augmented_tuning import METRIC
from train_flows.paper.costs import MOST_NUMBERS, costs
from train_flows.paper.density_trials import DensityTrial, load
from train_flows.paper.equal_nll import LEVELS, compared, cost_at
from train_flows.paper.outcomes import Outcome


def outcome(nll, nfe):
    records = [{"nll_test": a, "nfe": b} for a, b in zip(nll, nfe, strict=True)]
    return Outcome(DensityTrial("some", "moons"), 0, "success", records)


def test_a_cost_is_interpolated_to_where_a_level_is_first_reached():
    records = outcome([3.0, 2.0, 2.5, 1.0], [10.0, 20.0, 30.0, 60.0]).records
    assert cost_at(records, 3.5, "nfe") == 10
    assert cost_at(records, 2.25, "nfe") == pytest.approx(17.5)
    assert cost_at(records, 2.0, "nfe") == 20
    assert cost_at(records, 1.5, "nfe") == pytest.approx(30 + 30 / 1.5)
    with pytest.raises(ValueError, match=r"0\.5"):
        cost_at(records, 0.5, "nfe")


def test_trainings_compare_where_both_have_been():
    untrained = (9.0, 1e6)

    def trained(nll, nfe):
        return outcome([untrained[0], *nll], [untrained[1], *nfe])

    plain = trained([3.0, 1.0], [20.0, 40.0])
    half = trained([3.0, 1.0, 0.0], [10.0, 20.0, 300.0])
    worse = trained([3.0, 2.0], [60.0, 60.0])  # levels 2 to 2.5, where the plain one has 30 to 25
    found = compared([(half, plain), (worse, plain), (plain, plain)], "nfe")
    plain_costs = 20 + 10 * (3 - np.linspace(2, 2.5, LEVELS))
    logs = np.array([math.log(0.5), np.log(60 / plain_costs).mean(), 0.0])
    assert math.log(found["ratio"]) == pytest.approx(logs.mean())
    half_width = 4.302653 * logs.std(ddof=1) / math.sqrt(3)
    assert (math.log(found["low"]), math.log(found["high"])) == pytest.approx(
        (logs.mean() - half_width, logs.mean() + half_width)
    )
    assert found["nll"] == pytest.approx((1 + 2 + 1) / 3)
    assert (found["cost"], found["cost_below"]) == pytest.approx(((20 + 60 + 40) / 3, (40 + 30 + 40) / 3))
    assert (found["pairs"], found["apart"]) == (3, 0)
    alone = compared([(half, plain)], "nfe")
    assert alone["ratio"] == pytest.approx(0.5)
    assert math.isnan(alone["low"])


def test_a_training_that_is_always_better_compares_at_its_first_record():
    plain, better = outcome([9.0, 3.0, 2.0], [0.0, 20.0, 40.0]), outcome([1.9, 1.5, 1.0], [0.0, 10.0, 99.0])
    found = compared([(better, plain)], "nfe")
    assert (found["ratio"], found["apart"], found["nll"]) == (pytest.approx(0.25), 1, 2.0)


@pytest.mark.parametrize(
    ("options", "points"),
    [
        ({}, 1),
        ({"extra": 3, "augmentation": "categorical"}, 3),
        ({"extra": 1}, None),
    ],
)
def test_costs_are_those_of_the_verbs_in_double_precision(options, points):
    x = torch.randn(300, 2) * torch.tensor([2.0, 0.5])
    dataset = Dataset("some", x, x, x[:50], ("x", "y"))
    torch.manual_seed(1)
    model = density_model((2,), hidden=(8,), data=x, **options)
    flow = model.flow if isinstance(model, LiftedFlow) else model
    torch.nn.init.normal_(flow.parts()[1].field.layers[-1].weight, std=0.7)
    before = [weight.clone() for weight in model.state_dict().values()]
    found = costs(model, dataset)
    if points:
        assert found["points_log_prob"] == points
        assert found["nll_test"] == pytest.approx(-model.log_prob(x[:50]).mean().item(), abs=5e-3)
    double = copy.deepcopy(model).double()
    for tolerance in (1e-5, 1e-7):
        torch.manual_seed(0)
        with count_evals() as nfe:
            double.with_solver(Solver(rtol=tolerance, atol=tolerance)).sample(50)
        assert found[f"nfe_sample_{tolerance:.0e}"] == nfe.forward
    assert found["nfe_sample_1e-07"] > found["nfe_sample_1e-05"] + 6
    assert found["nfe_log_prob_1e-07"] > found["nfe_log_prob_1e-05"] + 6
    assert costs(model, dataset)["nll_test"] == found["nll_test"]
    assert all(torch.equal(*pair) for pair in zip(before, model.state_dict().values(), strict=True))


def test_a_loose_bound_takes_more_draws():
    x = torch.randn(300, 2)
    model = density_model((2,), hidden=(8,), extra=2, data=x)
    for weight in model.flow.parameters():  # p(a given x) is far from the normal q, then
        torch.nn.init.normal_(weight)
    found = costs(model, Dataset("some", x, x, x, ("x", "y")))
    assert 16 < found["points_log_prob"] <= MOST_NUMBERS / x.numel()
    assert found["raised"] > 0
    assert found["nll_test"] < -model.elbo(x).mean().item()


@pytest.mark.parametrize(("data", "count"), [("checkerboard", 10), ("digits", 9)])
def test_variants_have_as_many_parameters_as_fit_into_those_of_the_plain_flow(data, count):
    plain, *trials = augmented_density._trials(data, quick=False, data_root="nowhere")
    dataset = load(plain, 0, "nowhere")
    allowed = augmented_density._parameters(plain, {}, dataset)
    built = density.build(plain.settings(0), dataset)
    assert allowed == sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert len({trial.name for trial in trials}) == len(trials) == 2 * count - 1
    for trial in trials:
        model = trial.settings(0).model
        wider = {"filters": model.filters + 1, "hidden": tuple(n + 1 for n in model.hidden)}
        assert augmented_density._parameters(trial, {}, dataset) <= allowed
        if not trial.name.startswith(augmented_density.PLAIN):
            assert augmented_density._parameters(trial, wider, dataset) > allowed


def test_both_sides_are_penalised_alike():
    trials = augmented_density._trials("annulus", quick=False, data_root="nowhere")
    weights = {trial.name: trial.settings(0).objective.acceleration for trial in trials}
    assert {weights[name] for name in weights if name.endswith("free")} == {0.0}
    penalised = {weights[name] for name in weights if name.endswith("penalised")}
    assert penalised == {augmented_density.UNCHOSEN.acceleration}


@pytest.mark.parametrize(("data", "full"), [("moons", False), ("some.csv", True)])
def test_all_mixtures_of_a_table_have_full_covariances(tmp_path, data, full):
    rows = "\n".join(f"{a},{b}" for a, b in torch.randn(100, 2).tolist())
    (tmp_path / "some.csv").write_text(f"a,b\n{rows}\n")
    trials = augmented_density._trials(data, quick=True, data_root=str(tmp_path))
    mixtures = [trial for trial in trials if trial.name.startswith(("mixture", "copies", "categorical"))]
    tuned = [trial for trial in augmented_tuning._trials(data, True, str(tmp_path)) if "K=" in trial.name]
    for trial in [*mixtures, *tuned]:
        dataset = load(trial, 0, str(tmp_path))
        model = density.build(trial.settings(0), dataset)
        assert any(name.endswith("mixing") for name, _ in model.named_parameters()) == full


def test_settings_are_chosen_where_they_cost_least_at_no_loss():
    def tried(name, nfe_end, validation_nll=2.0, nfe_validation=50.0, best=2.0):
        records = [{"nll_test": 3.0, METRIC: 40.0}, {"nll_test": 2.5, METRIC: 40.0}, {"nll_test": 2.0, METRIC: nfe_end}]
        records = [record | {"nll": max(best, record["nll_test"])} for record in records]
        records[-1] |= {"validation_nll": validation_nll, "nfe_validation": nfe_validation}
        return Outcome(DensityTrial(name, "moons"), 100, "success", records)

    plain = {0.0: (2.0, 60.0), 1e-4: (1.99, 50.0), 1e-3: (2.02, 40.0), 1e-2: (2.03, 20.0), 1e-1: (2.5, 10.0)}
    outcomes = [tried(augmented_tuning._penalised(weight), 40.0, *found) for weight, found in plain.items()]
    outcomes += [tried(augmented_tuning._mixed(k), nfe) for k, nfe in {4: 40, 8: 20, 16: 10, 32: 30}.items()]
    findings = augmented_tuning._findings(outcomes, ["moons"])
    assert findings["moons: acceleration"] == 1e-3
    assert findings["moons: components"] == 16
    outcomes[-2] = tried(augmented_tuning._mixed(16), 10, best=2.1)  # never as good as the plain flow
    assert augmented_tuning._findings(outcomes, ["moons"])["moons: components"] == 8
    costly = {**plain, 0.0: (1.9, 60.0)}  # all weights cost more than may be
    others = [tried(augmented_tuning._penalised(weight), 40.0, *found) for weight, found in costly.items()]
    assert augmented_tuning._findings(others, ["moons"])["moons: acceleration"] == 1e-4
    harder = {**plain, 0.0: (9.0, 60.0)}  # a seed that failed with the largest weight has no say
    others = [tried(augmented_tuning._penalised(weight), 40.0, *found) for weight, found in harder.items()]
    others = [dataclasses.replace(each, seed=101) for each in others]
    others[-1] = dataclasses.replace(others[-1], status="non-finite loss")
    assert augmented_tuning._findings([*outcomes, *others], ["moons"])["moons: acceleration"] == 1e-3


def test_tuning_looks_at_validation_data_alone():
    x, test = torch.randn(300, 2), torch.full((300, 2), math.nan)
    found = augmented_tuning.measure(density_model((2,), hidden=(8,)), Dataset("some", x, x, test, ("x", "y")))
    assert math.isfinite(found["nll_test"])


def test_tuning_has_seeds_of_its_own(run):
    options = ("--quick", "--workers", 1, "--data", "moons", "--out", "results")
    status, out, _ = run("paper", "augmented-tuning", *options, "--seeds", 1)
    assert status == 0
    assert "moons: components" in out
    assert json.loads(Path("results/augmented-tuning-moons.json").read_text())["seeds"] == [100]


def test_tables_are_found_in_their_folder(tmp_path):
    with pytest.raises(InputError, match=r"some\.csv"):
        load(DensityTrial("p=0", "some.csv"), 0, str(tmp_path))
    rows = "\n".join(f"{a},{b}" for a, b in torch.randn(100, 2).tolist())
    (tmp_path / "some.csv").write_text(f"a,b\n{rows}\n")
    assert load(DensityTrial("p=0", "some.csv"), 0, str(tmp_path)).shape == (2,)
