"""What a GPU needs beside the network: its images there once, and batches that fit into its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from amc.structure.batches import mapped, picked, size_of
from amc.structure.trace import Example

SHARE = 0.5  # of the memory that is free, for images


def free_on(device: torch.device) -> int:
    """Bytes that are free on a GPU."""
    return int(torch.cuda.mem_get_info(device)[0])


class Resident:
    """Inputs that stay as they are, on a device once while they take at most `SHARE` of its free memory."""

    def __init__(self, free: Callable[[torch.device], int] = free_on) -> None:
        self._free, self._left = free, -1  # bytes; not known yet
        self._known: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of the first, which is held, so it stays unique

    def on(self, inputs: Example, device: torch.device) -> Example:
        """The inputs on a GPU, where nobody may change them; on the CPU, or where there is no room, as they are."""
        return inputs if device.type == "cpu" else mapped(lambda tensor: self._there(tensor, device), inputs)

    def forget(self) -> None:
        """Free the memory."""
        self._known.clear()
        self._left = -1

    def _there(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The tensor on the device, or as it is where there is no room for it."""
        if tensor.device == device:
            return tensor
        known = self._known.get(id(tensor))
        if known is not None and known[1].device == device:
            return known[1]
        if self._left < 0:
            self._left = int(SHARE * self._free(device))
        if tensor.nbytes > self._left:
            return tensor
        self._left -= tensor.nbytes
        there = tensor.to(device)
        self._known[id(tensor)] = tensor, there
        return there

    def __getstate__(self) -> dict[str, Any]:
        """Another process has its own memory."""
        return {**self.__dict__, "_known": {}, "_left": -1}


class InParts:
    """Runs a batch in equal parts that fit into the memory of a GPU: halves, quarters …, as small as they must be."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._most: int | None = None  # examples of a part

    def run(self, call: Callable[[Example], Any], inputs: Example) -> Any:
        """`call(inputs)`, from the outputs for its parts where it runs out of memory.

        Raises torch.OutOfMemoryError if one example is too much, or if the outputs cannot be joined.
        """
        while True:
            try:
                if self._most is None:
                    return call(inputs)
                return _joined([call(part) for part in inputs_in_parts(inputs, self._most)])
            except torch.OutOfMemoryError:
                size = min(self._most or size_of(inputs), size_of(inputs))
                if size == 1:
                    raise
            torch.cuda.empty_cache()  # what the attempt has left in pieces
            self._most = -(-size // 2)
            self.warnings.append(
                f"batches of {size} images do not fit into the GPU's memory; {self._most} are scored at a time"
            )


def inputs_in_parts(inputs: Example, most: int) -> list[Example]:
    """The inputs of at most so many examples each."""
    return [picked(inputs, slice(at, at + most)) for at in range(0, size_of(inputs), most)]


def _joined(parts: list[Any]) -> Any:
    """One output from those of the parts of a batch."""
    if len(parts) == 1:
        return parts[0]

    def join(*found: Any) -> Any:
        if all(isinstance(part, Tensor) and part.ndim for part in found):
            return torch.cat(found)
        if all(part is None or isinstance(part, Tensor | bool | int | float | str) for part in found):
            return found[0]  # a loss, say: it has no part for each image
        raise torch.OutOfMemoryError(f"outputs of parts of a batch, {type(found[0]).__name__}, cannot be joined")

    return tree_map(join, *parts)
