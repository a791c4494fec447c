"""The program that predicts: rows of tables and files of images, with the class, its probability, or a value."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from stored_runs import store_classifier, store_density, write_greys

import anode

COLUMNS = ["height", "weight", "age"]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A table of three numbers, a class and codes with leading zeros."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(60, 3)).round(3)
    frame = pd.DataFrame(x, columns=COLUMNS)
    frame.insert(1, "kind", ["é", "NA", "b"] * 20)
    frame.to_csv("people.csv", index=False)
    return frame


def predicted(run, *typed):
    status, out, err = run("predict", *typed, "--out", "out.csv", "--overwrite")
    assert (status, err) == (0, ""), err
    return pd.read_csv("out.csv", dtype={"code": str, "kind": str, "predicted": str}, keep_default_na=False), out


def test_rows_with_their_classes_and_probabilities(run, rows):
    network, _ = store_classifier("runs/people", "people.csv", target="kind")
    found, out = predicted(run, "runs/people", "people.csv")
    assert list(found) == ["height", "kind", "weight", "age", "predicted", "p_NA", "p_b", "p_é"]
    assert "60 rows with predicted, p_NA, p_b, p_é in out.csv" in out
    assert found.kind.tolist() == rows.kind.tolist()
    np.testing.assert_array_equal(found[COLUMNS], rows[COLUMNS])
    wanted = network.predict_proba(rows[COLUMNS]).numpy()
    np.testing.assert_allclose(found[["p_NA", "p_b", "p_é"]], wanted, atol=1e-5)
    assert found.predicted.tolist() == [("NA", "b", "é")[k] for k in wanted.argmax(1)]


def test_columns_are_found_by_name_among_others(run, rows):
    store_classifier("runs/people", "people.csv", target="kind")
    whole, _ = predicted(run, "runs/people", "people.csv")
    few = rows[["age", "weight", "height"]].head(2).assign(code=["007", "1e3"], note=["", "x, y"])
    few.to_csv("few.csv", index=False)
    found, _ = predicted(run, "runs/people", "few.csv")
    assert found.code.tolist() == ["007", "1e3"]
    assert found.note.tolist() == ["", "x, y"]
    np.testing.assert_allclose(found.p_b, whole.p_b[:2], atol=3e-3)
    few[COLUMNS].to_csv("bare.csv", index=False, header=False)
    np.testing.assert_allclose(predicted(run, "runs/people", "bare.csv")[0].p_b, whole.p_b[:2], atol=3e-3)
    for suffix, write in (
        ("npy", lambda: np.save("t.npy", few[COLUMNS])),
        ("parquet", lambda: few.to_parquet("t.parquet")),
    ):
        write()
        np.testing.assert_allclose(predicted(run, "runs/people", f"t.{suffix}")[0].p_b, whole.p_b[:2], atol=3e-3)


def test_a_regression_writes_one_column(run, rows):
    rows[COLUMNS].to_csv("numbers.csv", index=False)
    network, _ = store_classifier("runs/people", "numbers.csv", target="age", model={"task": "regression"})
    found, _ = predicted(run, "runs/people", "people.csv")
    assert list(found) == ["height", "kind", "weight", "age", "predicted"]
    wanted = network.predict(rows[["height", "weight"]])[:, 0]
    np.testing.assert_allclose(found.predicted.astype(float), wanted, atol=1e-5)


def test_a_model_in_double_precision_sees_all_digits(run, rows):
    x = 1.7e9 + 600 * np.random.default_rng(0).random((60, 1))
    model = anode.classifier_model((1,), 2, data=x, model="mlp").double()
    model.lift[0].fit(torch.from_numpy(x))
    anode.save(model, "mine")
    pd.DataFrame(x, columns=["t"]).to_csv("t.csv", index=False)
    found, _ = predicted(run, "mine", "t.csv")
    np.testing.assert_allclose(found.p_1.astype(float), model.predict_proba(x)[:, 1], rtol=1e-12)


def test_functions_have_a_class_by_sign(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network, dataset = store_classifier("runs/spheres", "spheres")
    np.save("x.npy", dataset.test.x[:20])
    found, _ = predicted(run, "runs/spheres", "x.npy")
    assert list(found) == ["x0", "x1", "predicted"]
    assert found.predicted.astype(int).tolist() == (network(dataset.test.x[:20])[:, 0] > 0).long().tolist()


def test_models_saved_by_the_api(run, rows):
    model = anode.classifier_model((3,), 2, data=rows[COLUMNS], classes=("in", "out"))
    anode.save(model, "mine")
    rows[COLUMNS].to_csv("rows.csv", index=False)
    found, _ = predicted(run, "mine", "rows.csv")
    assert found.predicted.tolist() == model.predict(rows[COLUMNS])


def test_images_with_their_files(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_greys("greys", side=4)
    network, _ = store_classifier("runs/greys", "greys")
    found, _ = predicted(run, "runs/greys", "greys/dark")
    assert found.file.tolist() == [f"greys/dark/{i:02}.png" for i in range(20)]
    x = torch.stack([torch.from_numpy(np.asarray(Image.open(file)).copy()) for file in found.file]).unsqueeze(1)
    np.testing.assert_allclose(found.p_dark, network.predict_proba(x)[:, 1], atol=1e-5)
    assert len(predicted(run, "runs/greys", "greys")[0]) == 40


def test_what_is_refused_is_one_line(run, rows):
    store_density("runs/density", "moons")
    store_classifier("runs/people", "people.csv", target="kind")
    rows[["age", "weight"]].to_csv("lacks.csv", index=False)
    rows.assign(age="x").to_csv("text.csv", index=False)
    rows.assign(predicted=1).to_csv("again.csv", index=False)
    np.save("wide.npy", np.zeros((5, 7)))
    for typed, message in (
        (["runs/density", "people.csv"], "runs/density is a density, which does not predict: use train-flows evaluate"),
        (["nowhere", "people.csv"], "nowhere is not the folder of a classifier"),
        (["runs/people"], "DATA"),
        (["runs/people", "none.csv"], "none.csv does not exist"),
        (["runs/people", "lacks.csv"], "lacks.csv lacks the columns height of the run"),
        (["runs/people", "text.csv"], "column age holds text"),
        (["runs/people", "again.csv"], "again.csv has a column predicted already: rename it"),
        (["runs/people", "wide.npy"], "wide.npy has samples of shape 7"),
        (["runs/people", "people.csv", "--out", "out.npy"], "--out out.npy must end in .csv"),
        (["runs/people", "people.csv", "--out", "people.csv"], "--out people.csv exists"),
    ):
        status, out, err = run("predict", *typed)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert message in err
