"""The end of a search under a budget: the best few policies, recovered, on images that chose nothing.

The best score of many is too high: it was lucky on the images of the search. Here the finalists are measured on images
that the search never scored, after a short recovery, which changes their order. Pure: no torch, no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from amc.compression.selection.base import Choice
from amc.errors import EvaluationError
from amc.search import EpisodeRecord, Outcome, Problem, RewardFunction, rewarded


@dataclass(frozen=True, slots=True)
class RecoveryTrial:
    """One policy; its scores are None where they could not be measured."""

    record: EpisodeRecord  # with its score in the search
    score_unseen: float | None  # as pruned, on the images that the search never scored
    score_recovered: float | None  # on the same images
    reward_recovered: float | None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The line of the summary."""
        line = {
            "episode": self.record.episode,
            "keep": list(self.record.keep),
            "score": self.record.score,
            "score_unseen": self.score_unseen,
            "score_recovered": self.score_recovered,
        }
        return line if self.error is None else {**line, "error": self.error}


class Measurement(Protocol):
    """What a selection by recovery needs of whoever builds and recovers networks."""

    def pruned(self, record: EpisodeRecord) -> float:
        """The score of the policy's network as pruned. EvaluationError if it has none."""
        ...

    def recovered(self, record: EpisodeRecord, number: int) -> float:
        """The score of the policy's network after a short recovery; `number` counts the finalists from 0."""
        ...


@dataclass(frozen=True, slots=True)
class ByRecovery:
    """Take the finalist with the best reward after recovery.

    `dense_search` and `dense_unseen` are the dense network's scores, on the images of the search and on the `images`
    that the search never scored. `images` is None where there are no other images: then the search's own score
    measures, and what the search overrates stays unknown.
    """

    problem: Problem
    reward: RewardFunction
    measurement: Measurement
    finalists: int
    images: int | None
    dense_search: float
    dense_unseen: float

    def choose(self, ranked: Sequence[EpisodeRecord]) -> Choice:
        """The best finalist; of equal ones the one that comes first in `ranked`.

        A finalist that cannot be measured is left out. If none can be, the search's best is taken.
        """
        trials = tuple(self._trial(record, number) for number, record in enumerate(ranked[: self.finalists]))
        measured = [trial for trial in trials if trial.reward_recovered is not None]
        best = max(measured, key=lambda trial: trial.reward_recovered or 0.0, default=trials[0])
        lines = [{**trial.to_json(), "chosen": trial is best} for trial in trials]
        summary = {
            "images": self.images, "dense_search": self.dense_search, "dense": self.dense_unseen,
            "overrated": self._overrated(trials[0]), "trials": lines,
        }  # fmt: skip
        warnings = tuple(
            f"the policy of episode {trial.record.episode} is left out: {trial.error}"
            for trial in trials
            if trial.error is not None
        )
        return Choice(best.record, trials, summary={"finalists": summary}, warnings=warnings)

    def _overrated(self, first: RecoveryTrial) -> float | None:
        """How much more the search's best loses on images that did not choose it (the winner's curse)."""
        if self.images is None or first.score_unseen is None or first.record.score is None:
            return None
        return (self.dense_unseen - first.score_unseen) - (self.dense_search - first.record.score)

    def _trial(self, record: EpisodeRecord, number: int) -> RecoveryTrial:
        costs, dense = (self.problem.policy_costs(keep) for keep in (record.keep, self.problem.dense.tolist()))
        pruned = None
        try:
            pruned = record.score if self.images is None else self.measurement.pruned(record)
            score = self.measurement.recovered(record, number)
            return RecoveryTrial(record, pruned, score, rewarded(self.reward, Outcome(score, costs, dense)))
        except EvaluationError as error:  # as an episode of the search may fail: there are others
            return RecoveryTrial(record, pruned, None, None, str(error))
