"""What can be wrong with the user's input, each kind with one clear line.

A message names the thing, the value, the rule and the next move. The command line prints it and exits with
code 2; anything else that escapes is a fault of ours (exit code 1).
"""


class AmcError(Exception):
    """The user's input cannot be used; the message says what to do."""


class BudgetError(AmcError):
    """A budget is malformed or cannot be reached."""


class ModelError(AmcError):
    """A model is unknown, cannot be traced, or its weights do not fit."""


class DataError(AmcError):
    """A data set is unknown, missing or unusable."""


class RunError(AmcError):
    """A run directory, journal or disk cannot be used."""


class EvaluationError(AmcError):
    """A network could not be scored."""


class ResourceError(AmcError):
    """The machine is out of memory or disk space; the work can be resumed once there is some."""


class NotFiniteError(EvaluationError):
    """A score, or the outputs that it is counted from, are NaN or infinite."""
