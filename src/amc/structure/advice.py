"""Advice for users: on networks that cannot be traced, and on locked channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from amc.structure.structure import Locked

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "torchao.")
_NORM_HOOKS = {"SpectralNorm": "remove_spectral_norm", "WeightNorm": "remove_weight_norm"}
_PARAMETRIZED = ".parametrizations."


def advice_on_network(model: nn.Module) -> str:
    """What to prune instead of a network that cannot be traced or run here; "" without advice."""
    modules = [*model.modules()]
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        return "it is TorchScript: give the nn.Module that it was made from"
    if any(type(module).__module__.startswith(_QUANTISED) for module in modules) or _has_quantised_tensors(model):
        return "it is quantised: prune the network in floating point first, and quantise the result"
    if getattr(getattr(model, "config", None), "use_cache", False):
        return "it returns a cache of keys and values: set model.config.use_cache = False"
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, nn.Module):
        return "of a detector prune the part that takes one tensor: add part='backbone' (--part backbone)"
    return ""


def advice_on_recurrence(model: nn.Module) -> str:
    """What torch.export does not trace in recurrent layers; "" for a network without them."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return "torch.export does not follow pack_padded_sequence: if it packs its sequences, let it run on padded ones"
    return ""


def advice_on_example(model: nn.Module, inputs: Any) -> str:
    """How to change the example's tensors to fit the network; "" if precision and device fit."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    given = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    if weight is None or not given:
        return ""
    other = next((tensor for tensor in given if tensor.device != weight.device), None)
    if other is not None:
        return f"the network is on {weight.device} and the example on {other.device}: move one to the other"
    floating = [tensor for tensor in given if tensor.is_floating_point()]
    if not floating and any(tensor.dtype == torch.uint8 for tensor in given):
        return "the example is uint8: give floating-point numbers, normalised as in training"
    wrong = next((tensor for tensor in floating if tensor.dtype != weight.dtype), None)
    if wrong is not None:
        names = [str(dtype).removeprefix("torch.") for dtype in (weight.dtype, wrong.dtype)]
        return f"the network is in {names[0]} and the example in {names[1]}: give it in the network's precision"
    return ""


def _has_quantised_tensors(model: nn.Module) -> bool:
    tensors: Iterable[Any] = model.state_dict().values()
    return any(getattr(tensor, "is_quantized", False) or "torchao" in type(tensor).__module__ for tensor in tensors)


def explained(locked: Iterable[Locked], model: nn.Module) -> tuple[Locked, ...]:
    """The locks. If something removable computes a weight, the reason names it and says how to remove it."""
    return tuple(_explained(item, model) for item in locked)


def _explained(item: Locked, model: nn.Module) -> Locked:
    path = item.lock.module
    causes = (_parametrization(model, path), _norm_hook(model, path), _fake_quantisation(model, path))
    cause = next(filter(None, causes), "") or _parametrized(model, item)
    return replace(item, lock=replace(item.lock, reason=cause)) if cause else item


def _parametrization(model: nn.Module, path: str) -> str:
    owner, separator, rest = path.partition(_PARAMETRIZED)
    if not separator:
        return ""
    kind = type(_module(model, path)).__name__.strip("_")
    tensor = rest.partition(".")[0]
    remove = f"torch.nn.utils.parametrize.remove_parametrizations(model.{owner}, {tensor!r})"
    return f"{kind} computes this weight from all of its channels; remove it first: {remove}"


def _parametrized(model: nn.Module, item: Locked) -> str:
    """The first parametrization of a layer whose weight has no channels of its own."""
    owned = getattr(_module(model, item.name), "parametrizations", None)
    if not owned or "fixed size" not in item.lock.reason:
        return ""
    return _parametrization(model, f"{item.name}{_PARAMETRIZED}{next(iter(owned))}.0")


def _norm_hook(model: nn.Module, path: str) -> str:
    hooks = getattr(_module(model, path), "_forward_pre_hooks", {})
    kinds = [type(hook).__name__ for hook in hooks.values()]
    for kind, remove in _NORM_HOOKS.items():
        if kind in kinds:
            return f"{kind} computes this weight from all of its channels; remove it first: torch.nn.utils.{remove}"
    return ""


def _fake_quantisation(model: nn.Module, path: str) -> str:
    if any(cls.__name__ in ("FakeQuantizeBase", "ObserverBase") for cls in type(_module(model, path)).__mro__):
        return "fake quantisation follows these channels; prune first, and prepare the result for quantisation"
    return ""


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return model
