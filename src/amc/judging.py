"""One rule for the result of a user's function: a number, a failed policy, or the end of the job.

`evaluate`, a reward and a score of policies are user code. If one raises an Exception or does not return a number, only
the current policy fails: with an EvaluationError of one printable line. If memory or disk space runs out, the policy is
not at fault: a ResourceError ends the job. KeyboardInterrupt and SystemExit pass through. Pure: no torch, no files.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsFloat, TypeAlias, TypeVar

from amc.errors import EvaluationError, NotFiniteError, ResourceError
from amc.statistics import Measured

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

# Higher is better; a `Measured` where the standard error is known.
Evaluate: TypeAlias = "Callable[[nn.Module], float]"  # network -> score
Score: TypeAlias = Callable[[tuple[int, ...]], float]  # policy, as keep counts in the decisions' order -> score

LARGEST = 1e15  # absolute value of a score or reward: the agent squares rewards in float32, which ends at 3e38
LINE = 300  # largest length of a reason, characters
_MEMORY = re.compile(  # torch's messages in a plain RuntimeError
    r"DefaultCPUAllocator: (can't allocate memory|not enough memory)|"
    r"\b(CUDA|HIP|MPS|XPU)\b.{0,40}\bout of memory\b|CUBLAS_STATUS_ALLOC_FAILED"
)


@dataclass(frozen=True, slots=True)
class Wording:
    """The messages that refuse a value. `{value}` and `{type}` are those of the refused value."""

    not_a_number: str
    not_finite: str
    too_large: str


SCORE = Wording(
    "the score is {value}, not a number", "the score is {value}, it must be finite",
    f"the score is {{value}}, it must lie within ±{LARGEST:g}",
)  # fmt: skip
REWARD = Wording(*(text.replace("score", "reward") for text in (SCORE.not_a_number, SCORE.not_finite, SCORE.too_large)))
EVALUATE = Wording(
    "evaluate returned a {type}; it must return a number",
    "evaluate returned {value}; it must return a finite number, higher for better",
    f"evaluate returned {{value}}; it must return a number within ±{LARGEST:g}",
)


def guarded(call: Callable[[], T]) -> T:
    """The result of `call`. Raises EvaluationError with the reason if `call` raises, or ResourceError (see above)."""
    try:
        return call()
    except ResourceError:
        raise
    except Exception as error:  # a user's function may raise anything
        check_resources(error)
        raise EvaluationError(reason_of(error)) from error


def number_of(value: object, wording: Wording) -> float:
    """A score or a reward as a float: finite and within ±`LARGEST`. Raises EvaluationError for anything else.

    Numbers of other libraries and arrays or tensors of one element are numbers; booleans and text are not.
    """
    try:
        item = getattr(value, "item", None)
        plain = item() if callable(item) else value
        if isinstance(plain, bool | str | bytes) or not isinstance(plain, SupportsFloat):
            raise TypeError
        number = float(plain)
    except OverflowError:
        raise EvaluationError(wording.too_large.format(value=shown(value))) from None
    except Exception as error:  # an array of several numbers, or an error in the value's own methods
        check_resources(error)
        raise EvaluationError(
            wording.not_a_number.format(value=shown(value), type=one_line(type(value).__name__))
        ) from None
    if not math.isfinite(number):
        raise NotFiniteError(wording.not_finite.format(value=number))
    if abs(number) > LARGEST:
        raise EvaluationError(wording.too_large.format(value=f"{number:g}"))
    return number


def score_of_policy(value: object) -> tuple[float, float | None]:
    """A score and its standard error (None if unknown). Raises EvaluationError if `value` is not a score."""
    return number_of(value, SCORE), value.standard_error if isinstance(value, Measured) else None


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


def one_line(text: str) -> str:
    """The first non-empty line of `text`, at most `LINE` characters; unprintable characters are escaped."""
    lines = (line.strip() for line in text[: 10 * LINE].splitlines())
    line = next(filter(None, lines), "")
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    return plain if len(plain) <= LINE else plain[: LINE - 1] + "…"


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
