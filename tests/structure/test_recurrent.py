"""Recurrent layers and cells: what they cost, which units go together, and what locks them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.cli.jobs.inspect import structure_record
from amc.errors import ModelError
from amc.structure import count_macs, inspect, slice_model
from amc.structure.structure import Structure
from tests.structure.checks import assert_exact, outputs
from tests.structure.sequences import Recogniser, Stepwise

EXAMPLE = torch.randn(2, 1, 8, 7, generator=torch.Generator().manual_seed(3))  # 2 images, 7 steps of 4 * 8 features
CONVOLUTIONS = 2 * 8 * 7 * 9 * (1 * 6 + 6 * 4)
GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


def sizes(structure: Structure) -> dict[str, int]:
    return {group.name: group.size for group in structure.groups}


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True}, {"num_layers": 2}, {"num_layers": 2, "bidirectional": True, "batch_first": True},
     {"bias": False}],
    ids=str,
)  # fmt: skip
def test_hidden_units_and_input_features_go(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    """7 steps of 2 examples: every layer multiplies its input and its own state by all gates, in every direction."""
    torch.manual_seed(0)
    structure = assert_exact(Recogniser(kind, **options), EXAMPLE, certified=True)
    assert sizes(structure) == {"first": 6, "second": 4, "rnn.weight_ih_l0": 10}
    directions = 2 if options.get("bidirectional") else 1
    inputs = [32, *[directions * 10] * (options.get("num_layers", 1) - 1)]
    products = sum(7 * 2 * directions * GATES[kind] * 10 * (inside + 10) for inside in inputs)
    assert structure.macs == CONVOLUTIONS + products + 2 * directions * 10 * 5
    unit = structure.group("rnn.weight_ih_l0")
    assert {structure.layers[i].kind for i in unit.producers} == {"recurrent"}
    assert len(unit.producers) == 2 * directions * len(inputs)


def test_relu_instead_of_tanh_is_exact_too() -> None:
    torch.manual_seed(0)
    assert (
        sizes(assert_exact(Recogniser(nn.RNN, nonlinearity="relu"), EXAMPLE, certified=True))["rnn.weight_ih_l0"] == 10
    )


def test_the_cost_is_quadratic_in_the_hidden_units() -> None:
    """Both directions of an LSTM: 2 * 4 h (32 + h) a step and 2 h a class; 14 steps of examples, 5 classes."""
    structure = inspect(Recogniser(bidirectional=True).eval(), EXAMPLE)
    for hidden in range(1, 11):
        expected = CONVOLUTIONS + 14 * 2 * 4 * hidden * (32 + hidden) + 2 * 2 * hidden * 5
        assert structure.cost.macs([6, 4, hidden]) == expected
        assert structure.cost.params([6, 4, hidden]) == (6 * 9 + 6 + 6 * 4 * 9 + 4) + 2 * 4 * hidden * (
            32 + hidden + 2
        ) + 5 * (2 * hidden + 1)


def test_all_gates_directions_and_layers_lose_the_same_units_and_attributes_follow() -> None:
    torch.manual_seed(0)
    model = Recogniser(nn.GRU, num_layers=2, bidirectional=True).eval()
    structure = inspect(model, EXAMPLE)
    slim = slice_model(model, structure, structure.mask({"second": [1, 3], "rnn.weight_ih_l0": [0, 4, 9]}))
    rnn = slim.rnn
    assert (rnn.input_size, rnn.hidden_size, rnn.num_layers) == (16, 3, 2)
    rows = [10 * gate + unit for gate in range(3) for unit in (0, 4, 9)]
    pixels = [8 * channel + row for channel in (1, 3) for row in range(8)]
    torch.testing.assert_close(rnn.weight_ih_l0_reverse, model.rnn.weight_ih_l0_reverse[rows][:, pixels])
    torch.testing.assert_close(rnn.weight_ih_l1, model.rnn.weight_ih_l1[rows][:, [0, 4, 9, 10, 14, 19]])
    torch.testing.assert_close(rnn.weight_hh_l1, model.rnn.weight_hh_l1[rows][:, [0, 4, 9]])
    torch.testing.assert_close(rnn.bias_hh_l1_reverse, model.rnn.bias_hh_l1_reverse[rows])
    assert type(rnn) is nn.GRU
    again = Recogniser(nn.GRU, 3, num_layers=2, bidirectional=True)  # what the sizes alone make
    again.first, again.second, again.rnn = slim.first, slim.second, nn.GRU(16, 3, 2, bidirectional=True)
    again.load_state_dict(slim.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(slim)(EXAMPLE), again.eval()(EXAMPLE))
    assert (model.rnn.input_size, model.rnn.hidden_size) == (32, 10)


def test_pruning_the_pruned_is_exact() -> None:
    torch.manual_seed(0)
    model = Recogniser(bidirectional=True).eval()
    structure = inspect(model, EXAMPLE)
    slim = slice_model(model, structure, structure.mask({"first": [0, 2, 5], "rnn.weight_ih_l0": range(1, 8)}))
    assert sizes(assert_exact(slim, EXAMPLE)) == {"first": 3, "second": 4, "rnn.weight_ih_l0": 7}


def test_one_example_without_a_batch() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.rnn, self.head = nn.Linear(6, 9), nn.LSTM(9, 10), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(self.inside(x))[0])

    torch.manual_seed(0)
    structure = assert_exact(Alone(), torch.randn(7, 6), certified=True)
    assert structure.macs == 7 * (6 * 9 + 4 * 10 * (9 + 10) + 10 * 3)
    assert sizes(structure) == {"inside": 9, "rnn.weight_ih_l0": 10}


def test_a_projected_lstm_is_counted_and_locked_with_its_reason() -> None:
    torch.manual_seed(0)
    structure = assert_exact(Recogniser(proj_size=3), EXAMPLE, certified=True)
    assert structure.macs == CONVOLUTIONS + 14 * (4 * 10 * (32 + 3) + 10 * 3) + 2 * 3 * 5
    assert sizes(structure) == {"first": 6, "second": 4}
    locks = [str(item.lock) for item in structure.locked]
    assert any("torch recognises a projected LSTM by its two widths" in lock for lock in locks)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_lose_units(kind: type[nn.RNNCellBase]) -> None:
    """4 steps of 2 examples."""
    torch.manual_seed(0)
    model, x = Stepwise(kind).eval(), torch.randn(2, 4, 6)
    structure = assert_exact(model, x, certified=True)
    gates = {nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}[kind]
    assert structure.macs == 4 * 2 * (6 * 9 + gates * 10 * (9 + 10)) + 2 * 10 * 5
    assert sizes(structure) == {"inside": 9, "cell.weight_ih": 10}
    slim = slice_model(model, structure, structure.mask({"inside": [0, 1], "cell.weight_ih": [2, 3, 5]}))
    assert (slim.cell.input_size, slim.cell.hidden_size) == (2, 3)


class Started(nn.Module):
    """A recurrent layer with an initial state made in the forward, in several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.hidden, self.way = 12, way
        self.rnn, self.head = nn.GRU(6, 12, 2), nn.Linear(12, 3)
        self.start, self.encode = nn.Parameter(torch.randn(2, 1, 12)), nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x, self.state(x))[1][-1])

    def state(self, x: Tensor) -> Tensor:
        batch = x.shape[1]
        if self.way == "literal":
            return torch.zeros(2, batch, 12, dtype=x.dtype)
        if self.way == "attribute":
            return x.new_zeros(2, batch, self.hidden)
        if self.way == "its own size":
            return torch.zeros(2, batch, self.rnn.hidden_size, dtype=x.dtype)
        if self.way == "learned":
            return self.start.expand(-1, batch, -1).contiguous()
        if self.way == "encoded":
            return torch.tanh(self.encode(x[0])).expand(2, -1, -1).contiguous()
        return torch.ones(2, batch, self.hidden, dtype=x.dtype)


@pytest.mark.parametrize("way", ["attribute", "its own size", "learned", "encoded"])
def test_an_initial_state_follows_the_units(way: str) -> None:
    torch.manual_seed(0)
    model, x = Started(way).eval(), torch.randn(4, 2, 6)
    structure = assert_exact(model, x, certified=True)
    assert [group.size for group in structure.groups] == [12]
    slim = slice_model(model, structure, structure.mask({structure.groups[0].name: range(5)}))
    assert slim.rnn.hidden_size == 5
    assert slim.hidden == (5 if way == "attribute" else 12)
    assert outputs(slim, x)[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("way", "reason"), [("literal", "literal size"), ("ones", "ties it to a dimension of fixed size")]
)
def test_an_initial_state_of_fixed_size_or_value_locks_the_units(way: str, reason: str) -> None:
    torch.manual_seed(0)
    structure = assert_exact(Started(way), torch.randn(4, 2, 6), certified=True)
    assert not structure.groups
    assert any(reason in str(item.lock) for item in structure.locked)


def test_states_carried_from_an_encoder_to_a_decoder_tie_their_units() -> None:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder, self.head = nn.LSTM(6, 12), nn.LSTM(5, 12), nn.Linear(12, 3)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            return self.head(self.decoder(target, self.encoder(source)[1])[0])

    torch.manual_seed(0)
    structure = assert_exact(Translator(), (torch.randn(4, 2, 6), torch.randn(3, 2, 5)), certified=True)
    assert sizes(structure) == {"encoder.weight_ih_l0": 12}
    assert structure.macs == 8 * 4 * 12 * (6 + 12) + 6 * 4 * 12 * (5 + 12) + 6 * 12 * 3


def test_packed_sequences_are_refused_with_a_remedy() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths)
            return self.head(nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0])[0])

    with pytest.raises(ModelError, match=r"does not follow pack_padded_sequence: .* let it run on padded ones"):
        inspect(Packed().eval(), (torch.randn(7, 2, 6), torch.tensor([7, 4])))


def test_a_packed_layer_is_counted_where_it_runs() -> None:
    """11 steps of two sequences, 7 and 4 long."""
    rnn = nn.LSTM(6, 5)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(7, 2, 6), torch.tensor([7, 4]))

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = rnn

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(packed)[0].data + 0 * x

    assert count_macs(Layer().eval(), torch.zeros(1)) == 11 * 4 * 5 * (6 + 5)


def test_inspect_lists_every_matrix_once_however_often_it_is_used() -> None:
    """4 steps of 2 examples."""
    structure = inspect(Stepwise(nn.GRUCell).eval(), torch.randn(2, 4, 6))
    record = structure_record("mine", (2, 4, 6), structure, None)
    assert record["layers"] == [
        {"name": "inside", "kind": "linear", "weight": "inside.weight", "macs": 8 * 6 * 9},
        {"name": "cell.weight_ih", "kind": "recurrent", "weight": "cell.weight_ih", "macs": 8 * 3 * 10 * 9},
        {"name": "cell.weight_hh", "kind": "recurrent", "weight": "cell.weight_hh", "macs": 8 * 3 * 10 * 10},
        {"name": "head", "kind": "linear", "weight": "head.weight", "macs": 2 * 10 * 5},
    ]
    units = next(group for group in record["groups"] if group["name"] == "cell.weight_ih")
    assert units["producers"] == ["cell.weight_ih", "cell.weight_hh"]
    assert units["consumers"] == ["cell.weight_hh", "head"]
