"""The end of a search with `max_drop`: the smallest network whose loss is confirmed on other images.

The search takes the policy that looks best on its images, and so overrates it. Here its feasible policies are
measured on images that the search never scored, the smallest first. Where networks are recovered before they are
measured, smaller ones than the search found feasible may hold: they are tried in turn as long as each is confirmed.
Pure: no torch, no files; docs/accuracy.md says what this promises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from amc.compression.selection.base import Choice
from amc.errors import AmcError, EvaluationError, guarded
from amc.search.journal import EpisodeRecord
from amc.search.rewards import SmallestWithin
from amc.search.statistics import PairedDrop, least_bound, upper_bound

TRIES = 10  # policies that are measured at most
STEP = 0.97  # a smaller policy to try has at most this share of the cost of the one before

Compare = Callable[[EpisodeRecord], PairedDrop | float]  # policy -> loss against the dense network


@dataclass(frozen=True, slots=True)
class ConfidenceTrial:
    """One policy on the confirmation images."""

    record: EpisodeRecord
    drop: float  # in the score's unit; negative for a gain
    standard_error: float | None  # None: the score is the user's own, and its drop is taken as it is
    upper: float  # bound of the drop at the reward's confidence
    confirmed: bool  # upper <= max_drop

    def to_json(self) -> dict[str, Any]:
        """With the drop and its bound in points of accuracy."""
        return {
            "episode": self.record.episode,
            "drop": 100 * self.drop,
            "upper": 100 * self.upper,
            "confirmed": self.confirmed,
        }


@dataclass(frozen=True, slots=True)
class ByConfidence:
    """Take the smallest feasible policy whose loss is confirmed; of at most `tries`.

    `compare` compares a policy's network with the dense one on `images` images that the search never scored: a
    `PairedDrop`, or the bare drop where the score is the user's own (`images` is None: there are no other images, and
    nothing is confirmed). `descend`: go on with smaller policies, see `smaller`, until one is not confirmed.
    """

    reward: SmallestWithin
    compare: Compare
    images: int | None
    tries: int = TRIES
    descend: bool = False

    def choose(self, ranked: Sequence[EpisodeRecord]) -> Choice:
        """The first of the feasible policies whose loss is confirmed, else the one with the least bound.

        With `descend`: the last of the smaller ones that is confirmed after it, if it is the smallest feasible one.
        A policy that cannot be measured is left out; EvaluationError if none can be.
        """
        trials = self._measured(feasible(ranked, self.reward)[: self.tries])
        if self.descend and len(trials) == 1 and trials[0].confirmed:
            trials += self._descended(smaller(ranked, trials[0].record, self.reward)[: self.tries - 1])
        confirmed = [trial for trial in trials if trial.confirmed]
        taken = confirmed[-1] if confirmed else min(trials, key=lambda trial: trial.upper)
        holds = taken.confirmed and self.images is not None
        return Choice(taken.record, tuple(trials), holds, {"guarantee": self._summary(taken, trials, holds)})

    def _measured(self, records: Sequence[EpisodeRecord]) -> list[ConfidenceTrial]:
        """All that were measured, the confirmed one last."""
        trials, reason = list[ConfidenceTrial](), ""
        for record in records:
            try:
                trials.append(self._trial(record, guarded(partial(self.compare, record))))
            except EvaluationError as error:
                reason = str(error)
                continue
            if trials[-1].confirmed:
                break
        if not trials:
            raise EvaluationError(f"none of the {len(records)} candidates can be confirmed, the last: {reason}")
        return trials

    def _descended(self, records: Sequence[EpisodeRecord]) -> list[ConfidenceTrial]:
        """Measured in turn until one is not confirmed or cannot be measured.

        The order is fixed before and the first failure ends it: no number of trials makes a false confirmation of one
        of them likelier than a single trial does (a fixed-sequence test; Maurer, Hothorn and Lehmacher, 1995).
        """
        trials = list[ConfidenceTrial]()
        for record in records:
            try:
                trials.append(self._trial(record, guarded(partial(self.compare, record))))
            except EvaluationError:
                break
            if not trials[-1].confirmed:
                break
        return trials

    def _trial(self, record: EpisodeRecord, loss: PairedDrop | float) -> ConfidenceTrial:
        drop, error = (loss.drop, loss.standard_error) if isinstance(loss, PairedDrop) else (loss, None)
        upper = upper_bound(drop, error, self.reward.confidence)
        return ConfidenceTrial(record, drop, error, upper, confirmed=self.reward.excess(drop, error) <= 0)

    def _summary(self, taken: ConfidenceTrial, trials: Sequence[ConfidenceTrial], holds: bool) -> dict[str, Any]:
        """What `max_drop` promises of the result, in points of accuracy."""
        return {
            "max_drop": round(100 * self.reward.max_drop, 12),  # without the last digit of the division by 100
            "minimise": str(self.reward.metric),
            "confidence": self.reward.confidence,
            "images": self.images,
            "confirmed": holds,
            "drop": 100 * taken.drop,
            "upper": 100 * taken.upper,
            "trials": [trial.to_json() for trial in trials],
        }


def feasible(episodes: Iterable[EpisodeRecord], reward: SmallestWithin) -> tuple[EpisodeRecord, ...]:
    """Distinct policies that the search found feasible, the cheapest first; of equally cheap ones the better first.

    Where none is feasible: the one nearest to it, which a confirmation then most likely refuses. Raises ValueError
    if no record has a score.
    """
    distinct = {record.keep: record for record in episodes if record.score is not None}
    if not distinct:
        raise ValueError("none of the episodes has a score")

    def excess(record: EpisodeRecord) -> float:
        assert record.score is not None
        return reward.excess(reward.dense_score - record.score, record.standard_error)

    within = [record for record in distinct.values() if excess(record) <= 0]
    if not within:
        return (min(distinct.values(), key=excess),)
    return tuple(sorted(within, key=lambda record: (record.cost[reward.metric], -(record.score or 0.0))))


def smaller(
    episodes: Iterable[EpisodeRecord], than: EpisodeRecord, reward: SmallestWithin
) -> tuple[EpisodeRecord, ...]:
    """Policies that cost less, each with the best score at its cost or below, the dearest first, `STEP` apart."""
    limit, best, front = than.cost[reward.metric], -math.inf, list[EpisodeRecord]()
    scored = [record for record in episodes if record.score is not None and record.cost[reward.metric] < limit]
    for record in sorted(scored, key=lambda record: (record.cost[reward.metric], -(record.score or 0.0))):
        if (record.score or 0.0) > best:  # none that costs as little scores as well
            best = record.score or 0.0
            front.append(record)
    steps = list[EpisodeRecord]()
    for record in reversed(front):
        if record.cost[reward.metric] <= STEP * limit:
            steps.append(record)
            limit = record.cost[reward.metric]
    return tuple(steps)


def check_resolution(reward: SmallestWithin, images: int, what: str) -> None:
    """Raise AmcError if so few images cannot tell a drop that small, whatever the network.

    `what` names the images, such as "search" or "confirmation".
    """
    least = least_bound(images, reward.confidence)
    if least > reward.max_drop:
        raise AmcError(
            f"max-drop {100 * reward.max_drop:g} cannot be told on {images} {what} images: were no answer to change, "
            f"the loss could still be {100 * least:.2g} points at confidence {reward.confidence:g}; "
            "give more images, a larger max-drop or a lower confidence"
        )
