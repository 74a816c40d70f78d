"""Splits a request that is too large for a device into several requests, and joins their records.

A single model that is too large is not split; the device, or its client, refuses it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from amc.deploy.device.protocol import Request

Files = Sequence[Sequence[bytes]]  # the files of every model


def split(request: Request, files: Files, room: int, *, beside_first: bool = False) -> Iterator[tuple[Request, Files]]:
    """Requests of at most `room` bytes with the models in order; with `beside_first`, each has the first model too."""
    every = (0,) if beside_first else ()
    part = every
    for index in range(len(every), len(request.models)):
        if len(part) > len(every) and _some(request, (*part, index)).body_bytes > room:
            yield _some(request, part), [files[place] for place in part]
            part = every
        part = (*part, index)
    yield _some(request, part), [files[place] for place in part]


def joined(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join records that share their first network into one record.

    The first network has its best latency of all records. Each other latency is the ratio to the first network in the
    same record, times that best latency, because the device may have become warmer between two requests.
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
