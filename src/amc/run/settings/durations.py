"""Durations as users write them: seconds, minutes or hours. Pure."""

from __future__ import annotations

import re

from amc.errors import AmcError, shown

LEAST, LONGEST = 0.001, 1e7  # seconds; the longest is almost four months
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([smh]?)\s*", re.ASCII)


def parse_duration(text: str, name: str) -> float:
    """Seconds, to the millisecond, of "90", "90s", "30m" or "1.5h".

    Raises AmcError, with the setting's name, for anything else and for no time at all.
    """
    match = _DURATION.fullmatch(text)
    seconds = 0.0 if match is None else float(match[1]) * _UNITS[match[2]]
    if not LEAST <= seconds <= LONGEST:
        raise AmcError(
            f"{name} must be a time such as 90s, 30m or 1.5h, above 0 and at most {LONGEST:,.0f}s, got {shown(text)}"
        )
    return round(seconds, 3)


def format_duration(seconds: float) -> str:
    """The one spelling that settings keep, such as "1800s" or "0.25s"; `parse_duration` gives the same number back."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
