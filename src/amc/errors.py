"""What can be wrong with the user's input, each kind with one clear line, and what any error says in one line.

A message names the thing, the value, the rule and the next move. The command line prints it and exits with
code 2; anything else that escapes is a fault of ours (exit code 1).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

LINE = 300  # largest length of a reason, characters
BRIEF = 120  # of a `repr`
_MEMORY = re.compile(  # torch's messages in a plain RuntimeError
    r"DefaultCPUAllocator: (can't allocate memory|not enough memory)|"
    r"\b(CUDA|HIP|MPS|XPU)\b.{0,40}\bout of memory\b|CUBLAS_STATUS_ALLOC_FAILED"
)


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


@contextmanager
def explained(
    kind: type[AmcError], what: str, remedy: str = "", *, doing: str = "", passing: type[AmcError] = AmcError
) -> Iterator[None]:
    """Raise any error of the block, in which the user's code runs, as one clear line: "`what` (its reason); `remedy`".

    Errors of the kind `passing` pass: they are clear by themselves. Raises ResourceError if memory or disk space ran
    out; `doing` is the end of its message.
    """
    try:
        yield
    except (ResourceError, passing):
        raise
    except Exception as error:  # the user's code may raise anything
        check_resources(error, doing)
        raise kind(f"{what} ({reason_of(error)}){remedy and '; '}{remedy}") from error


def guarded(call: Callable[[], T]) -> T:
    """The result of `call`. Raises EvaluationError with the reason if `call` raises, or ResourceError."""
    try:
        return call()
    except ResourceError:
        raise
    except Exception as error:  # a user's function may raise anything
        check_resources(error)
        raise EvaluationError(reason_of(error)) from error


def check_resources(error: BaseException, doing: str = "") -> None:
    """Raise ResourceError if `error`, one of its causes or a member of its group says that memory or disk ran out.

    Otherwise the journal would record the policy as failed for ever. `doing` is the end of the message.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        resource = _exhausted(current)
        if resource:
            raise ResourceError(f"the machine is out of {resource} ({_described(current)}){doing}") from error
        waiting.append(current.__cause__)
        if isinstance(current, BaseExceptionGroup):
            waiting += current.exceptions


def reason_of(error: BaseException) -> str:
    """Why a policy failed, as one line: the error's type and message. An EvaluationError gives its message only."""
    message = _message(error)
    return message if isinstance(error, EvaluationError) and message else _described(error)


def message_of(error: BaseException) -> str:
    """The error's message as one line, or its type if it has no message."""
    return _message(error) or type(error).__name__


def one_line(text: str, length: int = LINE) -> str:
    """The first non-empty line of `text`, at most `length` characters; unprintable characters are escaped."""
    lines = (line.strip() for line in text[: 10 * LINE].splitlines())
    line = next(filter(None, lines), "")
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    return plain if len(plain) <= length else plain[: length - 1] + "…"


def brief(text: str) -> str:
    """`text` as one line of at most `BRIEF` characters, for the `repr` of a result."""
    return one_line(text, BRIEF)


def shown(value: object) -> str:
    """`repr` as one line, or the type if `repr` fails."""
    try:
        return one_line(" ".join(repr(value).split()))
    except Exception:
        return f"a {one_line(type(value).__name__)}"


def _exhausted(error: BaseException) -> str:
    """The resource that ran out; "" for any other error."""
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return "memory"
    if isinstance(error, OSError):
        return {errno.ENOSPC: "disk space", errno.EDQUOT: "disk space (quota)", errno.ENOMEM: "memory"}.get(
            error.errno or 0, ""
        )
    return "memory" if isinstance(error, RuntimeError) and _MEMORY.search(_text(error)) else ""


def _described(error: BaseException) -> str:
    message = _message(error)
    return one_line(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def _message(error: BaseException) -> str:
    return one_line(_text(error))


def _text(error: BaseException) -> str:
    """The error's message; empty if its own `__str__` fails."""
    try:
        return str(error)
    except Exception:
        return ""
