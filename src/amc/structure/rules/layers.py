"""Layers with parameters: convolution, linear, normalisation, embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from amc.structure import products
from amc.structure.channels import Ids
from amc.structure.context import Context, Dims, LayerUse, Tracked
from amc.structure.rules.products import record_product
from amc.structure.rules.registry import rule


def _lock_all(ctx: Context, dims: Sequence[Ids | None], reason: str) -> None:
    for ids in dims:
        ctx.lock(ids, reason)


def _many(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * rank if len(values) == 1 else values


@rule("conv1d", "conv2d", "conv3d")
def convolution(
    ctx: Context,
    x: Tracked,
    weight: Tracked,
    bias: Tracked | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Dims:
    """x [N, I, ...], weight [O, I/groups, kernel...] -> [N, O, ...]; every output position uses each weight once."""
    spatial = weight.rank - 2
    batch, channels = _slid_over(ctx, x, weight)
    across = _tied_across(groups, weight.shape[1])
    out, inside = weight.ids[0], weight.ids[1]
    if groups == 1:
        ctx.tie(channels, inside)
    elif across:
        ctx.tie(ctx.tie_across(channels, groups, outer=False), inside)
        ctx.tie_across(out, groups, outer=False)
    else:
        ctx.lock(inside, "a grouped convolution is pruned by whole groups")
        if ctx.tie(ctx.tie_across(channels, groups, outer=True), ctx.tie_across(out, groups, outer=True)) is None:
            out = None  # of a fixed number, as the groups are
        ctx.counted(channels, groups, name="groups")
    if bias is not None:
        ctx.tie(out, bias.ids[0])
    _record(ctx, "conv", weight, bias, channels, out, 1, stride, groups, across, x.shape[-spatial:])
    inside_cost = None if groups > 1 and not across else inside
    _cost(ctx, x, weight, ctx.output_shape[-spatial:], (*batch, None, out, inside_cost))
    return (*batch, out, *(None,) * spatial)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(
    ctx: Context,
    x: Tracked,
    weight: Tracked,
    bias: Tracked | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Dims:
    """x [N, I, ...], weight [I, O/groups, kernel...] -> [N, O, ...]; every input position uses each weight once."""
    spatial = weight.rank - 2
    batch, channels = _slid_over(ctx, x, weight)
    channels, inside = ctx.tie(channels, weight.ids[0]), weight.ids[1]
    out = inside
    if groups > 1:
        ctx.lock(inside, "a grouped transposed convolution is pruned by whole groups")
        parts = ctx.tie_across(channels, groups, outer=True)
        out = None if parts is None else parts.repeat(weight.shape[1])
        inside = None
        ctx.counted(channels, groups, name="groups")
    if bias is not None:
        out = ctx.tie(out, bias.ids[0])
    _record(ctx, "conv_transpose", weight, bias, channels, out, 0, stride, groups, False, x.shape[-spatial:])
    _cost(ctx, x, weight, x.shape[-spatial:], (*batch, None, channels, inside))
    return (*batch, out, *(None,) * spatial)


def _slid_over(ctx: Context, x: Tracked, weight: Tracked) -> tuple[Dims, Ids | None]:
    """Lock what the kernel slides over. Returns the batch's dimensions, each computed alone, and x's channels."""
    spatial = weight.rank - 2
    _lock_all(ctx, x.ids[-spatial:], f"{ctx.operator} slides over it")
    _lock_all(ctx, weight.ids[2:], "kernel size of a convolution")
    return x.ids[: -1 - spatial], x.ids[-1 - spatial]


def _cost(ctx: Context, x: Tracked, weight: Tracked, positions: Sequence[int], dims: Dims) -> None:
    """The cost of the layer recorded last: each weight is used once at each of `positions`, for each of the batch."""
    uses = math.prod(positions) * math.prod(weight.shape[2:])
    ctx.cost((*x.shape[: 1 - weight.rank], uses, *weight.shape[:2]), dims, layer=len(ctx.layers) - 1)


def _tied_across(groups: int, per_group: int) -> bool:
    """Whether every group loses the same places (few large groups). Many small groups are removed whole."""
    return 1 < groups < per_group


def _record(
    ctx: Context,
    kind: str,
    weight: Tracked,
    bias: Tracked | None,
    input_ids: Ids | None,
    output_ids: Ids | None,
    input_dim: int,
    stride: Any,
    groups: int,
    across: bool,
    input_size: tuple[int, ...],
) -> None:
    """Record a layer. The name of its weight is empty if the weight is computed."""
    plain = weight.name in ctx.parameters and weight.axes == tuple(range(weight.rank))
    ctx.layers.append(
        LayerUse(
            module=ctx.module,
            kind=kind,
            weight=str(weight.name) if plain else "",
            bias=bias.name if bias is not None else None,
            input_ids=() if input_ids is None else (input_ids,),
            output_ids=() if output_ids is None else (output_ids,),
            inputs=weight.shape[input_dim] * (groups if kind == "conv" else 1),
            outputs=weight.shape[1 - input_dim] * (groups if kind == "conv_transpose" else 1),
            input_dims=(input_dim,),
            order=tuple(range(weight.rank)),
            kernel=weight.shape[2:],
            stride=_many(stride, weight.rank - 2),
            groups=groups,
            tied_across=across,
            input_size=input_size,
        )
    )


@rule("linear")
def linear(ctx: Context, x: Tracked, weight: Tracked, bias: Tracked | None = None) -> Dims:
    """x [..., I], weight [O, I] -> [..., O]."""
    inside = ctx.tie(x.ids[-1], weight.ids[1])
    out = weight.ids[0]
    if bias is not None:
        ctx.tie(out, bias.ids[0])
    if record_product(ctx, products.linear(x.rank), x, weight, bias) is None:
        _record(ctx, "linear", weight, bias, x.ids[-1], out, 1, (), 1, False, ())
    sizes = (*x.shape[:-1], *weight.shape)
    ctx.cost(sizes, (*x.ids[:-1], out, inside), layer=len(ctx.layers) - 1)
    return (*x.ids[:-1], out)


@rule("embedding")
def embedding(ctx: Context, weight: Tracked, indices: Tracked, *_: Any, **__: Any) -> Dims:
    """weight [V, D], indices [...] -> [..., D]; the vocabulary stays."""
    ctx.lock(weight.ids[0], "rows of an embedding are chosen by the input")
    return (*indices.ids, weight.ids[1])


@rule("batch_norm", "instance_norm")
def batch_norm(
    ctx: Context,
    x: Tracked,
    weight: Tracked | None,
    bias: Tracked | None,
    running_mean: Tracked | None,
    running_var: Tracked | None,
    *_: Any,
    **__: Any,
) -> Dims:
    """x [N, C, ...]: each channel is normalised alone, with statistics over the other dimensions."""
    for ids in (x.ids[0], *x.ids[2:]):
        ctx.average(ids, f"{ctx.operator} averages over it, as in standardised weights")
    channels = x.ids[1]
    for tensor in (weight, bias, running_mean, running_var):
        if tensor is not None:
            channels = ctx.tie(channels, tensor.ids[0])
    return (x.ids[0], channels, *x.ids[2:])


@rule("layer_norm", "rms_norm")
def layer_norm(
    ctx: Context,
    x: Tracked,
    normalized_shape: Sequence[int],
    weight: Tracked | None = None,
    bias: Tracked | None = None,
    *_: Any,
    **__: Any,
) -> Dims:
    """x [..., D...]: the statistics run over D, so no part of D can go without changing the rest."""
    count = len(normalized_shape)
    reason = "layer norm averages over these channels: removing some would change the others"
    if not ctx.approximate:
        for tensor in (x, weight, bias):
            if isinstance(tensor, Tracked):
                _lock_all(ctx, tensor.ids[-count:], reason)
        return x.ids
    dims = list(x.ids)
    for place in range(-count, 0):
        for tensor in (weight, bias):
            if isinstance(tensor, Tracked):
                dims[place] = ctx.tie(dims[place], tensor.ids[place])
        ctx.average(dims[place], reason)
        ctx.counted(dims[place], normalized_shape[place], place=place, name=f"normalized_shape[{count + place}]")
    return tuple(dims)


@rule("group_norm")
def group_norm(
    ctx: Context,
    x: Tracked,
    num_groups: int,
    weight: Tracked | None = None,
    bias: Tracked | None = None,
    *_: Any,
    **__: Any,
) -> Dims:
    """x [N, C, ...]: the statistics run over C/num_groups channels, so whole groups go together."""
    channels = x.ids[1]
    for tensor in (weight, bias):
        if tensor is not None:
            channels = ctx.tie(channels, tensor.ids[0])
    if num_groups == 1:
        ctx.average(channels, "group norm with one group averages over all channels")
    else:
        ctx.tie_across(channels, num_groups, outer=True)
        ctx.counted(channels, num_groups, name="num_groups")
    return (x.ids[0], channels, *x.ids[2:])


@rule("prelu", "_prelu_kernel")
def prelu(ctx: Context, x: Tracked, weight: Tracked) -> Dims:
    """One slope for all channels, or one a channel (dimension 1)."""
    if math.prod(weight.shape) == 1:
        _lock_all(ctx, weight.ids, "one slope serves all channels")
        return x.ids
    channels = weight.ids[0] if weight.rank == 1 else weight.ids[1]
    return (x.ids[0], ctx.tie(x.ids[1], channels), *x.ids[2:])


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(ctx: Context, v: Tracked, g: Tracked, *_: Any, **__: Any) -> Any:
    """w = g v / |v|: without some inputs of v the others would be scaled up."""
    reason = "weight norm divides by the norm over these channels; remove it first (remove_parametrizations)"
    _lock_all(ctx, (*v.ids, *g.ids), reason)
    return [v.ids, g.ids] if ctx.operator.startswith("aten._weight_norm_interface") else v.ids
