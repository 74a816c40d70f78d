"""Modules that replace torch's own where torch refuses the sizes that pruning leaves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SlimMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose heads together may be narrower than its input and output.

    Same parameters, names and call; attributes `num_heads` and `head_dim` describe the heads that stayed and
    `embed_dim` the width outside. An `attn_mask` of three dimensions (one a head) is not supported.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As in `nn.MultiheadAttention`: [N, L, E] or [L, N, E] (or without N) -> the same, and the weights."""
        unbatched, time_first = query.dim() == 2, not self.batch_first
        if unbatched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
        elif time_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = (self._heads(x) for x in self._projected(query, key, value))
        bias = self._bias(q, k.shape[-2], key_padding_mask, attn_mask)
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = (scores if bias is None else scores + bias).softmax(dim=-1)
            out = F.dropout(weights, self.dropout, self.training) @ v
        else:
            dropout = self.dropout if self.training else 0.0
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if unbatched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out.transpose(0, 1) if time_first else out, weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values [N, L, heads * head_dim], with the learned extra key and value appended."""
        weight: Tensor | None = self.in_proj_weight  # may be None, although torch declares a Tensor
        bias: Tensor | None = self.in_proj_bias
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = separate if weight is None else weight.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], 1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], 1, -1)], dim=1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return q, k, v

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def _bias(self, q: Tensor, span: int, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Both masks as one to add to the scores, [N or 1, 1, L or 1, S]; appended keys are visible to all."""
        if mask is not None and mask.dim() != 2:
            raise ValueError("a pruned attention takes an attn_mask [L, S] for all heads, not one a head")
        total: Tensor | None = None
        for given in (
            mask,
            padding[:, None, None] if padding is not None and padding.dim() == 2 else padding,
        ):
            if given is None:
                continue
            added = (
                torch.zeros_like(given, dtype=q.dtype).masked_fill(given, -torch.inf)
                if given.dtype == torch.bool
                else given
            )
            added = F.pad(added.to(q.dtype), (0, span - given.shape[-1]))
            total = added if total is None else total + added
        return total


@contextlib.contextmanager
def attention_by_parts(model: nn.Module) -> Iterator[None]:
    """Let every `nn.MultiheadAttention` of the model compute by single operators, which hooks can watch."""
    swapped = [module for module in model.modules() if type(module) is nn.MultiheadAttention]
    for module in swapped:
        module.__class__ = SlimMultiheadAttention
    try:
        yield
    finally:
        for module in swapped:
            module.__class__ = nn.MultiheadAttention


def slim_attention_(module: nn.MultiheadAttention) -> None:
    """Fit an attention to its sliced parameters, in place: its class and its number of heads."""
    inner = module.out_proj.weight.shape[1]
    module.num_heads = inner // module.head_dim
    if inner != module.embed_dim:
        module.__class__ = SlimMultiheadAttention
        module._qkv_same_embed_dim = False  # keeps torch's fused layers, which assume equal widths, away


def avoid_nested_tensors_(model: nn.Module) -> None:
    """Stop torch's encoders from packing padded inputs, which slim attentions do not take. In place."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(inner, SlimMultiheadAttention) for inner in module.modules()
        ):
            module.use_nested_tensor = False
