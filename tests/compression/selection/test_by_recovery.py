"""The best few, recovered, on other images: who is taken, and what the search overrated."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from amc.compression.selection import choose
from amc.compression.selection.base import best_first
from amc.compression.selection.by_recovery import ByRecovery
from amc.errors import EvaluationError
from amc.search import REWARDS, Budget, Decision, EpisodeRecord, LayerFeatures, Metric, Outcome, Problem, RewardFunction

DENSE = 8


def problem() -> Problem:
    features = LayerFeatures(n=1, c=DENSE, h=1, w=1, stride=1, k=1, macs=80)
    decision = Decision("a", DENSE, tuple(range(1, DENSE + 1)), features)
    return Problem((decision,), {Metric.MACS: lambda keep: keep.sum(-1) * 10.0}, (Budget(Metric.MACS, fraction=1.0),))


def record(episode: int, keep: int, score: float | None) -> EpisodeRecord:
    failed = score is None
    return EpisodeRecord(
        episode, (keep,), {"macs": 10.0 * keep}, score, None if failed else score - 1, "boom" if failed else None
    )


@dataclass
class Measured:
    """A `Measurement` of known scores; None fails. Without recovered ones nothing is recovered."""

    pruned_: dict[int, float] = field(default_factory=dict)
    recovered_: dict[int, float | None] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    counts: set[int] = field(default_factory=set)  # of finalists, as they were told

    def pruned(self, record: EpisodeRecord) -> float:
        return self.pruned_[record.episode]

    def recovered(self, record: EpisodeRecord, number: int, count: int) -> float | None:
        assert number == len(self.asked)
        self.asked.append(record.episode)
        self.counts.add(count)
        if not self.recovered_:
            return None
        value = self.recovered_[record.episode]
        if value is None:
            raise EvaluationError("evaluate fails")
        return value


def selection(measured: Measured, *, images: int | None = 500, reward: str = "r_err") -> ByRecovery:
    return ByRecovery(problem(), REWARDS[reward], measured, 3, images, dense_search=0.95, dense_unseen=0.93)


EPISODES = [record(0, 4, 0.70), record(1, 3, 0.80), record(2, 2, None), record(3, 3, 0.80), record(4, 5, 0.75),
            record(5, 6, 0.60)]  # fmt: skip
RANKED = best_first(EPISODES)
PRUNED = {1: 0.74, 4: 0.75, 0: 0.70, 5: 0.6}


def test_the_best_after_recovery_is_taken_of_the_best_distinct_policies() -> None:
    measured = Measured(PRUNED, {1: 0.85, 4: 0.88, 0: 0.86})
    choice = choose(RANKED, [selection(measured)])
    assert measured.asked == [1, 4, 0]  # 3 is 1 again, 2 failed, and 5 is the fourth
    assert choice.record == EPISODES[4]
    assert choice.holds
    lines = choice.summary["finalists"]["trials"]
    assert [line["episode"] for line in lines] == [1, 4, 0]
    assert [line["chosen"] for line in lines] == [False, True, False]
    assert [line["score_unseen"] for line in lines] == [0.74, 0.75, 0.70]
    assert [line["score_recovered"] for line in lines] == [0.85, 0.88, 0.86]


def test_without_recovery_the_best_as_pruned_on_other_images_is_taken() -> None:
    choice = selection(Measured(PRUNED)).choose(RANKED)
    assert choice.record == EPISODES[4]
    lines = choice.summary["finalists"]["trials"]
    assert [(line["score_unseen"], line["score_recovered"]) for line in lines] == [
        (0.74, None),
        (0.75, None),
        (0.7, None),
    ]


def test_the_finalists_are_counted_as_they_are() -> None:
    measured = Measured(PRUNED, {1: 0.85, 4: 0.88})
    selection(measured).choose(RANKED[:2])
    assert measured.counts == {2}  # of three at most


def test_of_equal_finalists_the_one_that_the_search_preferred_is_taken() -> None:
    assert selection(Measured(PRUNED, {1: 0.85, 4: 0.85, 0: 0.85})).choose(RANKED).record == EPISODES[1]


def test_what_the_search_overrated_is_the_loss_that_its_images_hid() -> None:
    summary = selection(Measured(PRUNED, {1: 0.85, 4: 0.88, 0: 0.86})).choose(RANKED).summary["finalists"]
    # On its own images the best loses 0.95 - 0.80 = 0.15, on the others 0.93 - 0.74 = 0.19.
    assert summary["overrated"] == pytest.approx(0.04)
    assert (summary["images"], summary["dense"], summary["dense_search"]) == (500, 0.93, 0.95)


def test_without_other_images_nothing_is_said_of_what_was_overrated() -> None:
    measured = Measured({}, {1: 0.85, 4: 0.88, 0: 0.86})  # and the search's score is not measured again
    choice = selection(measured, images=None).choose(RANKED)
    assert choice.record == EPISODES[4]
    assert choice.summary["finalists"]["overrated"] is None
    assert [line["score_unseen"] for line in choice.summary["finalists"]["trials"]] == [0.80, 0.75, 0.70]


def test_the_reward_decides_and_not_the_score() -> None:
    """r_flops rewards fewer MACs: the smallest network may have a lower score."""
    recovered: dict[int, float | None] = {1: 0.84, 4: 0.85, 0: 0.845}
    taken = selection(Measured(PRUNED, recovered), reward="r_flops").choose(RANKED).record
    r_flops: RewardFunction = REWARDS["r_flops"]
    costs = {record.episode: record.cost for record in EPISODES}
    rewards = {
        episode: r_flops(Outcome(score or 0.0, costs[episode], {"macs": 80.0})) for episode, score in recovered.items()
    }
    assert taken.episode == max(rewards, key=rewards.__getitem__) != 4


def test_a_finalist_that_cannot_be_measured_is_left_out_and_named() -> None:
    choice = selection(Measured(PRUNED, {1: None, 4: 0.5, 0: 0.6})).choose(RANKED)
    assert choice.record == EPISODES[0]
    assert choice.warnings == ("the policy of episode 1 is left out: evaluate fails",)
    none = selection(Measured(PRUNED, dict.fromkeys((1, 4, 0)))).choose(RANKED)
    assert none.record == EPISODES[1]  # as without finalists
    assert len(none.warnings) == 3
    assert choice.summary["finalists"]["overrated"] == pytest.approx(0.04)  # as pruned it was measured
