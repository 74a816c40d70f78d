"""Sizes that a forward reads from integer attributes, such as `self.num_heads` in a reshape.

While the model is traced, integers that remember their origin replace its integer attributes, those in lists and
tuples, and those of settings that a module holds, objects or dictionaries. Their names say where they are: `splits[1]`,
`config.num_heads`, `sizes[width]`. A function mode records which of them reach which line. A slice can then update
exactly those, without a guess by name or value; a module whose settings change gets its own.
"""

from __future__ import annotations

import contextlib
import copy
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.fx.traceback import annotate
from torch.overrides import TorchFunctionMode

from amc.structure.calls import MARK, SIZED, call_of
from amc.structure.source import is_users, line_of_frame


def set_attribute_(module: nn.Module, name: str, value: int) -> None:
    """Set an integer attribute, or one inside an attribute, such as `splits[1]` or `config.num_heads`.

    What holds it is copied: other modules may hold it, too.
    """
    attribute, *steps = re.findall(r"[^.\[\]]+", name)
    setattr(module, attribute, _changed(getattr(module, attribute), steps, value))


def _changed(holder: Any, steps: list[str], value: int) -> Any:
    """A copy of `holder` with another number at the end of the `steps` into it."""
    if not steps:
        return value
    first, *rest = steps
    if isinstance(holder, (list, tuple)):
        entries = list(holder)
        entries[int(first)] = _changed(entries[int(first)], rest, value)
        return type(holder)(entries)
    after = copy.copy(holder)
    items = after if isinstance(after, dict) else vars(after)
    items[first] = _changed(items[first], rest, value)
    return after


@dataclass(frozen=True, slots=True)
class Literal:
    """A number in a call that is an attribute of a module, a multiple or a fraction of one, or a sum of such.

    Of a sum every part has an entry: `length` of the `size` positions, from `begin` on.
    """

    module: str
    name: str
    value: int  # of the attribute
    size: int  # in the call
    place: int  # position among the numbers of the call, counted from the end: -1 is the last
    line: str  # the user's line, `file.py:12`
    begin: int
    length: int
    call: str  # see `amc.structure.calls`


@dataclass(frozen=True, slots=True)
class _Part:
    """A multiple or a fraction of attributes: how large it is, and the module's path, name and value of each."""

    size: int
    origins: tuple[tuple[str, str, int], ...]


class AttributeInt(int):
    """An integer that remembers which attributes it is made of; multiples, fractions and sums remember, too.

    Which factor of a product of two attributes counts channels is for the rules to tell.
    """

    parts: tuple[_Part, ...]  # of a sum, in order; otherwise one

    @classmethod
    def of(cls, size: int, *origins: tuple[str, str, int]) -> AttributeInt:
        """`origins`: for each attribute its module's path, its name and its value."""
        return cls._sum((_Part(size, origins),))

    @classmethod
    def _sum(cls, parts: tuple[_Part, ...]) -> AttributeInt:
        number = cls(sum(part.size for part in parts))
        number.parts = parts
        return number

    def __mul__(self, other: Any) -> Any:
        product = int(self) * (int(other) if isinstance(other, int) else other)
        others = other.parts if isinstance(other, AttributeInt) else (_Part(product, ()),)
        if type(product) is not int or len(self.parts) > 1 or len(others) > 1:
            return product
        return AttributeInt.of(product, *self.parts[0].origins, *others[0].origins)

    __rmul__ = __mul__

    def __add__(self, other: Any) -> Any:
        if isinstance(other, AttributeInt):
            return AttributeInt._sum((*self.parts, *other.parts))
        return int(self) + other

    def __floordiv__(self, other: Any) -> Any:
        quotient = int(self) // (int(other) if isinstance(other, int) else other)
        exact = type(quotient) is int and quotient * other == int(self) and len(self.parts) == 1
        return AttributeInt.of(quotient, *self.parts[0].origins) if exact else quotient

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
            vars(module)[name] = _settings(value, path, name) if _is_settings(value) else _tagged(value, path, name)
    with _Watcher() as watcher:
        yield lambda: tuple(watcher.literals)


def _tagged(value: Any, path: str, name: str) -> Any:
    """An integer, or a list or tuple of them, that remembers the module's path and its own name."""
    if type(value) is int:
        return AttributeInt.of(value, (path, name, value))
    if type(value) in (list, tuple) and value and all(type(entry) is int for entry in value):
        return type(value)(_tagged(entry, path, f"{name}[{place}]") for place, entry in enumerate(value))
    return value


def _settings(value: Any, path: str, name: str) -> Any:
    """A copy of settings with integers that remember; each module has its own, which says who reads it.

    What cannot be copied, or is its own copy, such as a logger, stays as it is.
    """
    try:
        copied = copy.copy(value)
    except Exception:  # an object of the user's
        return value
    if copied is value:
        return value
    items, form = (copied, "{}[{}]") if isinstance(copied, dict) else (vars(copied), "{}.{}")
    for key, entry in list(items.items()):
        if isinstance(key, str) and key.isidentifier():
            items[key] = _tagged(entry, path, form.format(name, key))
    return copied


def _is_settings(value: Any) -> bool:
    """Whether an attribute is a dictionary or an object that holds numbers, and neither tensors nor modules."""
    plain = type(value) is dict
    if not plain and (
        not hasattr(value, "__dict__")
        or callable(value)
        or isinstance(value, (torch.Tensor, Enum))
        or type(value).__module__.partition(".")[0] in ("torch", "builtins")
    ):
        return False
    entries = list(value.values() if plain else vars(value).values())
    return any(_tagged(entry, "", "") is not entry for entry in entries) and not any(
        isinstance(entry, (torch.Tensor, nn.Module)) for entry in entries
    )


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
        named = func in SIZED or any(isinstance(number, AttributeInt) for number in numbers)
        call = call_of(func, sys._getframe(1)) if named else ""
        for place, number in enumerate(numbers, start=-len(numbers)):
            if isinstance(number, AttributeInt):
                line, begin = _line_in_forward(sys._getframe(1)), 0
                for part in number.parts:
                    for origin in part.origins:
                        self.literals[Literal(*origin, int(number), place, line, begin, part.size, call)] = None
                    begin += part.size
        with annotate({MARK: call}) if call else contextlib.nullcontext():
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
