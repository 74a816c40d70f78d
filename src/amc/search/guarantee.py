"""The end of a search with `SmallestWithin`: the smallest network whose loss is confirmed on other images.

The search picks the policy that looks best on its images, and so overrates it. Here the candidates, smallest first,
are measured on images that the search never scored. Pure: no torch, no files; docs/accuracy.md says what it promises.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from amc.errors import AmcError, EvaluationError
from amc.judging import guarded
from amc.search.journal import EpisodeRecord
from amc.search.rewards import SmallestWithin
from amc.statistics import PairedDrop, least_bound, upper_bound

TRIES = 10  # candidates that are measured at most

Measure = Callable[[EpisodeRecord], PairedDrop | float]


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate on the confirmation images."""

    record: EpisodeRecord
    drop: float  # in the score's unit; negative for a gain
    standard_error: float | None  # None: the score is the user's own, and its drop is taken as it is
    upper: float  # bound of the drop at the reward's confidence
    confirmed: bool  # upper <= max_drop


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The policy that is taken, and all that were tried before it."""

    chosen: Trial
    trials: tuple[Trial, ...]  # in the order they were measured, smallest network first; `chosen` is among them

    @property
    def confirmed(self) -> bool:
        """Whether the loss of the chosen policy is confirmed."""
        return self.chosen.confirmed


def candidates(records: Iterable[EpisodeRecord], reward: SmallestWithin) -> tuple[EpisodeRecord, ...]:
    """Distinct policies that the search found feasible, the cheapest first; of equally cheap ones the better first.

    Where none is feasible: the one nearest to it, which a confirmation then most likely refuses. Raises ValueError
    if no record has a score.
    """
    distinct = {record.keep: record for record in records if record.score is not None}
    if not distinct:
        raise ValueError("none of the episodes has a score")

    def excess(record: EpisodeRecord) -> float:
        assert record.score is not None
        return reward.excess(reward.dense_score - record.score, record.standard_error)

    feasible = [record for record in distinct.values() if excess(record) <= 0]
    if not feasible:
        return (min(distinct.values(), key=excess),)
    return tuple(sorted(feasible, key=lambda record: (record.cost[reward.metric], -(record.score or 0.0))))


def smallest_confirmed(
    found: Sequence[EpisodeRecord], measure: Measure, reward: SmallestWithin, *, tries: int = TRIES
) -> Confirmation:
    """The first of `found` (see `candidates`) whose loss is confirmed, trying at most `tries`.

    `measure` compares a policy's network with the dense one on images that the search never scored: a `PairedDrop`,
    or the bare drop where the score is the user's own. If none is confirmed, the one with the least bound is
    chosen; its `confirmed` is False. One that cannot be measured is passed over; EvaluationError if none can be.
    """
    if not found or tries < 1:
        raise ValueError(f"there must be something to try, got {len(found)} candidates and {tries} tries")
    trials: list[Trial] = []
    reason = ""
    for record in found[:tries]:
        try:
            measured = guarded(partial(measure, record))
        except EvaluationError as error:
            reason = str(error)
            continue
        trials.append(_trial(record, measured, reward))
        if trials[-1].confirmed:
            return Confirmation(trials[-1], tuple(trials))
    if not trials:
        raise EvaluationError(f"none of the {len(found[:tries])} candidates can be confirmed, the last: {reason}")
    return Confirmation(min(trials, key=lambda trial: trial.upper), tuple(trials))


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


def _trial(record: EpisodeRecord, measured: PairedDrop | float, reward: SmallestWithin) -> Trial:
    drop, error = (measured.drop, measured.standard_error) if isinstance(measured, PairedDrop) else (measured, None)
    upper = upper_bound(drop, error, reward.confidence)
    return Trial(record, drop, error, upper, confirmed=reward.excess(drop, error) <= 0)
