"""A measured latency table as a record: conversion to and from JSON, and its path in the cache.

A table that is damaged, or measured in another place, is never used.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amc.deploy.table.bench import Place
from amc.deploy.table.plan import Key
from amc.errors import AmcError, RunError
from amc.run import records
from amc.run.cache import cache_folder
from amc.run.lines import atomic_write_bytes
from amc.run.records import json_bytes

FORMAT = "amc latency table"
VERSION = 2


class TableError(AmcError):
    """A latency table is damaged, or belongs to another network or place."""


@dataclass(frozen=True)
class WholeNetwork:
    """One sliced network, measured as a whole in alternation with the dense network."""

    keep: tuple[int, ...]  # keep count of every group
    latency_ms: float
    spread: float  # see `amc.deploy.measure.Timing`

    def __post_init__(self) -> None:
        _positive(self.latency_ms, "a network's latency")


@dataclass(frozen=True)
class LatencyTable:
    """All measurements for one network in one place. Derived values are not stored."""

    network: str  # `network_key`
    place: Place
    step: int  # channels per stair of the runtime's latency
    times: Mapping[Key, float]  # ms
    networks: tuple[WholeNetwork, ...]  # the dense network first
    seconds: float  # duration of the measurement

    def __post_init__(self) -> None:
        for key, value in self.times.items():
            _positive(value, f"the latency of block {key[0]}")
        if len(self.networks) < 4 or self.step < 1:
            raise TableError("a latency table needs at least 4 whole networks, which correct it")

    def to_json(self) -> dict[str, Any]:
        """The content of the table's file."""
        blocks: dict[str, list[list[float]]] = {}
        for (name, inputs, outputs), value in self.times.items():
            blocks.setdefault(name, []).append([inputs, outputs, value])
        return {
            "format": FORMAT,
            "version": VERSION,
            "network": self.network,
            "place": asdict(self.place) | {"machine": dict(self.place.machine)},
            "step": self.step,
            "blocks": blocks,
            "networks": [asdict(entry) | {"keep": list(entry.keep)} for entry in self.networks],
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyTable:
        """The table of a file's content; TableError if the content is not a table."""
        try:
            if data["format"] != FORMAT or data["version"] != VERSION:
                raise TableError(f"it is not an {FORMAT} of version {VERSION}")
            blocks = data["blocks"].items()
            times = {(str(name), int(a), int(b)): float(ms) for name, rows in blocks for a, b, ms in rows}
            networks = tuple(
                WholeNetwork(tuple(map(int, row["keep"])), float(row["latency_ms"]), float(row["spread"]))
                for row in data["networks"]
            )
            place = Place(**data["place"])
            return cls(str(data["network"]), place, int(data["step"]), times, networks, float(data["seconds"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise TableError(f"it is damaged ({type(error).__name__}: {str(error)[:80]})") from None


def read_table(path: Path) -> LatencyTable:
    """Read a table's file; TableError, naming the file, if it cannot be used."""
    try:
        data = records.unsealed(records.parse_object(records.read_bytes(path)))
        _SHAPE(data, "")
        return LatencyTable.from_json(data)
    except RunError as error:
        raise TableError(str(error)) from None
    except records.DamagedError as error:
        raise TableError(f"'{path}' {error}") from None
    except TableError as error:
        raise TableError(f"'{path}': {error}") from None


_SHAPE = records.fields(
    {
        "network": records.text,
        "place": records.fields(
            {
                **dict.fromkeys(("runtime", "version", "precision"), records.text),
                "threads": records.positive,
                "machine": records.table(records.scalar),
                "device": records.optional(records.text),
            }
        ),
        "step": records.positive,
        "blocks": records.table(records.many(records.many(records.number))),
        "networks": records.many(
            records.fields(
                {"keep": records.many(records.positive), "latency_ms": records.number, "spread": records.number}
            )
        ),
        "seconds": records.number,
    }
)


def write_table(path: Path, table: LatencyTable) -> None:
    """Write a table's file atomically; RunError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"'{path.parent}' cannot be made ({error.strerror})") from error
    atomic_write_bytes(path, json_bytes(table.to_json()))


def cache_path(network: str, place: Place, folder: Path | None = None) -> Path:
    """The file of a network's table for a place, in `folder`; default: `cache_folder()`.

    The file's name does not contain the runtime's version. A table of another version is therefore read, and reported.
    """
    parts = [network, place.runtime, place.threads, place.precision, place.key, place.device]
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return (folder or cache_folder()) / "latency" / f"{place.runtime}-{name}.json"


def _positive(value: float, what: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise TableError(f"{what} is {value}; it must be above zero")
