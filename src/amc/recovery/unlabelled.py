"""Calibration images to learn from without labels: a held-out part, shuffled batches, flips and mixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from amc.recovery.distances import output_tensors
from amc.structure.batches import laid_out, mapped, size_of
from amc.structure.trace import Example

BATCH = 64  # images a step
HELD_OUT = 8  # one image of this many is held out
_AGREEMENT = 0.75  # share of images whose class stays when they are flipped, above which flips are harmless


@dataclass(frozen=True)
class Images:
    """The images to train on. They stay in the batches that were given, and are copied when they are used."""

    batches: Sequence[Example]
    order: Tensor | None  # places of the images among all those in `batches`; None: whole batches, of several shapes
    layout: torch.memory_format

    @classmethod
    def divided(
        cls, batches: Sequence[Example], generator: torch.Generator, layout: torch.memory_format
    ) -> tuple[Images, list[Example]]:
        """The images to train on, and batches of held-out ones, from at least one batch."""
        if not _alike(batches):
            held = max(1, len(batches) // HELD_OUT)
            return cls(batches[held:], None, layout), list(batches[:held])
        order = torch.randperm(sum(map(size_of, batches)), generator=generator)
        held = max(1, len(order) // HELD_OUT)
        held_out = [_gathered(batches, part, layout) for part in torch.split(order[:held], 4 * BATCH)]
        return cls(batches, order[held:], layout), held_out

    @property
    def count(self) -> int:
        return sum(map(size_of, self.batches)) if self.order is None else len(self.order)

    @property
    def steps(self) -> int:
        """Steps an epoch; the last incomplete batch is dropped."""
        return len(self.batches) if self.order is None else max(1, self.count // BATCH)

    def epoch(self, generator: torch.Generator) -> Iterator[Example]:
        """All batches in random order; every epoch puts other images together."""
        if self.order is None:
            places = torch.randperm(len(self.batches), generator=generator)
            yield from (self.batches[place] for place in places.tolist())
            return
        shuffled = self.order[torch.randperm(self.count, generator=generator)]
        yield from (_gathered(self.batches, part, self.layout) for part in torch.split(shuffled, BATCH)[: self.steps])


def flipped(inputs: Example, generator: torch.Generator) -> Example:
    """Half of the images mirrored."""
    (images,) = input_tensors(inputs)
    return _mirrored(inputs, torch.rand(len(images), generator=generator) < 0.5)


def mixed(inputs: Example, generator: torch.Generator) -> Example:
    """Each example mixed with another one, at most half of it: the dense network answers for what comes out.

    The dense network's outputs for such inputs teach more than those for the few images alone (Beyer et al., arXiv
    2106.05237). Inputs that are not all real numbers stay as they are.
    """
    tensors, size = input_tensors(inputs), size_of(inputs)
    if not all(tensor.is_floating_point() and tensor.ndim and len(tensor) == size for tensor in tensors):
        return inputs
    share, other = torch.rand(size, generator=generator) / 2, torch.randperm(size, generator=generator)

    def mix(tensor: Tensor) -> Tensor:
        weight = share.to(tensor).reshape(-1, *(1,) * (tensor.ndim - 1))
        return torch.lerp(tensor, tensor[other.to(tensor.device)], weight)

    return mapped(mix, inputs)


def may_flip(outputs: Callable[[Example], Any], held: Sequence[Example]) -> bool:
    """Whether a mirrored image keeps its class for the dense network: so for objects, and not for digits or text.

    outputs: the dense network.
    """
    agreeing = total = 0
    for inputs in held:
        images = input_tensors(inputs)
        if len(images) != 1 or images[0].ndim != 4 or not images[0].is_floating_point():
            return False
        mirrored = _mirrored(inputs, torch.ones(len(images[0]), dtype=torch.bool))
        plain, other = (output_tensors(outputs(each)) for each in (inputs, mirrored))
        if len(plain) != 1 or plain[0].ndim != 2 or plain[0].shape[1] < 2:
            return False
        agreeing += int((plain[0].argmax(1) == other[0].argmax(1)).sum())
        total += len(plain[0])
    return agreeing >= _AGREEMENT * total


def input_tensors(inputs: Example) -> list[Tensor]:
    """The tensors in a batch, in order."""
    return [leaf for leaf in tree_leaves((inputs.args, dict(inputs.kwargs))) if isinstance(leaf, Tensor)]


def _alike(batches: Sequence[Example]) -> bool:
    """Whether the images of all batches fit together in one."""
    shapes = [[tensor.shape[1:] for tensor in input_tensors(batch)] for batch in batches]
    return all(
        part == shapes[0] and all(tensor.ndim and len(tensor) == size_of(batch) for tensor in input_tensors(batch))
        for part, batch in zip(shapes, batches, strict=True)
    )


def _gathered(batches: Sequence[Example], places: Tensor, layout: torch.memory_format) -> Example:
    """One batch of the images at these places among all."""
    ends = torch.tensor([size_of(batch) for batch in batches]).cumsum(0)
    which = torch.bucketize(places, ends, right=True).tolist()
    tensors = [input_tensors(batch) for batch in batches]
    # A place below zero counts from the end of its batch.
    images = [
        [tensor[place] for tensor in tensors[batch]]
        for batch, place in zip(which, (places - ends[which]).tolist(), strict=True)
    ]
    columns = iter([laid_out(torch.stack(column), layout) for column in zip(*images, strict=True)])
    return mapped(lambda _: next(columns), batches[0])


def _mirrored(inputs: Example, chosen: Tensor) -> Example:
    """The images at which `chosen`, bool [N], is True mirrored."""

    def mirror(images: Tensor) -> Tensor:
        return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(-1), images)

    return mapped(mirror, inputs)
