"""Operators that move positions: exact index arithmetic on the ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from amc.structure.channels import Ids
from amc.structure.context import Context, Dims, Tracked
from amc.structure.rules.registry import fixed_output, no_rule, operator_name, rule

MOST_UNITS = 8  # a split into more parts than this is hardly a chunk
LITERAL = "a literal size or index in the forward picks some of these channels"


@rule("squeeze", "unsqueeze")
def squeeze(ctx: Context, x: Tracked, *_: Any, **__: Any) -> Dims:
    """Dimensions of size one come and go."""
    dim = ctx.argument("dim")
    if len(ctx.output_shape) > x.rank:
        position = dim % (x.rank + 1)
        return (*x.ids[:position], None, *x.ids[position:])
    axes = range(x.rank) if dim is None else [d % x.rank for d in np.atleast_1d(dim)]
    gone = {d for d in axes if x.shape[d] == 1}
    for d in gone:
        ctx.lock(x.ids[d], f"{ctx.operator} drops it")
    return tuple(ids for d, ids in enumerate(x.ids) if d not in gone)


@rule("permute", "transpose", "t", "numpy_T", "mT", "movedim", "moveaxis", "swapaxes", "swapdims", "adjoint")
def permute(ctx: Context, x: Tracked, *args: Any, **__: Any) -> Dims:
    """Dimensions change places."""
    name = ctx.operator.split(".")[1].rstrip("_")
    order = list(range(x.rank))
    if name == "permute":
        order = [d % x.rank for d in args[0]]
    elif name in ("movedim", "moveaxis"):
        order = _moved(x.rank, args[0], args[1])
    elif name in ("transpose", "swapaxes", "swapdims"):
        a, b = args[0] % x.rank, args[1] % x.rank
        order[a], order[b] = order[b], order[a]
    elif name in ("t", "mT", "adjoint"):
        order[-2:] = reversed(order[-2:])
    else:
        order.reverse()
    return tuple(x.ids[d] for d in order)


def _moved(rank: int, source: Any, destination: Any) -> list[int]:
    sources = [int(d) % rank for d in np.atleast_1d(source)]
    places = [int(d) % rank for d in np.atleast_1d(destination)]
    order = [d for d in range(rank) if d not in sources]
    for place, axis in sorted(zip(places, sources, strict=True)):
        order.insert(place, axis)
    return order


@rule("cat", "concat", "concatenate")
def cat(ctx: Context, tensors: list[Tracked], dim: int = 0) -> Dims:
    """Positions follow one another along `dim`; the other dimensions are tied."""
    tensors = [t for t in tensors if not (t.rank == 1 and t.shape[0] == 0)]
    axis = dim % tensors[0].rank
    out: list[Ids | None] = []
    for d in range(tensors[0].rank):
        parts = [t.ids[d] for t in tensors]
        if d == axis:
            out.append(_joined(ctx, tensors, axis))
            continue
        joined = parts[0]
        for part in parts[1:]:
            joined = ctx.tie(joined, part)
        out.append(joined)
    return tuple(out)


def _joined(ctx: Context, tensors: list[Tracked], axis: int) -> Ids | None:
    if all(t.ids[axis] is None for t in tensors):
        return None
    return np.concatenate([_or_fixed(ctx, t.ids[axis], t.shape[axis]) for t in tensors])


def _or_fixed(ctx: Context, ids: Ids | None, size: int) -> Ids:
    """Ids of a dimension; new locked ids if it has none."""
    if ids is not None:
        return ids
    fixed = ctx.table.fresh(size)
    ctx.lock(fixed, f"{ctx.operator} joins it with channels of fixed number")
    return fixed


@rule("stack")
def stack(ctx: Context, tensors: list[Tracked], dim: int = 0) -> Dims:
    """A new dimension; the others are tied."""
    dims = list(tensors[0].ids)
    for tensor in tensors[1:]:
        dims = [ctx.tie(a, b) for a, b in zip(dims, tensor.ids, strict=True)]
    dims.insert(dim % (tensors[0].rank + 1), None)
    return tuple(dims)


@rule(
    "pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d",
    "reflection_pad3d", "replication_pad3d", "_pad_circular"
)  # fmt: skip
def pad(ctx: Context, x: Tracked, padding: Sequence[int], *_: Any, **__: Any) -> Dims:
    """New positions before and after.

    Channels of zeros can be pruned if the forward reads their number from an attribute, which a slice updates.
    """
    dims = list(x.ids)
    zeros = operator_name(ctx.node.target) in ("pad", "constant_pad_nd") and not ctx.argument("value")  # type: ignore[union-attr]
    for position in range(len(padding) // 2):
        before, after = padding[2 * position], padding[2 * position + 1]
        entry = dims[-1 - position]
        if entry is None or (before, after) == (0, 0):
            continue
        if before < 0 or after < 0:
            ctx.lock(entry, LITERAL)
            dims[-1 - position] = None
            continue
        ends = [ctx.table.fresh(before), ctx.table.fresh(after)]
        for side, ids in enumerate(ends):
            place = 2 * position + side - len(padding)
            if not ids.size:
                continue
            if not zeros or not ctx.counted(ids, ids.size, place=place):
                ctx.lock(ids, "padding adds a literal number of channels")
            elif ids.size % ctx.attributes[-1].value == 0:  # a multiple of the attribute shrinks by whole multiples
                ctx.tie_across(ids, ctx.attributes[-1].value, outer=True)
        dims[-1 - position] = np.concatenate([ends[0], entry, ends[1]])
    return tuple(dims)


@rule("chunk")
def chunk(ctx: Context, x: Tracked, chunks: int, dim: int = 0) -> Any:
    """Equal parts: equal places of all parts go together, so that the parts stay equal."""
    axis, size = dim % x.rank, x.shape[dim % x.rank]
    ids = x.ids[axis]
    if ids is not None and size % chunks:
        ctx.lock(ids, f"{ctx.operator} cuts {size} channels into {chunks} unequal parts")
        ids = None
    if ids is not None:
        ids = np.tile(ctx.tie_across(ids, chunks, outer=False), chunks)  # type: ignore[arg-type]
    return [_replaced(x.ids, axis, part) for part in _cut(ids, [t.shape[axis] for t in _outputs(ctx)])]


@rule("split", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(ctx: Context, x: Tracked, *_: Any, **__: Any) -> Any:
    """Parts that are multiples of the smallest are treated as a chunk into parts of that size.

    Other parts shrink if attributes of the module hold their sizes; otherwise they are locked. Where the sizes
    are the entries of a list, each entry follows its part.
    """
    axis = (ctx.argument("dim") or 0) % x.rank
    sizes = [t.shape[axis] for t in _outputs(ctx)]
    ids = x.ids[axis]
    parts = _cut(ids, sizes)
    if ids is not None and ctx.counted_in_list(parts, sizes):
        return [_replaced(x.ids, axis, part) for part in parts]
    units = sum(sizes) // min(sizes)
    whole = all(size % min(sizes) == 0 for size in sizes) and units <= MOST_UNITS
    if ids is not None and len(sizes) > 1 and whole:
        ids = np.tile(ctx.tie_across(ids, units, outer=False), units)  # type: ignore[arg-type]
    parts = _cut(ids, sizes)
    counted = [ctx.counted(part, size) for part, size in zip(parts, sizes, strict=True)]
    if not whole and not all(counted):
        ctx.lock(ids, LITERAL)
        parts = _cut(None, sizes)
    return [_replaced(x.ids, axis, part) for part in parts]


def _outputs(ctx: Context) -> Any:
    assert ctx.node is not None
    return ctx.node.meta["val"]


def _cut(ids: Ids | None, sizes: Sequence[int]) -> list[Ids | None]:
    if ids is None:
        return [None] * len(sizes)
    return list(np.split(ids, np.cumsum(sizes)[:-1]))


def _replaced(dims: Dims, axis: int, ids: Ids | None) -> Dims:
    return (*dims[:axis], ids, *dims[axis + 1 :])


@rule("unbind")
def unbind(ctx: Context, x: Tracked, dim: int = 0) -> Any:
    axis = dim % x.rank
    ctx.lock(x.ids[axis], LITERAL)
    return [(*x.ids[:axis], *x.ids[axis + 1 :]) for _ in range(x.shape[axis])]


@rule("select")
def select(ctx: Context, x: Tracked, dim: int, index: int) -> Dims:
    axis = dim % x.rank
    ctx.lock(x.ids[axis], LITERAL)
    return (*x.ids[:axis], *x.ids[axis + 1 :])


@rule("slice", "narrow")
def slice_(ctx: Context, x: Tracked, *_: Any, **__: Any) -> Dims:
    """A whole-range slice changes nothing. If attributes of the module hold its ends, they follow.

    Otherwise one of a few equal parts, such as the queries of queries, keys and values, is treated as a chunk, and any
    other slice is locked: its ends are literal.
    """
    axis = (ctx.argument("dim") or 0) % x.rank
    ids, size, length = x.ids[axis], x.shape[axis], ctx.output_shape[axis]
    if length == size or ids is None:
        return x.ids
    begin = (ctx.argument("start") or 0) % size
    end, picked = begin + length, slice(begin, begin + length)
    equal = length > 0 and size % length == begin % length == 0 and size // length <= MOST_UNITS
    if (ctx.argument("step") or 1) != 1:
        ctx.lock(ids, LITERAL)
        return _replaced(x.ids, axis, None)
    # A number in the forward counts the channels before an end, or those between both.
    counted = all(
        ctx.counted(ids[:cut], cut) or (begin > 0 and ctx.counted(ids[picked], length))
        for cut in (begin, end)
        if 0 < cut < size
    )
    if not counted and not equal:
        ctx.lock(ids, LITERAL)
        return _replaced(x.ids, axis, None)
    if not counted:
        parts = size // length
        ids = np.tile(ctx.tie_across(ids, parts, outer=False), parts)  # type: ignore[arg-type]
    return _replaced(x.ids, axis, ids[picked])


@rule("expand", "expand_as", "broadcast_to")
def expand(ctx: Context, x: Tracked, *_: Any, **__: Any) -> Dims:
    """New and stretched dimensions repeat one value: they take the size of the dimension that they meet.

    A mask expanded to all heads thus loses the heads that the queries lose.
    """
    extra = len(ctx.output_shape) - x.rank
    dims: list[Ids | None] = [None] * extra
    for place, (size, new, ids) in enumerate(zip(x.shape, ctx.output_shape[extra:], x.ids, strict=True), -x.rank):
        if size != new:
            ctx.lock(ids, f"{ctx.operator} stretches it")
        dims.append(ids if size == new else ctx.stretched(new, place=place))
        if ids is not None and size == new and operator_name(ctx.node.target) == "expand":  # type: ignore[union-attr]
            given = ctx.argument("size")[place]
            ctx.bind([(place, ids, new)] if given != -1 and not ctx.counted(ids, new, place=place) else [])
    return tuple(dims)


@rule("repeat", "tile")
def repeat(ctx: Context, x: Tracked, repeats: Sequence[int]) -> Dims:
    counts = [1] * (len(ctx.output_shape) - len(repeats)) + list(repeats)
    dims: Dims = (None,) * (len(ctx.output_shape) - x.rank) + x.ids
    return tuple(None if ids is None else np.tile(ids, n) for ids, n in zip(dims, counts, strict=True))


@rule("repeat_interleave")
def repeat_interleave(ctx: Context, x: Tracked, repeats: Any, *_: Any, **__: Any) -> Dims:
    dim = ctx.argument("dim")
    if not isinstance(repeats, int) or dim is None:
        no_rule(ctx, x)
        return (None,) * len(ctx.output_shape)
    axis = dim % x.rank
    ids = x.ids[axis]
    return _replaced(x.ids, axis, None if ids is None else ids.repeat(repeats))


@rule("roll", "flip")
def roll(ctx: Context, x: Tracked, *_: Any, **__: Any) -> Dims:
    """The moved dimensions must have a fixed size; the others pass."""
    moved = {int(axis) % x.rank for axis in ctx.argument("dims") or range(x.rank)}
    for axis in moved:
        ctx.lock(x.ids[axis], f"{ctx.operator} reorders it")
    return tuple(None if d in moved else ids for d, ids in enumerate(x.ids))


@rule("index")
def index(ctx: Context, x: Tracked, indices: Sequence[Tracked | None]) -> Dims:
    """`x[:, idx]`, `x[mask]`: the dimensions that are indexed must have a fixed size; the others stay."""
    return _indexed(ctx, x, indices)


@rule("index_put")
def index_put(ctx: Context, x: Tracked, indices: Sequence[Tracked | None], values: Tracked, *_: Any) -> Dims:
    """`x[mask] = values`: the dimensions that are not indexed are tied to those of `values`."""
    into = _indexed(ctx, x, indices)
    for place, ids in enumerate(reversed(values.ids), start=1):
        there = into[-place] if place <= len(into) else None
        if ids is not None and there is not None and len(ids) == len(there):
            ctx.tie(ids, there)
        elif ids is not None:
            ctx.lock(ids, f"{ctx.operator} broadcasts it")
        elif there is not None and values.shape[-place] > 1:
            ctx.lock(there, f"{ctx.operator} writes values of a fixed size into it")
    return x.ids


@rule("index_select")
def index_select(ctx: Context, x: Tracked, dim: int, index: Tracked) -> Dims:
    """As `x[:, index]`."""
    dim %= x.rank
    ctx.lock(x.ids[dim], LITERAL)
    return (*x.ids[:dim], None, *x.ids[dim + 1 :])


@rule("sym_size", "sym_stride")
def a_size(ctx: Context, x: Tracked, *_: Any) -> Any:
    """A size that depends on the data, such as how many rows a mask leaves; never the number of channels."""
    return fixed_output(ctx)


def _indexed(ctx: Context, x: Tracked, indices: Sequence[Tracked | None]) -> Dims:
    """Ids of `x[indices]`. A mask takes as many dimensions of `x` as it has, and gives one."""
    assert ctx.node is not None
    given: list[int] = []  # dimensions of x that are indexed
    axis = new = 0
    for entry, node in zip(indices, ctx.node.args[1], strict=True):  # type: ignore[arg-type]
        if entry is None:
            axis += 1
            continue
        is_mask = node.meta["val"].dtype in (torch.bool, torch.uint8)
        width = entry.rank if is_mask else 1
        given += range(axis, axis + width)
        new = max(new, 1 if is_mask else entry.rank)
        axis += width
        for ids in entry.ids:
            ctx.lock(ids, LITERAL)
    for dim in given:
        ctx.lock(x.ids[dim], LITERAL)
    first = given[0] if given == list(range(given[0], given[-1] + 1)) else 0  # with a gap, the new ones come first
    kept = [x.ids[dim] for dim in range(x.rank) if dim not in given]
    return (*kept[:first], *(None,) * new, *kept[first:])


@rule("pixel_shuffle")
def pixel_shuffle(ctx: Context, x: Tracked, upscale_factor: int) -> Dims:
    """[..., C r r, H, W] -> [..., C, H r, W r]: the r*r channels of one output go together."""
    ids = x.ids[-3]
    return (*x.ids[:-3], ctx.tie_across(ids, x.shape[-3] // upscale_factor**2, outer=True), None, None)


@rule("pixel_unshuffle")
def pixel_unshuffle(ctx: Context, x: Tracked, downscale_factor: int) -> Dims:
    """[..., C, H r, W r] -> [..., C r r, H, W]."""
    ids = x.ids[-3]
    return (*x.ids[:-3], None if ids is None else ids.repeat(downscale_factor**2), None, None)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(ctx: Context, x: Tracked, groups: int) -> Dims:
    """[N, g*c, ...] read as [g, c], transposed: equal places of all groups go together."""
    ids = ctx.tie_across(x.ids[1], groups, outer=False)
    return (x.ids[0], None if ids is None else ids.repeat(groups), *x.ids[2:])


@rule("glu")
def glu(ctx: Context, x: Tracked, dim: int = -1) -> Dims:
    """One half gates the other: equal places go together."""
    axis = dim % x.rank
    return _replaced(x.ids, axis, ctx.tie_across(x.ids[axis], 2, outer=False))
