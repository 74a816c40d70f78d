"""Products of tensors. A product of a weight and an activation is a layer, however it is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from amc.structure import products
from amc.structure.channels import Ids
from amc.structure.context import Context, Dims, LayerUse, Tracked
from amc.structure.products import Layout, Product
from amc.structure.rules.registry import no_rule, rule

SCALED = "a product of two activations, as in attention, is usually scaled by its inner size"


def record_product(ctx: Context, product: Product, a: Tracked, b: Tracked, bias: Tracked | None = None) -> int | None:
    """Record `product` as a layer if exactly one factor is a parameter. Returns the layer's index, else None."""
    if (a.name in ctx.parameters) == (b.name in ctx.parameters):
        return None
    weight, product = (b, product) if b.name in ctx.parameters else (a, product.swapped)
    layout = products.weight_layout(product, weight.axes, ctx.parameters[str(weight.name)])
    if layout is None:
        return None
    ctx.layers.append(_layer(ctx, product, layout, weight, bias))
    return len(ctx.layers) - 1


def _layer(ctx: Context, product: Product, layout: Layout, weight: Tracked, bias: Tracked | None) -> LayerUse:
    sizes = dict(zip(product.right, weight.shape, strict=True))
    ids = dict(zip(product.right, weight.ids, strict=True))
    groups = math.prod(sizes[letter] for letter in layout.stack)
    inputs = _merged([sizes[letter] for letter in layout.inputs], [ids[letter] for letter in layout.inputs], groups)
    outputs = _merged([sizes[letter] for letter in layout.outputs], [ids[letter] for letter in layout.outputs], groups)
    return LayerUse(
        module=ctx.module,
        kind="linear",
        weight=str(weight.name),
        bias=bias.name if bias is not None else None,
        input_ids=inputs,
        output_ids=outputs,
        inputs=groups * math.prod(sizes[letter] for letter in layout.inputs),
        outputs=groups * math.prod(sizes[letter] for letter in layout.outputs),
        input_dims=layout.order[len(layout.order) - len(layout.inputs) :],
        order=layout.order,
        kernel=(),
        stride=(),
        groups=groups,
        tied_across=groups > 1,
        input_size=(),
    )


def _merged(sizes: Sequence[int], ids: Sequence[Ids | None], groups: int) -> tuple[Ids, ...]:
    """Ids of several dimensions seen as one, repeated for each group: one entry for each dimension with ids."""
    return tuple(
        np.tile(entry.repeat(math.prod(sizes[place + 1 :])), groups * math.prod(sizes[:place]))
        for place, entry in enumerate(ids)
        if entry is not None
    )


@rule("matmul", "mm", "bmm", "linalg_matmul")
def matmul(ctx: Context, a: Tracked, b: Tracked, *, bias: Tracked | None = None) -> Dims:
    """[..., M, K] @ [..., K, N] -> [..., M, N]; either may be a vector."""
    inner = ctx.tie(a.ids[-1], b.ids[-2] if b.rank > 1 else b.ids[-1])
    if a.name is None and b.name is None:
        ctx.lock(inner, SCALED)
        inner = None
    elif a.rank == 1 and b.rank > 2:  # torch computes this differently at size one
        ctx.lock(inner, f"{ctx.operator} of a vector and a stack runs over it")
        inner = None
    rows = a.ids[-2:-1]
    columns = b.ids[-1:] if b.rank > 1 else ()
    stack = _stack(ctx, a, b)
    sizes = (*stack[0], *a.shape[-2:], *(b.shape[-1:] if b.rank > 1 else ()))
    layer = record_product(ctx, products.matmul(a.rank, b.rank), a, b, bias)
    ctx.cost(sizes, (*stack[1], *rows, inner, *columns), layer=layer)
    return (*stack[1], *rows, *columns)


def _stack(ctx: Context, a: Tracked, b: Tracked) -> tuple[tuple[int, ...], Dims]:
    """Broadcast leading dimensions of two stacks of matrices."""
    count = max(a.rank, b.rank) - 2
    if count <= 0:
        return (), ()
    sizes: list[int] = []
    dims: list[Ids | None] = []
    for position in range(3, 3 + count):
        here = [(t.shape[-position], t.ids[-position]) for t in (a, b) if t.rank >= position]
        size = max(s for s, _ in here)
        meeting = [ids for s, ids in here if s == size]
        dims.insert(0, meeting[0] if len(meeting) == 1 else ctx.tie(meeting[0], meeting[1]))
        for s, ids in here:
            if s != size:
                ctx.lock(ids, f"{ctx.operator} broadcasts it")
        sizes.insert(0, size)
    return tuple(sizes), tuple(dims)


@rule("addmm", "baddbmm")
def addmm(ctx: Context, bias: Tracked, a: Tracked, b: Tracked, *, beta: Any = 1, alpha: Any = 1) -> Dims:
    """bias + a @ b."""
    out = list(matmul(ctx, a, b, bias=bias))
    for position in range(1, bias.rank + 1):
        if bias.shape[-position] > 1:
            out[-position] = ctx.tie(out[-position], bias.ids[-position])
    return tuple(out)


@rule("einsum")
def einsum(ctx: Context, equation: str, operands: list[Tracked], *, path: Any = None) -> Dims:
    """Every letter is one dimension: equal letters are tied. Operands are contracted from left to right.

    An order of contraction that was chosen by size (opt_einsum) holds for the dense sizes only.
    """
    letters, output = products.einsum(equation, [operand.rank for operand in operands])
    if path is not None and len(operands) > 2:
        no_rule(ctx, operands)
        return (None,) * len(output)
    operands = [_diagonal(ctx, term, operand) for term, operand in zip(letters, operands, strict=True)]
    letters = ["".join(dict.fromkeys(term)) for term in letters]
    result, last = operands[0], letters[0]
    for product, operand in zip(products.chain(letters, output), operands[1:], strict=True):
        result, last = contract(ctx, product, result, operand), product.out
    by_letter = dict(zip(last, result.ids, strict=True))
    return tuple(by_letter[letter] for letter in output)


def _diagonal(ctx: Context, letters: str, operand: Tracked) -> Tracked:
    """The operand's diagonal over a letter that occurs twice in it; the diagonal's size is fixed."""
    if len(set(letters)) == len(letters):
        return operand
    kept = [place for place, letter in enumerate(letters) if letter not in letters[:place]]
    twice = {letter for letter in letters if letters.count(letter) > 1}
    for letter, ids in zip(letters, operand.ids, strict=True):
        if letter in twice:
            ctx.lock(ids, f"{ctx.operator} takes a diagonal of it")
    dims = tuple(None if letters[place] in twice else operand.ids[place] for place in kept)
    return Tracked(tuple(operand.shape[place] for place in kept), dims)


def contract(ctx: Context, product: Product, a: Tracked, b: Tracked, *, vanishing: bool = True) -> Tracked:
    """One product of two tensors: ties, cost and layer.

    `vanishing`: if all contracted dimensions have size one, torch's einsum multiplies and its counter counts nothing.
    """
    sizes: dict[str, int] = {}
    dims: dict[str, Ids | None] = {}
    for letters, tensor in ((product.left, a), (product.right, b)):
        for letter, size, ids in zip(letters, tensor.shape, tensor.ids, strict=True):
            if letter not in sizes or sizes[letter] == 1:
                sizes[letter], dims[letter] = size, ids
            elif size > 1:
                dims[letter] = ctx.tie(dims[letter], ids)
    layer = record_product(ctx, product, a, b)
    counted = [letter for letter in sizes if letter in product.out or letter in product.contracted]
    live = [letter for letter in product.contracted if dims[letter] is not None]
    fixed = math.prod(sizes[letter] for letter in product.contracted if dims[letter] is None)
    for letter in live[1:] if vanishing and fixed == 1 else ():
        ctx.lock(dims[letter], f"{ctx.operator} contracts several dimensions that could all shrink to one")
        dims[letter] = None
    if product.contracted:
        ctx.cost(
            [sizes[letter] for letter in counted],
            [dims[letter] for letter in counted],
            layer=layer,
            vanishing=dims[live[0]] if vanishing and fixed == 1 and len(live) == 1 else None,
        )
    out = product.out
    return Tracked(tuple(sizes[letter] for letter in out), tuple(dims[letter] for letter in out))


@rule("tensordot")
def tensordot(ctx: Context, a: Tracked, b: Tracked, dims_self: Sequence[int], dims_other: Sequence[int]) -> Dims:
    """Sum over the given dimensions of both factors."""
    product = products.tensordot(a.rank, b.rank, dims_self, dims_other)
    return contract(ctx, product, a, b, vanishing=False).ids


@rule("inner")
def inner(ctx: Context, a: Tracked, b: Tracked) -> Dims:
    """Sum over the last dimension of both factors."""
    if min(a.rank, b.rank) == 0:
        no_rule(ctx, a, b)
        return (None,) * len(ctx.output_shape)
    return contract(ctx, products.inner(a.rank, b.rank), a, b, vanishing=False).ids
