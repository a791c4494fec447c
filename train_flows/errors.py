"""What ends a program: bad input is ``anode.InputError``; this is the rest."""


class TrainingError(RuntimeError):
    """Training that cannot go on; the run keeps its last checkpoint and best weights."""
