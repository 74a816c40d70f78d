"""A request that is larger than a device takes -> several that are not, and one record of what comes back.

Pure. What is larger than that alone stays as it is: the device, or its client, says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from amc.deploy.device.protocol import Request

Files = Sequence[Sequence[bytes]]  # of every model


def split(request: Request, files: Files, room: int, *, beside_first: bool = False) -> Iterator[tuple[Request, Files]]:
    """The models in their order, in requests of at most `room` bytes; with `beside_first` the first one in each."""
    every = (0,) if beside_first else ()
    part = every
    for index in range(len(every), len(request.models)):
        if len(part) > len(every) and _some(request, (*part, index)).body_bytes > room:
            yield _some(request, part), [files[place] for place in part]
            part = every
        part = (*part, index)
    yield _some(request, part), [files[place] for place in part]


def joined(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One record of several whose first network is the same: that network where it was fastest, and all others.

    A latency is the network's ratio to the first one, measured beside it, times the latency of the first one here:
    between two requests the device may have grown warm.
    """
    if len(records) == 1:
        return records[0]
    first = next(iter(records[0]["networks"]))
    best = min(records, key=lambda record: record["networks"][first]["latency_ms"])
    networks = {first: best["networks"][first]}
    for record in records:
        scale = networks[first]["latency_ms"] / record["networks"][first]["latency_ms"]
        for name, entry in record["networks"].items():
            if name != first:
                networks[name] = entry | {key: scale * entry[key] for key in ("latency_ms", "typical_ms")}
    return best | {
        "networks": networks,
        "busy": any(record["busy"] for record in records),
        "steady": all(record["steady"] for record in records),
        "seconds": sum(record["seconds"] for record in records),
    }


def _some(request: Request, part: Sequence[int]) -> Request:
    return replace(request, models=tuple(request.models[index] for index in part))
