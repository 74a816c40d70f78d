"""The contract of all ways to end a search.

A search scores hundreds of policies, each as cheaply as it can. A selection measures a few of them with more effort
and takes one. There are three: by confidence (the loss on other images), by latency (the whole network, timed) and by
fine-tuning (the score after a short training). Pure: no torch, no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from amc.search.journal import EpisodeRecord


class Trial(Protocol):
    """One policy, and what a selection measured of it."""

    @property
    def record(self) -> EpisodeRecord:
        """The policy, with its score in the search."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The trial as files hold it."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """The policy that is taken, and the measurements that led to it."""

    record: EpisodeRecord
    trials: tuple[Trial, ...] = ()  # in the order they were measured
    holds: bool = True  # whether the measurements confirm what the run promises
    summary: Mapping[str, Any] = field(default_factory=dict)  # what summary.json says of it, see `merged`
    warnings: tuple[str, ...] = ()

    def after(self, before: Choice) -> Choice:
        """This choice, which was made of what `before` had taken: together they say what each of them says."""
        return Choice(
            record=self.record,
            trials=(*before.trials, *self.trials),
            holds=before.holds and self.holds,
            summary=merged(before.summary, self.summary),
            warnings=(*before.warnings, *self.warnings),
        )


class Selection(Protocol):
    """A way to end a search."""

    def choose(self, ranked: Sequence[EpisodeRecord]) -> Choice:
        """Measure the most promising policies and take one. Raises AmcError where none can be taken.

        `ranked`: distinct policies with a reward, the best first; not empty.
        """
        ...


def choose(ranked: Sequence[EpisodeRecord], selections: Iterable[Selection] = ()) -> Choice:
    """The policy of a finished search, of its distinct policies, the best first (`SearchResult.ranked`).

    Without a selection it is the first. The first selection chooses among all policies; each further one measures the
    policy that the selection before it took.
    """
    choice = Choice(ranked[0])
    for number, selection in enumerate(selections):
        choice = selection.choose((choice.record,) if number else ranked).after(choice)
    return choice


def best_first(episodes: Iterable[EpisodeRecord]) -> tuple[EpisodeRecord, ...]:
    """The distinct policies that have a reward, the best first; of equal ones the earlier. ValueError for none."""
    rewarded = [record for record in episodes if record.reward is not None]
    if not rewarded:
        raise ValueError("none of the episodes has a reward")
    distinct: dict[tuple[int, ...], EpisodeRecord] = {}
    for record in sorted(rewarded, key=lambda record: (-(record.reward or 0.0), record.episode)):
        distinct.setdefault(record.keep, record)
    return tuple(distinct.values())


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both records in one; sections that both have are joined, any other value of `second` counts."""
    joined = dict(first)
    for name, value in second.items():
        before = joined.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = {**before, **value}
        joined[name] = value
    return joined
