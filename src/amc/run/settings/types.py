"""The types of settings: every field is converted to its declared type before it is used."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from numbers import Integral, Real
from os import PathLike
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from amc.errors import AmcError

MAX_SEED = 2**63 - 1  # torch's generators take twice as much; processes that train together add their rank

_KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: ((str, PathLike), "text"),
    tuple: ((tuple, list), 'a tuple of names, as in ("one",)'),
}


def convert_types_(config: Any, what: str = "") -> None:
    """Convert every field of a frozen dataclass to its annotated type, in place. Raises AmcError for another type.

    Numbers of other libraries become Python's, and lists tuples: settings are written to files and compared. `what`:
    stands before the field's name in the message.
    """
    for name, annotation in get_type_hints(type(config)).items():
        value = getattr(config, name)
        options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        if value is None and NoneType in options:
            continue
        kind = get_origin(options[0]) or options[0]
        kind = str if kind is Literal else kind
        accepted, words = _KINDS[kind]
        if kind is bool:
            fits = isinstance(value, bool) or _is_numpy_bool(value)
        else:
            fits = isinstance(value, accepted) and not isinstance(value, bool)
        if not fits or (kind is tuple and not all(isinstance(part, str) for part in value)):
            raise AmcError(f"{what}{name} must be {words}, got {value!r}")
        object.__setattr__(config, name, kind(value))


def check_rules(config: Any, rules: Mapping[str, tuple[bool, str]], what: str = "") -> None:
    """AmcError for the first field whose rule does not hold: by name, whether it holds and what the value must be."""
    for name, (holds, rule) in rules.items():
        if not holds:
            raise AmcError(f"{what}{name.replace('_', '-')} must be {rule}, got {getattr(config, name)!r}")


def _is_numpy_bool(value: Any) -> bool:
    """Whether this is a bool of NumPy, without an import of NumPy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.bool_)
