"""Where a training keeps its records and states."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Journal(Protocol):
    """A run folder, or memory."""

    def log(self, record: dict[str, Any]) -> None:
        """Keep one record."""

    def save_state(self, step: int, state: dict[str, Any]) -> None:
        """Keep the state of a step."""

    def load_state(self, device: torch.device | str) -> dict[str, Any] | None:
        """The newest state, or None before the first."""


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
