"""The batches of an epoch, from its first batch or a later one. With several processes, each gets a share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from amc.errors import AmcError

Batch = tuple[Tensor, Tensor]


@runtime_checkable
class TrainingSet(Protocol):
    """Labelled images that yield a new epoch of batches on each call.

    An epoch may depend only on the generator's state at its start. A resumed training can then repeat the epoch up to
    the batch where it stopped.
    """

    def __len__(self) -> int: ...

    def training_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One shuffled epoch. An incomplete last batch is dropped unless it is the only one."""


@runtime_checkable
class ShareableTrainingSet(TrainingSet, Protocol):
    """A training set that loads only the requested share of the requested batches, e.g. `amc.zoo.ImageSet`."""

    def training_share(
        self, batch_size: int, generator: torch.Generator, *, skip: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[Batch]:
        """`training_batches` without the first `skip` batches; each batch is reduced to share `rank` of `ranks`.

        Every share draws the same random numbers from the generator. Images that do not divide evenly are dropped.
        """


class Stream:
    """The batches of successive epochs for process `rank` of `ranks`.

    A plain loader must itself yield each process's own part, and it cannot skip batches. Raises AmcError if the number
    of batches is unknown or `ranks` does not divide a batch.
    """

    def __init__(self, train: TrainingSet | Iterable[Batch], batch_size: int, *, rank: int = 0, ranks: int = 1) -> None:
        self.train, self.batch_size, self.rank, self.ranks = train, batch_size, rank, ranks
        self.can_skip = isinstance(train, TrainingSet)
        if isinstance(train, TrainingSet):
            self.size = len(train)  # images; for a loader, batches
            self.steps = max(1, self.size // batch_size)
            if batch_size % ranks or self.size < ranks:
                raise AmcError(
                    f"a batch of {min(batch_size, self.size)} images cannot be shared by {ranks} processes; "
                    f"choose a batch size that {ranks} divides"
                )
        elif isinstance(train, Sized):
            self.size = self.steps = len(train)
        else:
            raise AmcError(
                f"fine-tuning cannot tell how many batches a {type(train).__name__} has; "
                "give a DataLoader or a list of batches"
            )

    def epoch(self, generator: torch.Generator, skip: int = 0) -> Iterator[Batch]:
        """The next epoch without its first `skip` batches."""
        if isinstance(self.train, ShareableTrainingSet):
            return self.train.training_share(self.batch_size, generator, skip=skip, rank=self.rank, ranks=self.ranks)
        if isinstance(self.train, TrainingSet):
            return map(self._share, islice(self.train.training_batches(self.batch_size, generator), skip, None))
        return iter(self.train)

    def _share(self, batch: Batch) -> Batch:
        part = share(len(batch[1]), self.rank, self.ranks)
        return batch[0][part], batch[1][part]


def share(count: int, rank: int, ranks: int) -> slice:
    """The slice of share `rank` when `count` items are split into `ranks` equal shares. Drops the remainder."""
    each = count // ranks
    return slice(rank * each, (rank + 1) * each)
