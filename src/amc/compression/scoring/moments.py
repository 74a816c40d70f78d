"""Norms that average over channels, some of which are gone: the rest get the means and spreads of the dense network.

A layer norm of fewer channels divides by another spread. Scale and shift of what is left make up for it in the mean,
channel by channel, as far as images show it. It is for layer norms what new statistics are for batch norms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from amc.compression.scoring.engine.base import TorchEngine
from amc.structure.copying import copy_model
from amc.structure.trace import Example

LEAST, MOST = 0.5, 2.0  # of what a scale is multiplied by: a channel that says little in few images is not blown up


@dataclass(frozen=True, slots=True)
class Moments:
    """Of the outputs of every norm that runs once: by the name of its weight, [channels]."""

    mean: dict[str, Tensor] = field(default_factory=dict)
    spread: dict[str, Tensor] = field(default_factory=dict)


def moments_on(model: nn.Module, inputs: Example) -> Moments:
    """The moments of the norms of a network on a batch; `model` is untouched."""
    found, calls, network = Moments(), dict[str, int](), copy_model(model)

    def seen(name: str, output: Tensor, axis: int) -> None:
        calls[name] = calls.get(name, 0) + 1
        found.mean[name], found.spread[name] = _moments(output, axis)

    _run(network, inputs, seen)
    for name in (name for name, count in calls.items() if count > 1):  # one scale cannot serve two places
        del found.mean[name], found.spread[name]
    return found


def match_moments_(slim: nn.Module, inputs: Example, dense: Moments) -> None:
    """Give each norm's channels the moments of `dense`, of the channels that stay, on the same batch; in place.

    The norms are set in the order of the forward pass, each for what those before it now give. A norm without a bias
    gets its spread alone.
    """
    changes: dict[str, tuple[Tensor, Tensor]] = {}
    modules = dict(slim.named_modules())

    def matched(name: str, output: Tensor, axis: int) -> Tensor | None:
        if name not in dense.mean or dense.mean[name].shape != output.shape[axis : axis + 1 or None]:
            return None
        mean, spread = _moments(output, axis)
        shape = [-1 if place == axis % output.ndim else 1 for place in range(output.ndim)]
        scale = torch.where(spread > 0, dense.spread[name].to(spread) / spread, 1.0).clamp(LEAST, MOST)
        biased = getattr(modules[_module_of(name)], "bias", None) is not None
        shift = dense.mean[name].to(mean) - scale * mean if biased else torch.zeros_like(mean)
        changes[name] = (scale, shift)
        return output * scale.view(shape) + shift.view(shape)

    _run(slim, inputs, matched)
    for name, (scale, shift) in changes.items():
        norm = modules[_module_of(name)]
        _replace_(norm, "weight", norm.weight * scale.clone())
        if getattr(norm, "bias", None) is not None:
            _replace_(norm, "bias", norm.bias * scale.clone() + shift.clone())


def _run(model: nn.Module, inputs: Example, on_output: Callable[[str, Tensor, int], Tensor | None]) -> None:
    """One pass in which `on_output` sees, and may replace, the output of every norm, with the axis of its channels."""
    hooks = [
        norm.register_forward_hook(
            lambda _, __, output, name=name, norm=norm: (
                None if (axis := _axis(norm, output)) is None else on_output(name, output, axis)
            )
        )
        for name, norm in _norms(model)
    ]
    try:
        with TorchEngine().running(model) as call:
            call(inputs)
    finally:
        for hook in hooks:
            hook.remove()


def _norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with one weight a channel whose class says that it is a norm, but not one over images."""
    for path, module in model.named_modules():
        weight, kind = getattr(module, "weight", None), type(module).__name__
        averages = "Norm" in kind and "BatchNorm" not in kind and "InstanceNorm" not in kind
        if averages and isinstance(weight, nn.Parameter) and weight.ndim == 1:
            yield f"{path}.weight" if path else "weight", module


def _axis(norm: nn.Module, output: Any) -> int | None:
    """The axis of the channels in a norm's output; None if it is none of the usual ones."""
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim < 2:
        return None
    size = len(norm.get_parameter("weight"))
    second = isinstance(norm, nn.GroupNorm) or type(norm).__name__.endswith("2d")
    axis = 1 if second else output.ndim - 1
    return axis if output.shape[axis] == size else None


def _moments(output: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    flat = output.float().movedim(axis, -1).flatten(0, -2)
    return flat.mean(0), flat.std(0, correction=0)


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _replace_(module: nn.Module, name: str, value: Tensor) -> None:
    """A new parameter: the old one may share its memory with the dense network."""
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(value.detach().to(old.dtype), requires_grad=old.requires_grad))
