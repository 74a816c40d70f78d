"""What torch-pruning makes of a network, judged as AMC's own certificate judges.

Its magnitude pruner removes half of the channels of every layer it can. As its documentation asks, it is given the
layers that make the output and the number of heads of each attention. All weights are distinct random numbers, so the
numbers that are left in every tensor show which entries were removed. The network with exactly those entries set to
zero is the masked one. Sliced and masked outputs are compared in double precision.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from against_torch_pruning import attentions_of, set_heads_
from amc.structure import inspect
from amc.structure.trace import inference
from network_list import create

TOLERANCE = 1e-6  # of the largest output: that of AMC's certificate
RATIO = 0.5


def attempt(name: str) -> dict[str, Any]:
    """`verdict` matches, differs or fails, with the largest difference or the error."""
    model, example = create(name)
    ends = {locked.name for locked in inspect(model, example).locked if locked.lock.reason == "network output"}
    _randomise(model)
    model = model.double()
    example = example.double() if example.is_floating_point() else example
    pruned = copy.deepcopy(model)
    before = sum(p.numel() for p in model.parameters())
    norms = any(isinstance(m, nn.LayerNorm | nn.GroupNorm) for m in model.modules())
    try:
        for parameter in pruned.parameters():
            parameter.requires_grad_(True)
        attentions = attentions_of(pruned)
        pruner = tp.pruner.MagnitudePruner(
            pruned,
            example,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=RATIO,
            ignored_layers=[m for path, m in pruned.named_modules() if path in ends],
            num_heads={attention.qkv: attention.num_heads for attention in attentions},
        )
        pruner.step()
        set_heads_(attentions, pruner.num_heads)
        sliced = _outputs(pruned, example)
    except Exception as error:  # whatever it raises is its result
        text = str(error).strip().splitlines()
        return {"verdict": "fails", "detail": f"{type(error).__name__}: {text[0][:120] if text else ''}"}
    removed = 1 - sum(p.numel() for p in pruned.parameters()) / before
    return _verdict(sliced, _outputs(_masked(model, pruned), example)) | {"removed": removed, "norms": norms}


def _verdict(sliced: list[Tensor], masked: list[Tensor]) -> dict[str, Any]:
    worst = 0.0
    for a, b in zip(sliced, masked, strict=True):
        if a.shape != b.shape:
            return {"verdict": "differs", "detail": f"output of shape {tuple(a.shape)}, not {tuple(b.shape)}"}
        if not bool(b.isfinite().all()):
            return {"verdict": "differs", "detail": "not finite"}
        worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)))
    return {"verdict": "matches" if worst <= TOLERANCE else "differs", "detail": f"{worst:.1e}"}


def _masked(model: nn.Module, pruned: nn.Module) -> nn.Module:
    """The dense network with zeros in all entries that are not left in the pruned one."""
    masked = copy.deepcopy(model)
    left = {**dict(pruned.named_parameters()), **dict(pruned.named_buffers())}
    for name, tensor in [*masked.named_parameters(), *masked.named_buffers()]:
        if tensor.is_floating_point() and name in left and tensor.shape != left[name].shape:
            _mask_(tensor.data, left[name].data)
    return masked


def _mask_(dense: Tensor, left: Tensor) -> None:
    """Zero what is not left: the first entry that is left is looked up, then the lines through it."""
    start = (dense == left.flatten()[0]).nonzero()[0].tolist()
    dropped = []
    for dim in range(dense.ndim):
        line = dense[tuple(slice(None) if d == dim else start[d] for d in range(dense.ndim))]
        kept = left[tuple(slice(None) if d == dim else 0 for d in range(dense.ndim))]
        dropped.append((~torch.isin(line, kept)).nonzero().flatten())
    for dim, places in enumerate(dropped):
        dense.index_fill_(dim, places, 0)


def _randomise(model: nn.Module) -> None:
    """Distinct values of ordinary size everywhere."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or name.endswith(("relative_coords_table", "attn_mask")):
            continue
        if tensor.ndim < 2:
            tensor.data.uniform_(0.5, 1.5)
        else:
            tensor.data.normal_(std=max(1, tensor[0].numel()) ** -0.5)


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    with inference(model):
        return [leaf for leaf in tree_leaves(model(example)) if isinstance(leaf, Tensor)]
