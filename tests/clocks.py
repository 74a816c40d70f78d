"""A clock for searches with a time limit: what they do must not depend on the machine."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any
from unittest import mock

from amc.search import StopRules


class Ticks:
    """A clock that every look moves on by a second: an episode proposes, scores and learns for one second each."""

    def __init__(self) -> None:
        self._ticks = itertools.count()

    def __call__(self) -> float:
        return float(next(self._ticks))


def ticking() -> Any:
    """Searches inside the block go by a clock of this kind."""
    return mock.patch("amc.compression.pipeline.StopRules", partial(StopRules, clock=Ticks()))
