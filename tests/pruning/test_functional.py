"""Layers whose weights the forward uses without calling their modules are watched and refitted all the same."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.pruning import Pruner, calibrate
from amc.structure import inspect


class Functional(nn.Module):
    """A two-layer network that hands its weights to functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, self.first.weight, self.first.bias)), self.second.weight)


class Attention(nn.Module):
    """Self-attention with torch's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


def test_functional_linear_is_watched() -> None:
    torch.manual_seed(0)
    model, x = Functional().eval(), torch.randn(32, 6)
    gathered = calibrate(model, inspect(model, x[:1]), [x])
    hidden = F.relu(model.first(x)).double()
    torch.testing.assert_close(gathered.grams["second.weight"].mean()[0], hidden.T @ hidden / 32, rtol=1e-5, atol=1e-5)


def test_output_projection_of_attention_is_watched_and_refitted() -> None:
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(64, 5, 16)
    structure = inspect(model, x[:1])
    gathered = calibrate(model, structure, [x])
    assert gathered.grams["attention.out_proj.weight"].samples == 64 * 5
    assert type(model.attention) is nn.MultiheadAttention
    errors = []
    for refit in (False, True):
        pruner = Pruner(model, structure, gathered, ranking="magnitude", reconstruct=refit)
        with torch.no_grad():
            errors.append(float((pruner.build([2])(x) - model(x)).square().mean()))
    assert errors[1] < errors[0]
