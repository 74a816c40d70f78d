"""The logits among what a network returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from amc.errors import EvaluationError


def output_of(given: Any, instead: str = "pass a function module -> float as evaluate") -> Tensor:
    """The logits in a network's output: a tensor, the first of a tuple, `logits` or `out` of a mapping.

    Raises EvaluationError if the output has no logits or they are ambiguous. `instead`: what to do then.
    """
    if isinstance(given, Tensor):
        return given
    logits = getattr(given, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(given, Mapping):
        for name in ("logits", "out"):
            if isinstance(given.get(name), Tensor):
                named: Tensor = given[name]
                return named
        tensors = [part for part in given.values() if isinstance(part, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        names = ", ".join(map(str, given)) or "nothing"
        raise EvaluationError(f"the network gives {names}, and none is named logits; {instead}")
    if isinstance(given, tuple | list) and given:
        return output_of(given[0], instead)
    raise EvaluationError(f"the network gives a {type(given).__name__}, not logits; {instead}")
