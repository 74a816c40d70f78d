"""What all settings have in common: every field is of its declared type before anything is decided by it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from numbers import Integral, Real
from os import PathLike
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from amc.errors import AmcError

MAX_SEED = 2**63 - 1  # torch's generators take twice as much; processes that train together add their number

_KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: ((str, PathLike), "text"),
    tuple: ((tuple, list), 'a tuple of names, as in ("one",)'),
}


def settle_types_(config: Any, what: str = "") -> None:
    """Make every field of a frozen dataclass exactly what its annotation says; AmcError for what is something else.

    Numbers of other libraries become Python's, and lists tuples: a configuration is written down and compared.
    `what`: put before the field's name in the message.
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
    """Whether this is a truth value of NumPy, which is not imported for the question."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.bool_)
