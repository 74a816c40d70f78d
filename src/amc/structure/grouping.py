"""From channels to groups: channels with the same footprint form one group.

The footprint of a channel is the number of its positions in each dimension, over all parameters and costs.
Channels with one footprint are interchangeable for every cost, so a group is priced by its keep count alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc.structure.channels import Ids

FIXED = -1  # slot of a position that always stays


@dataclass(frozen=True, slots=True)
class Grouping:
    """Prunable channels numbered group after group, in execution order.

    `slot[channel]` is the number of a channel of the resolution, or FIXED; `offsets` [G + 1] delimits the groups.
    """

    slot: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)


def group_channels(dims: list[Ids], locked: npt.NDArray[np.bool_]) -> Grouping:
    """Group the channels that `dims` mention: each entry holds the channel of every position of one dimension.

    Groups and their channels are numbered in order of first appearance; `locked` is by channel.
    """
    count = locked.size
    slot = np.full(count, FIXED, dtype=np.int64)
    if not dims:
        return Grouping(slot, np.zeros(1, dtype=np.int64))
    columns = np.concatenate(dims)
    rows = np.repeat(np.arange(len(dims)), [d.size for d in dims])
    # Footprints: distinct (channel, dimension) pairs, sorted, and how often each occurs. The pairs of channel c are
    # begin[c] to begin[c + 1].
    pairs, times = np.unique(columns * len(dims) + rows, return_counts=True)
    channels, dimensions = np.divmod(pairs, len(dims))
    begin = np.searchsorted(channels, np.arange(count + 1))
    mentioned, first = np.unique(columns, return_index=True)
    groups: dict[bytes, list[int]] = {}
    for channel in mentioned[np.argsort(first, kind="stable")].tolist():
        if locked[channel]:
            continue
        mine = slice(begin[channel], begin[channel + 1])
        groups.setdefault(dimensions[mine].tobytes() + times[mine].tobytes(), []).append(channel)
    members = list(groups.values())
    offsets = np.cumsum([0, *(len(group) for group in members)]).astype(np.int64)
    if members:
        slot[np.concatenate(members)] = np.arange(offsets[-1])
    return Grouping(slot, offsets)
