"""A run's records for TensorBoard, too."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from anode import InputError
from train_flows.checkpoint import TENSORBOARD, Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def check_installed() -> None:
    """Raise an :class:`~anode.InputError` where TensorBoard is not installed."""
    _writer_class()


class WithTensorBoard:
    """A journal: a run folder whose records also go to TensorBoard's event files, in ``RUN/tensorboard/``.

    They are written out before the state of their step is, so that none is missing after a stop. Those made after the
    state that training goes on from stay in the files, but TensorBoard no longer shows them.

    Args:
        run: the folder.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._writer: SummaryWriter | None = None  # from the first use on

    def __enter__(self) -> WithTensorBoard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def log(self, record: dict[str, Any]) -> None:
        """Keep one record; its figures are scalars of the same names."""
        self.run.log(record)
        writer = self._writer or self._open(record["step"])
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, record["step"])

    def save_state(self, step: int, state: dict[str, Any]) -> None:
        """Keep the state of a step."""
        if self._writer is not None:
            self._writer.flush()
        self.run.save_state(step, state)

    def load_state(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The newest state, or None before the first."""
        state = self.run.load_state(device)
        self._open(0 if state is None else state["step"] + 1)
        return state

    def _open(self, first: int) -> SummaryWriter:
        """Write from a step on; what there is of it and later ones is taken back."""
        self._writer = _writer_class()(str(self.run.folder / TENSORBOARD), purge_step=first)
        return self._writer


def _writer_class() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "--tensorboard needs tensorboard: python -m pip install 'augmented-flows[tensorboard]'"
        ) from error
    return SummaryWriter
