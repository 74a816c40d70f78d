"""Boxes of objects in images: what detectors answer, and the targets that they are compared with.

A target is a mapping of an image's `boxes` [n, 4], as (x1, y1, x2, y2) in pixels, and their `labels` [n]; an answer has
`scores` [n] besides. Torchvision's detectors take and give them in this form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amc.errors import DataError, EvaluationError, NotFiniteError
from amc.structure.batches import Reader, images_of, size_of
from amc.structure.part import takes_images
from amc.structure.trace import Example

INSTEAD = "or pass a function module -> float as evaluate"


@dataclass(frozen=True, slots=True)
class Boxes:
    """The targets of a batch, one for each image; they are taken apart as a tensor of labels is."""

    targets: Sequence[Mapping[str, Tensor]]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, chosen: slice | Tensor) -> Boxes:
        """The targets of these images: a slice, or bool [N]."""
        if isinstance(chosen, slice):
            return Boxes(self.targets[chosen])
        return Boxes([target for target, wanted in zip(self.targets, chosen.tolist(), strict=True) if wanted])


def boxed(source: Iterable[Any], reader: Reader) -> Iterator[tuple[Example, Boxes]]:
    """Batches (inputs, targets). Images in a list, which may differ in size, become batches of one image.

    Raises DataError for a batch that is something else.
    """
    listed = reader.example is not None and takes_images(reader.example)
    for batch in reader.batches(source):
        if listed:
            images = images_of(batch, reader.name)
            targets = _targets(batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None, len(images))
            for image, target in zip(images, targets, strict=True):
                yield Example(([image],), {}), Boxes([target])
        else:
            inputs, labels = reader.split(batch)
            yield inputs, Boxes(_targets(labels, size_of(inputs)))


def answers_of(outputs: Any, images: int) -> list[dict[str, Tensor]]:
    """The boxes, scores and labels that a network gives for each image, on the CPU. Raises EvaluationError."""
    if not isinstance(outputs, list | tuple) or len(outputs) != images or not all(map(_is_answer, outputs)):
        raise EvaluationError(
            f"score map takes a list with boxes [n, 4], scores [n] and labels [n] for each image, and for {images} "
            f"images the network gives {_described(outputs)}; let it answer as torchvision's detectors do, {INSTEAD}"
        )
    if any(answer[name].isnan().any() for answer in outputs for name in ("boxes", "scores")):
        raise NotFiniteError("the network's boxes or scores are NaN; check its weights and the images")
    return [{name: answer[name].detach().cpu() for name in ("boxes", "scores", "labels")} for answer in outputs]


def _targets(targets: Any, images: int) -> list[dict[str, Tensor]]:
    if not isinstance(targets, list | tuple) or not all(isinstance(target, Mapping) for target in targets):
        raise DataError(
            f"score map needs batches (images, targets), a target being a mapping with boxes [n, 4] and labels [n], "
            f"and this batch has {_described(targets)}; let the loader give them, {INSTEAD}"
        )
    if len(targets) != images:
        raise DataError(f"a batch has {images} images and {len(targets)} targets; give one target for each image")
    return [_checked(target) for target in targets]


def _checked(target: Mapping[str, Any]) -> dict[str, Tensor]:
    missing = [name for name in ("boxes", "labels") if name not in target]
    if missing:
        raise DataError(f"a target has {', '.join(map(str, target))} and no {missing[0]}; score map needs it")
    boxes, labels = torch.as_tensor(target["boxes"]).cpu(), torch.as_tensor(target["labels"]).cpu()
    boxes = boxes.reshape(0, 4) if boxes.numel() == 0 else boxes  # an image without objects
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise DataError(
            f"a target has boxes {list(boxes.shape)} and labels {list(labels.shape)}; give boxes [n, 4] and labels [n]"
        )
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise DataError(
            f"a target has the box {boxes[(boxes[:, 2:] < boxes[:, :2]).any(1)][0].tolist()}, which ends before it "
            "begins; give boxes as (x1, y1, x2, y2)"
        )
    crowd = {"iscrowd": torch.as_tensor(target["iscrowd"]).cpu()} if "iscrowd" in target else {}
    return {"boxes": boxes.float(), "labels": labels.long().reshape(-1), **crowd}


def _is_answer(answer: Any) -> bool:
    if not isinstance(answer, Mapping) or not all(
        isinstance(answer.get(name), Tensor) for name in ("boxes", "scores", "labels")
    ):
        return False
    boxes = answer["boxes"]
    lengths = {len(boxes), answer["scores"].numel(), answer["labels"].numel()}
    return boxes.ndim == 2 and boxes.shape[1] == 4 and len(lengths) == 1


def _described(part: Any) -> str:
    """What a network or a loader gave, with the first item of a list, such as `a list of 2: a Tensor [3, 8]`."""
    if part is None:
        return "none"
    if isinstance(part, Tensor):
        return f"a Tensor {list(part.shape)}"
    if isinstance(part, Mapping):
        inner = ", ".join(
            f"{name} {list(item.shape)}" if isinstance(item, Tensor) else f"{name}" for name, item in part.items()
        )
        return f"a {type(part).__name__} of {inner}"
    if isinstance(part, list | tuple) and part:
        return f"a {type(part).__name__} of {len(part)}: {_described(part[0])}"
    return f"a {type(part).__name__}"
