"""Attention as one operator."""

from __future__ import annotations

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
