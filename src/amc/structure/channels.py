"""Channel ids: which positions of which tensor dimensions are kept or removed together.

Every dimension of every parameter gets fresh ids; operator rules carry ids along activations and tie or lock
them. Ties are collected as edges and resolved once, as connected components. Pure numpy: no torch, no files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Lock:
    """Why channels cannot be removed, in one sentence, and where in the network."""

    reason: str
    module: str = ""
    source: str = ""

    def __str__(self) -> str:
        where = f" in '{self.module}'" if self.module else ""
        source = f" ({self.source.rpartition('/')[2]})" if self.source else ""
        return f"{self.reason}{where}{source}"


@dataclass(frozen=True, slots=True)
class Resolution:
    """Ids resolved to channels: `channel[i]` is the channel of id i, `locks` the reason of each locked channel."""

    channel: Ids
    locks: dict[int, Lock]
    averages: dict[int, Lock] = field(default_factory=dict)  # of channels that are not locked: what averages over them


@dataclass(slots=True)
class ChannelTable:
    """Allocates ids, collects ties and locks, and resolves them."""

    size: int = 0
    at: Any = None  # what ties from now on: an operator of the graph
    ties: list[tuple[Ids, Ids, Any]] = field(default_factory=list)  # the third is `at`
    locks: list[tuple[Ids, Lock, int]] = field(default_factory=list)  # the third is how many ties were there before
    averages: list[tuple[Ids, Lock]] = field(default_factory=list)  # ids that may go, though the others then change

    def fresh(self, count: int) -> Ids:
        """`count` ids never seen before."""
        ids = np.arange(self.size, self.size + count, dtype=np.int64)
        self.size += count
        return ids

    def tie(self, a: Ids, b: Ids) -> None:
        """Tie each position of `a` to the same position of `b`: both are kept or both are removed."""
        if a.shape != b.shape:
            raise ValueError(f"cannot tie {a.shape} with {b.shape} channel ids")
        self.ties.append((a.ravel(), b.ravel(), self.at))

    def tie_rows(self, ids: Ids) -> Ids:
        """Tie all entries of each row of `ids` [rows, columns]; returns one id a row."""
        first = ids[:, :1]
        self.tie(np.broadcast_to(first, ids[:, 1:].shape), ids[:, 1:])
        return first[:, 0]

    def lock(self, ids: Ids, lock: Lock) -> None:
        """Lock these ids: none may be removed. If several locks reach a channel, the first is reported."""
        if ids.size:
            self.locks.append((ids.ravel(), lock, len(self.ties)))

    def touched(self) -> npt.NDArray[np.bool_]:
        """[size]: whether any operator has tied or locked the id."""
        seen = np.zeros(self.size, dtype=bool)
        for a, b, _ in self.ties:
            seen[a] = seen[b] = True
        for ids, _, _ in self.locks:
            seen[ids] = True
        return seen

    def resolve(self) -> Resolution:
        """Connected components of all ties, with the first lock that reaches each."""
        empty = np.zeros(0, dtype=np.int64)
        left = np.concatenate([a for a, _, _ in self.ties] or [empty])
        right = np.concatenate([b for _, b, _ in self.ties] or [empty])
        channel = connected_components(left, right, self.size)
        locks: dict[int, Lock] = {}
        for ids, lock, _ in self.locks:
            for locked in np.unique(channel[ids]).tolist():
                locks.setdefault(locked, lock)
        averages: dict[int, Lock] = {}
        for ids, why in self.averages:
            for averaged in np.unique(channel[ids]).tolist():
                if averaged not in locks:
                    averages.setdefault(averaged, why)
        return Resolution(channel, locks, averages)


def connected_components(left: Ids, right: Ids, size: int) -> Ids:
    """[size]: the component of every node under the edges left[i] - right[i], numbered by the smallest node.

    Every component has a root, at first each node itself. A round ties each root to the smallest root that an edge
    joins it to. (SciPy has this function too, but its import takes longer than all the work here.)
    """
    root = np.arange(size)
    while (root[left] != root[right]).any():
        a, b = root[left], root[right]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root[root] != root).any():
            root = root[root]
    return np.unique(root, return_inverse=True)[1].astype(np.int64)
