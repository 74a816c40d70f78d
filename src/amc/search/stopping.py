"""What ends a search before its last episode: a time limit, patience, or an observer.

The journal keeps the decision: a search that is resumed reads from it how much of the time is used and whether the
search has stopped. Pure: the clock comes in.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from amc.errors import AmcError, brief
from amc.search.agents.base import Agent
from amc.search.journal import OBSERVER, PATIENCE, TIME_LIMIT, EpisodeRecord, Stop

TOLERANCE = 0.03  # of what the search has gained: a smaller expected gain is nothing better
FIRST = 8  # scored policies whose median is where the gain begins
UTMOST = 10  # times the patience: then the search ends whatever the model expects


@dataclass(frozen=True, slots=True)
class StopRules:
    """When a search ends before its last episode. All rules wait until a policy has a score."""

    seconds: float | None = None  # of proposing, scoring and learning, over all sessions; None: no limit
    patience: int | None = None  # episodes after the warm-up without a better policy, at least 1; None: endless
    asked: Callable[[EpisodeRecord], str | None] | None = None  # an observer: why the search ends after this episode
    clock: Callable[[], float] = time.perf_counter  # seconds

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"a time limit must be above 0 seconds, got {self.seconds}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 episode, got {self.patience}")

    def progress(self, before: float | None, seconds: float) -> float | None:
        """The share of the time limit that is used after `seconds` more, in [0, 1]; None without a limit."""
        return None if self.seconds is None else min(1.0, (before or 0.0) + seconds / self.seconds)

    def stop(self, records: Sequence[EpisodeRecord], episodes: int, agent: Agent) -> Stop | None:
        """Why a search of `episodes` ends after `records`, of which the agent has learnt; None: it goes on."""
        rewards = [record.reward for record in records]
        scored = [reward for reward in rewards if reward is not None]
        if not scored or len(records) >= episodes:
            return None
        if (records[-1].progress or 0.0) >= 1:
            return Stop(TIME_LIMIT, episodes, limit=self.seconds)
        words = None if self.asked is None else _one_line(self.asked(records[-1]))
        if words is not None:
            return Stop(OBSERVER, episodes, words=words)
        warmup = int(agent.settings().get("warmup_episodes") or 0)
        stale = len(records) - max(rewards.index(max(scored)) + 1, warmup)
        if self.patience is None or stale < self.patience:
            return None
        gain = agent.expected_gain()
        gained = max(scored) - statistics.median(scored[:FIRST])
        if gain is not None and gain > TOLERANCE * gained and stale < UTMOST * self.patience:
            return None
        return Stop(PATIENCE, episodes, stale=stale, expected_gain=None if gain == math.inf else gain)


def _one_line(words: object) -> str | None:
    """An observer's answer, for the journal. Raises AmcError unless it is text or None."""
    if words is None:
        return None
    if not isinstance(words, str) or not words.strip():
        raise AmcError(f"an observer's `stops` returned {words!r}; return None to go on, or the reason as text to stop")
    return brief(" ".join(words.split()))
