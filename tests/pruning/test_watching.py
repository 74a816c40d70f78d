"""However a weight meets its input, its layer is watched, refitted by least squares, or listed with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.pruning import Pruner, calibrate, reconstructible
from amc.structure import Structure, inspect
from tests.structure.sequences import Experts, Gpt, Recogniser, Stepwise

ALL = 10**6
Product = Callable[[Tensor, Tensor], Tensor]

# How an activation [..., 10] meets a weight that is stored as [10, 7] ("in, out") or as [7, 10].
IN_OUT: dict[str, Product] = {
    "matmul": lambda x, w: x @ w,
    "torch.matmul": lambda x, w: torch.matmul(x, w),
    "torch.linalg.matmul": lambda x, w: torch.linalg.matmul(x, w),
    "Tensor.matmul": lambda x, w: x.matmul(w),
    "rmatmul": lambda x, w: w.__rmatmul__(x),
    "mm": lambda x, w: torch.mm(x.flatten(0, 1), w).view(*x.shape[:2], -1),
    "addmm": lambda x, w: torch.addmm(x.new_ones(1), x.flatten(0, 1), w).view(*x.shape[:2], -1),
    "Tensor.addmm": lambda x, w: x.new_zeros(1).addmm(x.flatten(0, 1), w).view(*x.shape[:2], -1),
    "bmm": lambda x, w: x.bmm(w.expand(x.shape[0], -1, -1)),
    "baddbmm": lambda x, w: torch.baddbmm(x.new_zeros(1, 1, 1), x, w[None].expand(x.shape[0], -1, -1)),
    "linear": lambda x, w: F.linear(x, w.t()),
    "linear, by keyword": lambda x, w: F.linear(input=x, weight=w.t()),
    "inner": lambda x, w: torch.inner(x, w.mT),
    "tensordot": lambda x, w: torch.tensordot(x, w, dims=1),
    "tensordot, dimensions given": lambda x, w: torch.tensordot(x, w, dims=([2], [0])),
    "einsum": lambda x, w: torch.einsum("bti,io->bto", x, w),
    "einsum of a list": lambda x, w: torch.einsum("...i,io", [x, w]),
    "einsum of three": lambda x, w: torch.einsum("bti,b,io->bto", x, x.new_ones(x.shape[0]), w),
    "weight first": lambda x, w: (w.t() @ x.mT).mT,
}
OUT_IN: dict[str, Product] = {
    "matmul with .t()": lambda x, w: x @ w.t(),
    "matmul with .T": lambda x, w: x @ w.T,
    "matmul with .mT": lambda x, w: x @ w.mT,
    "matmul with permute": lambda x, w: x @ w.permute(1, 0),
    "einsum": lambda x, w: torch.einsum("bti,oi->bto", x, w),
    "weight first": lambda x, w: (w @ x.mT).mT,
    "linear": lambda x, w: F.linear(x, w),
}
CASES = {f"{name}, [in, out]": (way, True) for name, way in IN_OUT.items()} | {
    f"{name}, [out, in]": (way, False) for name, way in OUT_IN.items()
}


class Used(nn.Module):
    """A linear layer, the weight in question, and a linear layer."""

    def __init__(self, way: Product, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 10), nn.Linear(7, 3)
        self.weight, self.way = nn.Parameter(torch.randn(shape)), way

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.way(self.first(x).relu(), self.weight).relu())


def used(name: str) -> tuple[nn.Module, Structure, Tensor]:
    torch.manual_seed(0)
    way, in_out = CASES[name]
    model, x = Used(way, (10, 7) if in_out else (7, 10)).eval(), torch.randn(24, 5, 6)
    return model, inspect(model, x[:1]), x


@pytest.mark.parametrize("name", CASES)
def test_a_weight_is_refitted_to_the_least_squares_solution(name: str) -> None:
    model, structure, x = used(name)
    layer = next(layer for layer in structure.layers if layer.weight == "weight")
    assert (layer.name, layer.kind, layer.filters, layer.macs) == ("weight", "linear", (7, 10), 5 * 10 * 7)
    gathered = calibrate(model, structure, [x[:12], x[12:]], positions=ALL)
    assert not gathered.skipped
    assert gathered.grams["weight"].samples == 24 * 5
    pruner = Pruner(model, structure, gathered, damping=1e-9)
    slim = pruner.build([6, 4])
    inputs, outputs = (list(pruner.policy([6, 4]).keep[group]) for group in ("first", "weight"))
    with torch.no_grad():
        entering = model.first(x).relu().flatten(0, 1).double()
    dense = model.weight.detach().double() if CASES[name][1] else model.weight.detach().double().T  # [in, out]
    expected = torch.linalg.lstsq(entering[:, inputs], entering @ dense).solution[:, outputs]
    found = slim.weight.detach().double() if CASES[name][1] else slim.weight.detach().double().T
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, dense[inputs][:, outputs], atol=0.05)  # it is not just sliced


def test_every_expert_is_fitted_to_its_own_inputs() -> None:
    torch.manual_seed(0)
    model, x = Experts().eval(), torch.randn(64, 6)
    structure = inspect(model, x)
    gathered = calibrate(model, structure, [x], positions=ALL)
    assert gathered.grams["down"].matrix.shape == (3, 9, 9)
    pruner = Pruner(model, structure, gathered, damping=1e-9)
    counts = {group.name: group.size for group in structure.groups} | {"up": 5}
    slim = pruner.build(list(counts.values()))
    keep = list(pruner.policy(list(counts.values())).keep["up"])
    with torch.no_grad():
        hidden = torch.baddbmm(model.shift, x.expand(3, -1, -1), model.up).relu().double()
    expected = torch.linalg.lstsq(hidden[:, :, keep], hidden @ model.down.detach().double()).solution
    assert slim.down.shape == (3, 5, 7)
    torch.testing.assert_close(slim.down.detach().double(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(slim.up, model.up[:, :, keep])


def test_heads_in_dimensions_of_their_own_are_refitted() -> None:
    """[in, heads, size] and back, [heads, size, out]: two dimensions of the weight are the layer's inputs."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.out = nn.Parameter(torch.randn(6, 4, 5)), nn.Parameter(torch.randn(4, 5, 7))
            self.head = nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.einsum("bd,dhk->bhk", x, self.inside).relu()
            return self.head(torch.einsum("bhk,hko->bo", y, self.out).relu())

    torch.manual_seed(0)
    model, x = Heads().eval(), torch.randn(200, 6)
    structure = inspect(model, x)
    assert {group.name: group.size for group in structure.groups} == {"inside": 4, "out": 7}
    gathered = calibrate(model, structure, [x], positions=ALL)
    pruner = Pruner(model, structure, gathered, damping=1e-9)
    slim, keep = pruner.build([3, 7]), list(pruner.policy([3, 7]).keep["inside"])
    with torch.no_grad():
        hidden = torch.einsum("bd,dhk->bhk", x, model.inside).relu().double()
    kept, target = hidden[:, keep].flatten(1), hidden.flatten(1) @ model.out.detach().double().flatten(0, 1)
    expected = torch.linalg.lstsq(kept, target).solution.reshape(3, 5, 7)
    torch.testing.assert_close(slim.out.detach().double(), expected, rtol=1e-3, atol=1e-4)


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.weight, self.way = nn.Linear(6, 10), nn.Parameter(torch.randn(10, 7)), way
        self.last = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if self.way == "transposed":
            return self.last((x @ self.weight).relu() @ self.weight.t())
        return self.last((x @ self.weight) @ (self.weight.t() * 2))


@pytest.mark.parametrize(
    ("way", "reason"), [("transposed", "transposed"), ("scaled", r"aten.mul.Tensor uses its weight")]
)
def test_a_weight_that_serves_something_else_as_well_is_not_refitted(way: str, reason: str) -> None:
    model, x = Tied(way).eval(), torch.randn(32, 6)
    structure = inspect(model, x)
    assert structure.groups
    wanted, skipped = reconstructible(structure)
    assert "weight" not in wanted
    assert reason in skipped["weight"]
    assert "weight" not in calibrate(model, structure, [x]).grams


def test_a_weight_that_is_looked_up_as_well_is_not_refitted() -> None:
    """The output layer shares its weight with the embedding: refitting one would change the other."""

    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.tokens(x).relu())

    structure = inspect(Language().eval(), torch.arange(5)[None])
    assert "aten.embedding.default uses its weight" in reconstructible(structure)[1]["tokens.weight"]


def test_gpt2_blocks_are_refitted() -> None:
    torch.manual_seed(0)
    model, tokens = Gpt().eval(), torch.randint(0, 50, (64, 6))
    structure = inspect(model, tokens[:1])
    gathered = calibrate(model, structure, [tokens])
    assert {"h.0.c_out.weight", "h.1.c_out.weight"} <= gathered.grams.keys()
    counts = [16 if "c_fc" in group.name else group.size for group in structure.groups]
    errors = []
    with torch.no_grad():
        for refit in (False, True):
            slim = Pruner(model, structure, gathered, ranking="magnitude", reconstruct=refit).build(counts)
            errors.append(float((slim(tokens) - model(tokens)).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def stepped(rnn: nn.RNNBase, x: Tensor) -> dict[str, Tensor]:
    """What enters every matrix, [samples, inputs], by stepping through the layers with torch's cells."""
    cells = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}
    kind, found = cells[type(rnn)], {}
    for layer in range(rnn.num_layers):
        results = []
        for suffix in ("", "_reverse")[: 2 if rnn.bidirectional else 1]:
            cell = kind(x.shape[-1], rnn.hidden_size)
            own = {name: getattr(rnn, f"{name}_l{layer}{suffix}") for name in cell.state_dict()}
            cell.load_state_dict(own)
            states, state = [], None
            before = [torch.zeros(x.shape[1], rnn.hidden_size)]
            for step in x.flip(0) if suffix else x:
                state = cell(step, state)
                states.append(state[0] if isinstance(state, tuple) else state)
            before += states[:-1]
            found[f"weight_ih_l{layer}{suffix}"] = x.flatten(0, 1)
            found[f"weight_hh_l{layer}{suffix}"] = torch.cat(before)
            results.append(torch.stack(states[::-1] if suffix else states))
        x = torch.cat(results, -1)
    return found


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_every_matrix_of_a_recurrent_layer_is_watched(
    kind: type[nn.RNNBase], options: dict[str, Any], batch_first: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), kind(6, 4, batch_first=batch_first, **options), Last(), nn.Linear(4, 3))
    model[3] = nn.Linear(8 if options else 4, 3)
    x = torch.randn(9, 7, 5)
    structure = inspect(model.eval(), x)
    gathered = calibrate(model, structure, [x], positions=ALL)
    with torch.no_grad():
        entering = model[0](x)
        expected = stepped(model[1], entering.transpose(0, 1) if batch_first else entering)
    assert {f"1.{name}" for name in expected} <= gathered.grams.keys()
    for name, rows in expected.items():
        gram = gathered.grams[f"1.{name}"]
        assert gram.samples == 63
        torch.testing.assert_close(gram.mean()[0], (rows.T @ rows).double() / 63, rtol=1e-4, atol=1e-5)


class Last(nn.Module):
    def forward(self, x: tuple[Tensor, Any]) -> Tensor:
        return x[0]


def test_cells_are_watched_at_every_step() -> None:
    torch.manual_seed(0)
    model, x = Stepwise(nn.LSTMCell).eval(), torch.randn(8, 4, 6)
    structure = inspect(model, x[:1])
    grams = calibrate(model, structure, [x], positions=ALL).grams
    assert grams["cell.weight_ih"].samples == grams["cell.weight_hh"].samples == 8 * 4
    with torch.no_grad():
        entering = model.inside(x).relu().flatten(0, 1).double()
    torch.testing.assert_close(grams["cell.weight_ih"].mean()[0], entering.T @ entering / 32, rtol=1e-4, atol=1e-5)


def test_recurrent_weights_are_refitted_to_the_least_squares_solution() -> None:
    torch.manual_seed(0)
    model = Recogniser(nn.GRU, bidirectional=True).eval()
    x = torch.randn(16, 1, 8, 7)
    structure = inspect(model, x[:1])
    pruner = Pruner(model, structure, calibrate(model, structure, [x], positions=ALL), damping=1e-9)
    slim, keep = pruner.build([6, 3, 7]), pruner.policy([6, 3, 7]).keep
    with torch.no_grad():
        features = F.relu(model.second(F.relu(model.first(x)))).permute(3, 0, 1, 2).flatten(2)
        entering = {name: rows.double() for name, rows in stepped(model.rnn, features).items()}
    units = np.array(keep["rnn.weight_ih_l0"])
    rows = np.concatenate([10 * gate + units for gate in range(3)])
    pixels = np.concatenate([8 * channel + np.arange(8) for channel in keep["second"]])
    for name, columns in (("weight_ih_l0", pixels), ("weight_ih_l0_reverse", pixels), ("weight_hh_l0", units)):
        x, dense = entering[name], getattr(model.rnn, name).detach().double()
        expected = torch.linalg.lstsq(x[:, columns], x @ dense.T).solution.T[rows]
        torch.testing.assert_close(getattr(slim.rnn, name).detach().double(), expected, rtol=2e-3, atol=2e-4)


def test_rows_of_a_sequence_are_sampled_for_functions_as_for_modules() -> None:
    model, structure, x = used("matmul, [in, out]")
    assert calibrate(model, structure, [x], positions=2).grams["weight"].samples == 24 * 2
