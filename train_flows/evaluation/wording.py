"""Measured figures in words: each with its kind and how it was computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cnf import Density
from train_flows.data.dataset import abbreviate
from train_flows.evaluation.folds import FOLDED
from train_flows.evaluation.likelihood import kind_of
from train_flows.evaluation.pruning import find_prune

MANY_COLUMNS = 12  # of which those that differ most are listed
MIXED_GAUSSIAN = "frequencies of categories, and one Gaussian of the numbers on their scales"


def likelihood_table(figures: dict[str, Any]) -> str:
    """Return measured figures as lines to read."""
    names = {
        "NLL": "nll",
        "NLL, one draw": "nll_one_draw",
        "NLL, tighter": "nll_tighter",
        "NLL, bfloat16": "nll_bfloat16",
    }
    rows = [
        (name, "the solve failed" if figures[key] is None else describe(figures[key]))
        for name, key in names.items()
        if key in figures and (figures[key] or figures["nll"]["tolerance"])
    ]
    if "grid" in figures:
        count, bound = len(figures["grid"]["steps"]), figures["grid"]["nll_bound"]
        what = f"NLL less log step of {count} column{'' if count == 1 else 's'} on a grid"
        rows.append(("NLL, recorded", f"at most {bound:.4f} nats ({what})"))
    if "certificate" in figures:
        gap = figures["certificate"]
        value = f"{gap['gap_mean']:.2g} +- {gap['gap_error']:.1g} nats, at most {gap['gap_max']:.2g}"
        rows.append(("components left", f"{value} (below the sum of all, {gap['rows']} random samples)"))
    if folds := figures.get("folds"):
        rows.append(("least determinant", describe_folds(folds)))
    relative = figures["inverse_error_standardized"]
    deviations = "" if relative is None else f" ({relative:.2e} standard deviations)"
    error = figures["inverse_error"]
    rows += [
        ("inverse error", "the inverse is not found" if error is None else f"{error:.2e}{deviations}"),
        ("NFE of log_prob", f"{figures['nfe_log_prob']:.0f}{_work(figures['nll'])}"),
        ("NFE of sampling", "-" if figures["nfe_sample"] is None else f"{figures['nfe_sample']}"),
    ]
    return lines(rows)


def _work(figure: dict[str, Any]) -> str:
    work = figure["evaluations_per_sample"]
    return "" if figure["prune"] is None else f", a look at all likely components included; {work:.0f} a sample"


def describe_folds(folds: dict[str, float]) -> str:
    """Return the least determinants of residual steps in words, and what they mean for the NLL."""
    least = (
        f"{folds['least_data']:.2g} at data, {folds['least_samples']:.2g} at samples, {folds['least_wide']:.2g} far off"
    )
    if not folds["mass"]:
        return least
    shares = (
        f"{folds['negative_samples']:.2%} of the samples are on a fold, {folds['returned']:.2%} of the data beside one"
    )
    return f"{least}; {shares}, so that the NLL is too low by about {math.log1p(folds['mass']):.2g} nats"


def gaussian_row(figures: dict[str, Any]) -> str:
    """Return the figures of :func:`~train_flows.evaluation.likelihood.gaussian_figures` as lines to read.

    Real numbers alone are measured in standard deviations, a unit in which tables of any units compare.
    """
    nll, gaussian = figures["nll"], figures["gaussian_nll"]
    if "heavy_tailed" not in figures:
        return lines([("NLL, Gaussian", f"{gaussian:.4f} nats ({MIXED_GAUSSIAN})")])
    standardized = nll["value_standardized"] - nll["value"]
    other = "its covariance is singular" if gaussian is None else f"{gaussian + standardized:.4f}"
    rows = [("NLL, standardized", f"{nll['value_standardized']:.4f} nats (full-covariance Gaussian: {other})")]
    if heavy := figures["heavy_tailed"]:
        rows.append(("", f"misleading: a few rows set the standard deviation of {abbreviate(heavy)}"))
    return lines(rows)


def describe(figure: dict[str, Any]) -> str:
    """Return a likelihood in words: value, standard error, kind and how it was computed."""
    value = f"{figure['value']:.4f} +- {figure['standard_error']:.4f} nats"
    if figure["bits_per_dim"] is not None:
        value += f", {figure['bits_per_dim']:.4f} +- {figure['bits_per_dim_standard_error']:.4f} bits/dim"
    return f"{value} ({how(figure)})"


def validated_as(model: Density) -> str:
    """Return what the figure of :func:`validation_nll` is, in words."""
    figure = kind_of(model, 1, find_prune(model))
    if model.stochastic and figure["kind"] == "exact":  # by the sum over components, of which one is drawn here
        figure |= {"kind": "bound", "samples": 1}
    return f"validation NLL in nats ({how(figure)})"


def how(figure: dict[str, Any]) -> str:
    """Return the kind of a likelihood with draws, components left out, probes and tolerance, in words."""
    left_out = [] if figure["prune"] is None else [f"components below {figure['prune']:g} left out"]
    tolerance = figure["tolerance"]
    numerics = [f"rtol {tolerance['rtol']:g}, atol {tolerance['atol']:g}"] if tolerance else []
    return ", ".join([_kind(figure), *left_out, *numerics])


def _kind(figure: dict[str, Any]) -> str:
    probes = f"{figure['probes']} probe{'' if figure['probes'] == 1 else 's'}"
    if figure["kind"] == FOLDED:
        return "not exact: the steps fold"
    if figure["kind"] != "bound":
        return "exact" if figure["kind"] == "exact" else f"unbiased estimate, {probes}"
    if figure["samples"] is None:
        return "upper bound"
    if figure["samples"] > 1:
        return f"upper bound, {figure['samples']} importance samples"
    noise = {"uniform": " of uniform dequantisation as in FFJORD", "learned": " of learned dequantisation", None: ""}
    draw = f"one draw{noise[figure['dequantisation']]}" + (" and of augmented variables" if figure["augmented"] else "")
    return f"upper bound, {draw}" if figure["probes"] is None else f"estimated upper bound, {draw}, {probes}"


def lines(rows: Sequence[tuple[str, str]]) -> str:
    """Return names and values in two columns.

    >>> print(lines([("NLL", "2.4 nats"), ("NFE", "32")]))
    NLL                2.4 nats
    NFE                32
    """
    return "\n".join(f"{name:<18} {value}" for name, value in rows)


def run_lines(seconds: float, folder: Path, pictures: Iterable[Path]) -> str:
    """Return the last lines about a run: its time, its folder and its pictures."""
    shown = ", ".join(map(str, pictures))
    return lines([("seconds", f"{seconds:.0f}"), ("run", str(folder)), ("pictures", shown)])


def accuracy_table(measured: dict[str, Any]) -> str:
    """Return measured figures as lines to read, with those of training if they are given."""
    tolerance, regression = measured["tolerance"], "rmse" in measured
    how = f", rtol {tolerance['rtol']:g}, atol {tolerance['atol']:g}" if tolerance else ""
    tested = f"({measured['samples']} samples{how})"
    if regression:
        mean = f"RMSE of the mean {measured['rmse_of_mean']:.4g}"
        value = f"{measured['rmse']:.4g} +- {measured['standard_error']:.3g}"
        rows = [("RMSE", f"{value} {tested}; {mean}"), ("R^2", f"{measured['r2']:.4f}")]
    else:
        rows = [("accuracy", f"{measured['accuracy']:.4f} +- {measured['standard_error']:.4f} {tested}")]
        rows += [("without samples", abbreviate(measured["untested"]))] if measured["untested"] else []
    rows.append(("loss", f"{measured['loss']:.4g} ({measured['loss_kind']})"))

    def figure(found: dict[str, Any], part: str = "") -> str:
        return f"RMSE {found[f'{part}rmse']:.4g}" if regression else f"accuracy {found[f'{part}accuracy']:.4f}"

    if measured["nfe"]:
        backward = f", {measured['nfe_backward']:.0f} backward in training" if measured.get("nfe_backward") else ""
        rows.append(("NFE", f"{measured['nfe']:.0f}{backward}"))
    if "train_loss" in measured:
        rows.append(("training", f"{figure(measured, 'train_')}, loss {measured['train_loss']:.4g}"))
    if tolerance:
        found, said = measured["tighter"], "the solve failed"
        if found is not None:
            share = f"{found['changed']:.2%} of the {'standard deviation' if regression else 'classes'}"
            change = f"predictions change by {share}" if regression else f"{share} change"
            numerics = f"NFE {found['nfe']:.0f} (rtol {found['rtol']:g}, atol {found['atol']:g})"
            said = f"{figure(found)}, loss {found['loss']:.4g}, {numerics}; {change}"
        rows.append(("tighter", said))
    return lines(rows)


def density_table(measured: dict[str, Any]) -> str:
    """Return the figures of :func:`measure_density` as lines to read."""
    value = f"{measured['accuracy']:.4f} +- {measured['standard_error']:.4f}"
    by = f"{measured['tested']} samples, by the NLL given each of {measured['classes']} classes"
    return lines([("accuracy", f"{value} ({by}: {how(measured)})")])


def quality_table(measured: dict[str, Any]) -> str:
    """Return the figures of :func:`judge` as lines to read; of many columns, those that differ most."""
    columns = sorted(measured["columns"], key=_excess, reverse=True)[:MANY_COLUMNS]
    listed = columns if len(columns) < len(measured["columns"]) else measured["columns"]
    width = max(18, *(len(abbreviate([column["name"]])) for column in listed))
    table = [f"{'column':<{width}} distance  by chance  missing  by chance"]
    for column in listed:
        cells = [
            " " * 18
            if column["distance"] is None
            else f"{column['measure']} {column['distance']:.3f}"
            f"{column['chance']:11.3f}{'*' if column['distance'] > column['chance'] else ' '}"
        ]
        if column["missing"] or column["missing_chance"]:
            cells.append(f" {column['missing']:.3f}{column['missing_chance']:11.3f}")
            cells.append("*" if column["missing"] > column["missing_chance"] else "")
        table.append(f"{abbreviate([column['name']]):<{width}} {' '.join(cells[:2])}{''.join(cells[2:])}".rstrip())
    if len(columns) < len(measured["columns"]):
        table.append(f"({len(columns)} of {len(measured['columns'])} columns, those that differ most)")
    violated = measured["violations"]
    rows = [("classifier", _classifier(measured["classifier"], measured["classifier_train"]))]
    where = f" ({abbreviate(list(violated['columns']))})" if violated["columns"] else ""
    rows.append(("out of bounds", f"{violated['share']:.2%} of {measured['samples']:,} samples{where}"))
    if privacy := measured["privacy"]:
        copies = f"{privacy['duplicates']:.2%} of the samples, {privacy['test_duplicates']:.2%} of the test rows"
        rows.append(("in training rows", copies))
        if (ratio := privacy["distance_ratio"]) is not None:
            rows.append(
                ("nearest one", f"{ratio:.2f} times as far from samples as from test rows (1 is perfect, 0 a copy)")
            )
    if ranked := measured.get("coverage"):
        worst = max(ranked, key=lambda column: column["ks"] / column["chance"])
        which = worst["name"] if len(ranked) == 1 else f"{worst['name']}, the worst of {len(ranked)} columns"
        rows.append(("coverage", f"{describe_coverage(worst)}; {which}"))
    return "\n".join([*table, lines(rows)])


def describe_coverage(found: dict[str, Any]) -> str:
    """Return the figures of :func:`coverage` in words, against the levels that are right."""
    if not found["values"]:
        return "- (no values)"
    within = ", ".join(
        f"{one['share']:.1%} +- {one['standard_error']:.1%} in central {level}"
        for level, one in found["within"].items()
    )
    return f"{within}; KS {found['ks']:.3f} (by chance {found['chance']:.3f}, {found['values']:,} values)"


def scores_table(figures: dict[str, Any]) -> str:
    """Return the figures of ``train-flows score`` as lines to read, with the oddest rows."""
    nll, below = figures["nll"], figures["below_1_percent"]
    compared = figures["compared"]
    median = f"median {figures['median_percentile']:.0f} among {compared['rows']:,} {compared['of']}"
    rows = [
        ("NLL", f"{nll['value']:.4f} nats ({how(nll)})"),
        ("percentile", f"{median}; {below:.1%} of the rows below 1"),
    ]
    table = [f"{'oddest rows':<12} percentile  log-density  most surprising column, and gain by a typical cell"]
    table += [
        f"{odd['row']:<12,} {odd['percentile']:10.2f} {odd['log_density']:12.2f}  "
        f"{abbreviate([odd['column']])} = {odd['cell'] or 'missing'}, {round(odd['gain'], 1) + 0.0:.1f} nats"
        for odd in figures["oddest"]
    ]
    return "\n".join([lines(rows), *table])


def effective_samples(effective: Sequence[float], rows: Sequence[int], proposals: int, few: float) -> str:
    """Return the effective sample sizes of completed rows in words, with the numbers of the rows below ``few``."""
    mean, least = sum(effective) / len(effective), min(effective)
    said = [lines([("effective samples", f"mean {mean:.0f}, smallest {least:.1f}, of {proposals} proposals a row")])]
    if poor := [str(row) for row, size in zip(rows, effective, strict=True) if size < few]:
        what = f"note: below {few:g} for {len(poor)} rows, whose completions repeat and may be far off: "
        said.append(what + abbreviate(poor))
    return "\n".join(said)


def _excess(column: dict[str, Any]) -> float:
    """Return the larger of the distances of a column over what is exceeded by chance."""
    pairs = ((column["distance"], column["chance"]), (column["missing"], column["missing_chance"]))
    return max(value / max(chance, 1e-12) for value, chance in pairs if value is not None)


def _classifier(of_samples: dict[str, Any], of_train: dict[str, Any] | None) -> str:
    if of_samples["accuracy"] is None:
        return f"- ({of_samples['rows']} rows are too few)"
    value = f"accuracy {of_samples['accuracy']:.3f} +- {of_samples['standard_error']:.3f}"
    perfect = "0.5 is perfect"
    if of_train and of_train["accuracy"] is not None:
        perfect += f"; training rows: {of_train['accuracy']:.3f}"
    return f"{value} telling samples from {of_samples['rows']:,} test rows ({perfect})"
