"""JSON from a stranger, read strictly: every key asked for, of the right type, in its range, and no other key.

Pure. What does not fit is refused with `RefusedError`, which carries the HTTP status.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from amc.run import records


class RefusedError(Exception):
    """Why a request is not served: HTTP status, a kind for programs, a line for people."""

    def __init__(self, status: int, kind: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.retry_after = retry_after  # seconds

    def record(self) -> dict[str, Any]:
        """The body of the reply."""
        return {"error": {"kind": self.kind, "message": self.message}}


def malformed(message: str) -> RefusedError:
    """A request that does not follow the protocol."""
    return RefusedError(400, "malformed", message)


def parse_object(data: bytes) -> dict[str, Any]:
    """One JSON object and nothing else, within the limits that `amc.run.records` has for a run's own files."""
    try:
        return records.parse_object(data)
    except records.DamagedError as error:
        raise malformed(f"the record {error}") from None


class Fields:
    """Reads a JSON object key by key; every key must be asked for, have the right type and lie in its range."""

    def __init__(self, record: dict[str, Any], place: str) -> None:
        self._left = dict(record)
        self._place = place

    def _take(self, key: str) -> Any:
        if key not in self._left:
            raise malformed(f"{self._place}: '{key}' is missing")
        return self._left.pop(key)

    def _wrong(self, key: str, rule: str) -> RefusedError:
        return malformed(f"{self._place}: '{key}' must be {rule}")

    def integer(self, key: str, least: int, most: int) -> int:
        value = self._take(key)
        if type(value) is not int or not least <= value <= most:  # True is an int to isinstance
            raise self._wrong(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, least: float, most: float) -> float:
        value = self._take(key)
        if type(value) not in (int, float) or not least <= value <= most:
            raise self._wrong(key, f"a number from {least:g} to {most:g}")
        return float(value)

    def boolean(self, key: str) -> bool:
        value = self._take(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self._take(key)
        if not isinstance(value, str) or pattern.match(value) is None:
            raise self._wrong(key, f"a text of the form {pattern.pattern.removesuffix(chr(92) + 'Z')}")
        return value

    def optional_text(self, key: str, pattern: re.Pattern[str]) -> str | None:
        if self._left.get(key, "") is None:
            self._left.pop(key)
            return None
        return self.text(key, pattern)

    def choice(self, key: str, choices: Sequence[str]) -> str:
        value = self._take(key)
        if not isinstance(value, str) or value not in choices:
            raise self._wrong(key, f"one of {', '.join(choices)}")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self._take(key)
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return value

    def object(self, key: str) -> Fields:
        return Fields(self.mapping(key), f"{self._place}.{key}")

    def objects(self, key: str, least: int, most: int) -> list[Fields]:
        items = self._list(key, least, most)
        if not all(isinstance(item, dict) for item in items):
            raise self._wrong(key, "a list of objects")
        return [Fields(item, f"{self._place}.{key}[{index}]") for index, item in enumerate(items)]

    def integers(self, key: str, shortest: int, longest: int, *, least: int, most: int) -> tuple[int, ...]:
        values = self._list(key, shortest, longest)
        if not all(type(value) is int and least <= value <= most for value in values):
            raise self._wrong(key, f"a list of whole numbers from {least} to {most}")
        return tuple(values)

    def _list(self, key: str, shortest: int, longest: int) -> list[Any]:
        value = self._take(key)
        if not isinstance(value, list) or not shortest <= len(value) <= longest:
            raise self._wrong(key, f"a list of {shortest} to {longest} items")
        return value

    def done(self) -> None:
        """Refuse keys that nobody asked for."""
        if self._left:
            raise malformed(f"{self._place}: unknown key {ascii(min(self._left))[:60]}")
