"""The user's inputs to a search, and those of a part of the network: the part is what everything below prunes.

The part stands in the place of the network for structure, calibration, slicing and recovery. Scores are those of the
whole network, with the part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from amc.compression.part import InWhole
from amc.compression.scoring.evaluator import Evaluate, as_evaluator
from amc.errors import DataError
from amc.pruning.methods import Method
from amc.recovery.distances import DistillLoss
from amc.run.provenance import data_fingerprint
from amc.run.settings.scores import DEFAULT
from amc.search import AgentFactory, RewardFunction
from amc.structure.batches import Reader, images_of, limited
from amc.structure.modes import device_of
from amc.structure.part import Part, rows_of, takes_images
from amc.structure.trace import Example

RECORDED = 4 << 30  # bytes of a part's inputs, at most: calibration and recovery read them several times


@dataclass(frozen=True)
class Inputs:
    """The user's inputs to a search, besides its settings; `amc.compress` describes each."""

    model: nn.Module  # what is pruned
    example_input: Any
    calibration: Iterable[Any] = ()  # of the whole network
    evaluate: Any = None
    test: Any = None
    reward: RewardFunction | None = None  # the caller's own function; None: the one that the settings name
    distill_loss: DistillLoss | None = None  # the caller's own loss of recovery
    agent: AgentFactory | None = None  # the caller's own; None: the one that the settings name
    part: Part | None = None  # None: the whole network is pruned

    def of_part(self, name: str | None, known: Part | None = None) -> Inputs:
        """The inputs for pruning a part of this network; the same without a name. `known`: the part, if it was found.

        Raises ModelError.
        """
        if name is None or self.part is not None:
            return self
        part = known or Part.of(self.model, self.example_input, name)
        return replace(self, model=part.module, example_input=part.example, part=part)

    def in_whole(self, method: Method, count: str) -> InWhole | None:
        """The method for whole networks whose part is pruned; None without a part. `count`: as in `SearchConfig`."""
        return None if self.part is None else InWhole.of(self.part, method, count)

    def score(self, evaluate: Any, name: str = DEFAULT) -> Evaluate:
        """`evaluate` as a function of what is pruned; see `as_evaluator`."""
        part = self.part
        example, within = (self.example_input, None) if part is None else (part.outer, part.in_eval)
        device = device_of(self.model)
        return as_evaluator(evaluate, score=name, example_input=example, device=device, within=within)

    def batches(self, images: int, warn: Callable[[str], None]) -> tuple[Sequence[Example], str]:
        """The calibration batches of what is pruned, and the digest of the user's own. Raises DataError."""
        if self.part is None:
            batches = limited(self.calibration, images, Reader.of(self.example_input))
            return batches, data_fingerprint(batches)
        if takes_images(self.part.outer):
            outer = _listed(self.calibration, images)
        else:
            outer = limited(self.calibration, images, Reader.of(self.part.outer))
        return _recorded(self.part, outer, warn), data_fingerprint(outer)


def _recorded(part: Part, outer: Sequence[Example], warn: Callable[[str], None]) -> list[Example]:
    """What the whole network calls its part with on these batches, as far as memory allows."""
    found: list[Example] = []
    size = used = 0
    for calls in part.inputs(outer):
        more = sum(_bytes(call) for call in calls)
        if found and size + more > RECORDED:
            images = sum(rows_of(batch) or 0 for batch in outer[:used])
            warn(
                f"the inputs of part '{part.name}' fill {RECORDED >> 30} GiB after {images} calibration images; the "
                "others are left out"
            )
            break
        found, size, used = [*found, *calls], size + more, used + 1
    if outer and not found:
        raise DataError(
            f"no calibration batch reaches part '{part.name}': the network calls it with nothing; give images on which "
            "it is used"
        )
    return found


def _bytes(call: Example) -> int:
    leaves = tree_leaves((call.args, dict(call.kwargs)))
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))


def _listed(source: Iterable[Any], images: int) -> list[Example]:
    """Batches for a network that takes a list of images: whole ones, until `images` are in."""
    kept: list[Example] = []
    left = images
    for batch in source:
        if left <= 0:
            break
        found = images_of(batch)
        kept.append(Example((found,), {}))
        left -= len(found)
    return kept
