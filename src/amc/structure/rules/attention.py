"""Attention as one operator."""

from __future__ import annotations

from amc.structure.context import Context, Dims, Tracked
from amc.structure.rules.registry import broadcast, rule


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
    """query [..., L, E], key [..., S, E], value [..., S, V] -> [..., L, V]; whole heads may go.

    `enable_gqa`: a head of keys and values serves several of the queries, and goes together with them.
    """
    if enable_gqa:
        key, value = (_repeated(ctx, tensor, query.shape[-3]) for tensor in (key, value))
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


def _repeated(ctx: Context, tensor: Tracked, heads: int) -> Tracked:
    """[..., H, S, E] -> [..., heads, S, E]: every head as often as queries share it, next to each other."""
    ids = tensor.ids[-3]
    each = ids.repeat(heads // len(ids)) if ids is not None else None
    if tensor.shape[-3] == 1:  # serves all queries, however many they are
        ctx.lock(ids, "all heads of an attention share it")
        each = ctx.stretched(heads)
    return Tracked((*tensor.shape[:-3], heads, *tensor.shape[-2:]), (*tensor.ids[:-3], each, *tensor.ids[-2:]))
