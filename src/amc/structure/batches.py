"""Splits a loader's batches into the network's inputs and the labels.

The example input shows how the network is called: the number of positional arguments, or the keywords. A batch may
hold the inputs flat, `(x1, x2, labels)`, grouped, `((x1, x2), labels)`, or by name, `{"x1": …, "labels": …}`.
Evaluation, calibration and batch-norm re-estimation read their batches with this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map

from amc.errors import DataError, check_resources
from amc.structure.modes import device_of
from amc.structure.trace import Example

LABELS = ("labels", "label", "targets", "target", "y")  # keys of labels, unless the network has such inputs
_IMAGES = ("pixel_values", "images", "image", "inputs", "input", "x")  # keys of the input among several tensors
_LISTED = 4  # names in a message


@dataclass(frozen=True, slots=True)
class Reader:
    """Splits batches into inputs and labels, by the example of the network's inputs.

    `example` None: the inputs are unknown. The first part of a batch is then the input: a tensor, a tuple of positional
    arguments, or a mapping of keywords. Types and shapes are not checked.
    """

    example: Example | None = None
    name: str = "a calibration batch"  # in messages

    @classmethod
    def of(cls, example_input: Any, name: str = "a calibration batch") -> Reader:
        """The reader for a network with this example input; None if it is unknown."""
        return cls(None if example_input is None else Example.of(example_input), name)

    def batches(self, source: Iterable[Any]) -> Iterable[Any]:
        """The batches of a source. A tensor, an array, a mapping or a pair with labels is a single batch."""
        if isinstance(source, Mapping) or self._is_pair(source):
            return [source]
        if isinstance(source, Tensor | np.ndarray):
            rank = self._rank()
            return source if rank is not None and source.ndim > rank else [source]
        return source

    def inputs(self, batch: Any) -> Example:
        """The network's inputs in a batch, without labels. Raises DataError if the batch does not fit."""
        return self.split(batch)[0]

    def labelled(self, batch: Any) -> tuple[Example, Tensor]:
        """The network's inputs and the labels [N, ...] of a batch. Raises DataError if the batch does not fit."""
        inputs, labels = self.split(batch)
        if labels is None:
            raise DataError(
                f"{self.name} is {_described(batch)} without labels; the loader must give (images, labels) tensors, or "
                f"a dict with the key {LABELS[0]}"
            )
        tensor = _label_tensor(labels)
        count = size_of(inputs)
        tensor = tensor.reshape(1) if tensor.ndim == 0 and count == 1 else tensor
        if tensor.ndim == 0 or len(tensor) != count:
            have = len(tensor) if tensor.ndim else 1
            raise DataError(f"a batch has {count} images and {have} labels; give one label per image")
        return inputs, tensor

    def split(self, batch: Any) -> tuple[Example, Any]:
        """The network's inputs and, as they came, the labels of a batch; None without labels. Raises DataError."""
        if isinstance(batch, Example):
            inputs, labels = batch, None
        elif isinstance(batch, Mapping):
            inputs, labels = self._of_mapping(batch)
        elif isinstance(batch, tuple | list):
            inputs, labels = self._of_sequence(batch)
        else:
            inputs, labels = self._of_one(batch), None
        if self.example is None:
            return _tensors(inputs), labels
        if len(inputs.args) != len(self.example.args) or not set(self.example.kwargs) <= set(inputs.kwargs):
            raise self._misfit(batch)
        args = tuple(map(_conformed, self.example.args, inputs.args))
        kwargs = {name: _conformed(own, inputs.kwargs[name]) for name, own in self.example.kwargs.items()}
        return Example(args, kwargs), labels

    def _of_mapping(self, batch: Mapping[Any, Any]) -> tuple[Example, Any]:
        labels = next((batch[name] for name in LABELS if name in batch), None)
        example = self.example
        if example is None:
            return Example((), {name: part for name, part in batch.items() if name not in LABELS}), labels
        if len(example.args) == 1 and not example.kwargs and _fits(example.args[0], batch):
            return Example((batch,), {}), labels
        if not example.args:
            missing = [name for name in example.kwargs if name not in batch]
            if missing:
                raise DataError(
                    f"{self.name} has {_names(batch)}, and by its example input the network also takes "
                    f"{_names(missing)}; let the loader give every keyword of the example"
                )
            return Example((), {name: batch[name] for name in example.kwargs}), labels
        named = {name: part for name, part in batch.items() if name not in LABELS and _is_array(part)}
        if not named:
            raise DataError(f"{self.name} is a {type(batch).__name__}; give tensors, or (images, labels)")
        if len(named) > 1:
            named = {name: part for name, part in named.items() if name in _IMAGES} or named
        if len(example.args) == 1 and not example.kwargs and len(named) == 1:
            return Example(tuple(named.values()), {}), labels
        raise DataError(
            f"{self.name} has {_names(batch)}, and an example input without names does not show which of them the "
            "network takes; give example_input as a dict"
        )

    def _of_sequence(self, batch: tuple[Any, ...] | list[Any]) -> tuple[Example, Any]:
        if not batch:
            raise DataError(f"{self.name} is empty; the loader must give (images, labels)")
        first, rest = batch[0], batch[1:]
        labels = rest[0] if len(rest) == 1 else None
        example = self.example
        if isinstance(first, Mapping) and not (example and example.args and _fits(example.args[0], first)):
            inputs, own = self._of_mapping(first)
            return inputs, own if labels is None else labels
        if example is None:
            return Example.of(tuple(first) if isinstance(first, list) else first), labels
        if not example.args:
            if len(example.kwargs) == 1:
                return Example((), {next(iter(example.kwargs)): first}), labels
            raise self._misfit(batch)
        if len(example.args) == 1 and _fits(example.args[0], batch):  # the network's input is one list
            return Example((batch,), {}), None
        if isinstance(first, tuple | list) and _fits(example.args, first):
            return Example(tuple(first), {}), labels
        count = len(example.args)
        if _fits(example.args, batch[:count]):
            return Example(tuple(batch[:count]), {}), batch[count] if len(batch) == count + 1 else None
        raise self._misfit(batch)

    def _of_one(self, batch: Any) -> Example:
        example = self.example
        if not _is_array(batch):
            raise DataError(f"{self.name} is {_described(batch)}; give tensors, or (images, labels)")
        if example is not None and not example.args and len(example.kwargs) == 1:
            return Example((), {next(iter(example.kwargs)): batch})
        if example is not None and (len(example.args) != 1 or example.kwargs):
            raise self._misfit(batch)
        return Example((batch,), {})

    def _misfit(self, batch: Any) -> DataError:
        assert self.example is not None
        takes = self.example.kwargs or self.example.args
        return DataError(
            f"{self.name} is {_described(batch)}, and by its example input the network takes {_described(takes)}; let "
            "the loader give the inputs as the example has them, then the labels"
        )

    def _is_pair(self, source: Any) -> bool:
        """Whether a tuple is (images, labels) rather than two batches."""
        rank = self._rank()
        if rank is None or not isinstance(source, tuple) or len(source) != 2 or not all(map(_is_array, source)):
            return False
        return bool(source[0].ndim == rank > source[1].ndim)

    def _rank(self) -> int | None:
        """The number of dimensions of the network's input; None if it has several inputs or they are unknown."""
        leaves = [] if self.example is None else tree_leaves((self.example.args, dict(self.example.kwargs)))
        return leaves[0].ndim if len(leaves) == 1 and isinstance(leaves[0], Tensor) else None


def images_of(batch: Any, name: str = "a calibration batch") -> list[Tensor]:
    """The images [C, H, W] of a batch for a network that takes a list of them, which may differ in size.

    A batch is such a list or a tensor [N, C, H, W], alone or before the targets. Raises DataError for another.
    """
    if isinstance(batch, Tensor) and batch.ndim == 4:
        return [*batch]
    if isinstance(batch, tuple | list) and batch:
        if all(isinstance(image, Tensor) and image.ndim == 3 for image in batch):
            return [*batch]
        first = batch[0]
        if isinstance(first, Tensor | tuple | list) and not (isinstance(first, Tensor) and first.ndim != 4):
            return images_of(first, name)
    raise DataError(
        f"{name} is a {type(batch).__name__}, and by its example input the network takes a list of images; give lists "
        "of tensors [C, H, W], or (images, targets)"
    )


def mapped(function: Callable[[Tensor], Tensor], inputs: Example) -> Example:
    """The inputs with `function` applied to every tensor; other values stay."""

    def change(part: Any) -> Any:
        return function(part) if isinstance(part, Tensor) else part

    return Example(tree_map(change, inputs.args), tree_map(change, dict(inputs.kwargs)))


def moved(inputs: Example, device: torch.device) -> Example:
    """A copy of the inputs on `device`: a forward pass may write to its input, and the batch is used again."""
    return mapped(lambda tensor: tensor.to(device, copy=True), inputs)


def size_of(inputs: Example) -> int:
    """The number of examples in a batch: the length of its first tensor. Raises DataError without a tensor."""
    for leaf in tree_leaves((inputs.args, dict(inputs.kwargs))):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise DataError("a batch has no tensor with a batch dimension; give tensors [N, ...]")


def picked(inputs: Example, index: slice | Tensor) -> Example:
    """The examples at `index` of the batch. Tensors without the batch's length stay whole."""
    size = size_of(inputs)
    return mapped(lambda tensor: tensor[index] if tensor.ndim and len(tensor) == size else tensor, inputs)


def limited(source: Iterable[Any], images: int, reader: Reader | None = None) -> list[Example]:
    """The inputs of the first `images` images, as batches in memory. Raises DataError."""
    reader = reader or Reader()
    kept: list[Example] = []
    left = images
    for batch in reader.batches(source):
        if left <= 0:
            break
        inputs = reader.inputs(batch)
        kept.append(picked(inputs, slice(left)) if size_of(inputs) > left else inputs)
        left -= size_of(kept[-1])
    return kept


def examples(source: Iterable[Any], device: torch.device) -> Iterator[Example]:
    """The inputs of each batch on `device`, for a network without an example input."""
    reader = Reader()
    return (moved(reader.inputs(batch), device) for batch in reader.batches(source))


def _is_array(part: Any) -> bool:
    return isinstance(part, Tensor | np.ndarray)


def _fits(example: Any, part: Any) -> bool:
    """Whether `part` has the example's structure: the same nesting, and a tensor or array for each tensor."""
    if isinstance(example, Tensor):
        return _is_array(part)
    if isinstance(example, Mapping):
        return isinstance(part, Mapping) and all(
            name in part and _fits(own, part[name]) for name, own in example.items()
        )
    if isinstance(example, tuple | list):
        alike = isinstance(part, tuple | list) and len(part) == len(example)
        return alike and all(map(_fits, example, part))
    return True


def _conformed(example: Any, part: Any) -> Any:
    """`part` with tensors in the example's precision. Raises DataError if its structure or type does not fit."""
    if isinstance(example, Tensor):
        return _like(example, _tensor(part))
    if not _fits(example, part):
        raise DataError(
            f"a batch has {_described(part)} where the example input has {_described(example)}; let the loader give "
            "the inputs as the example has them"
        )
    if isinstance(example, Mapping):
        return {name: _conformed(own, part[name]) for name, own in example.items()}
    if isinstance(example, tuple | list):
        parts = [_conformed(own, other) for own, other in zip(example, part, strict=True)]
        return parts if isinstance(example, list) else tuple(parts)
    return part


def _like(example: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` in the example's precision. Raises DataError for another kind of number, or other dimensions."""
    if tensor.ndim != example.ndim:
        raise DataError(
            f"a batch has a tensor {list(tensor.shape)} where the example input has {list(example.shape)}; give "
            "batches [N, ...], for instance DataLoader(dataset, batch_size=64), and one batch alone in a list"
        )
    if example.is_floating_point() == tensor.is_floating_point() or example.is_complex():
        return tensor.to(example.dtype) if example.is_floating_point() else tensor
    kind, wanted = _kind(tensor), _kind(example)
    if tensor.dtype == torch.uint8:
        raise DataError(
            f"the images are uint8, 0 to 255, and the network takes {wanted}; convert and normalise them as in "
            "training, for instance (images.float() / 255 - mean) / std"
        )
    raise DataError(
        f"a batch has {kind} where the example input has {wanted}; let the loader convert it as in training"
    )


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _tensors(inputs: Example) -> Example:
    """The inputs with numpy arrays as tensors."""

    def change(part: Any) -> Any:
        return _tensor(part) if isinstance(part, np.ndarray) else part

    return Example(tree_map(change, inputs.args), tree_map(change, dict(inputs.kwargs)))


def _tensor(part: Any) -> Tensor:
    if isinstance(part, Tensor):
        return part
    try:
        return torch.from_numpy(np.ascontiguousarray(part))
    except (TypeError, ValueError) as problem:
        raise DataError(f"a batch holds {_described(part)}, which torch cannot take; give tensors") from problem


def _label_tensor(labels: Any) -> Tensor:
    """Labels as a tensor, from a tensor, an array or a list of numbers."""
    if isinstance(labels, Tensor):
        return labels
    try:
        return torch.as_tensor(np.asarray(labels))
    except (TypeError, ValueError) as problem:
        raise DataError(
            f"the labels of a batch are {_described(labels)}; give a tensor, or let evaluate be a function "
            "module -> float"
        ) from problem


def _described(part: Any) -> str:
    """A description for messages, such as "a tuple of (Tensor [8, 3, 4, 4], int)"."""
    if _is_array(part):
        return f"a {type(part).__name__} {list(part.shape)}"
    if isinstance(part, Mapping):
        return f"a {type(part).__name__} of {_names(part)}" if part else "nothing"
    if isinstance(part, tuple | list):
        inner = [
            f"{type(item).__name__} {list(item.shape)}" if _is_array(item) else type(item).__name__ for item in part
        ]
        return f"a {type(part).__name__} of ({_listed(inner)})"
    return f"a {type(part).__name__}"


def _names(parts: Iterable[Any]) -> str:
    return _listed([str(name) for name in parts])


def _listed(parts: list[str]) -> str:
    more = f" and {len(parts) - _LISTED} more" if len(parts) > _LISTED else ""
    return ", ".join(parts[:_LISTED]) + more


def layout_for(network: nn.Module, outputs: Callable[[Example], Any], batch: Example) -> torch.memory_format:
    """Channels-last, in which convolutions take a quarter to a third less time, if the network works with it.

    A network that calls `view` on the output of a convolution does not. On a GPU, pruned networks with convolutions in
    groups take ten times as long in this format, though dense ones take less (docs/gpu.md): their odd widths suit
    none of cuDNN's fast kernels. outputs: the network in eval mode.
    """
    if device_of(network).type == "cuda" and any(
        isinstance(part, _ConvNd) and part.groups > 1 for part in network.modules()
    ):
        return torch.contiguous_format
    try:
        with torch.no_grad():
            outputs(mapped(lambda tensor: laid_out(tensor, torch.channels_last), picked(batch, slice(2))))
    except Exception as error:  # for any other reason it fails again, where the reason is reported
        check_resources(error)
        return torch.contiguous_format
    return torch.channels_last


def laid_out(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """Images [N, C, H, W] in this memory format; any other tensor as it is.

    Images of one channel count as contiguous in both formats; convolutions go by their strides.
    """
    if tensor.ndim != 4 or tensor.stride() == torch.empty(tensor.shape, device="meta", memory_format=layout).stride():
        return tensor
    return tensor.clone(memory_format=layout)
