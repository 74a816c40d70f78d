"""Small sequence networks: weights used through functions, stacks of experts, recurrent layers and cells."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Conv1D(nn.Module):
    """GPT-2's linear layer: its weight is [in, out] and goes through `addmm`."""

    def __init__(self, outside: int, inside: int) -> None:
        super().__init__()
        self.nf = outside
        self.weight, self.bias = nn.Parameter(0.2 * torch.randn(inside, outside)), nn.Parameter(torch.randn(outside))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.nf)
        x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return x.view(size)


class GptBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.head_dim, self.split_size = width // heads, width
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = Conv1D(3 * width, width), Conv1D(width, width)
        self.c_fc, self.c_out = Conv1D(hidden, width), Conv1D(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(self.ln_1(x)).split(self.split_size, dim=2)
        q, k, v = (part.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.c_proj(y.reshape(*x.shape[:2], -1))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))


class Gpt(nn.Module):
    """A decoder as GPT-2 writes it, with a classifier."""

    def __init__(self, width: int = 24, heads: int = 4, hidden: int = 40, depth: int = 2) -> None:
        super().__init__()
        self.wte = nn.Embedding(50, width)
        self.h = nn.ModuleList(GptBlock(width, heads, hidden) for _ in range(depth))
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens)
        for block in self.h:
            x = block(x)
        return self.head(x.mean(1))


class Experts(nn.Module):
    """A dense mixture: one matrix an expert, in one parameter, weighted by a gate."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.gate = nn.Linear(6, count)
        self.up, self.down = nn.Parameter(torch.randn(count, 6, 9)), nn.Parameter(torch.randn(count, 9, 7))
        self.shift = nn.Parameter(torch.randn(count, 1, 9))
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.baddbmm(self.shift, x.expand(self.up.shape[0], -1, -1), self.up).relu()
        shares = self.gate(x).softmax(-1)
        return self.head(torch.einsum("eno,ne->no", torch.bmm(hidden, self.down), shares).relu())


class Recogniser(nn.Module):
    """Convolutions over an image, read from left to right by a recurrent layer, as in text recognition."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, hidden: int = 10, **options: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.rnn = kind(4 * 8, hidden, **options)
        width = (options.get("proj_size") or hidden) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        x = x.permute(3, 0, 1, 2).flatten(2)
        x = x.transpose(0, 1) if self.rnn.batch_first else x
        y = self.rnn(x)[0]
        return self.head(y.mean(1 if self.rnn.batch_first else 0))


class Stepwise(nn.Module):
    """A recurrent cell called step by step."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.inside, self.cell, self.head = nn.Linear(6, 9), kind(9, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(self.inside(step).relu(), state)
        return self.head(state[0] if isinstance(state, tuple) else state)
