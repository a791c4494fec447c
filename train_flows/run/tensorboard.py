"""Records of a run as TensorBoard event files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from anode import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class EventWriter:
    """Writes the figures of records as scalars of the same names.

    Args:
        folder: of the event files.

    Raises:
        InputError: if TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._class = summary_writer()
        self._writer: SummaryWriter | None = None

    def start(self, step: int) -> None:
        """Begin a new event file. TensorBoard hides the events of this step and later ones in older files."""
        self._writer = self._class(str(self.folder), purge_step=step)

    def log(self, record: dict[str, Any]) -> None:
        """Write one record."""
        if self._writer is None:
            self.start(record["step"])
        for name, value in record.items():
            if name != "step" and self._writer is not None:
                self._writer.add_scalar(name, value, record["step"])

    def flush(self) -> None:
        """Write all events to the disk."""
        if self._writer is not None:
            self._writer.flush()


def summary_writer() -> type[SummaryWriter]:
    """Return torch's writer of event files, which needs TensorBoard.

    Raises:
        InputError: if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        remedy = "python -m pip install 'augmented-flows[tensorboard]'"
        raise InputError(f"--tensorboard needs tensorboard: {remedy}") from error
    return SummaryWriter
