"""Reshapes: dimensions are split and joined; their sizes are numbers in the forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from amc.structure.channels import Ids
from amc.structure.context import Context, Dims, Tracked
from amc.structure.rules.registry import rule


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "_reshape_alias")
def reshape(ctx: Context, x: Tracked, *_: Any, **__: Any) -> Dims:
    """Dimensions are matched in blocks of equal product; ids are carried exactly."""
    out: list[Ids | None] = []
    blocks = _blocks(x.shape, ctx.output_shape)
    for old, new in blocks:
        out += _reshape_block(ctx, x.shape[old], x.ids[old], ctx.output_shape[new])
    given = dict(_given_sizes(ctx))
    for position, place in given.items():
        ctx.counted(out[position], ctx.output_shape[position], place=place)
    for old, new in blocks:
        prunable = any(out[position] is not None for position in range(new.start, new.stop))
        batch = x.shape[old.start : old.stop][:1] == (1,)  # it may be: of one example, and its size must stay free
        if prunable and not batch:
            ctx.bind([(given[each], out[each], ctx.output_shape[each]) for each in range(new.start, new.stop)
                      if each in given])  # fmt: skip
    return tuple(out)


def _given_sizes(ctx: Context) -> list[tuple[int, int]]:
    """Output dimensions whose size the forward gives as a number, rather than -1, with its place in the call."""
    given = ctx.argument("size") or ctx.argument("shape") or ctx.argument("sizes") or []
    first = ctx.argument("dim") or 0  # of unflatten
    rank = len(ctx.output_shape)
    start = first % (rank - len(given) + 1) if len(given) < rank else 0
    return [(start + place, place - len(given)) for place, size in enumerate(given) if size != -1]


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[slice, slice]]:
    """Smallest runs of dimensions of `old` and `new` with the same number of elements."""
    blocks, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start, begin = i, j
        left = old[i] if i < len(old) else 1
        right = new[j] if j < len(new) else 1
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        blocks.append((slice(start, i), slice(begin, j)))
    return blocks


def _reshape_block(ctx: Context, old: Sequence[int], ids: Dims, new: Sequence[int]) -> list[Ids | None]:
    live = [d for d, entry in enumerate(ids) if entry is not None]
    if not live:
        return [None] * len(new)
    axis = max(live, key=lambda d: (not ctx.is_stretched(ids[d]), old[d]))
    live = [d for d in live if d == axis or not ctx.is_stretched(ids[d])]
    for other in live:
        if other != axis:
            ctx.lock(ids[other], f"{ctx.operator} merges it with other channels")
    entry = ids[axis]
    assert entry is not None
    if not new:  # a dimension of size one vanishes
        ctx.lock(entry, f"{ctx.operator} drops it")
        return []
    before, after = math.prod(old[:axis]), math.prod(old[axis + 1 :])
    flat = np.tile(np.repeat(entry, after), before)
    return [flat] if len(new) == 1 else list(ctx.split(flat, new))
