"""The end of a search by fine-tuning: its best policies are trained briefly, and the best network then is taken.

The search score ranks the best policies poorly: after fine-tuning another one is often better. The search split
decides which one, as it decides everything in a run but the final figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from amc.compression.selection.base import Choice
from amc.errors import EvaluationError, RunError
from amc.recovery import DivergenceError
from amc.search import EpisodeRecord, Outcome, Problem, RewardFunction, rewarded


@dataclass(frozen=True, slots=True)
class FineTuningTrial:
    """One policy after a short training; without a score where the training failed."""

    record: EpisodeRecord  # with the score that its network has now
    score_tuned: float | None
    reward_tuned: float | None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The line of the summary."""
        line = {
            "episode": self.record.episode,
            "keep": list(self.record.keep),
            "score": self.record.score,
            "score_tuned": self.score_tuned,
            "reward_tuned": self.reward_tuned,
        }
        return line if self.error is None else {**line, "error": self.error}

    @classmethod
    def from_json(cls, line: Mapping[str, Any], record: EpisodeRecord) -> FineTuningTrial:
        """The trial of the policy `record` that a file holds."""
        return cls(replace(record, score=line["score"]), line["score_tuned"], line["reward_tuned"], line.get("error"))


class Training(Protocol):
    """What a selection by fine-tuning needs of whoever trains networks. `number` counts the finalists from 0."""

    def recheck(self, record: EpisodeRecord, number: int) -> EpisodeRecord:
        """The policy with the score that its network has now; RunError where the journal was changed."""
        ...

    def train(self, record: EpisodeRecord, number: int) -> float:
        """Train the policy's network briefly; its score afterwards. DivergenceError or EvaluationError if it fails."""
        ...

    def keep(self, trial: FineTuningTrial, number: int) -> FineTuningTrial:
        """Write the trial down. Returns the trial of the process that scores, where several train together."""
        ...


@dataclass(frozen=True, slots=True)
class ByFineTuning:
    """Train the `finalists` best policies briefly, and take the one with the best reward afterwards."""

    problem: Problem
    reward: RewardFunction
    training: Training
    finalists: int
    known: Sequence[Mapping[str, Any]] = ()  # trials of an earlier session, as files hold them

    def choose(self, ranked: Sequence[EpisodeRecord]) -> Choice:
        """The best finalist; of equal ones the one that comes first in `ranked`.

        A finalist that cannot be trained is left out; RunError if none can be.
        """
        trials = tuple(
            FineTuningTrial.from_json(self.known[number], record)
            if number < len(self.known)
            else self.training.keep(self._trial(record, number), number)
            for number, record in enumerate(ranked[: self.finalists])
        )
        best = best_of(trials)
        lines = [{**trial.to_json(), "chosen": number == best} for number, trial in enumerate(trials)]
        return Choice(trials[best].record, trials, summary={"candidates": lines})

    def _trial(self, record: EpisodeRecord, number: int) -> FineTuningTrial:
        record = self.training.recheck(record, number)
        costs, dense = (self.problem.policy_costs(keep) for keep in (record.keep, self.problem.dense.tolist()))
        try:
            score = self.training.train(record, number)
            return FineTuningTrial(record, score, rewarded(self.reward, Outcome(score, costs, dense)))
        except (DivergenceError, EvaluationError) as error:  # as an episode of the search may fail: there are others
            return FineTuningTrial(record, None, None, str(error))


def best_of(trials: Sequence[FineTuningTrial]) -> int:
    """Number of the trial with the best reward, of equal ones the first. RunError if every one failed."""
    rewards = [-math.inf if trial.reward_tuned is None else trial.reward_tuned for trial in trials]
    if max(rewards) == -math.inf:
        raise RunError(f"none of {len(trials)} candidates could be fine-tuned, the last: {trials[-1].error}")
    return rewards.index(max(rewards))
