"""Where a training keeps its records and states."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from train_flows.checkpoint import Run


class Journal(Protocol):
    """A run folder, or memory."""

    def log(self, record: dict[str, Any]) -> None:
        """Keep one record."""

    def save_state(self, step: int, state: dict[str, Any]) -> None:
        """Keep the state of a step."""

    def load_state(self, device: torch.device | str) -> dict[str, Any] | None:
        """The newest state, or None before the first."""


class ReadOnly:
    """A journal that another process keeps: states are read from it, and nothing is written.

    Args:
        journal: the other's.
    """

    def __init__(self, journal: Run) -> None:
        self.journal = journal

    def log(self, record: dict[str, Any]) -> None:
        """Do nothing."""

    def save_state(self, step: int, state: dict[str, Any]) -> None:
        """Do nothing."""

    def load_state(self, device: torch.device | str) -> dict[str, Any] | None:
        """The newest state, or None before the first."""
        return self.journal.read_state(device)


class Memory:
    """A journal that keeps records in memory, and no state."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def log(self, record: dict[str, Any]) -> None:
        """Keep one record."""
        self.records.append(record)

    def save_state(self, step: int, state: dict[str, Any]) -> None:
        """Do nothing."""

    def load_state(self, device: torch.device | str) -> None:
        """Start anew."""
