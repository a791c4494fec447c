"""What ends a program: bad input is ``anode.InputError``; this is the rest."""


class TrainingError(RuntimeError):
    """Training that cannot go on; the run keeps its last checkpoint and best weights.

    Attributes:
        solving: whether a solve failed, such as one that would take too many steps.
    """

    def __init__(self, message: str, solving: bool = False) -> None:
        super().__init__(message)
        self.solving = solving
