"""A policy: what is kept of every group. The result of a search, and all that slicing needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amc.errors import RunError
from amc.rundir import atomic_write_bytes


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """The channels of one group that stay: ascending indices below `size`, at least one."""

    name: str
    size: int
    keep: tuple[int, ...]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.keep, self.keep[1:], strict=False))
        if not self.keep or not ascending or self.keep[0] < 0 or self.keep[-1] >= self.size:
            raise RunError(
                f"policy of group {self.name!r} must keep ascending channels between 0 and {self.size - 1}, "
                f"got {list(self.keep)[:8]}"
            )


@dataclass(frozen=True, slots=True)
class Policy:
    """What is kept, group by group."""

    groups: tuple[GroupPolicy, ...]
    method: str = "channel"

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        for name in names:
            if names.count(name) > 1:
                raise RunError(f"the policy names group {name!r} twice; keep one of the two")

    @classmethod
    def of(cls, keep: Mapping[str, Any], sizes: Mapping[str, int], method: str = "channel") -> Policy:
        """From kept indices and sizes by group name."""
        return cls(
            tuple(GroupPolicy(name, sizes[name], tuple(int(i) for i in np.sort(keep[name]))) for name in keep),
            method,
        )

    @property
    def keep(self) -> dict[str, tuple[int, ...]]:
        """Kept channel indices by group name."""
        return {group.name: group.keep for group in self.groups}

    @property
    def keep_counts(self) -> tuple[int, ...]:
        return tuple(len(group.keep) for group in self.groups)

    def to_json(self) -> dict[str, Any]:
        groups = [{"name": group.name, "size": group.size, "keep": list(group.keep)} for group in self.groups]
        return {"method": self.method, "groups": groups}

    @classmethod
    def from_json(cls, data: Any) -> Policy:
        """RunError for anything that is not a policy."""
        try:
            groups = tuple(
                GroupPolicy(str(g["name"]), int(g["size"]), tuple(int(i) for i in g["keep"])) for g in data["groups"]
            )
            return cls(groups, str(data["method"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"not a policy: {error!r}; expected {{'method', 'groups': [{{name, size, keep}}]}}"
            ) from None

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all; RunError if the disk refuses."""
        atomic_write_bytes(path, (json.dumps(self.to_json(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read what `save` wrote; RunError if the file is missing or damaged."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, RunError) as error:
            raise RunError(f"cannot read policy {path}: {error}") from None
