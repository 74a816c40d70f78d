"""One rule for the result of a user's function: a number, a failed policy, or the end of the job.

`evaluate`, a reward and a score of policies are user code. If one raises an Exception or does not return a number, only
the current policy fails: with an EvaluationError of one printable line. If memory or disk space runs out, the policy is
not at fault: a ResourceError ends the job. KeyboardInterrupt and SystemExit pass through. Pure: no torch, no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import SupportsFloat

from amc.errors import (
    EvaluationError,
    NotFiniteError,
    check_resources,
    explained,
    guarded,
    one_line,
    shown,
)
from amc.search.journal import EpisodeRecord
from amc.search.problem import Problem
from amc.search.rewards import Outcome, RewardFunction
from amc.search.statistics import Measured

# Policy (keep counts, in the order of the decisions) -> score, higher is better; a `Measured` where the standard error
# is known. `Evaluate` in the scoring package is its sister: network -> score.
Score = Callable[[tuple[int, ...]], float]


@dataclass(frozen=True, slots=True)
class Batched:
    """A score whose policies are proposed in batches, so that several can be scored at once."""

    score: Score
    size: int  # of a batch: policies that are proposed before the score of the first is asked for, at least 1
    begin: Callable[[Sequence[tuple[int, ...]]], None] | None = None  # hears a batch's new policies before all others

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a batch must have at least 1 policy, got {self.size}")

    def __call__(self, policy: tuple[int, ...]) -> float:
        return self.score(policy)


LARGEST = 1e15  # absolute value of a score or reward: the agent squares rewards in float32, which ends at 3e38
REWARD_FAULT = "the reward"  # first words of the record's `error` if the reward failed


@dataclass(frozen=True, slots=True)
class Wording:
    """The messages that refuse a value. `{value}` and `{type}` are those of the refused value."""

    not_a_number: str
    not_finite: str
    too_large: str


SCORE = Wording(
    "the score is {value}, not a number", "the score is {value}, it must be finite",
    f"the score is {{value}}, it must lie within ±{LARGEST:g}",
)  # fmt: skip
REWARD = Wording(*(text.replace("score", "reward") for text in (SCORE.not_a_number, SCORE.not_finite, SCORE.too_large)))
EVALUATE = Wording(
    "evaluate returned a {type}; it must return a number",
    "evaluate returned {value}; it must return a finite number, higher for better",
    f"evaluate returned {{value}}; it must return a number within ±{LARGEST:g}",
)


def number_of(value: object, wording: Wording) -> float:
    """A score or a reward as a float: finite and within ±`LARGEST`. Raises EvaluationError for anything else.

    Numbers of other libraries and arrays or tensors of one element are numbers; booleans and text are not.
    """
    try:
        item = getattr(value, "item", None)
        plain = item() if callable(item) else value
        if isinstance(plain, bool | str | bytes) or not isinstance(plain, SupportsFloat):
            raise TypeError
        number = float(plain)
    except OverflowError:
        raise EvaluationError(wording.too_large.format(value=shown(value))) from None
    except Exception as error:  # an array of several numbers, or an error in the value's own methods
        check_resources(error)
        raise EvaluationError(
            wording.not_a_number.format(value=shown(value), type=one_line(type(value).__name__))
        ) from None
    if not math.isfinite(number):
        raise NotFiniteError(wording.not_finite.format(value=number))
    if abs(number) > LARGEST:
        raise EvaluationError(wording.too_large.format(value=f"{number:g}"))
    return number


def score_of_policy(value: object) -> tuple[float, float | None]:
    """A score and its standard error (None if unknown). Raises EvaluationError if `value` is not a score."""
    return number_of(value, SCORE), value.standard_error if isinstance(value, Measured) else None


def judged(
    problem: Problem, score: Score, reward: RewardFunction, policy: tuple[int, ...], episode: int
) -> EpisodeRecord:
    """The record of `policy`: its score and reward, or the reason for a failure by this module's rule.

    Raises ResourceError, and any AmcError that the reward raises (see `RewardFunction`).
    """
    costs = problem.policy_costs(policy)
    failed = partial(EpisodeRecord, episode, policy, costs, None, None)
    try:
        value, deviation = guarded(lambda: score_of_policy(score(policy)))
    except EvaluationError as error:
        return failed(str(error))
    outcome = Outcome(value, costs, problem.policy_costs(problem.dense.tolist()), deviation)
    try:
        return EpisodeRecord(episode, policy, costs, value, rewarded(reward, outcome), standard_error=deviation)
    except RewardError as error:
        return failed(str(error))


class RewardError(EvaluationError):
    """The reward raised an error, or did not return a finite number, for one policy."""


def rewarded(reward: RewardFunction, outcome: Outcome) -> float:
    """The reward of a scored policy.

    Raises RewardError if the reward fails for this policy, and any AmcError that the reward raises.
    """
    with explained(RewardError, f"{REWARD_FAULT} fails"):
        value = reward(outcome)
    try:
        return number_of(value, REWARD)
    except EvaluationError as error:
        raise RewardError(str(error)) from error
