"""Figures of likelihoods in words: what kind they are, and how they were computed."""

from __future__ import annotations

from typing import Any

from train_flows.text import lines_of


def table(report: dict[str, Any]) -> str:
    """A report as lines to read."""
    relative = report["inverse_error_standardized"]
    likelihoods = {
        "NLL": "nll",
        "NLL, one draw": "nll_one_draw",
        "NLL, tighter": "nll_tighter",
        "NLL, bfloat16": "nll_bfloat16",
    }
    deviations = "" if relative is None else f" ({relative:.2e} standard deviations)"
    lines = [
        *(
            (name, "the solve failed" if report[figure] is None else describe(report[figure]))
            for name, figure in likelihoods.items()
            if figure in report
        ),
        ("inverse error", f"{report['inverse_error']:.2e}{deviations}"),
        ("NFE of log_prob", f"{report['nfe_log_prob']:.0f}"),
        ("NFE of sampling", f"{report['nfe_sample']}"),
    ]
    return lines_of(lines)


def describe(figure: dict[str, Any]) -> str:
    """A likelihood in words: value, standard error, kind and how it was computed."""
    value = f"{figure['value']:.4f} +- {figure['standard_error']:.4f} nats"
    if figure["bits_per_dim"] is not None:
        value += f", {figure['bits_per_dim']:.4f} +- {figure['bits_per_dim_standard_error']:.4f} bits/dim"
    return f"{value} ({how(figure)})"


def how(figure: dict[str, Any]) -> str:
    """The kind of NLL behind a figure, and how it was computed, in words."""
    return f"{_kind(figure)}, rtol {figure['tolerance']['rtol']:g}, atol {figure['tolerance']['atol']:g}"


def _kind(figure: dict[str, Any]) -> str:
    """What kind of figure a likelihood is, and of how many draws and probes."""
    probes = f"{figure['probes']} probe(s)"
    if figure["kind"] != "bound":
        return "exact" if figure["kind"] == "exact" else f"unbiased estimate, {probes}"
    if figure["samples"] > 1:
        return f"upper bound, {figure['samples']} importance sample(s)"
    draw = {
        "uniform": "one draw of uniform dequantisation as in FFJORD",
        "learned": "one draw of learned dequantisation",
        None: "one draw",
    }[figure["dequantisation"]]
    draw += " and of augmented variables" if figure["augmented"] else ""
    return f"upper bound, {draw}" if figure["probes"] is None else f"estimated upper bound, {draw}, {probes}"
