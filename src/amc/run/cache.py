"""The folder of files that all runs share: measured latencies and decoded images. Anything in it may be deleted."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$AMC_CACHE, or `amc` in $XDG_CACHE_HOME, or ~/.cache/amc.

    The XDG specification ignores a relative $XDG_CACHE_HOME. Raises RuntimeError if the user has no home.
    """
    if own := os.environ.get("AMC_CACHE"):
        return Path(own)
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "amc"
