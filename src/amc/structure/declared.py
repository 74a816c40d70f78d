"""Sizes that a network declares without reading them itself, such as timm's `num_features` and `feature_info`.

Other code relies on them: `reset_classifier` builds a new head of `num_features` inputs. A slice updates them: an
attribute with one of the names below that equals a dimension of its module's input or output follows that dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from amc.structure.count import example_on_meta, on_meta
from amc.structure.trace import Example, inference

_OF_INPUT = ("in_features", "in_channels", "in_chs", "num_features", "num_channels", "embed_dim")
_OF_OUTPUT = ("out_features", "out_channels", "out_chs", "num_features", "num_channels", "hidden_size", "embed_dim")
_HEAD = "head_hidden_size"  # of timm: the width that its classifier reads

Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, ...]]  # by module path


def update_declared_sizes_(slim: nn.Module, dense: nn.Module, example_input: Any) -> None:
    """Update the sizes that `slim` declares, in place; `dense` is the network that it was sliced from.

    A network that cannot run without arithmetic keeps its declared sizes.
    """
    if not any(True for _ in _declarations(dense)):
        return
    example = example_on_meta(Example.of(example_input))
    try:
        before, after = _Shapes(dense, example), _Shapes(slim, example)
    except Exception:  # the user's forward may raise anything without values
        return
    for path, name in _declarations(dense):
        old: Any = getattr(dense.get_submodule(path), name)
        new = _followed(old, before.around(path, name), after.around(path, name))
        if new != old:
            setattr(slim.get_submodule(path), name, new)
    for entry in _feature_info(slim):
        path = str(entry.get("module"))
        entry["num_chs"] = _followed(entry["num_chs"], before.outputs.get(path, ()), after.outputs.get(path, ()))


def _declarations(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(path, name) of every declared size; the sizes of torch's own modules follow their tensors."""
    for path, module in model.named_modules():
        if not type(module).__module__.startswith("torch."):
            for name in dict.fromkeys((*_OF_INPUT, *_OF_OUTPUT, _HEAD)):
                if type(vars(module).get(name)) is int:
                    yield path, name


def _feature_info(model: nn.Module) -> list[dict[str, Any]]:
    """timm's table of the feature maps that a network offers."""
    declared = getattr(model, "feature_info", None)
    entries = getattr(declared, "info", declared)
    if not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, dict) and type(entry.get("num_chs")) is int]


def _followed(size: int, before: tuple[Shape, ...], after: tuple[Shape, ...]) -> int:
    """The new size of the dimension that had this size; of the channels, if several had it."""
    for old, new in zip(before, after, strict=False):
        if len(old) == len(new):
            for axis in dict.fromkeys((1, len(old) - 1)):  # [N, C, H, W], or channels last
                if axis < len(old) and old[axis] == size:
                    return new[axis]
    return size


class _Shapes:
    """The input and output shapes of every module, from one pass without arithmetic."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.inputs: dict[str, tuple[Shape, ...]] = {}
        self.outputs: dict[str, tuple[Shape, ...]] = {}
        model = on_meta(model)
        for path, module in model.named_modules():
            module.register_forward_hook(self._watch(path))
        with inference(model), torch.device("meta"):
            model(*example.args, **example.kwargs)
            self.features = _parts_of_timm(model, example)

    def around(self, path: str, name: str) -> tuple[Shape, ...]:
        """The shapes in which to look for a size of this name."""
        if not path and self.features:
            features, hidden = self.features
            return (hidden,) if name == _HEAD else (features, hidden)
        inputs = self.inputs.get(path, ()) if name in _OF_INPUT else ()
        return (*inputs, *(self.outputs.get(path, ()) if name in (*_OF_OUTPUT, _HEAD) else ()))

    def _watch(self, path: str) -> Callable[..., None]:
        def record(_: nn.Module, inputs: Any, outputs: Any) -> None:
            self.inputs[path], self.outputs[path] = _shapes_in(inputs), _shapes_in(outputs)

        return record


def _parts_of_timm(model: Any, example: Example) -> tuple[Shape, Shape] | None:
    """The shapes of timm's features before the head and before the classifier; None for other networks."""
    if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        return None
    features = model.forward_features(*example.args, **example.kwargs)
    hidden = model.forward_head(features, pre_logits=True)
    return tuple(features.shape), tuple(hidden.shape)


def _shapes_in(value: Any) -> tuple[Shape, ...]:
    return tuple(tuple(leaf.shape) for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))
