"""Images and labels in batches, ready for a network: normalised float32, channels-last.

An `ImageSet` holds its images in memory as bytes; a `FolderSet` decodes them from files batch by batch. Both
yield `(images [B, C, H, W], labels [B])`: `batches` in order for evaluation, `training_batches` shuffled and
augmented. The generator argument makes every random choice.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amc.errors import DataError
from amc.structure.batches import laid_out
from amc.zoo.decode import CropBox, Decoder, crop_box, draw_crops, drawn_ahead

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Per-channel mean and standard deviation of pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """`(x - mean) / std` in float32, channels-last; uint8 pixels are scaled from [0, 255] first."""
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        # Two operations instead of three, because this runs on every training image.
        factor, offset = 1 / (scale * std), mean / std
        out = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
        return out.mul_(factor).sub_(offset)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random shifts by up to `pad` pixels, filled with zeros, and, if `flip`, mirroring left to right."""

    pad: int
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A new `[B, C, H, W]`, channels-last. Each image gets its own shift and flip."""
        return self.apply(images, self.draw(len(images), generator))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """[B, 3]: down and right shifts in [0, 2 * pad], and 1 for a flip."""
        shifts = torch.randint(0, 2 * self.pad + 1, (2, count), generator=generator)
        flips = torch.rand(count, generator=generator) < 0.5 if self.flip else torch.zeros(count)
        return torch.stack((*shifts, flips.long()), dim=1)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The images [B, C, H, W], shifted and flipped by what `draw` returned, [B, 3]."""
        count, _, height, width = images.shape
        padded = torch.nn.functional.pad(images.permute(0, 2, 3, 1), (0, 0, self.pad, self.pad, self.pad, self.pad))
        rows = torch.arange(height) + drawn[:, 0:1]
        columns = torch.arange(width) + drawn[:, 1:2]
        columns = torch.where(drawn[:, 2:3] > 0, columns.flip(1), columns)
        # One gather crops and flips the whole batch. Channels are innermost, so it copies whole pixels.
        batch = torch.arange(count).view(-1, 1, 1)
        cropped: Tensor = padded[batch, rows.unsqueeze(2), columns.unsqueeze(1)]
        return cropped.permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images in memory. Treat the tensors as read-only: splits share them."""

    images: Tensor  # [N, C, H, W], uint8 in [0, 255] or floating point
    labels: Tensor  # [N], int64
    normalisation: Normalisation | None = None  # None: floating-point images are unchanged, bytes are scaled to [0, 1]
    augmentation: Augmentation | None = None  # of training_batches; None: only shuffled
    channels_last: bool = True  # the memory format of batches, in which convolutions are faster
    classes: tuple[str, ...] = ()  # their names, by number; empty if nobody told

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"images {list(self.images.shape)} and labels {list(self.labels.shape)} do not "
                "belong together; give [N, C, H, W] and [N]"
            )
        if len(self.labels) == 0:
            raise DataError("a data split is empty; give it at least one image")

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All images once, in order."""
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield self._ready(self.images[part]), self.labels[part]

    def chosen(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        """A batch of the images at each of `parts`, places [M]; no others are read."""
        return ((self._ready(self.images[part]), self.labels[part]) for part in parts)

    def training_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One shuffled, augmented epoch. An incomplete last batch is dropped unless it is the only one."""
        return self.training_share(batch_size, generator)

    def training_share(
        self, batch_size: int, generator: torch.Generator, *, skip: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[Batch]:
        """`training_batches` without the first `skip` batches; each batch is reduced to share `rank` of `ranks`."""
        for number, whole in enumerate(_shuffled(len(self), batch_size, generator)):
            # Draw for skipped batches and other shares too, so that later batches do not depend on them.
            drawn = None if self.augmentation is None else self.augmentation.draw(len(whole), generator)
            if number < skip:
                continue
            share = _share(len(whole), rank, ranks)
            part = whole[share]
            images = self.images[part]
            if self.augmentation is not None and drawn is not None:
                images = self.augmentation.apply(images, drawn[share])
            yield self._ready(images), self.labels[part]

    def subset(self, indices: Tensor) -> "ImageSet":
        """The images at `indices` [M], in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def _ready(self, images: Tensor) -> Tensor:
        if self.normalisation is not None:
            ready = self.normalisation(images)
        else:
            ready = images.to(torch.float32, memory_format=torch.channels_last)
            ready = ready / 255 if images.dtype == torch.uint8 else ready
        return ready if self.channels_last else laid_out(ready, torch.contiguous_format)


@dataclass(frozen=True, slots=True)
class FolderSet:
    """Images in files. A pool of threads decodes them a few batches ahead.

    For splits that are too large for memory: it holds a few batches at a time.
    """

    files: Sequence[str]
    targets: tuple[int, ...]  # class index of each file
    decoder: Decoder
    normalisation: Normalisation
    channels_last: bool = True  # as of `ImageSet`
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.files:
            raise DataError("a data split is empty; give it at least one image")

    def __len__(self) -> int:
        return len(self.files)

    @property
    def labels(self) -> Tensor:
        """[N], int64."""
        return torch.tensor(self.targets)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All images once, in order, resized and cropped at the centre."""
        starts = range(0, len(self), batch_size)
        return self._decoded((list(range(i, min(i + batch_size, len(self)))), None) for i in starts)

    def chosen(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        """A batch of the images at each of `parts`, places [M]; no others are decoded."""
        return self._decoded((part.tolist(), None) for part in parts)

    def training_batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One shuffled epoch, randomly cropped, resized and flipped. An incomplete last batch is dropped."""
        return self.training_share(batch_size, generator)

    def training_share(
        self, batch_size: int, generator: torch.Generator, *, skip: int = 0, rank: int = 0, ranks: int = 1
    ) -> Iterator[Batch]:
        """`training_batches` without the first `skip` batches; each batch is reduced to share `rank` of `ranks`."""
        parts = _shuffled(len(self), batch_size, generator)
        crops = torch.split(draw_crops(sum(map(len, parts)), generator), batch_size)  # of all images, decoded or not
        jobs = (
            (part[own].tolist(), list(map(crop_box, drawn[own])))
            for part, drawn in list(zip(parts, crops, strict=True))[skip:]
            for own in [_share(len(part), rank, ranks)]
        )
        return self._decoded(jobs)

    def subset(self, indices: Tensor) -> "FolderSet":
        """The images at `indices` [M], in that order."""
        chosen = indices.tolist()
        return replace(self, files=[self.files[i] for i in chosen], targets=tuple(self.targets[i] for i in chosen))

    def load(self) -> ImageSet:
        """The images in memory, without augmentation."""
        images = self.decoder.decode(self.files)
        return ImageSet(images, self.labels, self.normalisation, channels_last=self.channels_last, classes=self.classes)

    def _decoded(self, jobs: Iterable[tuple[list[int], list[CropBox] | None]], ahead: int = 2) -> Iterator[Batch]:
        with self.decoder.pool() as pool:
            try:
                begun = (
                    (part, self.decoder.submit(pool, [self.files[i] for i in part], boxes)) for part, boxes in jobs
                )
                for part, futures in drawn_ahead(begun, ahead):
                    yield self._collect(part, futures)
            finally:  # also if the consumer stops early
                pool.shutdown(cancel_futures=True)

    def _collect(self, part: list[int], futures: list[Future[Tensor]]) -> Batch:
        images = torch.stack([future.result() for future in futures])
        ready = self.normalisation(images)
        labels = torch.tensor([self.targets[i] for i in part])
        return ready if self.channels_last else laid_out(ready, torch.contiguous_format), labels


def _share(count: int, rank: int, ranks: int) -> slice:
    """The slice of share `rank` when `count` images are split into `ranks` equal shares. Drops the remainder."""
    each = count // ranks
    return slice(rank * each, (rank + 1) * each)


def _shuffled(count: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    # A small last batch is dropped: batch norm fails on one 1x1 image, and its statistics of a few are noise.
    order = torch.randperm(count, generator=generator)
    parts = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    return parts[:-1] if len(parts) > 1 and len(parts[-1]) < batch_size else parts
