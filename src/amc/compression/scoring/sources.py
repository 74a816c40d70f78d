"""Images to score on that are read anew on each use, and parts of them: sets that are too large for memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from amc.compression.scoring.boxes import Boxes
from amc.structure.batches import picked
from amc.structure.trace import Example

Batch = tuple[Tensor, Tensor]
Labels = Tensor | Boxes


@runtime_checkable
class BatchSource(Protocol):
    """Labelled images that can be iterated repeatedly, such as `amc.zoo.ImageSet`."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """(images [B, ...], labels [B]) in order, ready for the network."""


@runtime_checkable
class SelectableSource(BatchSource, Protocol):
    """A source that reads single images without reading the others."""

    def chosen(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        """A batch of the images at each of `parts`, places [M] in the order of `batches`."""


def part_of(source: BatchSource, chosen: Tensor) -> BatchSource:
    """The images of a source at which `chosen`, bool [N], is True."""
    return (_SelectablePart if isinstance(source, SelectableSource) else _Part)(source, chosen)


def picked_from(batches: Iterable[tuple[Example, Labels]], chosen: Tensor) -> Iterator[tuple[Example, Any]]:
    """The images of all batches at which `chosen`, bool [N], is True. Skips empty batches, and copies no whole one."""
    at = 0
    for inputs, labels in batches:
        wanted = chosen[at : at + len(labels)]
        at += len(labels)
        if wanted.any():
            yield (inputs, labels) if wanted.all() else (picked(inputs, wanted), labels[wanted])


class _Part:
    """See `part_of`."""

    def __init__(self, source: BatchSource, chosen: Tensor) -> None:
        self._source, self._chosen = source, chosen

    def __len__(self) -> int:
        return int(self._chosen.sum())

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Those of every `2 * batch_size` images of the source; a part may be more than half of them."""
        pairs = ((Example.of(images), labels) for images, labels in self._source.batches(2 * batch_size))
        return ((inputs.args[0], labels) for inputs, labels in picked_from(pairs, self._chosen))


class _SelectablePart(_Part):
    """The same images in the same batches, without reading the others."""

    _source: SelectableSource

    def batches(self, batch_size: int) -> Iterator[Batch]:
        windows = torch.split(torch.arange(len(self._chosen)), 2 * batch_size)
        parts = (places[self._chosen[places]] for places in windows)
        return self._source.chosen(part for part in parts if len(part))

    def chosen(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        """See `SelectableSource`."""
        own = self._chosen.nonzero().flatten()
        return self._source.chosen(own[part] for part in parts)
