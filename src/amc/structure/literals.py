"""Sizes that a forward reads from integer attributes, such as `self.num_heads` in a reshape.

While the model is traced its integer attributes are stood in for by integers that remember where they come
from, and a function mode notes which of them reach which line. So a slice can bring exactly those attributes
in line, without guessing by name or value.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from amc.structure.source import is_users, line_of_frame


@dataclass(frozen=True, slots=True)
class Literal:
    """A number in a call that is an attribute of a module, or a multiple or fraction of one."""

    module: str
    name: str
    value: int  # of the attribute
    size: int  # as the call was given it
    place: int  # among the numbers of the call, from the end: -1 is the last
    line: str  # `file.py:12`, the user's


class AttributeInt(int):
    """An integer that remembers which attribute it is; its multiples and fractions remember, too."""

    origin: tuple[str, str, int]

    @classmethod
    def of(cls, size: int, origin: tuple[str, str, int]) -> AttributeInt:
        """`origin` is the module's path, the attribute's name and its value."""
        made = cls(size)
        made.origin = origin
        return made

    def __mul__(self, other: Any) -> Any:
        product = int(self) * other
        # Of a product of two attributes either could be meant: one that shrinks is also read by itself.
        known = type(product) is int and not isinstance(other, AttributeInt)
        return AttributeInt.of(product, self.origin) if known else product

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        quotient = int(self) // (int(other) if isinstance(other, int) else other)
        exact = type(quotient) is int and quotient * other == int(self)
        return AttributeInt.of(quotient, self.origin) if exact else quotient

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


@contextlib.contextmanager
def watching_(model: nn.Module) -> Iterator[Callable[[], tuple[Literal, ...]]]:
    """Watch the attributes of `model` in the forward passes inside; the value tells what was seen.

    The attributes stay integers that remember, in place: give a copy.
    """
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn.") or isinstance(module, torch.jit.ScriptModule):
            continue  # torch's own modules are brought in line by their tensors
        for name, value in list(vars(module).items()):
            if type(value) is int:
                vars(module)[name] = AttributeInt.of(value, (path, name, value))
    with _Watcher() as watcher:
        yield lambda: tuple(watcher.found)


class _Watcher(TorchFunctionMode):
    """Notes attribute integers among the arguments of every torch function, by the user's line."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Literal, None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if len(args) == 1 and not kwargs:  # most calls: a property, or an operator without numbers
            return func(*args)
        numbers = list(_numbers((args, kwargs or {})))
        for place, number in enumerate(numbers, start=-len(numbers)):
            if isinstance(number, AttributeInt):
                module, name, value = number.origin
                line = _line_in_forward(sys._getframe(1))
                self.found[Literal(module, name, value, int(number), place, line)] = None
        return func(*args, **(kwargs or {}))


def _line_in_forward(frame: FrameType | None) -> str:
    """`file.py:12` of the user's innermost line in a function called forward, the only lines that export keeps.

    Else of the user's innermost line.
    """
    innermost = line_of_frame(frame)
    while frame is not None:
        if frame.f_code.co_name == "forward" and is_users(frame.f_code.co_filename):
            return line_of_frame(frame)
        frame = frame.f_back
    return innermost


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, dict):
        yield from _numbers(list(value.values()))
    elif isinstance(value, slice):
        yield from _numbers([value.start, value.stop])
