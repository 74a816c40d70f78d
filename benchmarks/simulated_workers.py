"""A search with many workers, computed from seconds that were measured: which part bounds it.

The driver proposes the policies of a batch one after the other, hands them to the workers, and learns from each in the
order of their episodes, as soon as its score is there and the earlier ones are learned. The next batch begins after the
last. A worker takes the next policy as soon as it is free. Pure: no torch, no files, no clock.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from amc.compression.scoring.workers.pool import ATTEMPTS


@dataclass(frozen=True)
class Search:
    """The seconds that every episode of a search takes, each [episodes]."""

    propose: Sequence[float]  # of the driver
    score: Sequence[float]  # of a worker
    learn: Sequence[float]  # of the driver

    def __post_init__(self) -> None:
        if not len(self.propose) == len(self.score) == len(self.learn) > 0:
            raise ValueError("a search needs the seconds of proposing, scoring and learning of every episode")


@dataclass(frozen=True)
class Fleet:
    """The workers."""

    workers: int
    start: float = 0.0  # seconds until a worker, or what takes its place, can score
    transfer: float = 0.0  # seconds in which a policy goes to a worker and its answer comes back
    deaths: float = 0.0  # of a worker, an hour of scoring

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"a fleet needs at least 1 worker, got {self.workers}")


@dataclass(frozen=True)
class Spent:
    """Where the time of a search goes. The first five sum up to `seconds`."""

    start: float  # until the first worker is ready, beyond the first batch's proposals
    agent: float  # proposing and learning, while no worker scores
    scores: float  # what scoring would take if it were divided evenly among the workers
    transfer: float  # what the transfers would take, divided likewise
    uneven: float  # the rest: some workers wait for the last of a batch, or score a policy again
    seconds: float
    policies: int
    idle: float  # share of the workers' time in which they neither score nor transfer
    failed: int  # policies that no worker survived

    @property
    def bound(self) -> str:
        """The part that takes the most time."""
        parts = {
            "the scores": self.scores, "the agent": self.agent, "the slowest of a batch": self.uneven,
            "the transfer": self.transfer, "the start": self.start,
        }  # fmt: skip
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class _Task:
    """How long a worker is busy with one policy."""

    seconds: float
    failed: bool = False


def simulate(search: Search, batch: int, fleet: Fleet, *, seed: int = 0, streamed: bool = False) -> Spent:
    """Run the search; `seed`: of the deaths.

    `streamed`: workers begin with a policy as soon as it is proposed, as AMC's do not: they wait for the whole batch.
    """
    if batch < 1:
        raise ValueError(f"a batch must have at least 1 policy, got {batch}")
    tasks = _tasks(search.score, fleet, random.Random(seed))
    free = [fleet.start] * fleet.workers
    now = scoring = started = 0.0
    for first in range(0, len(tasks), batch):
        episodes = range(first, min(first + batch, len(tasks)))
        proposed = list(accumulate((search.propose[e] for e in episodes), initial=now))[1:]
        ready = proposed if streamed else [proposed[-1]] * len(proposed)
        done, begun = [], max(ready[0], fleet.start)
        if first == 0:
            started = begun - ready[0]
        for episode, at in zip(episodes, ready, strict=True):
            done.append(max(heapq.heappop(free), at) + tasks[episode].seconds)
            heapq.heappush(free, done[-1])
        now, scoring = proposed[-1], scoring + max(done) - begun
        for episode, at in zip(episodes, done, strict=True):
            now = max(now, at) + search.learn[episode]
    evenly = sum(search.score) / fleet.workers
    transfer = fleet.transfer * len(tasks) / fleet.workers
    busy = sum(task.seconds for task in tasks) / (fleet.workers * now)
    return Spent(
        start=started, agent=now - scoring - started, scores=evenly, transfer=transfer,
        uneven=scoring - evenly - transfer, seconds=now, policies=len(tasks), idle=1 - busy,
        failed=sum(task.failed for task in tasks),
    )  # fmt: skip


def _tasks(scores: Sequence[float], fleet: Fleet, draw: random.Random) -> list[_Task]:
    """What every policy takes of a worker, with the deaths of those that score it."""
    needed = [score + fleet.transfer for score in scores]
    return [_task(seconds, fleet, draw) for seconds in needed] if fleet.deaths else [_Task(s) for s in needed]


def _task(needed: float, fleet: Fleet, draw: random.Random) -> _Task:
    """A policy whose workers may die: what they spent is lost, and another starts, as often as the pool tries."""
    lost = 0.0
    for _ in range(ATTEMPTS):
        lived = draw.expovariate(fleet.deaths / 3600)
        if lived >= needed:
            return _Task(lost + needed)
        lost += lived + fleet.start
    return _Task(lost, failed=True)


def drawn(measured: Sequence[float], episodes: int, seed: int = 0) -> list[float]:
    """Seconds [episodes], each one of those that were measured, the same for the same seed."""
    return random.Random(seed).choices(measured, k=episodes)
