from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from amc.errors import AmcError
from amc.recovery.data import ShareableTrainingSet, Stream
from amc.zoo import ImageSet
from amc.zoo.decode import Decoder
from amc.zoo.images import FolderSet, Normalisation
from tests.recovery.samples import stripes


def folder(path: Path, count: int = 22) -> FolderSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 14, 3), dtype=np.uint8)
    files = []
    for number, image in enumerate(pixels):
        files.append(str(path / f"{number}.png"))
        Image.fromarray(image).save(files[-1])
    return FolderSet(files, tuple(range(count)), Decoder(8, threads=1), Normalisation((0.5,) * 3, (0.25,) * 3))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageSet | FolderSet]:
    return {"memory": stripes(22), "files": folder(tmp_path_factory.mktemp("images"))}


def drawn(make: Callable[[torch.Generator], object]) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """The batches, and what the generator gives next."""
    generator = torch.Generator().manual_seed(3)
    batches = list(make(generator))  # type: ignore[call-overload]
    return batches, torch.rand(4, generator=generator)


def equal(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


@given(kind=st.sampled_from(["memory", "files"]), skip=st.integers(0, 6), ranks=st.sampled_from([1, 2, 4]))
def test_shares_and_skipped_batches_make_up_the_epoch(
    sets: dict[str, ImageSet | FolderSet], kind: str, skip: int, ranks: int
) -> None:
    train = sets[kind]
    assert isinstance(train, ShareableTrainingSet)
    whole, after = drawn(lambda generator: train.training_batches(4, generator))
    assert len(whole) == 5
    parts = []
    for rank in range(ranks):
        stream = Stream(train, 4, rank=rank, ranks=ranks)
        assert stream.steps == 5
        part, after_part = drawn(lambda generator, stream=stream: stream.epoch(generator, skip))  # type: ignore[misc]
        assert torch.equal(after, after_part)
        parts.append(part)
    joined = [
        (torch.cat([images for images, _ in batch]), torch.cat([labels for _, labels in batch]))
        for batch in zip(*parts, strict=True)
    ]
    assert equal(joined, whole[skip:])


def test_a_batch_that_is_the_only_one_is_shared_too() -> None:
    batches = [list(Stream(stripes(7), 16, rank=rank, ranks=2).epoch(torch.Generator())) for rank in (0, 1)]
    assert [len(labels) for batch in batches for _, labels in batch] == [3, 3]


def test_batches_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(AmcError, match="a batch of 16 images cannot be shared by 3 processes"):
        Stream(stripes(64), 16, ranks=3)
    with pytest.raises(AmcError, match="a batch of 2 images cannot be shared by 4 processes"):
        Stream(stripes(2), 16, ranks=4)
