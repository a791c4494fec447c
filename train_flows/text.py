"""Figures as lines to read."""

from collections.abc import Sequence


def lines_of(rows: list[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    return "\n".join(f"{name:<18} {value}" for name, value in rows)


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of as many cells each, every column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)
