"""The batches of an epoch: from its beginning or from the middle, whole or one process's share."""

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
    """Labelled images that give a new epoch of batches each time.

    What an epoch holds may depend on nothing but the generator's state when it begins, so that an epoch can be
    gone through again up to where training stopped.
    """

    def __len__(self) -> int: ...

    def training_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One shuffled epoch; a last smaller batch is left out unless it is the only one."""


@runtime_checkable
class ShareableTrainingSet(TrainingSet, Protocol):
    """One that skips batches, and makes a part of each, without making the rest; such as `amc.zoo.ImageSet`."""

    def training_share(
        self, batch_size: int, generator: torch.Generator, *, skip: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[Batch]:
        """`training_batches` without the first `skip`, and of each batch the share `rank` of `ranks` equal ones.

        All shares draw the same from the generator; what is left over is dropped.
        """


class Stream:
    """Epoch after epoch of batches for process `rank` of `ranks`.

    A plain loader must itself give each process its own part, and cannot be joined in the middle of an epoch.
    Raises AmcError where the number of batches cannot be told or a batch cannot be shared.
    """

    def __init__(self, train: TrainingSet | Iterable[Batch], batch_size: int, *, rank: int = 0, ranks: int = 1) -> None:
        self.train, self.batch_size, self.rank, self.ranks = train, batch_size, rank, ranks
        self.can_skip = isinstance(train, TrainingSet)
        if isinstance(train, TrainingSet):
            self.size = len(train)  # images, or batches of a loader
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
    """Where the share `rank` of `count` things lies when each of `ranks` gets as many; the rest is nobody's."""
    each = count // ranks
    return slice(rank * each, (rank + 1) * each)
