"""What the dense network and the result answer on the images of the final figures, class by class.

`FinalScore` computes a final score and remembers the answers behind it, so that no image is scored twice. Its records
are the content of answers.json.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from amc.compression.scoring.evaluator import Evaluate, Evaluator, final_score
from amc.compression.scoring.metrics import Hits
from amc.errors import check_resources
from amc.search.statistics import compare
from amc.structure.trace import Example

SHOWN = 12  # lost images of a network
SIDE = 64  # pixels of a shown image, at most
LARGEST = 10_000  # classes; more are no table


class FinalScore:
    """A score on images that steer nothing, and the answers of every network that was scored.

    There are answers where the score judges single images (top-1, top-5).
    """

    def __init__(self, score: Evaluate) -> None:
        self.score = score
        self._found: dict[str, Hits] = {}

    def __call__(self, model: nn.Module, which: str) -> tuple[float | None, list[str]]:
        """The score; or, if it fails, None and a warning with the reason. `which` names the network."""
        score = self.score
        if not isinstance(score, Evaluator) or not score.kind.per_image:
            return final_score(score, model, which)

        def judge(module: nn.Module) -> float:
            hits = score.judged(module)
            self._found[which] = hits
            return hits.value()

        return final_score(judge, model, which)

    def answers(self, which: str) -> Hits | None:
        """The answers of a network; None if there are none."""
        return self._found.get(which)

    def recorded(
        self, slim: dict[str, Any], scores: Mapping[str, str], *, name: str, which: str
    ) -> dict[str, Any] | None:
        """The content of answers.json: the dense network's answers, and those of the network `which` under `name`.

        `slim`: a summary's section, which gets the standard errors of its scores. `scores`: by the key of a score, the
        network that has it. None if the dense network has no answers.
        """
        record = self.dense_record()
        if record is None:
            return None
        for key, network in scores.items():
            error = self.error(network, record)
            if error is not None and key in slim:
                slim[f"{key}_error"] = error
        return self.with_answers(record, name, which)

    def dense_record(self) -> dict[str, Any] | None:
        """The dense network's answers, for answers.json; None if there are none."""
        hits = self.answers("dense")
        if hits is None or hits.classes > LARGEST:
            return None
        labels, right = hits.labels(), hits.right()
        return {
            "images": len(labels),
            "classes": _counts(labels, hits.classes),
            "names": self._names(hits.classes),
            "dense": {"right": _counts(labels[right], hits.classes), "mask": _packed(right)},
        }

    def with_answers(self, record: Mapping[str, Any], name: str, which: str) -> dict[str, Any]:
        """`record` with the answers of the network `which` under `name`, beside the dense network's.

        Without `name` if that network has none, or if the images are no longer those of the record.
        """
        hits, evaluator = self.answers(which), self.score
        others = {key: value for key, value in record.items() if key != name}
        if hits is None or not isinstance(evaluator, Evaluator):
            return others
        labels, right, answers = hits.labels(), hits.right(), hits.answers()
        if _counts(labels, hits.classes) != record["classes"]:
            return others
        dense = _unpacked(record["dense"]["mask"], len(labels))
        lost = dense & ~right
        places = _examples(labels, lost, right & ~dense)
        pictures = _pictures(evaluator, places)
        entry = {
            "right": _counts(labels[right], hits.classes),
            "lost": _counts(labels[lost], hits.classes),
            "examples": [
                {"image": at, "label": int(labels[at]), "answer": int(answers[at]), "picture": picture}
                for at, picture in zip(places, pictures, strict=True)
            ],
        }
        return {**others, name: entry}

    def error(self, which: str, record: Mapping[str, Any]) -> float | None:
        """The standard error of a score's difference from the dense network's in `record`; None if it is unknown."""
        hits = self.answers(which)
        if hits is None or _counts(hits.labels(), hits.classes) != record["classes"]:
            return None
        dense = _unpacked(record["dense"]["mask"], record["images"])
        return compare(dense.numpy(), hits.right().numpy()).standard_error

    def _names(self, classes: int) -> list[str]:
        """The names of the classes; empty if the data does not name them all."""
        names = self.score.classes if isinstance(self.score, Evaluator) else ()
        return list(names) if len(names) == classes else []


def _counts(labels: Tensor, classes: int) -> list[int]:
    """How often each class occurs: [classes]."""
    return torch.bincount(labels, minlength=classes).tolist()


def _examples(labels: Tensor, lost: Tensor, gained: Tensor) -> list[int]:
    """The places of some lost images, ascending: one of each class in turn, the class with the largest loss first."""
    classes = int(labels.max()) + 1
    losses = [a - b for a, b in zip(_counts(labels[lost], classes), _counts(labels[gained], classes), strict=True)]
    order = sorted(range(classes), key=lambda each: -losses[each])
    rows = [torch.nonzero(lost & (labels == each)).flatten().tolist() for each in order]
    in_turn = [place for place in chain.from_iterable(zip_longest(*rows)) if place is not None]
    return sorted(in_turn[:SHOWN])


def _packed(mask: Tensor) -> str:
    """Bool [N] as base64, eight in a byte."""
    return base64.b64encode(np.packbits(mask.numpy()).tobytes()).decode()


def _unpacked(text: str, count: int) -> Tensor:
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=count)
    return torch.from_numpy(bits.astype(bool))


def _pictures(evaluator: Evaluator, places: Sequence[int]) -> list[str | None]:
    """The pictures at these places; None for each where the data cannot be read a second time."""
    try:
        return [_picture(inputs) for inputs in evaluator.inputs(places)]
    except Exception as error:  # the source may be the user's own, and a search of hours must not end here
        check_resources(error)
        return [None] * len(places)


def _picture(inputs: Example) -> str | None:
    """One image as a PNG in base64; None for inputs that are no image.

    The darkest value becomes black and the brightest white: how the pixels were normalised need not be known.
    """
    image = _only_image(inputs.args)
    if image is None:
        return None
    image = image.detach().float().cpu()
    side = max(image.shape[-2:])
    if side > SIDE:
        sizes = [max(1, round(length * SIDE / side)) for length in image.shape[-2:]]
        image = interpolate(image, sizes, mode="area")
    low, high = image.min(), image.max()
    pixels = ((image - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)[0].permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1).numpy()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _only_image(args: Sequence[Any]) -> Tensor | None:
    """The input, if it is the only one and a picture [1, 1 or 3, H, W] of finite numbers."""
    if len(args) != 1 or not isinstance(args[0], Tensor):
        return None
    image = args[0]
    fits = image.ndim == 4 and image.shape[1] in (1, 3) and min(image.shape[2:]) > 1 and image.is_floating_point()
    return image if fits and bool(image.isfinite().all()) else None
