"""Tables of numbers that hold categories or common values, and runs that start from others, through the programs."""

import numpy as np
import pandas as pd
import pytest
import torch

import cnf
from anode import Solver
from cnf.tables import Column, table_model
from train_flows.data import Split, load_density_data
from train_flows.evaluation import pruning

pytestmark = pytest.mark.usefixtures("unrepeated")
TRAIN = ("--steps", 10, "--validate-every", 10, "--hidden", 8, "--out", "runs/t")


def numbers(n=300):
    rng = np.random.default_rng(0)
    sex = rng.integers(0, 2, n)
    rain = np.where(rng.random(n) < 0.4, 0, rng.normal(size=n) + 3 * sex)
    return pd.DataFrame({"sex": sex, "rain": rain, "height": rng.normal(size=n) + sex})


def test_numbers_with_few_or_common_values_are_learned_by_kinds(run, undrawn):
    numbers().to_csv("t.csv", index=False)
    status, out, err = run("density", "t.csv", *TRAIN)
    assert status == 0, err
    assert "separate values 0" in out
    model = cnf.load("runs/t")
    assert [(column.kind, column.atoms) for column in model.columns] == [
        ("category", ()),
        ("continuous", (0.0,)),
        ("continuous", ()),
    ]
    assert run("sample", "runs/t", "-n", 300, "--out", "s.csv")[0] == run("evaluate", "runs/t", "t.csv")[0] == 0
    samples = pd.read_csv("s.csv")
    assert set(samples.sex) == {0, 1}
    assert run("sample", "runs/t", "-n", 300, "--out", "s.npy")[0] == run("sample", "runs/t", "--out", "s.png")[0] == 0
    np.testing.assert_array_equal(np.load("s.npy"), samples)
    assert 0.2 < (samples.rain == 0).mean() < 0.6
    assert run("density", "t.csv", *TRAIN, "--overwrite", "--given", "sex")[0] == 0
    assert run("sample", "runs/t", "--given", "sex=1", "--out", "w.csv")[0] == 0
    assert pd.read_csv("w.csv").height.mean() > 0.4
    assert load_density_data("t.csv", jitter=False).kinds == ()
    continuous = load_density_data("t.csv", kind=("sex=continuous", "rain=continuous")).kinds
    assert [(column.kind, column.states) for column in continuous] == [("continuous", 1)] * 3


@pytest.mark.parametrize("options", [(), ("--extra", 0)], ids=["mixture", "flow"])
def test_residual_steps_given_categories(run, undrawn, options):
    numbers().drop(columns="rain").assign(width=np.random.default_rng(1).normal(size=300)).to_csv("t.csv", index=False)
    assert run("density", "t.csv", *TRAIN, "--residual-steps", 2, *options)[0] == 0
    status, out, _ = run("evaluate", "runs/t")
    assert status == 0
    assert "least determinant" in out
    status, _, err = run("distill", "runs/t")
    assert (status, err.count("\n")) == (2, 1)
    assert "runs/t is a density of a table of several kinds: distil one of real numbers" in err


def test_three_parts_of_a_file_are_learned_by_kinds(run, undrawn):
    x = numbers().to_numpy()
    x[:200, 0] = 0  # so that the other value occurs in later parts alone
    x[:200, 2] = np.arange(200) % 4
    np.savez("t.npz", train=x[:200], validation=x[200:250], test=x[250:])
    data = load_density_data("t.npz")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [200, 50, 50]
    assert [column.kind for column in data.kinds] == ["category", "continuous", "continuous"]
    assert torch.equal(data.test.x, torch.from_numpy(x[250:]))
    assert run("density", "t.npz", *TRAIN)[0] == 0
    assert run("evaluate", "runs/t")[0] == run("evaluate", "runs/t", "t.npz")[0] == 0
    assert load_density_data("t.npz", kind=["x0=continuous"]).kinds[0].kind == "continuous"


def test_a_run_of_kinds_starts_from_another(run, undrawn):
    numbers().to_csv("t.csv", index=False)
    later = numbers(280).iloc[::-1, ::-1]
    later.to_csv("later.csv", index=False)
    assert run("density", "t.csv", *TRAIN)[0] == 0
    first = cnf.load("runs/t")
    assert run("density", "later.csv", "--init", "runs/t", "--steps", 5, "--lr", 1e-9, "--out", "runs/u")[0] == 0
    second = cnf.load("runs/u")
    assert (second.columns, second.flow.config.hidden) == (first.columns, (8,))
    for name, value in first.state_dict().items():
        assert torch.allclose(second.state_dict()[name], value, atol=1e-6), name
    assert run("evaluate", "runs/u")[0] == run("density", "--resume", "runs/u", "--steps", 8)[0] == 0
    later.assign(sex=2).to_csv("other.csv", index=False)
    status, _, err = run("density", "other.csv", "--init", "runs/t", "--out", "runs/v")
    assert (status, err.count("\n")) == (2, 1)
    assert "column sex cannot hold 2 (data row 1): its categories are 0, 1" in err
    later.drop(columns="rain").to_csv("other.csv", index=False)
    assert "other.csv lacks the column rain" in run("density", "other.csv", "--init", "runs/t", "--out", "runs/v")[2]
    assert "--kind sex=drop contradicts" in run("density", "later.csv", "--init", "runs/t", "--kind", "sex=drop")[2]


def test_a_run_on_numbers_takes_numbers(run, undrawn):
    real = numbers().drop(columns=["sex", "rain"]).assign(weight=np.random.default_rng(1).normal(size=300))
    real.to_csv("t.csv", index=False)
    assert run("density", "t.csv", *TRAIN)[0] == 0
    real.assign(weight=(real.weight > 0) * 1.0).to_csv("few.csv", index=False)
    assert len(load_density_data("few.csv").kinds) == 2
    assert run("density", "few.csv", "--init", "runs/t", "--steps", 5, "--out", "runs/u")[0] == 0
    assert isinstance(cnf.load("runs/u"), cnf.Flow)
    assert run("evaluate", "runs/u")[0] == run("evaluate", "runs/t", "few.csv")[0] == 0


def test_components_of_the_numbers_of_a_table_are_left_out():
    columns = [Column("sex", "category", ("0", "1")), Column("rain"), Column("height")]
    x = torch.from_numpy(numbers().to_numpy())
    model = table_model(columns, x, hidden=(8,), extra=4, augmentation="categorical", solver=Solver(rtol=1e-6))
    with torch.no_grad():
        model.flow.mixture.means.add_(2 * torch.randn(model.flow.mixture.means.shape))
    assert pruning.find_prune(model) == pruning.PRUNE
    found = pruning.certificate(model, Split(x), 0.1)
    assert 0 < found["gap_mean"] < found["gap_max"] < -4 * np.log(0.7)
    rows = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:100]
    gaps = model.log_prob(x[rows]) - model.log_prob(x[rows], prune=0.1)
    assert found["gap_mean"] == pytest.approx(gaps.mean().item(), abs=1e-5)
