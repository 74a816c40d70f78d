"""Scores a policy, computes its reward and makes the journal's record. A failed policy gets a record too."""

from functools import partial

from amc.errors import AmcError, EvaluationError
from amc.judging import REWARD, Score, check_resources, guarded, number_of, reason_of, score_of_policy
from amc.search.journal import EpisodeRecord
from amc.search.problem import Problem
from amc.search.rewards import Outcome, RewardFunction

REWARD_FAULT = "the reward"  # first words of the record's `error` if the reward failed


def judged(
    problem: Problem, score: Score, reward: RewardFunction, policy: tuple[int, ...], episode: int
) -> EpisodeRecord:
    """The record of `policy`: its score and reward, or the reason for a failure by the rule of `amc.judging`.

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
    try:
        value = reward(outcome)
    except AmcError:
        raise
    except Exception as error:  # a user's function may raise anything
        check_resources(error)
        raise RewardError(f"{REWARD_FAULT} fails ({reason_of(error)})") from error
    try:
        return number_of(value, REWARD)
    except EvaluationError as error:
        raise RewardError(str(error)) from error
