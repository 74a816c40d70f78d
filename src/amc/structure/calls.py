"""Names of the calls in a forward, by their place in the source: each is found again whatever branches a run takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from amc.structure.source import is_users

SIZED = frozenset({Tensor.reshape, torch.reshape, Tensor.view, Tensor.unflatten, torch.unflatten, Tensor.expand})
"""Functions that take sizes; a slice can bind these."""
MARK = "amc_call"  # of a traced operator: which call of the forward it is

Number = int | float
Calls = Mapping[str, Mapping[int, Number]]
"""By the name of a call, see `call_of`: numbers by their places among all its arguments, flat, from the end."""


def call_of(func: Callable[..., Any], frame: FrameType | None) -> str:
    """The name of the call of `func` that the user's innermost frame is at; "" without one.

    It consists of the user's function, the line and columns of the call, and the name of `func`. The line is counted
    from the function's first one: an edit elsewhere in the file does not rename the call.
    """
    while frame is not None and not _may_hold_a_forward(frame.f_code.co_filename):
        frame = frame.f_back
    return "" if frame is None else f"{_place(frame.f_code, frame.f_lasti)} {func.__name__}"


def _may_hold_a_forward(file: str) -> bool:
    """Whether a file is the user's, or a cell of a notebook; the code of traced graphs is neither."""
    return is_users(file) or (file.startswith("<") and not file.startswith("<eval_with_key"))


_places: dict[tuple[int, int], tuple[CodeType, str]] = {}  # by id, as the hash of code is slow; held, so that ids stay


def _place(code: CodeType, instruction: int) -> str:
    known = _places.get((id(code), instruction))
    if known is None:
        line, _, *columns = [*code.co_positions()][instruction // 2]
        both = "-".join(map(str, columns))  # calls in a chain begin together; the operands of a sum end with it
        known = code, f"{code.co_qualname}+{(line or 0) - code.co_firstlineno}:{both}"
        _places[id(code), instruction] = known
    return known[1]
