"""The contract of a search's end: what several selections say together."""

from dataclasses import dataclass

import pytest

from amc.compression.selection import Choice, choose
from amc.compression.selection.base import best_first, merged
from amc.search import EpisodeRecord


def record(episode, reward, keep=None):
    error = "boom" if reward is None else None
    return EpisodeRecord(episode, keep or (episode,), {"macs": 1.0}, reward, reward, error)


EPISODES = [record(0, 0.2), record(1, 0.7), record(2, None), record(3, 0.7), record(4, 0.9, keep=(1,)), record(5, 0.1)]


@dataclass
class Last:
    """Takes the last policy that it is given."""

    name: str
    holds: bool = True
    offered: tuple = ()

    def choose(self, episodes):
        self.offered = tuple(episodes)
        summary = {"slim": {self.name: len(self.offered)}, self.name: [1]}
        return Choice(episodes[-1], holds=self.holds, summary=summary, warnings=(f"by {self.name}",))


def test_without_a_selection_the_best_reward_is_taken():
    assert choose(best_first(EPISODES)) == Choice(EPISODES[4])
    assert [record.episode for record in best_first(EPISODES)] == [4, 3, 0, 5]  # (1,) once, the better one
    with pytest.raises(ValueError, match="none of the episodes has a reward"):
        best_first([EPISODES[2]])


def test_the_second_selection_measures_what_the_first_took():
    first, second = Last("first", holds=False), Last("second")
    choice = choose(EPISODES, [first, second])
    assert first.offered == tuple(EPISODES)
    assert second.offered == (EPISODES[-1],)
    assert choice.record == EPISODES[-1]
    assert not choice.holds  # what one of them does not confirm is not confirmed
    assert choice.summary == {"slim": {"first": 6, "second": 1}, "first": [1], "second": [1]}
    assert choice.warnings == ("by first", "by second")


def test_records_are_joined_one_level_deep():
    before = {"slim": {"macs": 5, "score": 0.5}, "groups": [1], "seed": 0}
    assert merged(before, {"slim": {"score": 0.6}, "groups": [2], "latency": {"ms": 3}}) == {
        "slim": {"macs": 5, "score": 0.6},
        "groups": [2],
        "seed": 0,
        "latency": {"ms": 3},
    }
    assert before["slim"] == {"macs": 5, "score": 0.5}
