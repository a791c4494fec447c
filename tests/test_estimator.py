"""The density of a table as a scikit-learn estimator: the same as the program, and scikit-learn's own checks."""

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import cnf
from anode import InputError
from cnf.tables import TableDensity
from train_flows import TableDensityEstimator

TINY = {"steps": 2, "validate_every": 2, "hidden": (8,), "batch_size": 32}
FEW = "the check fits fewer than 20 rows, which do not suffice for a density; test_weights.py has more"
EXPECTED = {
    **dict.fromkeys(("check_n_features_in_after_fitting", "check_fit2d_1feature"), FEW),
    **{f"check_sample_weights_{name}": FEW for name in ("pandas_series", "not_an_array", "shape", "not_overwritten")},
    "check_sample_weight_equivalence_on_dense_data": FEW,
}


def tiny(**parameters):
    return TableDensityEstimator(**{"verbose": False, "options": TINY, **parameters})


def people(n=120):
    """Return a table with an identifier, categories and a copy, a constant, a grid and a positive column."""
    rng = np.random.default_rng(0)
    kind = rng.choice(["cat", "dog"], n)
    weight = np.where(kind == "cat", 4, 20) * rng.lognormal(0, 0.2, n)
    columns = {"id": np.arange(1, n + 1), "kind": kind, "weight": weight, "legs": 4, "age": rng.poisson(30, n)}
    return pd.DataFrame({**columns, "height": rng.normal(30, 5, n)}).assign(
        sound=np.where(kind == "cat", "meow", "woof")
    )


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    return tiny(given=["kind"], bounds={"weight": (0, None)}).fit(people())


@parametrize_with_checks([tiny(options={**TINY, "dtype": "float64"})], expected_failed_checks=lambda _: EXPECTED)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_start_does_not_wait_for_it():
    code = "import sys, train_flows; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_is_what_the_program_trains(run, undrawn, tmp_path):
    """With the same rows and seed, only the test rows of the program are added to the training rows."""
    table = people()
    table.to_csv(tmp_path / "people.csv", index=False)
    assert run("density", "people.csv", "--given", "kind", "--steps", 2, "--hidden", 8, "--batch-size", 32)[0] == 0
    stored = TableDensityEstimator.load("runs/people")
    own = tiny(given=["kind"]).fit(table)
    assert [(c.name, c.kind) for c in stored.columns_] == [(c.name, c.kind) for c in own.columns_]
    assert own.flow.config == stored.flow.config
    assert list(stored.feature_names_in_) == list(table)
    assert stored.get_params()["given"] == ["kind"]
    assert stored.score_samples(table).shape == (len(table),)
    about = own._about["sha256"], json.loads(Path("runs/people/config.json").read_text())["data"]["sha256"]
    assert about[0] != about[1]  # another split


def test_attributes(fitted):
    assert fitted.n_features_in_ == 7
    assert list(fitted.feature_names_in_) == list(people())
    assert {c.name: c.kind for c in fitted.columns_} == {
        "weight": "positive",
        "age": "ordinal",
        "height": "continuous",
    }
    assert isinstance(fitted.flow, TableDensity)
    assert not fitted.flow.training


def test_scores_are_log_densities_of_the_flow(fitted):
    table = people()
    scores = fitted.score_samples(table)
    assert scores.dtype == np.float64
    assert scores == pytest.approx(fitted.score_samples(table))  # the noise is the same
    c = torch.from_numpy((table["kind"] == "dog").to_numpy(np.float64))[:, None]
    x = torch.from_numpy(table[["weight", "age", "height"]].to_numpy(np.float64))
    with torch.no_grad():
        many = fitted.flow.log_prob(x, c, samples=500).numpy()
    assert scores == pytest.approx(many, abs=0.1)
    assert fitted.score(table) == pytest.approx(scores.mean())
    weights = np.arange(len(table))
    assert fitted.score(table, sample_weight=weights) == pytest.approx(scores @ weights / weights.sum())


def test_samples_look_like_the_rows(fitted):
    drawn = fitted.sample(30, given={"kind": "dog"}, random_state=1)
    assert list(drawn) == ["kind", "weight", "legs", "age", "height", "sound"]
    assert set(drawn["kind"]) == {"dog"}
    assert set(drawn["sound"]) == {"woof"}
    assert (drawn["legs"] == 4).all()
    assert drawn["age"].dtype == np.int64
    assert (drawn["weight"] > 0).all()
    assert drawn.equals(fitted.sample(30, given={"kind": "dog"}, random_state=1))
    assert not drawn.equals(fitted.sample(30, given={"kind": "dog"}))
    each = fitted.sample(2, given=pd.DataFrame({"kind": ["cat", "dog"]}))
    assert list(each["kind"]) == ["cat", "dog"]


def test_save_load_and_pickle(fitted, run, tmp_path):
    table, folder = people(), tmp_path / "model"
    fitted.save(folder)
    scores = fitted.score_samples(table)
    stored = TableDensityEstimator.load(folder)
    for other in (stored, pickle.loads(pickle.dumps(fitted))):
        assert (other.score_samples(table) == scores).all()
        assert list(other.sample(3, {"kind": "cat"})) == list(fitted.sample(3, {"kind": "cat"}))
    assert isinstance(cnf.load(folder), TableDensity)
    with pytest.raises(InputError, match="overwrite=True"):
        fitted.save(folder)
    fitted.save(folder, overwrite=True)
    table.to_csv("people.csv", index=False)
    assert run("evaluate", folder, "people.csv")[0] == 0
    assert run("sample", folder, "-n", 5, "--given", "kind=cat")[0] == 0
    assert run("report", folder)[0] == 0
    assert "table in memory" in run("evaluate", folder)[2]
    assert "several kinds" in run("distill", folder)[2]
    assert "table in memory" in run("density", "--resume", folder)[2]
    moons = tmp_path / "moons"
    cnf.save(cnf.density_model((2,)), moons)
    with pytest.raises(ValueError, match="settings and data are unknown"):
        TableDensityEstimator.load(moons)


def test_arrays_train_the_plain_flow():
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(5, 2, 300), rng.poisson(20, 300)], 1)
    model = tiny().fit(x)
    assert isinstance(model.flow, cnf.Flow)
    assert not hasattr(model, "feature_names_in_")
    drawn = model.sample(20)
    assert list(drawn) == ["x0", "x1"]
    assert drawn["x1"].dtype == np.int64
    # the mean density within steps of the second column
    points, steps = np.linspace(-8, 18, 105), np.arange(0, 60)
    grid = np.stack(np.meshgrid(points, steps), -1).reshape(-1, 2)
    assert np.exp(model.score_samples(grid)).sum() * (points[1] - points[0]) == pytest.approx(1, abs=0.02)
    given = tiny(given=["x1"]).fit(x)
    assert given.sample(3, {"x1": 20})["x1"].tolist() == [20, 20, 20]
    assert given.score_samples(x).shape == (300,)


def test_missing_cells():
    table = people().assign(height=lambda t: t["height"].mask(t["age"] > 33))
    model = tiny(missing="model").fit(table)
    assert np.isfinite(model.score_samples(table)).all()
    assert {c.name: c.gaps for c in model.columns_}["height"]
    dropped = tiny(missing="drop").fit(table)
    with pytest.warns(UserWarning, match=r'rows miss a cell and are not scored: fit with missing="model"'):
        scores = dropped.score_samples(table)
    assert (np.isnan(scores) == table["height"].isna()).all()
    with pytest.warns(UserWarning, match="not scored"):
        assert dropped.score(table) == pytest.approx(np.nanmean(scores))
    numbers = tiny().fit(people()[["height", "age"]])
    with pytest.warns(UserWarning, match="not scored"):
        assert np.isnan(numbers.score_samples(table[["height", "age"]])).sum() == table["height"].isna().sum()


def test_fits_of_the_same_seed_are_equal_and_leave_the_world_alone(capsys):
    table, state = people(), torch.get_rng_state()
    first, second, other = (tiny(random_state=seed).fit(table).score(table) for seed in (0, 0, 1))
    assert first == second != other
    assert torch.get_rng_state().equal(state)
    assert capsys.readouterr() == ("", "")
    tiny(verbose=True).fit(table)
    out = capsys.readouterr().out
    assert "weight  continuous" in out
    assert "validation NLL" in out
    assert 'kinds={"id": "category"} keeps it' in out
    assert "--" not in out


def test_in_searches_and_pipelines():
    x = np.random.default_rng(0).normal(size=(120, 2))
    search = GridSearchCV(tiny(), {"options": [TINY, {**TINY, "steps": 2}]}, cv=2).fit(x)
    assert math.isfinite(search.best_score_)
    assert search.best_estimator_.score(x) < 0
    pipe = make_pipeline(StandardScaler(), tiny()).fit(10 * x, tabledensityestimator__sample_weight=np.ones(120))
    assert pipe.score_samples(10 * x).shape == (120,)


def test_parameters_stay():
    model = tiny(given=["kind"], kinds={"age": "continuous"}, bounds={"weight": (0, None)}, minutes=1)
    before = model.get_params()
    model.fit(people())
    assert model.get_params() == before
    assert clone(model).get_params() == before
    assert {c.name: (c.kind, c.low) for c in model.columns_}["weight"] == ("positive", 0)
    assert {c.name: c.kind for c in model.columns_}["age"] == "continuous"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"given": "kind"}, r"given='kind' must be a list"),
        ({"given": ["kin"]}, r'given=\["kin"\] is not a column .*did you mean kind'),
        ({"kinds": {"ag": "drop"}}, r'kinds=\{"ag": ...\} is not a column .*did you mean age'),
        ({"bounds": {"age": (5,)}}, r"bounds\['age'\]=\[5\] must be a pair"),
        ({"bounds": {"age": (40, None)}}, r'bounds=\{"age": \(low, high\)\}'),
        ({"missing": "no"}, r"missing='no'"),
        ({"minutes": -1}, "^minutes=-1 must"),
        ({"options": {"step": 5}}, r"options=\{'step': ...\} .* did you mean 'steps'"),
        ({"options": {"out": "here"}}, r"options=\{'out': ...\}"),
        ({"options": {"steps": "many"}}, "steps='many'"),
    ],
)
def test_parameters_that_do_not_fit(parameters, said):
    with pytest.raises(InputError, match=said):
        tiny(**parameters).fit(people())


def test_not_fitted_and_other_columns(fitted):
    for use in (lambda m: m.score_samples(people()), lambda m: m.sample(), lambda m: m.flow, lambda m: m.save("run")):
        with pytest.raises(NotFittedError):
            use(tiny())
    with pytest.raises(ValueError, match="seen at fit time, yet now missing"):
        fitted.score_samples(people().drop(columns="age"))
    with pytest.raises(InputError, match=r"given=\{'kind': ...\}"):
        fitted.sample(3)
    with pytest.raises(InputError, match="cannot hold 'cow'"):
        fitted.sample(3, {"kind": "cow"})
    with pytest.raises(InputError, match=r"given\['kind'\] of shape \(2,\): pass one value, or 3"):
        fitted.sample(3, {"kind": ["cat", "dog"]})
    with pytest.raises(InputError, match="at least 20"):
        tiny().fit(people(12))


def test_steps_fit_into_the_minutes():
    few = TableDensityEstimator(minutes=1e-6, verbose=False, options={"hidden": (8,)}).fit(people())
    training = few._sections["training"]
    assert (training["steps"], training["validate_every"]) == (2, 1)
    assert np.isfinite(few.score(people()))  # the untrained flow is a Gaussian
    assert tiny(minutes=1e-6).fit(people())._sections["training"]["steps"] == TINY["steps"]  # as asked for


def test_a_table_of_categories_alone_takes_no_steps():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.choice(["x", "y"], 200), "b": rng.choice(["u", "v", "w"], 200)})
    model = TableDensityEstimator(verbose=False, minutes=1).fit(frame)
    pairs = pd.DataFrame([(a, b) for a in "xy" for b in "uvw"], columns=["a", "b"])
    assert np.exp(model.score_samples(pairs)).sum() == pytest.approx(1)
    assert set(model.sample(50).a) == {"x", "y"}
