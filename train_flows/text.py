"""Figures as lines to read."""


def lines_of(rows: list[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    return "\n".join(f"{name:<18} {value}" for name, value in rows)
