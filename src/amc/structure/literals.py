"""Sizes that a forward reads from integer attributes, such as `self.num_heads` in a reshape.

While the model is traced, integers that remember their origin replace its integer attributes, and those in lists and
tuples, whose names have the place in them: `splits[1]`. A function mode records which of them reach which line. A slice
can then update exactly those attributes, without a guess by name or value.
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


def set_attribute_(module: nn.Module, name: str, value: int) -> None:
    """Set an integer attribute, or an entry of a list or tuple, such as `splits[1]`."""
    holder, entry, place = name.partition("[")
    if not entry:
        setattr(module, name, value)
        return
    before = getattr(module, holder)
    after = list(before)
    after[int(place.rstrip("]"))] = value
    setattr(module, holder, type(before)(after))


@dataclass(frozen=True, slots=True)
class Literal:
    """A number in a call that is an attribute of a module, or a multiple or fraction of one."""

    module: str
    name: str
    value: int  # of the attribute
    size: int  # in the call
    place: int  # position among the numbers of the call, counted from the end: -1 is the last
    line: str  # the user's line, `file.py:12`


class AttributeInt(int):
    """An integer that remembers which attribute it is; its multiples and fractions remember, too."""

    origin: tuple[str, str, int]

    @classmethod
    def of(cls, size: int, origin: tuple[str, str, int]) -> AttributeInt:
        """`origin` is the module's path, the attribute's name and its value."""
        number = cls(size)
        number.origin = origin
        return number

    def __mul__(self, other: Any) -> Any:
        product = int(self) * other
        # The origin of a product of two attributes is ambiguous; the attribute that shrinks is also read alone.
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
    """Record the attributes of `model` that the forward passes inside the block use; the yielded function lists them.

    Replaces the attributes in place and does not restore them: give a copy.
    """
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn.") or isinstance(module, torch.jit.ScriptModule):
            continue  # the sizes of torch's own modules follow their tensors
        for name, value in list(vars(module).items()):
            if type(value) is int:
                vars(module)[name] = AttributeInt.of(value, (path, name, value))
            elif type(value) in (list, tuple) and value and all(type(entry) is int for entry in value):
                vars(module)[name] = type(value)(
                    AttributeInt.of(entry, (path, f"{name}[{place}]", entry)) for place, entry in enumerate(value)
                )
    with _Watcher() as watcher:
        yield lambda: tuple(watcher.literals)


class _Watcher(TorchFunctionMode):
    """Records attribute integers among the arguments of every torch function, with the user's line."""

    def __init__(self) -> None:
        super().__init__()
        self.literals: dict[Literal, None] = {}

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
                self.literals[Literal(module, name, value, int(number), place, line)] = None
        return func(*args, **(kwargs or {}))


def _line_in_forward(frame: FrameType | None) -> str:
    """`file.py:12` of the user's innermost line in a function named forward: torch.export keeps only such lines.

    Without such a function: the user's innermost line.
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
