"""Pages of measured results, written from JSON files by the tables that ``pages.toml`` in their folder defines.

A table of ``pages.toml`` has a ``title``, a sentence ``says``, patterns of its ``files``, ``columns`` (heads, and
templates of cells such as ``"{nll[value]:.3f}"``) unless the kind of its rows has some, and optionally ``rows``, the
function that makes rows of a file, and ``key``, the template by which ``[product]`` finds a row.
"""

from __future__ import annotations

import json
import re
import string
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

from typing_extensions import override

from anode import InputError

Row = Mapping[str, Any]
HOW = "Written by `train-flows report --results assets/results` from the JSON files in this folder; do not edit.\n"
MARKED = r"(<!-- results: {} -->\n).*?(<!-- /results -->)"  # a part of the product page
BOUNDS = r"joint|frozen|momentum|mixture \(pruned\)|residual steps, mixture"  # densities that know no exact NLL
OF_DENSITIES = ("gap of pruning", "folded mass")  # findings that are not of pairs
OURS, WORKS = "ours, checkpoint", ("cnf-2d", "cnf-tab")  # of the speed benchmark


class Cells(string.Formatter):
    """Formatter of templates; a missing value is a dash."""

    @override
    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            return super().get_field(field_name, args, kwargs)
        except (KeyError, IndexError, TypeError):
            return None, field_name

    @override
    def format_field(self, value: Any, format_spec: str) -> str:
        return "-" if value is None else super().format_field(value, format_spec)

    def fill(self, template: str, row: Row) -> str:
        """Return a template, whose line breaks are spaces, with the values of a row."""
        return self.vformat(" ".join(template.split()), (), row)


CELLS = Cells()


def pages(folder: Path) -> dict[Path, str]:
    """Return the text of every page: in the folder of results, and of the product page two folders up.

    Raises:
        InputError: if the folder defines no pages.
    """
    definitions = folder / "pages.toml"
    if not definitions.is_file():
        raise InputError(f"--results {folder} lacks pages.toml: pass the folder assets/results of a checkout")
    content = tomllib.loads(definitions.read_text(encoding="utf-8"))
    found, index, keyed = {}, ["# Measured results", HOW], {}
    for page in content["page"]:
        shown: set[Path] = set()
        sections = [_section(folder, table, content.get("columns", {}), keyed, shown) for table in page["table"]]
        found[folder / page["file"]] = "\n\n".join([f"# {page['title']}", HOW, *sections]) + "\n"
        index += [f"## [{page['title']}]({page['file']})", "\n".join(f"- {table['title']}" for table in page["table"])]
    found[folder / "README.md"] = "\n\n".join(index) + "\n"
    product = folder.resolve().parents[1] / "README.md"
    if product.is_file():
        text = product.read_text(encoding="utf-8")
        for name, lines in content["product"].items():
            filled = "\n".join(CELLS.fill(line, keyed) for line in lines)
            text = re.sub(MARKED.format(name), lambda m, part=filled: f"{m[1]}{part}\n{m[2]}", text, flags=re.DOTALL)
        found[product] = text
    return found


def _section(
    folder: Path, table: dict[str, Any], usual: Row, keyed: dict[str, dict[str, Row]], shown: set[Path]
) -> str:
    """Return a table with its sentence, and the pictures and sources not shown yet; add its rows to those by key."""
    kind = table.get("rows", "file")
    columns = table["columns"] if "columns" in table else usual[kind]
    files = [path for pattern in table["files"] for path in sorted(folder.glob(pattern))]
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    rows = [row for each in contents for row in ROWS[kind](each)]
    if "against" in table:  # pairs with some second densities only
        rows = [row for row in rows if row["other"] in table["against"]]
    key = table.get("key") or next(iter(columns.values()))
    keyed[table["title"]] = {CELLS.fill(key, row): row for row in rows}
    cells = [[CELLS.fill(cell, row) for cell in columns.values()] for row in rows]
    kept = [i for i in range(len(columns)) if any(row[i] != "-" for row in cells)]
    lines = [list(columns), ["---"] * len(columns), *cells]
    parts = [
        f"## {table['title']}",
        " ".join(table["says"].split()),
        "\n".join("| " + " | ".join(row[i] for i in kept) + " |" for row in lines),
    ]
    new = [i for i, path in enumerate(files) if path not in shown]
    shown.update(files)
    pictures = [files[i].with_suffix(".png") for i in new]
    parts += [f"![{table['title']}]({path.relative_to(folder)})" for path in pictures if path.is_file()]
    sources = [_source(files[i].relative_to(folder), contents[i]) for i in new]
    parts.append("\n".join(sources) if sources else "From the files of the tables above.")
    return "\n\n".join(parts)


def _source(path: Path, content: Row) -> str:
    """Return where the numbers of a file come from: command, seeds, machine and versions."""
    machine, versions = content["machine"], content["versions"]
    seeds = content.get("seeds") or {row["seed"] for row in content.get("contests", [content]) if "seed" in row}
    parts = [f"[{path.name}]({path}): `{content['command']}`"]
    if later := content.get("later"):
        parts.append(f"continued {len(later)} times, last by `{later[-1]['command']}`")
    if seeds:
        parts.append(f"seeds: {', '.join(map(str, sorted(seeds)))}")
    parts.append(machine["gpu"] or f"CPU with {machine['cores']} cores, threads: {machine['threads']}")
    return "- " + "; ".join([*parts, f"torch {versions['torch']}, augmented-flows {versions['augmented-flows']}"])


# Rows


def density_rows(content: Row) -> Iterator[Row]:
    """Yield the figures of one density, for tables with the NLL of the Gaussian in standard deviations."""
    nll, gaussian = content["nll"], content.get("gaussian_nll")
    flow = gaussian and nll["value_standardized"]
    yield {**content, "standardized": flow, "gaussian": gaussian and gaussian - nll["value"] + flow}


def speed_rows(content: Row) -> Iterator[Row]:
    """Yield a row a package, with the mean seconds of every task at 1e-5, and the ratio to ours from equal seeds."""
    rows = [row for row in content["rows"] if row["tolerance"] == 1e-5 and row["seconds"] and row["work"] in WORKS]
    ours = {(row["work"], row["task"], row["seed"]): row["seconds"] for row in rows if row["contender"] == OURS}
    for package in dict.fromkeys(row["contender"] for row in rows if "warm" not in row["contender"]):
        own = [row for row in rows if row["contender"] == package]
        tasks: dict[str, Any] = {}
        for task in dict.fromkeys((row["work"], row["task"]) for row in own):
            found = {row["seed"]: row["seconds"] for row in own if (row["work"], row["task"]) == task}
            ratio = geometric_mean([seconds / ours[*task, seed] for seed, seconds in found.items()])
            tasks[", ".join(task)] = {"seconds": fmean(found.values()), "ratio": ratio}
        yield {"package": package, "seeds": len({row["seed"] for row in own}), **tasks}


def contest_rows(content: Row) -> Iterator[Row]:
    """Yield the mean NLL of every contender over the seeds, and paired differences: a row a data set.

    A figure is None if it lacks one of the seeds.
    """
    for data in dict.fromkeys(contest["data"] for contest in content["contests"]):
        own = [contest for contest in content["contests"] if contest["data"] == data]
        row = {"data": data, "unit": own[0]["unit"], "seeds": len(own)}
        row["minutes"] = max(contest["minutes"] for contest in own)
        for found in zip(*(contest["rows"] for contest in own), strict=True):
            values = [each["value"] for each in found]
            row[found[0]["contender"]] = None if None in values else fmean(values)
        for found in zip(*(contest["differences"] for contest in own), strict=True):
            values, errors = ([each[name] for each in found] for name in ("value", "standard_error"))
            known = None not in values
            error = sum(each**2 for each in errors) ** 0.5 / len(found) if known else None
            row[found[0]["of"]] = f"{fmean(values):+.3f} ± {error:.3f}" if known else None
        yield row


def mixed_rows(content: Row) -> Iterator[Row]:
    """Yield the figures of tables of several kinds next to those of other models, means over the seeds: a row a table.

    The standard error of an accuracy, and of an NLL given the other columns, is that of the mean over the seeds.
    """
    for data in dict.fromkeys(contest["data"] for contest in content["contests"]):
        own = [contest for contest in content["contests"] if contest["data"] == data]
        row: dict[str, Any] = {"data": data, "seeds": len(own), "minutes": fmean(each["minutes"] for each in own)}
        row["nll"] = fmean(each["nll"]["value"] for each in own)
        row["Gaussian nll"] = fmean(each["gaussian_nll"] for each in own)
        for name in own[0]["classifier"]:
            row[f"{name}, accuracy"] = _mean([each["classifier"][name] for each in own], "accuracy")
        row["violations"] = max(each["violations"]["share"] for each in own)
        for kind, models in own[0]["anomalies"].items():
            for name in models:
                row[f"{name}, {kind}"] = fmean(each["anomalies"][kind][name] for each in own)
        if "target" in own[0]:
            row["target"] = own[0]["target"]["name"]
            for name in [name for name in own[0]["target"] if name != "name"]:
                row[f"{name}, target"] = _mean([each["target"][name] for each in own], "value")
        yield row


def _mean(figures: Sequence[Row], name: str) -> str | None:
    """Return the mean of a figure with its standard error as a text; None if one is missing."""
    if any(figure[name] is None for figure in figures):
        return None
    error = sum(figure["standard_error"] ** 2 for figure in figures) ** 0.5 / len(figures)
    return f"{fmean(figure[name] for figure in figures):.3f} ± {error:.3f}"


def finding_rows(content: Row) -> Iterator[Row]:
    """Yield the findings of an experiment, or its summary over the seeds if it has none."""
    for name, value in content["findings"].items():
        yield {"finding": name, "value": _spread(value) if isinstance(value, Mapping) else _digits(value)}
    for row in content["summary"] if not content["findings"] else ():
        loss, nfe = row["loss"]["mean"], row["nfe_forward"]["mean"]
        yield {"finding": f"{row['data']}, {row['model']}", "value": f"training loss {loss:.2g}, NFE {nfe:.0f}"}


def _digits(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _spread(value: Row) -> str:
    """Return mean and standard deviation over the seeds."""
    return _digits(value["mean"]) + ("" if value["sd"] is None else f" ± {value['sd']:.2g}")


def pair_rows(content: Row) -> Iterator[Row]:
    """Yield costs at 1e-7 of a density over those of another at equal NLL: a row a pair and penalty."""
    pattern = re.compile(
        r"(?P<data>.+), (?P<penalty>free|penalised): (?P<density>.+) / (?P<other>.+), nfe_sample_1e-07"
    )
    best = {(run["name"], run["seed"]): min(run["history"]["nll_test"]) for run in content["runs"]}
    for key, found in content["findings"].items():
        if match := pattern.fullmatch(key):
            row = match.groupdict()
            name, below = (f"{row[which]}, {row['penalty']}" for which in ("density", "other"))
            seeds = [seed for run, seed in best if run == name and (below, seed) in best]
            group = f"{row['data']}, {row['penalty']}"
            alone = {each: content["findings"].get(f"{group}: {row['density']}, {each}") for each in OF_DENSITIES}
            kind = "bound" if re.match(BOUNDS, name) else "exact"
            yield {
                **found,
                **row,
                **alone,
                "kind": "estimate: folds" if alone["folded mass"] else kind,
                "sampling": _ratio(found),
                **{
                    cost: _ratio(content["findings"].get(key.replace("nfe_sample", cost)))
                    for cost in ("nfe_log_prob", "work_log_prob", "seconds_sample", "seconds_log_prob")
                },
                "ahead": fmean(best[name, seed] - best[below, seed] for seed in seeds),
            }


def _ratio(found: Row | None) -> str | None:
    if found is None:
        return None
    interval = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
    return f"{found['ratio']:.2f}{interval}"


def part_rows(content: Row) -> Iterator[Row]:
    """Yield one row a part of a test of reliability, with its figures by name."""
    for part, figures in content["parts"].items():
        plain = [
            f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}"
            for name, value in _leaves(figures)
            if type(value) in (int, float)
        ]
        yield {**figures, "part": part, "figures": ", ".join(plain)}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the plain values in nested lists and dictionaries, with names."""
    if isinstance(value, list):
        value = {str(i): each for i, each in enumerate(value, 1)}
    if not isinstance(value, dict):
        yield name, value
        return
    for key, each in value.items():
        yield from _leaves(each, f"{name} {key}".strip().replace("_", " "))


ROWS: dict[str, Callable[[Row], Iterable[Row]]] = {
    "file": lambda content: [content],
    "rows": lambda content: content["rows"],
    "density": density_rows,
    "speed": speed_rows,
    "contest": contest_rows,
    "mixed": mixed_rows,
    "findings": finding_rows,
    "pairs": pair_rows,
    "parts": part_rows,
}
