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
        folder: folder of the event files.
        first_step: TensorBoard hides the events of this step and later ones in older files.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer = summary_writer()(str(folder), purge_step=first_step)

    def log(self, record: dict[str, Any]) -> None:
        """Write one record to the disk."""
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()


def summary_writer() -> type[SummaryWriter]:
    """Return torch's writer of event files; raise an InputError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        remedy = "python -m pip install 'augmented-flows[tensorboard]'"
        raise InputError(f"--tensorboard needs tensorboard: {remedy}") from error
    return SummaryWriter
