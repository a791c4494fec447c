"""What can go wrong, in words: input the caller can mend, and solves that could not be finished."""

from __future__ import annotations

from typing import Any

LONGEST = 2000  # characters of a message


class InputError(ValueError):
    """A value from outside that cannot be used; the message names the argument, the value and the remedy.

    It is one line, whatever came from outside to be quoted in it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


class CheckpointError(InputError):
    """A stored model or run that cannot be used: damaged, cut short, altered, or of something else."""


def _one_line(message: str) -> str:
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 4 :]}"


_REMEDIES = {
    "step underflow": "the dynamics are too stiff there; loosen rtol and atol, use float64, or regularise",
    "non-finite state": "the dynamics blow up; lower the learning rate, clip gradients, or check the input",
    "too many steps": "loosen rtol and atol, raise max_steps, or regularise",
}


class SolverError(RuntimeError):
    """An ODE solve that could not reach its end time.

    Attributes:
        cause: ``"step underflow"``, ``"non-finite state"`` or ``"too many steps"``.
        time: the time reached.
        evaluations: evaluations of the right-hand side spent until then.
        solver: the numerics.
    """

    def __init__(self, cause: str, time: float, evaluations: int, solver: object) -> None:
        self.cause = cause
        self.time = time
        self.evaluations = evaluations
        self.solver = solver
        super().__init__(f"{cause} at t = {time:.6g} after {evaluations} evaluations with {solver}: {_REMEDIES[cause]}")

    def __reduce__(self) -> tuple[type[SolverError], tuple[Any, ...]]:
        """What makes it again in another process."""
        return SolverError, (self.cause, self.time, self.evaluations, self.solver)
