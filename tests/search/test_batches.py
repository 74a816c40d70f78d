"""Batches: policies that are proposed together may be scored in any order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amc.errors import RunError
from amc.search import AGENTS, SearchResult, SearchTask, create_agent, search
from amc.search.agents.base import PlannedAgent, Setting
from amc.search.judging import Batched
from amc.search.stopping import StopRules
from tests.clocks import Ticks
from tests.search.toys import residual_problem

EPISODES, BATCH = 22, 4
PROBLEM, SCORE = residual_problem(9)
OPTIONS: dict[str, dict[str, Any]] = {
    "ddpg": {"warmup_episodes": 5, "hidden": 16, "batch_size": 8, "updates_per_episode": 2},
    "ddpg-model": {"warmup_episodes": 5, "hidden": 16, "batch_size": 8, "imagined_episodes": 3},
    "ddpg-paper": {"warmup_episodes": 5},
    "cma": {"population": 6},  # generations end within batches
}
MANY = [name for name in AGENTS if name not in ("uniform", "shallow", "deep", "optuna-gp")]  # the latter takes seconds


def run(
    path: Path | None, agent: str, *, batch: int = BATCH, score: Any = SCORE, ahead: Any = None, **more: Any
) -> SearchResult:
    made = create_agent(agent, SearchTask(PROBLEM, EPISODES, 0), OPTIONS.get(agent, {}))
    batched = Batched(score, batch, ahead)
    return search(PROBLEM, batched, made, episodes=EPISODES, seed=0, journal_path=path, **more)


@pytest.mark.parametrize("agent", MANY)
def test_a_batch_goes_on_from_any_line_of_its_journal(tmp_path: Path, agent: str) -> None:
    whole = run(tmp_path / "whole", agent)
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    assert len({record.keep for record in whole.episodes}) == EPISODES
    for kept in (0, 1, 2, 6, 9, 11, EPISODES):
        path = tmp_path / "part"
        path.write_bytes(b"".join(lines[:kept]))
        asked: list[tuple[int, ...]] = []
        assert run(path, agent, ahead=asked.extend) == whole
        assert path.read_bytes() == b"".join(lines)
        assert asked == [record.keep for record in whole.episodes[max(0, kept - 1) :]]


@pytest.mark.parametrize("agent", MANY)
def test_a_batch_is_proposed_before_anything_of_it_is_learned(agent: str) -> None:
    """So scores that differ within the first batch change nothing before the second."""
    other = run(None, agent, score=lambda policy: 1.0 - SCORE(policy))
    same = [a.keep == b.keep for a, b in zip(run(None, agent).episodes, other.episodes, strict=True)]
    assert all(same[:BATCH])


def test_policies_may_be_scored_in_any_order(tmp_path: Path) -> None:
    scores: dict[tuple[int, ...], float] = {}

    def backwards(policies: Any) -> None:
        scores.update({policy: SCORE(policy) for policy in reversed(policies)})

    ahead = run(tmp_path / "a", "planner", score=lambda policy: scores[policy], ahead=backwards)
    assert ahead == run(tmp_path / "b", "planner")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_journal_names_a_batch_of_several_and_goes_on_with_no_other(tmp_path: Path) -> None:
    for batch in (1, BATCH):
        run(tmp_path / str(batch), "random", batch=batch)
    headers = [json.loads((tmp_path / str(batch)).read_text().splitlines()[0]) for batch in (1, BATCH)]
    assert [header.get("batch") for header in headers] == [None, BATCH]
    for batch, other in ((1, BATCH), (BATCH, 1), (BATCH, 5)):
        with pytest.raises(RunError, match="batch"):
            run(tmp_path / str(batch), "random", batch=other)
    with pytest.raises(ValueError, match="a batch must have at least 1 policy, got 0"):
        run(None, "random", batch=0)


class Three(PlannedAgent):
    """Knows three policies."""

    name, max_episodes = "three", None

    def settings(self) -> dict[str, Setting]:
        return {}

    def begin_episode(self, episode: int, attempt: int) -> None:
        self.plan = (1.0 - self.surface.sample(np.random.default_rng(episode % 3))).tolist()


def test_a_policy_is_scored_once_even_where_there_are_fewer_than_a_batch() -> None:
    """Where no further policy is left, an episode repeats one; it is not scored again."""
    scored: list[tuple[int, ...]] = []

    def score(policy: tuple[int, ...]) -> float:
        scored.append(policy)
        return SCORE(policy)

    result = search(PROBLEM, Batched(score, 8), Three(PROBLEM), episodes=30, seed=0)
    assert len(scored) == len(set(scored)) == len({record.keep for record in result.episodes}) == 3
    assert len(result.episodes) == 30


@pytest.mark.parametrize("stop_at", [0, 5, 7, 8])
def test_a_search_ends_inside_a_batch_and_replays_to_the_same_end(tmp_path: Path, stop_at: int) -> None:
    rules = StopRules(asked=lambda record: "enough" if record.episode == stop_at else None)
    ended = run(tmp_path / "j", "planner", rules=rules)
    assert (len(ended.episodes), ended.stopped is not None) == (stop_at + 1, True)
    before = (tmp_path / "j").read_bytes()
    assert run(tmp_path / "j", "planner") == ended
    assert (tmp_path / "j").read_bytes() == before


def test_a_time_limit_counts_the_seconds_of_every_episode_once() -> None:
    """Proposing, scoring and learning take a tick each, with batches and without; the last learning is after it all."""
    for batch in (1, BATCH):
        records = run(None, "random", batch=batch, rules=StopRules(1000.0, clock=Ticks())).episodes
        assert records[-1].progress == pytest.approx((3 * EPISODES - 1) / 1000)
        assert [record.progress for record in records] == sorted(record.progress or 0.0 for record in records)
