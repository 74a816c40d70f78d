"""Settings that are given in part: a resumed job keeps its old values of the others."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from amc.errors import AmcError

T = TypeVar("T")


def from_keywords(kind: type[T], settings: Mapping[str, Any]) -> T:
    """The settings class `kind` from a caller's keyword arguments. Raises AmcError for an unknown name."""
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise AmcError(f"unknown setting {name!r}; {hint}")
    return kind(**settings)


@dataclass(frozen=True, slots=True)
class Given(Generic[T]):
    """The given fields of a settings class, by name."""

    kind: type[T]
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def all_of(cls, settings: T) -> Given[T]:
        """Every field of `settings`."""
        return cls(type(settings), {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)})  # type: ignore[arg-type]

    def make(self, **changes: Any) -> T:
        """The settings, with defaults for the other fields. Raises AmcError for a wrong value."""
        return self.kind(**{**self.values, **changes})

    def over(self, settings: T) -> T:
        """`settings` with the given values in place of its own. Raises AmcError for a wrong value."""
        return dataclasses.replace(settings, **self.values)  # type: ignore[type-var]
