"""A measured latency table as a record: to JSON and back, and its place in the cache.

A file that is damaged, or that was measured elsewhere, is never used: it is told, and measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amc import records
from amc.deploy.table.bench import Place
from amc.deploy.table.plan import Key
from amc.errors import AmcError, RunError
from amc.lines import atomic_write_bytes
from amc.rundir import json_bytes

FORMAT = "amc latency table"
VERSION = 2


class TableError(AmcError):
    """A latency table is damaged, or of another network or place."""


@dataclass(frozen=True)
class WholeNetwork:
    """One sliced network, measured as a whole in alternation with the dense one."""

    keep: tuple[int, ...]
    latency_ms: float
    spread: float

    def __post_init__(self) -> None:
        _positive(self.latency_ms, "a network's latency")


@dataclass(frozen=True)
class LatencyTable:
    """Everything measured for one network in one place; what follows from it is computed anew."""

    network: str  # `network_key`
    place: Place
    step: int  # of the runtime's staircase over the channels
    times: Mapping[Key, float]  # ms
    networks: tuple[WholeNetwork, ...]  # the dense one first
    seconds: float  # it took

    def __post_init__(self) -> None:
        for key, value in self.times.items():
            _positive(value, f"the latency of block {key[0]}")
        if len(self.networks) < 4 or self.step < 1:
            raise TableError("a latency table needs whole networks to be corrected by")

    def to_json(self) -> dict[str, Any]:
        """For a file."""
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
        """From a file's content; TableError, in one line, for anything else."""
        try:
            if data["format"] != FORMAT or data["version"] != VERSION:
                raise TableError(f"it is no {FORMAT} of version {VERSION}")
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
    """The table in a file; TableError, naming the file, where it cannot be used."""
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
    """Whole or not at all; RunError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"'{path.parent}' cannot be made ({error.strerror})") from error
    atomic_write_bytes(path, json_bytes(table.to_json()))


def cache_path(network: str, place: Place, folder: Path | None = None) -> Path:
    """Where the table of a network in a place is kept: in `folder`, $AMC_CACHE, or ~/.cache/amc.

    The runtime's version is inside the file, not in its name, so that a new version is noticed and said.
    """
    parts = [network, place.runtime, place.threads, place.precision, place.key, place.device]
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return (folder or cache_folder()) / "latency" / f"{place.runtime}-{name}.json"


def cache_folder() -> Path:
    """What is kept for all runs: $AMC_CACHE, or ~/.cache/amc."""
    return Path(os.environ.get("AMC_CACHE") or Path.home() / ".cache" / "amc")


def _positive(value: float, what: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise TableError(f"{what} is {value}; it must be above zero")
