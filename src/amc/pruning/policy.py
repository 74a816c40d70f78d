"""A policy, the result of a search: the channels that every group keeps, or how much every layer keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amc.errors import RunError, brief
from amc.run import records
from amc.run import schema as runfiles
from amc.run.lines import atomic_write_bytes


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

    @property
    def kept(self) -> int:
        """How many channels stay."""
        return len(self.keep)

    def __repr__(self) -> str:
        return brief(f"GroupPolicy({self.name}: {self.kept} of {self.size} channels)")


@dataclass(frozen=True, slots=True)
class LayerPolicy:
    """How many of the `size` weights (or units of the method) of one layer stay unmasked.

    The ranking of the weights decides which.
    """

    name: str
    size: int
    kept: int

    def __post_init__(self) -> None:
        if not 1 <= self.kept <= self.size:
            raise RunError(f"policy of layer {self.name!r} must keep between 1 and {self.size}, got {self.kept}")


@dataclass(frozen=True, slots=True)
class Policy:
    """What is kept, group by group for channels, layer by layer for masks.

    >>> policy = amc.Policy.of({"0": [0, 2, 3]}, sizes={"0": 8})
    >>> policy
    Policy(channel: 3 of 8 kept, 1 group)
    >>> policy.save("policy.json")
    >>> amc.Policy.load("policy.json") == policy
    True
    """

    groups: tuple[GroupPolicy | LayerPolicy, ...]
    method: str = "channel"
    part: str | None = None  # the submodule that the groups are of; None: the whole network
    approximate: bool = False  # whether the groups are those of `inspect(..., approximate=True)`

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        for name in names:
            if names.count(name) > 1:
                raise RunError(f"the policy names group {name!r} twice; keep one of the two")

    def __repr__(self) -> str:
        kept, size = sum(self.keep_counts), sum(group.size for group in self.groups)
        holder = "group" if self.method == "channel" else "layer"
        count = f"{len(self.groups)} {holder}{'s' * (len(self.groups) != 1)}"
        return f"Policy({self.method}: {kept:,} of {size:,} kept, {count})"

    @classmethod
    def of(
        cls, keep: Mapping[str, Any], sizes: Mapping[str, int], method: str = "channel", part: str | None = None
    ) -> Policy:
        """From kept indices and sizes by group name."""
        return cls(
            tuple(GroupPolicy(name, sizes[name], tuple(int(i) for i in np.sort(keep[name]))) for name in keep),
            method,
            part,
        )

    @property
    def keep(self) -> dict[str, tuple[int, ...]]:
        """Kept channel indices by group name, without masked layers."""
        return {group.name: group.keep for group in self.groups if isinstance(group, GroupPolicy)}

    @property
    def keep_counts(self) -> tuple[int, ...]:
        return tuple(group.kept for group in self.groups)

    def to_json(self) -> dict[str, Any]:
        named: dict[str, Any] = {} if self.part is None else {"part": self.part}
        named |= {"approximate": True} if self.approximate else {}
        return {"method": self.method, **named, "groups": [_entry_to_json(group) for group in self.groups]}

    @classmethod
    def from_json(cls, data: Any) -> Policy:
        """The policy of a JSON object. Raises RunError for anything else."""
        try:
            part = data.get("part")
            groups = tuple(_entry_from_json(entry) for entry in data["groups"])
            return cls(
                groups, str(data["method"]), None if part is None else str(part), data.get("approximate") is True
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"not a policy: {error!r}; expected {{'method', 'groups': [{{name, size, keep or kept}}]}}"
            ) from None

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all. Raises RunError if that fails."""
        atomic_write_bytes(path, (json.dumps(self.to_json(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a file of `save`, or a run's policy.json. Raises RunError if it is missing or damaged."""
        try:
            record = records.unsealed(records.parse_object(records.read_bytes(Path(path))))
            runfiles.POLICY(record, "")
            return cls.from_json(record)
        except (records.DamagedError, RunError) as error:
            raise RunError(f"cannot read policy {path}: {error}") from None


def _entry_to_json(entry: GroupPolicy | LayerPolicy) -> dict[str, Any]:
    record: dict[str, Any] = {"name": entry.name, "size": entry.size}
    return record | ({"keep": list(entry.keep)} if isinstance(entry, GroupPolicy) else {"kept": entry.kept})


def _entry_from_json(data: Any) -> GroupPolicy | LayerPolicy:
    name, size = str(data["name"]), int(data["size"])
    if "kept" in data:
        return LayerPolicy(name, size, int(data["kept"]))
    return GroupPolicy(name, size, tuple(int(i) for i in data["keep"]))
