"""One rule for what a user's function raises or returns: a number, a failed policy, or the end of the job.

`evaluate`, a reward and a score of policies are code of the user's own. Whatever they raise (any Exception) or return
instead of a number becomes an EvaluationError of one printable line, and costs no more than the policy it was about.
A machine that is out of memory or disk space says nothing about a policy: that is a ResourceError, which ends the job.
KeyboardInterrupt and SystemExit pass through. Pure: no torch, no files.
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

LARGEST = 1e15  # of a score or a reward: the agent squares rewards in 32 bits, which end at 3e38
LINE = 300  # characters of a reason
_MEMORY = re.compile(  # what torch says in a plain RuntimeError
    r"DefaultCPUAllocator: (can't allocate memory|not enough memory)|"
    r"\b(CUDA|HIP|MPS|XPU)\b.{0,40}\bout of memory\b|CUBLAS_STATUS_ALLOC_FAILED"
)


@dataclass(frozen=True, slots=True)
class Wording:
    """How a value that is no score is refused; `{value}` and `{type}` stand for what came."""

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
    """What `call` returns. Raises EvaluationError with the reason for whatever it raises, ResourceError as above."""
    try:
        return call()
    except ResourceError:
        raise
    except Exception as error:  # a user's function may raise anything
        check_resources(error)
        raise EvaluationError(reason_of(error)) from error


def number_of(value: object, wording: Wording) -> float:
    """A score or a reward as a float: finite and within ±`LARGEST`. Raises EvaluationError for anything else.

    Numbers of other libraries, and arrays and tensors of one element, count as numbers; truth values and text do not.
    """
    try:
        item = getattr(value, "item", None)
        plain = item() if callable(item) else value
        if isinstance(plain, bool | str | bytes) or not isinstance(plain, SupportsFloat):
            raise TypeError
        number = float(plain)
    except OverflowError:
        raise EvaluationError(wording.too_large.format(value=shown(value))) from None
    except Exception as error:  # an array of several numbers, or the value's own methods
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
    """A score and its standard error, None where it is not known. Raises EvaluationError for what is no score."""
    return number_of(value, SCORE), value.standard_error if isinstance(value, Measured) else None


def check_resources(error: BaseException, doing: str = "") -> None:
    """Raise ResourceError if `error`, its causes or the members of its group mean a machine that is out of something.

    Such an error must not count as the fault of a policy, which it would be for ever. `doing`: said after it.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        what = _exhausted(found)
        if what:
            raise ResourceError(f"the machine is out of {what} ({_described(found)}){doing}") from error
        waiting.append(found.__cause__)
        if isinstance(found, BaseExceptionGroup):
            waiting += found.exceptions


def reason_of(error: BaseException) -> str:
    """Why a policy failed, as one line: the kind of the error and what it says, or our own message alone."""
    said = _message(error)
    return said if isinstance(error, EvaluationError) and said else _described(error)


def message_of(error: BaseException) -> str:
    """What the error says, as one line; its kind where it says nothing."""
    return _message(error) or type(error).__name__


def one_line(text: str) -> str:
    """The first line of `text` that says something, with nothing that a terminal or a file could not take."""
    lines = (line.strip() for line in text[: 10 * LINE].splitlines())
    line = next(filter(None, lines), "")
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    return plain if len(plain) <= LINE else plain[: LINE - 1] + "…"


def shown(value: object) -> str:
    """`repr` in one line; the type where that fails."""
    try:
        return one_line(" ".join(repr(value).split()))
    except Exception:
        return f"a {one_line(type(value).__name__)}"


def _exhausted(error: BaseException) -> str:
    """What the machine is out of, "" for any other error."""
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return "memory"
    if isinstance(error, OSError):
        return {errno.ENOSPC: "disk space", errno.EDQUOT: "disk space (quota)", errno.ENOMEM: "memory"}.get(
            error.errno or 0, ""
        )
    return "memory" if isinstance(error, RuntimeError) and _MEMORY.search(_text(error)) else ""


def _described(error: BaseException) -> str:
    said = _message(error)
    return one_line(f"{type(error).__name__}: {said}" if said else type(error).__name__)


def _message(error: BaseException) -> str:
    return one_line(_text(error))


def _text(error: BaseException) -> str:
    """What the error says; nothing where its own method fails."""
    try:
        return str(error)
    except Exception:
        return ""
