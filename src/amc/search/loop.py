"""The episode loop: propose a policy, score it, append it to the journal, learn from it.

A resumed search replays the journal through the agent with the recorded scores, then continues. Its result equals that
of an uninterrupted search with the same seed; with a time limit, of one that took as long.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amc.errors import EvaluationError, ResourceError, RunError
from amc.search.agents.base import Agent
from amc.search.bounds import SURFACE_FLOOR, Bounds
from amc.search.environment import Rollout, roll_out
from amc.search.journal import EpisodeRecord, Journal, Stop
from amc.search.judging import REWARD_FAULT, Score, judged, rewarded
from amc.search.problem import Problem
from amc.search.rewards import Outcome, RewardFunction, check_costs, r_err, reward_name
from amc.search.stopping import StopRules

MAX_ATTEMPTS = 10  # proposals per episode until one is a new policy
HOPELESS_AFTER = 10  # the search stops if this many first episodes all fail


@dataclass(frozen=True, slots=True)
class EpisodeTiming:
    """Wall-clock seconds of one episode; kept out of the journal."""

    agent: float  # proposing (environment included) and learning
    score: float  # zero if the policy had been scored before or was read from the journal
    replayed: bool  # read from the journal


@dataclass(frozen=True, slots=True)
class SearchResult:
    """All episodes, and their distinct policies in order: the highest reward first, of equal ones the earliest.

    If the agent has a less noisy estimate of the scores, the rewards of these estimates order the policies.

    >>> result.search
    SearchResult(3 episodes; best: EpisodeRecord(...: score ..., reward ...))
    """

    episodes: tuple[EpisodeRecord, ...]
    ranked: tuple[EpisodeRecord, ...]  # not empty; without failed ones

    @property
    def best(self) -> EpisodeRecord:
        """The first of `ranked`."""
        return self.ranked[0]

    @property
    def failed(self) -> int:
        """The number of episodes that failed."""
        return sum(record.error is not None for record in self.episodes)

    @property
    def stopped(self) -> Stop | None:
        """Why the search ended before its last episode; None if it did not."""
        return self.episodes[-1].stopped

    def __repr__(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        episodes = f"{len(self.episodes)} episode{'s' * (len(self.episodes) != 1)}"
        stopped = f", stopped: {self.stopped.reason}" if self.stopped else ""
        return f"SearchResult({episodes}{failed}{stopped}; best: {self.best})"


OnEpisode = Callable[[EpisodeRecord, EpisodeTiming], None]


def search(
    problem: Problem,
    score: Score,
    agent: Agent,
    *,
    episodes: int,
    seed: int,
    journal_path: Path | None = None,
    on_episode: OnEpisode | None = None,
    reward: RewardFunction = r_err,
    floor: float | None = SURFACE_FLOOR,
    origin: Mapping[str, Any] | None = None,
    rules: StopRules | None = None,
) -> SearchResult:
    """Run `episodes` episodes, or the agent's `max_episodes` if that is fewer, or until `rules` end the search.

    `score` maps a policy (keep counts in the order of the decisions) to a finite number, higher is better. It is
    called once per distinct policy. If it raises an error or returns anything else, the episode is recorded as failed
    with the reason, and the search continues (see `amc.search.judging`). A `Measured` score includes its standard
    error. An existing journal is continued. `seed` and `origin` (see `JournalContent`) are written to its header.

    Raises EvaluationError if all episodes, or the first ten, fail; any AmcError that `reward` raises; AmcError before
    the first episode if the reward's cost is unknown; ResourceError if memory or disk space runs out; RunError if the
    journal is corrupt, belongs to another search or cannot be written. After a KeyboardInterrupt the journal holds
    every finished episode.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    if agent.max_episodes is not None:
        episodes = min(episodes, agent.max_episodes)
    loop = _Loop(problem, score, agent, reward, Bounds(problem, floor=floor), rules or StopRules(), episodes)
    header = _header(problem, agent, seed, floor, reward)
    journal = None if journal_path is None else Journal(journal_path, header, origin)
    recorded = () if journal is None else journal.records
    if len(recorded) > episodes:
        raise RunError(
            f"journal {journal_path} already holds {len(recorded)} episodes, more than the {episodes} asked "
            f"for; ask for at least {len(recorded)} or use another directory"
        )
    for episode in range(episodes):
        replayed = recorded[episode] if episode < len(recorded) else None
        try:
            record, timing = loop.run_episode(episode, replayed)
        except ResourceError as error:
            raise _stopped(error, episode, journal_path) from error
        if journal is not None and replayed is None:
            journal.append(record)
        if on_episode is not None:
            on_episode(record, timing)
        loop.check_hope()
        if record.stopped is not None:
            break
    if len(recorded) > episode + 1:
        raise RunError(
            f"journal {journal_path} goes on after episode {episode}, where the search stopped; delete the lines after "
            "that episode, then resume"
        )
    return loop.result()


class _Loop:
    """The state of a search in progress."""

    def __init__(
        self,
        problem: Problem,
        score: Score,
        agent: Agent,
        reward: RewardFunction,
        bounds: Bounds,
        rules: StopRules,
        episodes: int,
    ) -> None:
        self._problem, self._score, self._agent = problem, score, agent
        self._reward, self._bounds = reward, bounds
        self._rules, self._episodes = rules, episodes
        check_costs(reward, problem.policy_costs(problem.dense.tolist()))
        self._records: list[EpisodeRecord] = []
        self._known: dict[tuple[int, ...], EpisodeRecord] = {}
        self._learning = 0.0  # seconds since the latest record, which the next one counts

    def run_episode(self, episode: int, replayed: EpisodeRecord | None) -> tuple[EpisodeRecord, EpisodeTiming]:
        """Propose a policy, score it (or read its score from the journal) and learn.

        After a new episode the stop rules decide whether the search ends. A recorded one says it.
        """
        clock = self._rules.clock
        began = clock()
        rollout = self._propose(episode)
        proposed = clock()
        record = self._replay(rollout, replayed) if replayed is not None else self._judge(episode, rollout.keep_counts)
        judged = clock()
        if replayed is None:
            record = self._timed(record, self._learning + judged - began)
        self._known.setdefault(record.keep, record)
        self._records.append(record)
        self._agent.end_episode(rollout, record)
        if replayed is None:
            stop = self._rules.stop(self._records, self._episodes, self._agent)
            record = self._records[-1] = replace(record, stopped=stop)
        learned = clock()
        self._learning = learned - judged
        timing = EpisodeTiming(
            agent=proposed - began + learned - judged,
            score=0.0 if replayed is not None else judged - proposed,
            replayed=replayed is not None,
        )
        return record, timing

    def check_hope(self) -> None:
        """Raise EvaluationError if every one of the first episodes failed."""
        if len(self._records) >= HOPELESS_AFTER and all(record.error for record in self._records):
            raise EvaluationError(self._hopeless())

    def result(self) -> SearchResult:
        """The finished search. Raises EvaluationError if no episode has a score."""
        distinct = {record.keep: record for record in reversed(self._records) if record.reward is not None}
        if not distinct:
            raise EvaluationError(self._hopeless())
        estimates = self._agent.estimates()
        rewards = {keep: self._expected(record, estimates.get(keep)) for keep, record in distinct.items()}
        ranked = sorted(distinct.values(), key=lambda record: (-rewards[record.keep], record.episode))
        return SearchResult(tuple(self._records), tuple(ranked))

    def _expected(self, record: EpisodeRecord, estimate: float | None) -> float:
        """The reward of a record, or of the agent's estimate of its score."""
        reward = record.reward or 0.0
        if estimate is None:
            return reward
        dense = self._problem.policy_costs(self._problem.dense.tolist())
        try:
            return rewarded(self._reward, Outcome(estimate, record.cost, dense, record.standard_error))
        except EvaluationError:  # an estimate may lie where the reward is not defined
            return reward

    def _propose(self, episode: int) -> Rollout:
        """Play an episode. If its policy was scored before, play again: transitions cost almost no time."""
        for attempt in range(MAX_ATTEMPTS):
            self._agent.begin_episode(episode, attempt)
            rollout = roll_out(self._problem, self._bounds, self._agent.act)
            if rollout.keep_counts not in self._known:
                break
        return rollout

    def _judge(self, episode: int, policy: tuple[int, ...]) -> EpisodeRecord:
        """Score a policy, or copy its earlier record."""
        if policy in self._known:
            return replace(self._known[policy], episode=episode)
        return judged(self._problem, self._score, self._reward, policy, episode)

    def _timed(self, record: EpisodeRecord, seconds: float) -> EpisodeRecord:
        """The record with the used share of the time limit, after so many seconds since the one before."""
        before = self._records[-1].progress if self._records else None
        return replace(record, progress=self._rules.progress(before, seconds))

    def _replay(self, rollout: Rollout, record: EpisodeRecord) -> EpisodeRecord:
        """The journal's record. Raises RunError if the agent proposes another policy than the recorded one."""
        if record.keep != rollout.keep_counts:
            raise RunError(
                f"journal does not replay: episode {record.episode} kept {list(record.keep)}, the agent now "
                f"keeps {list(rollout.keep_counts)}; another version or machine wrote it, start a new run"
            )
        return record

    def _hopeless(self) -> str:
        last = self._records[-1].error or ""
        check = REWARD_FAULT if last.startswith(REWARD_FAULT) else "the evaluation on the dense network"
        return (
            f"all of the first {len(self._records)} episodes failed, the last: {last}; "
            f"check {check}, then start a new run"
        )


def _header(problem: Problem, agent: Agent, seed: int, floor: float | None, reward: RewardFunction) -> dict[str, Any]:
    named = {} if reward is r_err else {"reward": reward_name(reward)}  # journals never name r_err
    return {
        "seed": seed,
        "agent": agent.name,
        "decisions": problem.fingerprint(),
        "floor": floor,
        "settings": agent.settings(),
        **named,
    }


def _stopped(error: ResourceError, episode: int, journal_path: Path | None) -> ResourceError:
    """The error with its episode and remedy. A resumed search scores this episode's policy again."""
    if journal_path is None:
        return ResourceError(f"{error} in episode {episode}; free some, then start again")
    run = journal_path.parent
    return ResourceError(f"{error} in episode {episode}; the earlier episodes are kept: free some, then resume '{run}'")
