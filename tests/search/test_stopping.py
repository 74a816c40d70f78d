"""Searches that end before their last episode: at a time limit, and when patience is over."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from amc.errors import RunError
from amc.search import (
    AGENTS,
    Agent,
    EpisodeRecord,
    SearchResult,
    SearchTask,
    Stop,
    StopRules,
    create_agent,
    load_journal,
    search,
)
from amc.search.agents import PlannerAgent, RandomAgent
from amc.search.agents.schedule import Schedule
from amc.search.stopping import TOLERANCE, UTMOST
from tests.clocks import Ticks
from tests.search.landscapes import TOYS, Sampled
from tests.search.optima import optimum
from tests.search.toys import record_of, residual_problem

PROBLEM, SCORE = residual_problem(9)
EPISODES = 30


def agent_named(name: str, episodes: int = EPISODES) -> Agent:
    return create_agent(name, SearchTask(PROBLEM, episodes, 0, dense_score=SCORE.top))


def limited(
    path: Path | None, seconds: float, *, name: str = "planner", score: Any = SCORE, **more: Any
) -> SearchResult:
    """A search with the clock `Ticks`."""
    rules = StopRules(seconds, clock=Ticks(), **more)
    return search(PROBLEM, score, agent_named(name), episodes=EPISODES, seed=0, journal_path=path, rules=rules)


def test_the_time_of_proposing_scoring_and_learning_ends_the_search() -> None:
    """Of the three seconds of an episode its record counts two, and the next record its learning."""
    result = limited(None, 20.0)
    assert [record.progress for record in result.episodes] == [
        2 / 20,
        *(pytest.approx((2 + 3 * n) / 20) for n in range(1, 7)),
    ]
    assert result.episodes[-1].progress == 1.0
    assert result.stopped == Stop("time limit", EPISODES, limit=20.0)
    assert [record.stopped for record in result.episodes[:-1]] == [None] * 6
    assert repr(result).startswith("SearchResult(7 episodes, stopped: time limit; best: ")


def test_at_least_one_policy_gets_a_score() -> None:
    assert len(limited(None, 1e-9).episodes) == 1
    failures = iter([True, True, False])

    def score(policy: tuple[int, ...]) -> float:
        if next(failures):
            raise RuntimeError("no")
        return SCORE(policy)

    result = limited(None, 1e-9, score=score)
    assert [record.error is None for record in result.episodes] == [False, False, True]
    assert [record.progress for record in result.episodes] == [1.0, 1.0, 1.0]


def test_a_limit_that_is_not_reached_changes_no_policy_unless_time_runs_faster_than_episodes() -> None:
    free = search(PROBLEM, SCORE, agent_named("planner"), episodes=EPISODES, seed=0)
    loose = limited(None, 1e6)
    assert [record.keep for record in loose.episodes] == [record.keep for record in free.episodes]
    assert loose.stopped is None
    assert all(0 < (record.progress or 0) < 1e-3 for record in loose.episodes)
    assert all(record.progress is None for record in free.episodes)


def test_the_last_episode_is_no_stop() -> None:
    exact = limited(None, 3.0 * EPISODES - 1)
    assert (len(exact.episodes), exact.stopped) == (EPISODES, None)
    assert exact.episodes[-1].progress == pytest.approx(1.0)


@pytest.mark.parametrize(
    "name", [name for name in AGENTS if not name.startswith(("optuna", "cma", "deep", "shallow", "ddpg-model"))]
)
def test_cut_short_and_resumed_it_is_the_uninterrupted_search(tmp_path: Path, name: str) -> None:
    """The journal knows the used time: no time is counted twice, none is lost, and nothing follows the stop."""
    whole = limited(tmp_path / "whole", 40.0, name=name)
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + len(whole.episodes)
    for kept in (0, 1, 2, 7, len(lines) - 1, len(lines)):
        path = tmp_path / "part"
        path.write_bytes(b"".join(lines[:kept]))
        assert limited(path, 40.0, name=name) == whole
        assert path.read_bytes() == b"".join(lines)


def test_what_is_recorded_is_replayed_without_the_clock(tmp_path: Path) -> None:
    """On a machine of another speed the recorded policies and the stop stay."""
    whole = limited(tmp_path / "j", 40.0)

    def late() -> float:
        raise AssertionError("the clock decides nothing here")

    class Slow(Ticks):
        def __call__(self) -> float:
            return 1000 * super().__call__()

    rules = StopRules(40.0, clock=Slow())
    again = search(
        PROBLEM, late, agent_named("planner"), episodes=EPISODES, seed=0, journal_path=tmp_path / "j", rules=rules
    )  # type: ignore[arg-type]
    assert again == whole


def test_a_journal_that_goes_on_after_its_stop_is_refused(tmp_path: Path) -> None:
    limited(tmp_path / "j", 20.0)
    lines = (tmp_path / "j").read_text().splitlines()
    first = json.loads(lines[0]) | {"journal": 1}  # without digests
    first.pop("sum")
    (tmp_path / "j").write_text(
        "\n".join([json.dumps(first), *lines[1:], lines[-1].replace('"episode": 6', '"episode": 7'), ""])
    )
    content = (tmp_path / "j").read_bytes()
    with pytest.raises(RunError, match="goes on after episode 6, where the search stopped; delete the lines after"):
        limited(tmp_path / "j", 20.0)
    assert (tmp_path / "j").read_bytes() == content


def test_a_journal_with_more_episodes_than_asked_for_is_refused_under_a_limit_too(tmp_path: Path) -> None:
    limited(tmp_path / "j", 20.0)
    with pytest.raises(RunError, match="already holds 7 episodes, more than the 4 asked for"):
        search(PROBLEM, SCORE, agent_named("planner", 30), episodes=4, seed=0, journal_path=tmp_path / "j")


@pytest.mark.parametrize(
    ("field", "value"), [("progress", 1.5), ("progress", -0.1), ("stopped", {"reason": "tired", "planned": 9})]
)
def test_impossible_progress_and_stops_are_damage(tmp_path: Path, field: str, value: Any) -> None:
    record = record_of(PROBLEM, tuple(PROBLEM.dense.tolist()), 0.5)
    line = json.dumps(json.loads(record.to_line()) | {field: value})
    (tmp_path / "j").write_text('{"journal": 1, "seed": 0}\n' + line + "\n")
    with pytest.raises(RunError, match="corrupt in line 2"):
        load_journal(tmp_path / "j")


@pytest.mark.parametrize(
    "stop",
    [
        Stop("time limit", 9, limit=1.5),
        Stop("patience", 9, stale=2),
        Stop("patience", 9, stale=2, expected_gain=0.125),
    ],
)
def test_stops_survive_the_journal(stop: Stop) -> None:
    record = replace(record_of(PROBLEM, tuple(PROBLEM.dense.tolist()), 0.5), progress=1 / 3, stopped=stop)
    assert EpisodeRecord.from_line(record.to_line()) == record


@pytest.mark.parametrize("rules", [{"seconds": 0.0}, {"seconds": -1.0}, {"seconds": math.nan}, {"patience": 0}])
def test_rules_refuse_nonsense(rules: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be a"):
        StopRules(**rules)


# Exploring less and less, over time.


def test_the_schedule_is_the_larger_share() -> None:
    schedule, record = Schedule(101), record_of(PROBLEM, tuple(PROBLEM.dense.tolist()), 0.5)
    assert schedule.reached(7) == 7
    schedule.note(replace(record, progress=0.5))
    assert schedule.reached(7) == 50
    assert schedule.reached(60) == 60
    schedule.note(record)
    assert schedule.reached(7) == 7


def test_the_planner_ends_its_time_with_the_likeliest_policies() -> None:
    """A search of 1,000 episodes with time for 30 ends like one of 30 episodes: better than without the narrowing."""
    temperatures: list[float] = []

    class Watched(PlannerAgent):
        def _temperature(self, episode: int) -> float:
            temperatures.append(super()._temperature(episode))
            return temperatures[-1]

    agent = Watched(SearchTask(PROBLEM, 1000, 0, dense_score=SCORE.top))
    result = search(PROBLEM, SCORE, agent, episodes=1000, seed=0, rules=StopRules(90.0, clock=Ticks()))
    assert len(result.episodes) == 31
    by_episode = temperatures[-22:]  # after the warm-up, one for each episode
    assert by_episode[0] == 1.0
    assert by_episode[-1] < 0.1
    assert by_episode == sorted(by_episode, reverse=True)


@pytest.mark.parametrize("name", ["ddpg", "ddpg-paper", "around-best", "spdy"])
def test_a_warm_up_is_a_quarter_of_the_time_too(name: str) -> None:
    """Of 400 episodes 100 are warm-up, but only 40 fit into the time: the first ten or so are random ones."""
    agent = create_agent(name, SearchTask(PROBLEM, 400, 0, dense_score=SCORE.top))
    timed = search(PROBLEM, SCORE, agent, episodes=400, seed=0, rules=StopRules(120.0, clock=Ticks()))
    agent = create_agent(name, SearchTask(PROBLEM, 400, 0, dense_score=SCORE.top))
    free = search(PROBLEM, SCORE, agent, episodes=len(timed.episodes), seed=0)
    same = [a.keep == b.keep for a, b in zip(timed.episodes, free.episodes, strict=True)]
    assert len(same) == 41
    assert same.index(False) in range(9, 13)


# Patience.


@dataclass
class Scripted(RandomAgent):
    """Random policies, and what it expects of later ones."""

    expects: Any
    warmup: int = 0

    def __post_init__(self) -> None:
        super().__init__(PROBLEM, seed=0)

    def settings(self) -> dict[str, Any]:
        return {"warmup_episodes": self.warmup}

    def expected_gain(self) -> float | None:
        return self.expects(self) if callable(self.expects) else self.expects


def scored(*scores: float | None) -> Any:
    """These scores one after the other, then the lowest; None fails."""
    given: Iterator[float | None] = itertools.chain(scores, itertools.repeat(0.1))

    def score(policy: tuple[int, ...]) -> float:
        value = next(given)
        if value is None:
            raise RuntimeError("no")
        return value

    return score


def patient(agent: Agent, score: Any, patience: int, path: Path | None = None) -> SearchResult:
    rules = StopRules(patience=patience)
    return search(PROBLEM, score, agent, episodes=EPISODES, seed=0, journal_path=path, rules=rules)


def test_without_a_model_so_many_episodes_without_a_better_one_end_the_search() -> None:
    result = patient(agent_named("random"), scored(0.5, 0.4, 0.6, 0.6, 0.5), 3)
    assert len(result.episodes) == 6  # the fourth is only as good as the third
    assert result.stopped == Stop("patience", EPISODES, stale=3)
    assert len(patient(agent_named("random"), scored(0.5, 0.6), 1).episodes) == 3
    assert patient(agent_named("random"), scored(*(0.1 + n / 100 for n in range(EPISODES))), 1).stopped is None


def test_failures_are_not_better_and_without_any_score_nothing_stops() -> None:
    assert len(patient(agent_named("random"), scored(0.5, None, None, 0.4), 3).episodes) == 4
    assert len(patient(agent_named("random"), scored(None, None, None, 0.4, None), 2).episodes) == 6


def test_a_warm_up_never_ends_the_search() -> None:
    assert len(patient(Scripted(None, warmup=10), scored(0.9), 4).episodes) == 14
    assert len(patient(agent_named("ddpg"), scored(0.9), 4).episodes) == EPISODES // 4 + 4
    assert len(patient(agent_named("planner"), scored(0.9), 1).episodes) >= 9


def test_a_model_that_expects_more_than_a_little_of_the_gain_so_far_waits_longer() -> None:
    """The first policies score 0.1 in the median and the best one 0.6."""
    least = TOLERANCE * 0.5
    for expected, stale in ((0.99 * least, 2), (0.0, 2), (1.01 * least, 2 * UTMOST), (math.inf, 2 * UTMOST)):
        result = patient(Scripted(expected, warmup=6), scored(*[0.1] * 5, 0.6), 2)
        assert len(result.episodes) == 6 + stale
        told = None if expected == math.inf else expected
        assert result.stopped == Stop("patience", EPISODES, stale=stale, expected_gain=told)
    falling = Scripted(lambda agent: 0.0 if next(agent.calls) >= 2 else 1.0)
    falling.calls = itertools.count()  # type: ignore[attr-defined]
    assert len(patient(falling, scored(0.6), 3).episodes) == 6


def test_patience_too_is_decided_once_by_the_journal(tmp_path: Path) -> None:
    """Where the model expects more when the search is resumed, as on another machine, the recorded stop stays."""
    whole = patient(Scripted(0.0), scored(0.6), 3, tmp_path / "j")
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    assert patient(Scripted(math.inf), None, 3, tmp_path / "j") == whole
    for kept in range(len(lines)):
        (tmp_path / "part").write_bytes(b"".join(lines[:kept]))
        left = [0.6, 0.1, 0.1, 0.1][max(0, kept - 1) :]
        assert patient(Scripted(0.0), scored(*left), 3, tmp_path / "part") == whole
        assert (tmp_path / "part").read_bytes() == b"".join(lines)


def test_the_planner_replays_to_the_same_stop(tmp_path: Path) -> None:
    def run(path: Path) -> SearchResult:
        agent = create_agent("planner", SearchTask(PROBLEM, 200, 0, dense_score=SCORE.top))
        return search(PROBLEM, SCORE, agent, episodes=200, seed=0, journal_path=path, rules=StopRules(patience=5))

    whole = run(tmp_path / "whole")
    assert whole.stopped is not None
    assert whole.stopped.expected_gain is not None
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for kept in (3, 9, 10, len(lines) - 1, len(lines)):
        (tmp_path / "part").write_bytes(b"".join(lines[:kept]))
        assert run(tmp_path / "part") == whole
        assert (tmp_path / "part").read_bytes() == b"".join(lines)


def test_asking_what_the_planner_expects_changes_no_proposal() -> None:
    agent = create_agent("planner", SearchTask(PROBLEM, EPISODES, 0, dense_score=SCORE.top))
    asked = search(
        PROBLEM,
        SCORE,
        agent,
        episodes=EPISODES,
        seed=0,
        on_episode=lambda *_: (agent.expected_gain(), None)[1],  # type: ignore[attr-defined]
    )
    assert asked == search(PROBLEM, SCORE, agent_named("planner"), episodes=EPISODES, seed=0)


def test_only_the_planner_says_what_it_expects() -> None:
    assert [name for name in AGENTS if agent_named(name).expected_gain() is not None] == ["planner"]


@pytest.mark.parametrize("toy", ["additive, residual, 9", "interacting, chain, 14"])
@pytest.mark.parametrize("images", [0, 2000])
def test_the_planner_stops_early_and_loses_little(toy: str, images: int) -> None:
    """Of the gap between the uniform policy and the optimum, in the median of three seeds."""
    lost, saved = [], []
    for seed in range(3):
        landscape = TOYS[toy](seed)
        score = Sampled(landscape, images, seed) if images else landscape
        agent = create_agent("planner", SearchTask(landscape.problem, 300, seed, dense_score=landscape.top))
        result = search(landscape.problem, score, agent, episodes=300, seed=seed, rules=StopRules(patience=20))
        begin, best = landscape(result.episodes[0].keep), optimum(landscape)
        lost.append((best - landscape(result.best.keep)) / (best - begin))
        saved.append(300 - len(result.episodes))
    assert sorted(lost)[1] < 0.12
    assert sorted(saved)[1] > 100


def test_where_the_model_misfits_it_expects_more_and_goes_on() -> None:
    """Layers that collapse below a width: the last policies bring nothing, and later ones do."""
    landscape = TOYS["collapsing, residual, 18"](0)
    agent = create_agent("planner", SearchTask(landscape.problem, 60, 0, dense_score=landscape.top))
    result = search(landscape.problem, landscape, agent, episodes=60, seed=0, rules=StopRules(patience=20))
    assert result.stopped is None
    without = create_agent("random", SearchTask(landscape.problem, 60, 0))
    assert search(landscape.problem, landscape, without, episodes=60, seed=0, rules=StopRules(patience=20)).stopped


def test_what_the_planner_expects_falls_to_nothing_as_it_learns() -> None:
    expected: list[float] = []
    agent = create_agent("planner", SearchTask(PROBLEM, 60, 0, dense_score=SCORE.top))
    search(PROBLEM, SCORE, agent, episodes=60, seed=0, on_episode=lambda *_: expected.append(agent.expected_gain()))  # type: ignore[attr-defined]
    assert expected[:8] == [math.inf] * 8
    assert max(expected[8:12]) > 0.001
    assert max(expected[-5:]) < 1e-4
    assert min(expected) >= 0
