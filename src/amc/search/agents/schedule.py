"""How far a search is, for agents that explore less towards its end. Pure: no torch, no files."""

from __future__ import annotations

from amc.search.journal import EpisodeRecord


class Schedule:
    """The point between the first and the last episode that a search has reached.

    A search with a time limit may end long before its last episode. There the used share of the time counts where it
    is larger than the share of the episodes. The share is the journal's: a resumed search proposes the same policies.
    """

    def __init__(self, episodes: int) -> None:
        """`episodes`: of the search."""
        self._last = episodes - 1
        self._progress = 0.0  # share of the time limit

    def note(self, record: EpisodeRecord) -> None:
        """Read the used share of the time limit from the latest record, which may be a failed one."""
        self._progress = record.progress or 0.0

    def reached(self, episode: int) -> float:
        """The reached point, in episodes from 0: `episode` itself, or more with a time limit."""
        return max(episode, self._progress * self._last)
