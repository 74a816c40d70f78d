"""Strict reading of JSON: regular files, bounded size and depth, finite numbers, typed fields.

A run stays on a disk for months; it may be copied, edited or damaged. Every file of a run is read through this module,
which reports a fault in one line that names the file. A device and its host read each other's messages with the same
`parse_object`. Pure except `read_bytes` and `check_regular`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from amc.errors import RunError

MAX_BYTES = 256 << 20
MAX_DEPTH = 32  # of nested lists and objects; AMC writes at most 5
MAX_DIGITS = 19  # of a whole number, without its sign: below 2^63
LARGEST = 1e100  # number; sums and products of two stay finite
SEAL = "sha256"  # the key of a record's own digest


class DamagedError(ValueError):
    """Why a record cannot be used. The message follows the name of its file."""


@dataclass(frozen=True, slots=True)
class Check:
    """A rule for the values of a file: called with a value and its place in the file, it raises DamagedError."""

    rule: Callable[[Any, str], None]
    schema: Mapping[str, Any] = field(default_factory=dict)  # the same rule in the words of JSON Schema; {}: any value

    def __call__(self, value: Any, place: str) -> None:
        self.rule(value, place)


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Content of a regular file, or of the regular file that a link names; RunError for anything else.

    A pipe or a device is refused before it is read, because reading it may never end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise RunError(f"'{path}' is missing; the run is not that far yet, or it was removed") from error
    except OSError as error:
        kind = "is not a regular file" if error.errno in (errno.ENXIO, errno.ENODEV) else "cannot be read"
        raise RunError(f"'{path}' {kind} ({error.strerror}); restore the file from a copy") from error
    try:
        check_regular(path, descriptor)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise RunError(f"'{path}' cannot be read ({error.strerror}); check the disk") from error
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise RunError(f"'{path}' is larger than {limit >> 20} MiB, which no file of a run is; restore it from a copy")
    return data


def check_regular(path: Path, descriptor: int | None = None) -> None:
    """Raise RunError unless the path, or the open file, is a regular file; a missing path passes."""
    try:
        mode = (path.stat() if descriptor is None else os.fstat(descriptor)).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"'{path}' cannot be read ({error.strerror}); restore the file from a copy") from error
    if not stat.S_ISREG(mode):
        raise RunError(f"'{path}' is not a regular file; restore the file from a copy")


def parse(data: bytes) -> Any:
    """One JSON value in UTF-8. Raises DamagedError for JSON that AMC never writes: NaN, a repeated key."""
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_constant
        )
    except UnicodeDecodeError:
        raise DamagedError("is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise DamagedError(f"is not valid JSON in line {error.lineno} ({error.msg})") from None
    except RecursionError:
        raise DamagedError(f"is nested deeper than {MAX_DEPTH} levels") from None
    _check_values(value)
    return value


def parse_object(data: bytes) -> dict[str, Any]:
    """One JSON object. Raises DamagedError for anything else."""
    value = parse(data)
    if not isinstance(value, dict):
        raise DamagedError(f"holds a {type(value).__name__} where an object is expected")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise DamagedError("gives a key twice")
    return record


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS + text.startswith("-") or abs(int(text)) >= 2**63:
        raise DamagedError(f"holds a whole number of {len(text.lstrip('-'))} digits, which nothing here counts")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise DamagedError(f"holds the number {shown(text)}, which is not finite")
    return number


def _constant(name: str) -> NoReturn:
    raise DamagedError(f"holds {name}, which is not a JSON number")


def _check_values(value: Any) -> None:
    """Raise DamagedError for text that is not Unicode, and for lists and objects that are nested too deep."""
    for depth, item in _all(value):
        if depth > MAX_DEPTH:
            raise DamagedError(f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(item, str) and any("\ud800" <= letter <= "\udfff" for letter in item):
            raise DamagedError(f"holds text that is not Unicode ({ascii(item)[:40]})")


def _all(value: Any) -> Iterator[tuple[int, Any]]:
    """Every value and key inside a value, with its depth. Not recursive: the depth is not checked yet."""
    pending = [(0, value)]
    while pending:
        depth, item = pending.pop()
        yield depth, item
        if isinstance(item, dict):
            pending += [(depth + 1, part) for pair in item.items() for part in pair]
        elif isinstance(item, list):
            pending += [(depth + 1, part) for part in item]


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record and, as its last key, a digest of it."""
    rest = {key: value for key, value in record.items() if key != SEAL}
    return {**rest, SEAL: _digest(rest)}


def unsealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its digest. Raises DamagedError if the digest is wrong; a record without one passes."""
    rest = {key: value for key, value in record.items() if key != SEAL}
    if SEAL in record and record[SEAL] != _digest(rest):
        raise DamagedError(
            f"was changed after it was written (its {SEAL} is another); restore it from a copy, "
            f"or delete its line '{SEAL}' if the change is yours"
        )
    return rest


def _digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of the values. The order of the keys and the spaces between them do not count."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()


def shown(value: object) -> str:
    """A value, shortened for a message."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _kind(words: str, fits: Callable[[Any], bool], *types: str, **limits: float) -> Check:
    def check(value: Any, place: str) -> None:
        if not fits(value):
            raise DamagedError(f"has {shown(value)} as {place}, which must be {words}")

    return Check(check, {"type": types[0] if len(types) == 1 else list(types), **limits})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


text = _kind("text", lambda value: isinstance(value, str), "string")
flag = _kind("true or false", lambda value: isinstance(value, bool), "boolean")
whole = _kind("a whole number", lambda value: type(value) is int, "integer")
count = _kind("a whole number, at least 0", lambda value: type(value) is int and value >= 0, "integer", minimum=0)
positive = _kind("a whole number, at least 1", lambda value: type(value) is int and value >= 1, "integer", minimum=1)
number = _kind(f"a number of at most {LARGEST:g}", _is_number, "number", minimum=-LARGEST, maximum=LARGEST)
scalar = _kind(
    "text, a number, true, false or null", lambda value: not isinstance(value, dict | list),
    "string", "number", "boolean", "null",
)  # fmt: skip
anything = Check(lambda value, place: None)


def optional(check: Check) -> Check:
    """Null, or a value that `check` accepts."""

    def checked(value: Any, place: str) -> None:
        if value is not None:
            check(value, place)

    return Check(checked, {"anyOf": [{"type": "null"}, check.schema]} if check.schema else {})


def many(check: Check, least: int = 0) -> Check:
    """A list of values that `check` accepts, at least `least` of them."""

    def checked(value: Any, place: str) -> None:
        if not isinstance(value, list) or len(value) < least:
            at_least = f" of at least {least}" if least else ""
            raise DamagedError(f"has {shown(value)} as {place}, which must be a list{at_least}")
        for index, item in enumerate(value):
            check(item, f"{place}[{index}]")

    return Check(checked, {"type": "array", "items": check.schema, "minItems": least})


def table(check: Check) -> Check:
    """An object of values that `check` accepts."""

    def checked(value: Any, place: str) -> None:
        for key, item in _object(value, place).items():
            check(item, _inside(place, key))

    return Check(checked, {"type": "object", "additionalProperties": check.schema})


def fields(known: Mapping[str, Check], needed: Collection[str] = ()) -> Check:
    """An object: `known` checks its fields by name, those in `needed` must be present, and others pass."""

    def checked(value: Any, place: str) -> None:
        record = _object(value, place)
        for name in needed:
            if name not in record:
                raise DamagedError(f"has no {_inside(place, name)}")
        for name in record.keys() & known.keys():
            known[name](record[name], _inside(place, name))

    properties = {name: check.schema for name, check in known.items()}
    return Check(checked, {"type": "object", "properties": properties, "required": list(needed)})


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamagedError(f"has {shown(value)} as {place}, which must be an object")
    return value


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else f"'{name}'" if not name.isidentifier() else name


def json_bytes(record: Mapping[str, object]) -> bytes:
    """The JSON file of a record, with the record's digest.

    Raises ValueError for NaN, and RunError for text that is not Unicode, such as some paths.
    """
    plain = json.loads(json.dumps(record, allow_nan=False, default=_plain))
    try:
        return (json.dumps(sealed(plain), indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as error:
        raise RunError(f"{shown(error.object[max(0, error.start - 20) : error.end])} is not UTF-8; rename it") from None


def json_line(record: Mapping[str, object]) -> bytes:
    """One line of a line file, without its newline; `ValueError` for NaN."""
    return json.dumps(record, allow_nan=False, default=_plain).encode()


def _plain(value: object) -> object:
    """The JSON form of objects that json cannot write: paths, and NumPy or torch scalars and arrays."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
