"""Which of two numbers of workers scores more policies in the same time, found while the search runs.

Two workers on the two threads of one core may be slower than one. The number decides no score, so the first batches of
the search itself are the trial.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

ROUNDS = 3  # batches of each number, in turns


@dataclass
class _Batch:
    workers: int
    size: int
    began: float
    ended: list[float] = field(default_factory=list)

    def note(self, future: Future[Any]) -> None:
        """A policy's score has come, or its failure."""
        self.ended.append(time.perf_counter())


class Trial:
    """Batches scored by all workers and by some of them, in turns; then by the faster ones."""

    def __init__(self, workers: int, fewer: int, limit: Callable[[int], None], tell: Callable[[str], None]) -> None:
        """`limit` sets how many workers score at once; `tell` hears what was found, in words."""
        self._limit, self._tell, self._most = limit, tell, workers
        # The first batch is no trial: workers still start, and their memory of shared activations is empty.
        self._turns = [workers, *[fewer, workers] * ROUNDS]
        self._batches: list[_Batch] = []
        self.over = False

    def begins(self, scores: Sequence[Future[Any]]) -> None:
        """Hear that a batch begins, with the scores that will come of it; earlier batches are complete or given up."""
        if self.over or len(scores) < self._most:  # with fewer policies some workers are idle, which compares nothing
            return
        if self._batches and len(self._batches[-1].ended) < self._batches[-1].size:
            self._batches.pop()
        if len(self._batches) == len(self._turns):
            self._settle()
            return
        batch = _Batch(self._turns[len(self._batches)], len(scores), time.perf_counter())
        self._limit(batch.workers)
        self._batches.append(batch)
        for score in scores:
            score.add_done_callback(batch.note)

    def _settle(self) -> None:
        seconds: dict[int, list[float]] = {}
        for batch in self._batches[1:]:
            seconds.setdefault(batch.workers, []).append((max(batch.ended) - batch.began) / batch.size)
        fastest = min(seconds, key=lambda workers: (statistics.median(seconds[workers]), workers))
        rates = " and ".join(f"{workers} score {1 / statistics.median(seconds[workers]):.2g}" for workers in seconds)
        self._limit(fastest)
        self._tell(f"{fastest} workers from here: {rates} policies a second")
        self.over = True
