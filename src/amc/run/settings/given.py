"""Settings that are given in part: a resumed job keeps its old values of the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


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
