"""Training runs: the loop, one step, the run folder, several processes."""


class TrainingError(RuntimeError):
    """Training cannot continue; the run keeps its last state and its best weights.

    Attributes:
        solving: True if an ODE solve failed, for example because it needed too many steps.
    """

    def __init__(self, message: str, solving: bool = False) -> None:
        super().__init__(message)
        self.solving = solving
