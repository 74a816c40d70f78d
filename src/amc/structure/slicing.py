"""From a keep mask to a physically smaller module of the same class, or to a masked one of the same size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from amc.errors import ModelError
from amc.structure.calls import Number
from amc.structure.copying import plain, with_tensors
from amc.structure.literals import set_attribute_
from amc.structure.modules import SlimMultiheadAttention, avoid_nested_tensors_, slim_attention_
from amc.structure.structure import Mask, Slots, Structure


def slice_model(
    model: nn.Module, structure: Structure, mask: Mask, weights: Mapping[str, torch.Tensor] | None = None
) -> nn.Module:
    """A new module without the channels that `mask` [channels] drops; `model` is untouched.

    `weights` gives replacement values, already sliced, for some parameters (a reconstruction). Shares no memory
    with `model`.
    """
    weights, model = weights or {}, plain(model)
    replaced = {}
    for name, tensor in _tensors(model, structure):
        value = weights.get(name)
        if value is None:
            value = _sliced(tensor.detach(), structure.tensors.get(name, ()), mask)
        replaced[name] = value.to(tensor)
    slim = with_tensors(model, replaced)
    _update_attributes_(slim, structure, mask)
    return slim


def slice_tensors(tensors: Mapping[str, torch.Tensor], structure: Structure, mask: Mask) -> dict[str, torch.Tensor]:
    """What `mask` [channels] leaves of values that have the names and shapes of parameters or buffers."""
    return {name: _sliced(tensor, structure.tensors.get(name, ()), mask) for name, tensor in tensors.items()}


def mask_model(model: nn.Module, structure: Structure, mask: Mask) -> nn.Module:
    """A copy of the same size in which every parameter and buffer is zero wherever a dropped channel takes part."""
    replaced, model = {}, plain(model)
    for name, tensor in _tensors(model, structure):
        value = tensor.detach().clone()
        for dim, slots in enumerate(structure.tensors.get(name, ())):
            if slots is not None:
                value.index_fill_(dim, torch.from_numpy(np.flatnonzero(~_kept(slots, mask))).to(value.device), 0)
        replaced[name] = value
    return with_tensors(model, replaced)


def kept_positions(slots: Slots, mask: Mask) -> Slots:
    """Positions of one dimension that stay, ascending."""
    return np.flatnonzero(_kept(slots, mask))


def _kept(slots: Slots, mask: Mask) -> Mask:
    return np.append(mask, True)[slots]  # FIXED is -1: the last entry


def _sliced(tensor: torch.Tensor, dims: tuple[Slots | None, ...], mask: Mask) -> torch.Tensor:
    for dim, slots in enumerate(dims):
        if slots is not None and not _kept(slots, mask).all():
            tensor = tensor.index_select(dim, torch.from_numpy(kept_positions(slots, mask)).to(tensor.device))
    return tensor.clone(memory_format=torch.contiguous_format)


def _tensors(model: nn.Module, structure: Structure) -> list[tuple[str, torch.Tensor]]:
    tensors: list[tuple[str, torch.Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if structure.shapes.get(name) != tuple(tensor.shape):
            raise ModelError(
                f"'{name}' has shape {tuple(tensor.shape)} but the structure was computed for "
                f"{structure.shapes.get(name, 'a model without it')}; inspect this model again"
            )
    return tensors


def _update_attributes_(slim: nn.Module, structure: Structure, mask: Mask) -> None:
    """Update the sizes that modules keep as attributes to those of their tensors."""
    for each in structure.attributes:
        kept = int(np.count_nonzero(_kept(each.counted, mask)))
        set_attribute_(slim.get_submodule(each.module), each.name, kept * each.value // each.counted.size)
    for module in slim.modules():
        _update_sizes_(module)
    avoid_nested_tensors_(slim)
    calls = bound_calls(structure, mask)
    if calls:
        from amc.structure.bound import bind_  # it loads torch's compiler

        bind_(slim, calls)


def bound_calls(structure: Structure, mask: Mask) -> dict[str, dict[str, dict[int, Number]]]:
    """The numbers to bind in a slice, by module and call: in modules that may compute others than in the dense network.

    These are the modules of which a call, a tensor or an attribute, also one of a module around them, loses channels.
    """
    calls: dict[str, dict[str, dict[int, Number]]] = {}
    losing = set()
    for each in structure.bound:
        number = each.value if each.counted is None else int(np.count_nonzero(_kept(each.counted, mask)))
        calls.setdefault(each.module, {}).setdefault(each.call, {})[each.place] = number
        if number != each.value:
            losing.add(each.module)
    if not calls:
        return {}
    losing |= {
        name.rpartition(".")[0]
        for name, dims in structure.tensors.items()
        if not all(slots is None or _kept(slots, mask).all() for slots in dims)
    }
    attributes = {each.module for each in structure.attributes if not _kept(each.counted, mask).all()}
    return {
        path: mine
        for path, mine in calls.items()
        if any(_within(each, path) for each in losing | attributes) or any(_within(path, each) for each in attributes)
    }


def _within(path: str, other: str) -> bool:
    """Whether a module is another one or inside it."""
    return not other or path == other or path.startswith(f"{other}.")


def _update_sizes_(module: nn.Module) -> None:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        module.in_channels, module.out_channels = (
            module.weight.shape[0],
            module.weight.shape[1] * module.groups,
        )
    elif isinstance(module, nn.modules.conv._ConvNd):
        module.out_channels, module.in_channels = (
            module.weight.shape[0],
            module.weight.shape[1] * module.groups,
        )
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        module.num_features = next((t.shape[0] for t in tensors if t.ndim == 1), module.num_features)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = module.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
    elif isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        rows, module.input_size = module.all_weights[0][0].shape
        module.hidden_size = rows // gates
    elif isinstance(module, nn.RNNCellBase):
        module.hidden_size, module.input_size = module.weight_hh.shape[1], module.weight_ih.shape[1]
    elif isinstance(module, nn.MultiheadAttention) and type(module) in (nn.MultiheadAttention, SlimMultiheadAttention):
        slim_attention_(module)


__all__ = ["bound_calls", "kept_positions", "mask_model", "slice_model", "slice_tensors"]
