"""Attention and general tensor products."""

from __future__ import annotations

from typing import Any

from amc.structure.channels import Ids
from amc.structure.context import Context, Dims, Tracked
from amc.structure.rules.registry import broadcast, no_rule, rule


@rule("scaled_dot_product_attention")
def scaled_dot_product_attention(
    ctx: Context,
    query: Tracked,
    key: Tracked,
    value: Tracked,
    attn_mask: Tracked | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Dims:
    """query [..., L, E], key [..., S, E], value [..., S, V] -> [..., L, V]; whole heads may go."""
    if enable_gqa:
        no_rule(ctx, query, key, value, attn_mask)
        return (None,) * query.rank
    for tensor in (query, key):
        ctx.lock(tensor.ids[-1], "the attention scale depends on the size of a head")
    for ids in (query.ids[-2], key.ids[-2], value.ids[-2]):
        ctx.lock(ids, "attention runs over this sequence")
    leading = query.shape[:-2]
    heads = [Tracked(t.shape[:-2], t.ids[:-2]) for t in (query, key, value)]
    if isinstance(attn_mask, Tracked):
        for ids in attn_mask.ids[-2:]:
            ctx.lock(ids, "an attention mask has a fixed size")
        heads.append(Tracked(attn_mask.shape[:-2], attn_mask.ids[:-2]))
    stack = broadcast(ctx, [t for t in heads if t.rank], leading)
    length, span, size = query.shape[-2], key.shape[-2], query.shape[-1]
    ctx.cost((*leading, length, span, size), (*stack, None, None, None))
    ctx.cost((*leading, length, span, value.shape[-1]), (*stack, None, None, value.ids[-1]))
    return (*stack, None, value.ids[-1])


@rule("einsum")
def einsum(ctx: Context, equation: str, operands: list[Tracked], **_: Any) -> Dims:
    """Every letter is one dimension: equal letters are tied."""
    equation = equation.replace(" ", "")
    if "." in equation or "->" not in equation or len(operands) > 2:
        no_rule(ctx, operands)
        return (None,) * len(ctx.output_shape)
    inputs, output = equation.split("->")
    meeting: dict[str, Ids | None] = {}
    sizes: dict[str, int] = {}
    for letters, operand in zip(inputs.split(","), operands, strict=True):
        for letter, size, ids in zip(letters, operand.shape, operand.ids, strict=True):
            meeting[letter] = ctx.tie(meeting[letter], ids) if letter in meeting else ids
            sizes[letter] = size
    if len(operands) == 2:
        ctx.cost(list(sizes.values()), [meeting[letter] for letter in sizes])
    return tuple(meeting[letter] for letter in output)
