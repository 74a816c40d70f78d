"""The episode loop: propose policies, score them, append them to the journal, learn from them.

Policies are proposed in batches, and learned from in the order of their episodes once the whole batch is proposed. So
it does not matter in which order, or by how many workers, the policies of a batch are scored.

A resumed search replays the journal through the agent with the recorded scores, then continues. Its result equals that
of an uninterrupted search with the same seed; with a time limit, of one that took as long.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amc.errors import EvaluationError, ResourceError, RunError
from amc.search.agents.base import Agent
from amc.search.bounds import SURFACE_FLOOR, Bounds
from amc.search.environment import Rollout, roll_out
from amc.search.journal import EpisodeRecord, Journal, Stop
from amc.search.judging import REWARD_FAULT, Batched, Score, judged, rewarded
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
class _Proposal:
    """A policy that is to be scored."""

    episode: int
    rollout: Rollout
    seconds: float  # of proposing


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

    With a `Batched` score, policies are proposed in batches, and the agent learns from no policy of a batch before all
    of it is proposed. The score may begin to score them at once; it is then called for each in turn.

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
    batches = score if isinstance(score, Batched) else Batched(score, 1)
    header = _header(problem, agent, seed, floor, reward, batches.size)
    journal = None if journal_path is None else Journal(journal_path, header, origin)
    recorded = () if journal is None else journal.records
    if len(recorded) > episodes:
        raise RunError(
            f"journal {journal_path} already holds {len(recorded)} episodes, more than the {episodes} asked "
            f"for; ask for at least {len(recorded)} or use another directory"
        )
    for proposal in loop.proposals(batches, len(recorded)):
        episode = proposal.episode
        replayed = recorded[episode] if episode < len(recorded) else None
        try:
            record, timing = loop.run_episode(proposal, replayed)
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
        self._pending: set[tuple[int, ...]] = set()  # proposed in this batch
        self._uncounted = 0.0  # seconds of proposing and learning since the latest record, which the next one counts
        self._latest = 0.0  # the clock when the latest batch was proposed, or the latest record learned

    def proposals(self, batches: Batched, replayed: int) -> Iterator[_Proposal]:
        """The policies of all episodes. A batch is proposed when all records of the one before are learned.

        `replayed`: how many episodes the journal holds; no score of these begins.
        """
        for first in range(0, self._episodes, batches.size):
            self._pending.clear()
            proposals = [self._proposed(number) for number in range(first, min(first + batches.size, self._episodes))]
            if batches.begin is not None:
                new = [each.rollout.keep_counts for each in proposals if each.episode >= replayed]
                batches.begin([policy for policy in dict.fromkeys(new) if policy not in self._known])
            yield from proposals

    def run_episode(self, proposal: _Proposal, replayed: EpisodeRecord | None) -> tuple[EpisodeRecord, EpisodeTiming]:
        """Score a policy (or read its score from the journal) and learn.

        After a new episode the stop rules decide whether the search ends. A recorded one says it.
        """
        clock, began, rollout = self._rules.clock, self._latest, proposal.rollout
        new = replayed is None
        record = (
            self._judge(proposal.episode, rollout.keep_counts) if replayed is None else self._replay(rollout, replayed)
        )
        judged = clock()
        if new:
            record = self._timed(record, self._uncounted + judged - began)
        self._known.setdefault(record.keep, record)
        self._records.append(record)
        self._agent.end_episode(rollout, record)
        if new:
            stop = self._rules.stop(self._records, self._episodes, self._agent)
            record = self._records[-1] = replace(record, stopped=stop)
        self._latest = clock()
        self._uncounted = self._latest - judged
        timing = EpisodeTiming(
            agent=proposal.seconds + self._latest - judged, score=judged - began if new else 0.0, replayed=not new
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

    def _proposed(self, episode: int) -> _Proposal:
        """Play an episode. If its policy was proposed before, play again: transitions cost almost no time."""
        began = self._rules.clock()
        for attempt in range(MAX_ATTEMPTS):
            self._agent.begin_episode(episode, attempt)
            rollout = roll_out(self._problem, self._bounds, self._agent.act)
            if rollout.keep_counts not in self._known and rollout.keep_counts not in self._pending:
                break
        self._pending.add(rollout.keep_counts)
        self._agent.proposed(rollout)
        self._latest = self._rules.clock()
        seconds = self._latest - began
        self._uncounted += seconds
        return _Proposal(episode, rollout, seconds)

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


def _header(
    problem: Problem, agent: Agent, seed: int, floor: float | None, reward: RewardFunction, batch: int
) -> dict[str, Any]:
    named: dict[str, Any] = {} if reward is r_err else {"reward": reward_name(reward)}  # journals never name r_err
    if batch > 1:  # nor a batch of one
        named["batch"] = batch
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
