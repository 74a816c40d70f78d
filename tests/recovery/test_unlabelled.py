"""Batches of calibration images: which are held out, and how they are put together."""

from __future__ import annotations

import torch

from amc.recovery.unlabelled import BATCH, Images, input_tensors, mixed
from amc.structure.trace import Example

LAST = torch.channels_last


def numbered(*sizes: int) -> list[Example]:
    """Batches whose images hold their own number, and whose words do too."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [
        Example(
            (torch.arange(end - size, end).float().reshape(-1, 1, 1, 1).expand(-1, 2, 3, 3),),
            {"words": torch.arange(end - size, end)},
        )
        for size, end in zip(sizes, ends, strict=True)
    ]


def numbers(inputs: Example) -> list[int]:
    images, words = input_tensors(inputs)
    assert torch.equal(images, words.float().reshape(-1, 1, 1, 1).expand(-1, 2, 3, 3))
    return [int(word) for word in words]


def test_every_image_is_held_out_or_trained_on_once() -> None:
    images, held = Images.divided(numbered(200, 1, 311, 56), torch.Generator().manual_seed(0), LAST)
    assert (images.count, images.steps) == (497, 7)  # 568 images, 71 held out
    held_out = [number for batch in held for number in numbers(batch)]
    assert len(set(held_out)) == 71
    epochs = [[numbers(batch) for batch in images.epoch(torch.Generator().manual_seed(seed))] for seed in (0, 1)]
    for batches in epochs:
        trained = [number for batch in batches for number in batch]
        assert [len(batch) for batch in batches] == [BATCH] * 7
        assert len({*trained, *held_out}) == 7 * BATCH + 71  # none twice
    assert sorted(epochs[0][0]) != sorted(epochs[1][0])


def test_images_are_laid_out_for_speed_and_the_batches_stay() -> None:
    batches = numbered(64, 64)
    images, _ = Images.divided(batches, torch.Generator(), LAST)
    batch = next(images.epoch(torch.Generator()))
    assert batch.args[0].is_contiguous(memory_format=torch.channels_last)
    assert images.batches is batches
    mixed(batch, torch.Generator())
    assert numbers(batches[1]) == list(range(64, 128))


def test_images_of_several_sizes_stay_in_their_batches() -> None:
    batches = [Example.of(torch.full((4, 1, 2 + size, 2), float(size))) for size in range(17)]
    images, held = Images.divided(batches, torch.Generator(), LAST)
    assert (images.count, images.steps, len(held)) == (60, 15, 2)
    found = [float(batch.args[0].mean()) for batch in images.epoch(torch.Generator().manual_seed(0))]
    assert sorted(found) == list(range(2, 17))
    assert found != sorted(found)


def test_mixing_adds_at_most_half_of_another_image() -> None:
    inputs = Example.of(torch.eye(BATCH).reshape(BATCH, BATCH, 1))
    weights = mixed(inputs, torch.Generator().manual_seed(0)).args[0].squeeze(-1)
    assert torch.allclose(weights.sum(1), torch.ones(BATCH))
    assert (weights.diagonal() >= 0.5).all()
    assert float(weights.diagonal().mean()) < 0.85  # three quarters on average, without those mixed with themselves
    words = Example((torch.rand(4, 2),), {"words": torch.arange(4)})
    assert mixed(words, torch.Generator()) is words
