"""Pages of measured results: the committed ones are those of the committed files."""

import json
import tomllib
from pathlib import Path

import pytest

from train_flows.results_pages import CELLS, finding_rows, pages

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "assets" / "results"
PAGES = pages(RESULTS)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_are_up_to_date(path):
    assert path.read_text(encoding="utf-8") == PAGES[path], "run train-flows report --results assets/results"


def test_every_file_is_in_a_table():
    content = tomllib.loads((RESULTS / "pages.toml").read_text())
    patterns = [pattern for page in content["page"] for table in page["table"] for pattern in table["files"]]
    shown = {path for pattern in patterns for path in RESULTS.glob(pattern)}
    assert shown == set(RESULTS.rglob("*.json"))
    assert all(list(RESULTS.glob(pattern)) for pattern in patterns)


def test_no_number_of_the_product_page_is_missing():
    content = tomllib.loads((RESULTS / "pages.toml").read_text())
    lines = [line for part in content["product"].values() for line in part]
    shown = PAGES[ROOT / "README.md"]
    assert all(line.split("{")[0].split("\n")[0] in shown for line in lines)
    results = shown.split("<!-- results: ")[1:]
    assert not any(" - " in part.split("<!-- /results")[0] for part in results)


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{a[b]:.2f} +-\n {c}", "1.50 +- x"),
        ("{missing[b]:.2f}", "-"),
        ("{none:.0f}", "-"),
        ("{a[b, c][d]}", "3"),
    ],
)
def test_cells_are_filled_and_missing_values_are_dashes(template, filled):
    row = {"a": {"b": 1.5, "b, c": {"d": 3}}, "c": "x", "none": None}
    assert CELLS.fill(template, row) == filled


def test_findings_are_numbers_or_means_with_deviations():
    findings = {"a": 0.123456, "b": {"mean": 2.34567, "sd": 0.0123}, "c": {"mean": 2.34567, "sd": None}, "d": "words"}
    values = [row["value"] for row in finding_rows({"findings": findings, "summary": []})]
    assert values == ["0.1235", "2.346 ± 0.012", "2.346", "words"]


def test_the_command_writes_the_pages(run, tmp_path):
    folder = tmp_path / "assets" / "results"
    folder.mkdir(parents=True)
    about = {"command": "train-flows x", "machine": {"cores": 2, "threads": 1, "gpu": None}, "seed": 3}
    versions = {"torch": "2", "augmented-flows": "1"}
    (folder / "x.json").write_text(json.dumps({**about, "versions": versions, "value": 2.5}))
    (folder / "pages.toml").write_text(
        """
        [[page]]
        file = "x.md"
        title = "X"
        [[page.table]]
        title = "Values"
        says = "It is positive."
        files = ["*.json"]
        columns = {command = "{command}", value = "{value:.2f}", absent = "{other}"}
        [product]
        highlights = ["- {Values[train-flows x][value]}"]
        """
    )
    (tmp_path / "README.md").write_text("# P\n<!-- results: highlights -->\nold\n<!-- /results -->\nend\n")
    status, out, _ = run("report", "--results", "assets/results")
    assert status == 0
    assert "x.md" in out
    page = (folder / "x.md").read_text()
    assert "| command | value |\n| --- | --- |\n| train-flows x | 2.50 |" in page
    assert "It is positive." in page
    assert "[x.json](x.json): `train-flows x`; seeds: 3; CPU with 2 cores, threads: 1; torch 2" in page
    assert "[X](x.md)" in (folder / "README.md").read_text()
    assert (tmp_path / "README.md").read_text() == "# P\n<!-- results: highlights -->\n- 2.5\n<!-- /results -->\nend\n"
    status, _, err = run("report", "--results", "nowhere")
    assert (status, err.count("\n")) == (2, 1)
    assert "nowhere lacks pages.toml" in err
