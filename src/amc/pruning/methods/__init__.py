"""The ways to compress a network, one small module each behind one interface (`base.Method`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from amc.errors import AmcError, ModelError
from amc.pruning import GroupPolicy, LayerPolicy, Policy
from amc.pruning.masks import parse_pattern
from amc.pruning.methods.base import Builder, Finishing, Method, MethodOptions, problem_of
from amc.pruning.methods.channel import NAME as CHANNEL
from amc.pruning.methods.channel import ChannelMethod
from amc.pruning.methods.masked import MaskedMethod
from amc.structure import Structure, inspect, slice_model
from amc.structure.copying import copy_model, plain
from amc.structure.declared import update_declared_sizes_
from amc.structure.part import Part


def check_method(name: str) -> str:
    """The canonical name of a method. Raises AmcError for an unknown name."""
    if name.strip().lower() == CHANNEL:
        return CHANNEL
    try:
        return parse_pattern(name).name
    except AmcError as error:
        message = str(error).replace("unknown pattern", "unknown method").replace("choose", "choose channel,")
        raise AmcError(message) from None


def create_method(
    name: str,
    model: nn.Module,
    structure: Structure,
    options: MethodOptions | None = None,
    *,
    lock: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
) -> Method:
    """The method of this name for one network. Raises AmcError for an unknown name.

    `lock` and `only`: patterns of the names of layers, or of groups of channels (`amc.structure.patterns`).
    """
    options = options or MethodOptions()
    if name == CHANNEL:
        return ChannelMethod(model, structure, options, lock=lock, only=only)
    return MaskedMethod(model, structure, options, parse_pattern(name), lock=lock, only=only)


def apply_policy(model: nn.Module, example_input: Any, policy: Policy, structure: Structure | None = None) -> nn.Module:
    """The network that `policy` describes, without refitting; `model` is untouched.

    Channels are sliced away. A masked layer keeps its weights of largest magnitude. Raises ModelError if the policy was
    made for another network. Of a policy that was made for a part of a network, `structure` is that of the part.

    >>> policy = amc.Policy.of({"0": [0, 2, 3]}, sizes={"0": 8})  # of group "0", three of eight channels
    >>> amc.apply_policy(net, x, policy)[0]
    Conv2d(1, 3, kernel_size=(3, 3), stride=(1, 1))
    """
    model = plain(model)
    if policy.part is not None:
        part = Part.of(model, example_input, policy.part)
        return part.within(apply_policy(part.module, part.example, replace(policy, part=None), structure))
    structure = structure or inspect(model, example_input, approximate=policy.approximate)
    if policy.method == CHANNEL:
        slim = _sliced(model, policy, structure)
        update_declared_sizes_(slim, model, example_input)
        return slim
    options = MethodOptions(max_sparsity=1 - 1e-9, max_sparsity_linear=1 - 1e-9, ranking="magnitude", reconstruct=False)
    method = create_method(policy.method, model, structure, options)
    kept = {entry.name: entry for entry in policy.groups}
    sizes = {decision.name: decision.size for decision in method.decisions}
    for name, entry in kept.items():
        _check_entry(name, entry.size, sizes, "weights or units")
    counts = [kept[name].kept if name in kept else size for name, size in sizes.items()]
    return method.builder(None).build(counts)


def shaped(model: nn.Module, example_input: Any, policy: Policy) -> nn.Module:
    """A network of the shapes that `policy` leaves, ready to load such weights; `model` is untouched.

    Raises ModelError if the policy was made for another network.
    """
    return apply_policy(model, example_input, policy) if policy.method == CHANNEL else copy_model(model)


def _sliced(model: nn.Module, policy: Policy, structure: Structure) -> nn.Module:
    sizes = {group.name: group.size for group in structure.groups}
    for entry in policy.groups:
        _check_entry(entry.name, entry.size, sizes, "channels")
    return slice_model(model, structure, structure.mask(policy.keep))


def _check_entry(name: str, size: int, sizes: dict[str, int], unit: str) -> None:
    if name not in sizes:
        raise ModelError(f"the policy does not fit this network: nothing that can be pruned is called {name!r}")
    if sizes[name] != size:
        raise ModelError(f"the policy is for another network: {name!r} has {sizes[name]} {unit}, not {size}")


__all__ = [
    "CHANNEL",
    "Builder",
    "ChannelMethod",
    "Finishing",
    "GroupPolicy",
    "LayerPolicy",
    "MaskedMethod",
    "Method",
    "MethodOptions",
    "apply_policy",
    "check_method",
    "create_method",
    "problem_of",
    "shaped",
]
