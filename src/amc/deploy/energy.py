"""The energy of a pass, from the counters that the processor keeps (RAPL), where the machine shows them.

The counters are those of whole processors: other work on the machine counts too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
SECONDS = 1.0  # of passes for one figure: the counters change a thousand times a second


def counters(root: Path = POWERCAP) -> tuple[Path, ...]:
    """The directories of the processors' counters that can be read; none in most virtual machines."""
    return tuple(sorted(place for place in root.glob("*-rapl:*") if place.name.count(":") == 1 and _reads(place)))


def energy_of(
    run: Callable[[], object],
    places: tuple[Path, ...],
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Millijoules of one call of `run`, the mean of as many calls as fit into `seconds`."""
    before, began, calls = [_read(place) for place in places], clock(), 0
    while calls == 0 or clock() - began < seconds:
        run()
        calls += 1
    spent = sum(_since(place, start) for place, start in zip(places, before, strict=True))
    return spent / 1000 / calls


def _reads(place: Path) -> bool:
    try:
        _read(place)
    except (OSError, ValueError):
        return False
    return True


def _read(place: Path, name: str = "energy_uj") -> int:
    """Microjoules."""
    return int((place / name).read_text())


def _since(place: Path, start: int) -> int:
    """Microjoules since the counter stood at `start`; it begins again at its largest value."""
    now = _read(place)
    return now - start if now >= start else now - start + _read(place, "max_energy_range_uj")
