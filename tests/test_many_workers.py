"""The simulation of many workers: against closed forms, and what the section makes of measured parts."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PARTS = ("start", "agent", "scores", "uneven", "transfer")


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("simulated_workers")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("many_workers_section")


def steady(
    simulated: ModuleType, episodes: int, *, propose: float = 0.5, score: float = 2.0, learn: float = 0.25
) -> Any:
    return simulated.Search([propose] * episodes, [score] * episodes, [learn] * episodes)


def uneven(simulated: ModuleType, episodes: int) -> Any:
    """Scores from 1 to 4 seconds, in no order."""
    return simulated.Search([0.1] * episodes, simulated.drawn([1.0, 2.5, 4.0], episodes), [0.01] * episodes)


def test_one_worker_takes_the_sum_of_everything(simulated: ModuleType) -> None:
    search = uneven(simulated, 50)
    fleet = simulated.Fleet(1, start=3.0, transfer=0.02)
    spent = simulated.simulate(search, 1, fleet)
    busy = sum(search.score) + 50 * 0.02
    assert spent.seconds == pytest.approx(3.0 - 0.1 + 50 * 0.11 + busy)  # it starts while the first is proposed
    assert spent.start == pytest.approx(2.9)
    assert spent.agent == pytest.approx(50 * 0.11)
    assert spent.uneven == pytest.approx(0.0)
    assert spent.idle == pytest.approx(1 - busy / spent.seconds)


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_a_batch_of_as_many_policies_as_workers_takes_one_score_a_round(simulated: ModuleType, workers: int) -> None:
    spent = simulated.simulate(steady(simulated, 5 * workers), workers, simulated.Fleet(workers, transfer=0.1))
    assert spent.seconds == pytest.approx(5 * (workers * (0.5 + 0.25) + 2.1))
    assert spent.idle == pytest.approx(1 - 5 * 2.1 / spent.seconds)
    assert (spent.scores, spent.transfer) == pytest.approx((10.0, 0.5))
    assert spent.uneven == pytest.approx(0.0)
    assert spent.policies == 5 * workers


def test_an_agent_without_cost_scales_with_the_workers(simulated: ModuleType) -> None:
    free = steady(simulated, 64, propose=0.0, learn=0.0)
    times = [simulated.simulate(free, 16, simulated.Fleet(w)).seconds for w in (1, 2, 4, 16)]
    assert times == pytest.approx([128.0, 64.0, 32.0, 8.0])


def test_learning_goes_on_while_others_score(simulated: ModuleType) -> None:
    """One worker, a batch of three: only the last policy's learning, and all proposals, add to the scores."""
    spent = simulated.simulate(steady(simulated, 3), 3, simulated.Fleet(1))
    assert spent.seconds == pytest.approx(3 * 0.5 + 3 * 2.0 + 0.25)


def test_learning_waits_for_the_earlier_episodes(simulated: ModuleType) -> None:
    search = simulated.Search([0.0, 0.0], [5.0, 1.0], [1.0, 1.0])
    assert simulated.simulate(search, 2, simulated.Fleet(2)).seconds == pytest.approx(7.0)


def test_the_slowest_of_a_batch_is_waited_for(simulated: ModuleType) -> None:
    search = simulated.Search([0.0] * 4, [8.0, 2.0, 1.0, 1.0], [0.0] * 4)
    spent = simulated.simulate(search, 4, simulated.Fleet(4))
    assert (spent.seconds, spent.scores, spent.uneven) == pytest.approx((8.0, 3.0, 5.0))
    assert spent.bound == "the slowest of a batch"
    assert spent.idle == pytest.approx(1 - 12 / 32)


def test_a_free_worker_takes_the_next_policy(simulated: ModuleType) -> None:
    search = simulated.Search([0.0] * 4, [3.0, 1.0, 1.0, 1.0], [0.0] * 4)
    assert simulated.simulate(search, 4, simulated.Fleet(2)).seconds == pytest.approx(3.0)


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_more_workers_than_the_batch_are_of_no_use(simulated: ModuleType, batch: int) -> None:
    search = uneven(simulated, 64)
    enough, more = (simulated.simulate(search, batch, simulated.Fleet(w)) for w in (batch, 64))
    assert more.seconds == enough.seconds
    assert batch == 64 or more.idle > enough.idle


def test_workers_that_begin_at_once_hide_the_proposals(simulated: ModuleType) -> None:
    """One worker scores while the next policies are proposed; with four, the last proposal and its score remain."""
    search = steady(simulated, 4, learn=0.0)
    four = [simulated.simulate(search, 4, simulated.Fleet(4), streamed=s).seconds for s in (False, True)]
    assert four == pytest.approx([4 * 0.5 + 2.0] * 2)
    one = [simulated.simulate(search, 4, simulated.Fleet(1), streamed=s).seconds for s in (False, True)]
    assert one == pytest.approx([4 * 0.5 + 4 * 2.0, 0.5 + 4 * 2.0])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("deaths", [0.0, 20.0])
def test_the_parts_sum_up_to_the_time(simulated: ModuleType, streamed: bool, deaths: float) -> None:
    fleet = simulated.Fleet(8, start=2.0, transfer=0.05, deaths=deaths)
    spent = simulated.simulate(uneven(simulated, 100), 16, fleet, streamed=streamed)
    assert sum(getattr(spent, part) for part in PARTS) == pytest.approx(spent.seconds)
    assert all(getattr(spent, part) >= 0 for part in PARTS)
    assert 0 <= spent.idle < 1


def test_deaths_cost_what_was_scored_and_a_start(simulated: ModuleType) -> None:
    """An hour of scoring at 36 deaths an hour: with scores of 1 s the expected repeats have a closed form."""
    search = steady(simulated, 20_000, propose=0.0, score=1.0, learn=0.0)
    fleet = simulated.Fleet(1, start=2.0, deaths=36.0)
    spent = simulated.simulate(search, 20_000, fleet)
    rate = 36 / 3600
    expected = (math.exp(rate) - 1) * (1 / rate + 2.0)  # of a policy, tried until it is scored
    assert spent.seconds == pytest.approx(2.0 + 20_000 * expected, rel=0.01)
    assert spent.failed == 0  # one policy in a million kills three workers


def test_a_policy_that_no_worker_survives_fails(simulated: ModuleType) -> None:
    fleet = simulated.Fleet(2, start=1.0, deaths=1e9)
    spent = simulated.simulate(steady(simulated, 6), 2, fleet)
    assert spent.failed == 6
    assert spent.seconds == pytest.approx(1.0 - 2 * 0.5 + 6 * 0.5 + 3 * 3 * 1.0 + 6 * 0.25, abs=0.01)


def test_the_same_seed_gives_the_same_search(simulated: ModuleType) -> None:
    search, fleet = uneven(simulated, 60), simulated.Fleet(4, start=1.0, deaths=60.0)
    first, again, other = (simulated.simulate(search, 8, fleet, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.seconds != other.seconds
    measured = [0.1, 0.2, 0.3]
    assert simulated.drawn(measured, 40, 1) == simulated.drawn(measured, 40, 1) != simulated.drawn(measured, 40, 2)
    assert set(simulated.drawn(measured, 40)) == set(measured)
    assert simulated.drawn(measured, 20) == simulated.drawn(measured, 40)[:20]


def test_what_cannot_be_simulated_is_refused(simulated: ModuleType) -> None:
    with pytest.raises(ValueError, match="at least 1 worker, got 0"):
        simulated.Fleet(0)
    with pytest.raises(ValueError, match="at least 1 policy, got 0"):
        simulated.simulate(steady(simulated, 2), 0, simulated.Fleet(1))
    for propose in ([], [1.0]):
        with pytest.raises(ValueError, match="of every episode"):
            simulated.Search(propose, [], [])


RECORD: dict[str, Any] = {
    "model": "tiny", "images": 10, "groups": 3, "round_trips": 5,
    "pipe": {"start": 1.0, "exchange": 0.001, "slow_exchange": 0.002, "driver": 0.001},
    "scores": {"random": [0.9, 1.1], "proposed": [1.0, 1.0]},
    "agent": {
        "1": {"known": [0, 1, 2, 4], "propose": [0.01, 0.01, 0.02, 0.03], "learn": [0.0, 0.0, 0.0, 0.004]},
        "64": {"known": [0, 64], "propose": [0.005, 0.008], "learn": [0.001, 0.002]},
    },
    "checks": [
        {"workers": 1, "seconds": 5.0, "score": [1.0] * 4, "propose": [0.1] * 4, "learn": [0.0] * 4},
        {"workers": 2, "seconds": 2.5, "score": [1.0] * 4, "propose": [0.1] * 4, "learn": [0.0] * 4},
    ],
    "environment": {"cpu": "a", "cores": 2, "torch": "2", "python": "3", "date": "2026-01-01"},
}  # fmt: skip


def test_a_search_has_the_seconds_of_as_many_known_policies(shown: ModuleType) -> None:
    search = shown.search_of(RECORD, 1, 6)
    assert search.propose == [0.01, 0.01, 0.02, 0.02, 0.03, 0.03]
    assert search.learn == pytest.approx([0.001] * 4 + [0.005] * 2)  # with the driver's part of the exchange
    assert search.score == [1.0] * 6
    assert shown.mean_between([0, 1, 2, 4], [1.0, 2.0, 3.0, 4.0], 0, 4) == pytest.approx((1 + 2 + 2 * 3) / 4)
    assert shown.mean_between([0, 64], [1.0, 2.0], 0, 32) is None


def test_the_section_computes_what_the_parts_give(shown: ModuleType) -> None:
    text = shown.section(RECORD)
    one = 1.0 - 0.01 + 2048 * 1.002 + sum(shown.search_of(RECORD, 1, 2048).propose) + 4 * 0.001 + 2044 * 0.005
    assert shown.computed(RECORD, 1, 1).seconds == pytest.approx(one)
    assert shown.best_batch(RECORD, 64) == 64
    assert "| 1 | 5.00 s / 4.40 s | 2.50 s / 2.40 s | 2.00× | 1.83× |" in text


OUTCOMES = {
    100: {
        "1 | toy | 0 | random | 0": "0.2 0.3 0.4 0.8 1", "1 | toy | 0 | random | 1": "0.2 0.3 0.4 0.8 1",
        "1 | toy | 0 | planner | 0": "0.2 0.3 0.6 0.8 1", "64 | toy | 0 | planner | 0": "0.2 0.3 0.5 0.8 1",
        "1 | toy | 0 | planner | 1": "0.2 0.3 0.7 0.8 1",
    },
    400: {"1 | toy | 0 | random | 0": "0.2 0.3 0.7 0.8 1", "64 | toy | 0 | planner | 0": "0.2 0.3 0.8 0.8 1"},
}  # fmt: skip


def test_the_time_to_a_quality_is_that_of_the_fastest_search(
    shown: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Toys and seeds that not all searches have are left out; the gap is that of 100 random policies."""
    found = [{"episodes": count, "runs": runs} for count, runs in OUTCOMES.items()]
    shares, cases = shown.reached(found)
    assert [(case.toy, case.seed) for case in cases] == [("toy", 0)]
    assert shares == pytest.approx({(100, 1): 0.5, (100, 64): 0.25, (400, 64): 1.0})
    monkeypatch.setattr(shown, "TARGETS", (0.4, 0.9))
    rows = [re.findall(r"\(.*?\)", line) for line in shown.times_table(RECORD, shares).splitlines()[2:]]
    assert rows[0] == ["(100, 1)", "(400, 64)"]  # one worker: 100 scores are fewer than 400
    assert rows[shown.FLEETS.index(64)] == ["(400, 64)", "(400, 64)"]  # 64 workers: 7 rounds take less than 100
