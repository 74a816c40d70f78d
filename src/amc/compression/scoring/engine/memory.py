"""Activations that several policies share, least recently used first out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from torch import Tensor

LIMIT = 3 << 29  # bytes: 1.5 GiB


class Memory:
    """Tensors by key, bounded in bytes. A key must identify everything that the tensors were computed from."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.held = limit, 0
        self.hits = self.misses = 0
        self._entries: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """The tensors of this key; None if they are not held."""
        if key not in self._entries:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: Hashable, tensors: Sequence[Tensor]) -> None:
        """Hold tensors, which nobody may change, and drop the least recently used ones beyond the limit."""
        self._drop(key)
        self._entries[key] = tuple(tensors)
        self.held += _size(tensors)
        while self.held > self.limit:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()
        self.held = 0

    def _drop(self, key: Hashable) -> None:
        self.held -= _size(self._entries.pop(key, ()))


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
