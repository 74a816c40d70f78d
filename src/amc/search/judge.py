"""A policy, scored and rewarded, as the journal's record; one that fails too."""

from functools import partial

from amc.errors import AmcError, EvaluationError
from amc.judging import REWARD, Score, check_resources, guarded, number_of, reason_of, score_of_policy
from amc.search.journal import EpisodeRecord
from amc.search.problem import Problem
from amc.search.rewards import Outcome, RewardFunction

REWARD_FAULT = "the reward"  # how the record of an episode begins that the reward failed


def judged(
    problem: Problem, score: Score, reward: RewardFunction, policy: tuple[int, ...], episode: int
) -> EpisodeRecord:
    """The record of `policy`: its score and reward, or the reason why it has none, by the rule of `amc.judging`.

    An AmcError that the reward raises passes through (see `RewardFunction`), and so does a ResourceError.
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
    """The reward raised, or returned no finite number, for one policy."""


def rewarded(reward: RewardFunction, outcome: Outcome) -> float:
    """What the reward makes of a scored policy.

    Raises RewardError where it fails on this policy; the reward's own AmcError passes through.
    """
    try:
        paid = reward(outcome)
    except AmcError:
        raise
    except Exception as error:  # a user's function may raise anything
        check_resources(error)
        raise RewardError(f"{REWARD_FAULT} fails ({reason_of(error)})") from error
    try:
        return number_of(paid, REWARD)
    except EvaluationError as error:
        raise RewardError(str(error)) from error
