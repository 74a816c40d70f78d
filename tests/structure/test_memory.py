"""The peak of the activations: against hand counts, and against a pass that frees every tensor after its last use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from amc.structure import inspect, slice_model
from amc.structure import propagate as walk
from amc.structure.trace import Example, inference, trace
from tests.structure import nets, toys
from tests.structure.checks import keep_counts, random_keep
from tests.structure.sequences import Gpt, Recogniser

FLOAT = 4  # bytes


def passed(model: nn.Module, x: Any) -> int:
    """Bytes of all activations at the worst moment of a pass whose tensors go after their last use."""
    traced = trace(model, Example.of(x))
    last = {use: node for node in traced.nodes for use in node.all_input_nodes}
    values: dict[Any, Any] = {}
    given = iter(tensors(x))
    named = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    most = 0
    with inference(model):
        for node in traced.nodes:
            if node.op == "placeholder":
                name = traced.tensors.get(node.name)
                values[node] = named[name] if name else next(given)
            elif node.op == "get_attr":
                values[node] = getattr(node.graph.owning_module, node.target)
            elif node.op == "call_function" and node in traced.live:
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
                most = max(most, held(values, named))
            for use in [use for use in values if last.get(use) is node]:
                del values[use]
    return most


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def held(values: dict[Any, Any], weights: dict[str, Tensor]) -> int:
    mine = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    memory = [tensor.untyped_storage() for tensor in tensors(list(values.values()))]
    found = {each.data_ptr(): each.nbytes() for each in memory}
    return sum(size for place, size in found.items() if place not in mine)


NETWORKS: dict[str, Callable[[], Any]] = toys.CASES | {
    "u-net, whole": nets.unet,
    "detector with several outputs": nets.yolo,
    "spectrogram": nets.keyword_spotter,
    "text, tokens as input": nets.text_encoder,
    "attention": lambda: (Gpt(), torch.arange(6).reshape(1, 6)),
    "recurrent": lambda: (Recogniser(nn.LSTM, num_layers=2), torch.randn(2, 1, 8, 7)),
}


UNEVEN = "slices by attribute"  # an activation that holds half of a group


@pytest.mark.parametrize("name", NETWORKS)
def test_the_closed_form_is_what_a_pass_holds(name: str, monkeypatch) -> None:
    """For the network and for slices of it. Nothing is written in place here: eager torch does not."""
    monkeypatch.setattr(walk, "is_elementwise", lambda node, name: False)
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    uneven = name == UNEVEN
    model.eval()
    structure = inspect(model, x)
    assert structure.memory == passed(model, x)
    for seed in range(2):
        keep = random_keep(structure, seed)
        slim = slice_model(model, structure, structure.mask(keep)).eval()
        cost, weighed = structure.cost.memory(keep_counts(structure, keep)), passed(slim, x)
        assert cost == weighed or (uneven and weighed < cost < structure.memory)


def memory(*modules: nn.Module, size: int = 4) -> int:
    return inspect(nn.Sequential(*modules), torch.zeros(1, 2, size, size)).memory


PLACES = 4 * 4


def test_a_layer_needs_its_input_and_its_output() -> None:
    assert memory(nn.Conv2d(2, 8, 1)) == FLOAT * PLACES * (2 + 8)


def test_an_activation_takes_no_memory_of_its_own() -> None:
    """In place or not, with the batch norm before it."""
    plain = memory(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 3, 1))
    assert plain == FLOAT * PLACES * (8 + 3)
    for inplace in (False, True):
        between = (nn.BatchNorm2d(8), nn.ReLU(inplace), nn.Dropout())
        assert memory(nn.Conv2d(2, 8, 1), *between, nn.Conv2d(8, 3, 1)) == plain


def test_what_is_read_later_is_not_written_over() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(y.relu() * y)  # relu's result stands beside y; the product takes the place of one of them

    assert inspect(Twice(), torch.zeros(1, 2, 4, 4)).memory == FLOAT * PLACES * (8 + 8)


def test_the_input_belongs_to_the_caller() -> None:
    assert inspect(nn.Sequential(nn.ReLU(), nn.Conv2d(8, 1, 1)), torch.zeros(1, 8, 4, 4)).memory == FLOAT * PLACES * 16


def test_a_shortcut_stays_alive_until_it_is_added() -> None:
    torch.manual_seed(0)
    structure = inspect(toys.Residual("projection"), toys.image())
    halved = structure.cost.memory(structure.sizes // 2)
    assert 0.5 * structure.memory <= halved < structure.memory


def test_half_precision_takes_half() -> None:
    net = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 3, 1))
    assert inspect(net.bfloat16(), torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16)).memory == 2 * PLACES * (8 + 3)


def test_a_locked_group_counts_in_full() -> None:
    net = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 1, 1))
    x = torch.zeros(1, 2, 4, 4)
    whole, locked = inspect(net, x), inspect(net, x, lock=("0",))
    assert locked.cost.memory([3]) == whole.cost.memory([8, 3]) == FLOAT * PLACES * (8 + 3)
