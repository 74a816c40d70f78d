"""How channels came to be tied or locked: every step is an operator of the forward, and nothing tied is left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amc
from amc.errors import ModelError
from amc.structure.why import Explanation, explain
from amc.zoo import create_model
from tests.structure.test_padding import IMAGE as IMAGE_OF_8
from tests.structure.test_padding import Literal, Net


class Residual(nn.Module):
    """[N, 3, 6, 6] -> logits [N, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.branch, self.other = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = x + self.branch(x).relu() * self.scale
        logits: Tensor = self.head(self.other(x).mean((2, 3)))
        return logits


IMAGE = torch.zeros(1, 3, 6, 6)


def told(explanation: Explanation) -> list[tuple[str, tuple[str, ...]]]:
    return [(step.operator.split(".")[1], step.joined) for step in explanation.steps]


def test_the_steps_are_the_operators_that_tie_in_the_order_of_the_forward() -> None:
    (found,) = explain(Residual(), IMAGE, "stem")
    assert found.lock is None
    assert found.channels == tuple(range(8))
    assert told(found) == [
        ("batch_norm", ("norm",)),
        ("conv2d", ("inputs of branch",)),
        ("add", ("scale", "outputs of branch")),
        ("conv2d", ("inputs of other",)),
    ]
    assert [step.module for step in found.steps] == ["norm", "branch", "", "other"]
    assert all(step.source.rpartition("/")[2].startswith("test_why.py:") for step in found.steps)


def test_what_was_tied_before_comes_with_the_operator_that_joins_it() -> None:
    (found,) = explain(Residual(), IMAGE, "branch")
    assert told(found) == [
        ("mul", ("scale",)),
        ("add", ("outputs of stem", "norm", "inputs of branch")),
        ("conv2d", ("inputs of other",)),
    ]


def test_a_lock_ends_the_steps() -> None:
    (found,) = explain(Residual(), IMAGE, "head")
    assert (found.steps, str(found.lock)) == ((), "network output")

    class Returned(Residual):
        def forward(self, x: Tensor) -> Any:
            x = self.norm(self.stem(x))
            y = x + self.branch(x)
            return y, self.other(y)

    (found,) = explain(Returned(), IMAGE, "stem")
    assert str(found.lock) == "network output"
    assert told(found)[:2] == [("batch_norm", ("norm",)), ("conv2d", ("inputs of branch",))]


@pytest.mark.parametrize("name", ["norm", "scale", "stem.weight"])
def test_parameters_and_modules_outside_of_layers_have_channels_too(name: str) -> None:
    (found,) = explain(Residual(), IMAGE, name)
    assert found.name == name
    assert len(found.channels) == 8
    assert "inputs of other" in found.steps[-1].joined


def test_channels_of_one_layer_may_have_several_fates() -> None:
    fates = explain(create_model("resnet20"), torch.zeros(1, 3, 32, 32), "layer3.2.conv2")
    assert [len(each.channels) for each in fates] == [32, 16, 16]
    assert sorted(place for each in fates for place in each.channels) == list(range(64))
    assert [each.lock for each in fates] == [None, None, None]
    first = [each.steps[1].joined[0] for each in fates]
    assert first == ["outputs of layer3.0.conv2", "outputs of layer2.0.conv2", "outputs of conv1"]
    padded, others = explain(Net(Literal()), IMAGE_OF_8, "second")
    assert (padded.channels, others.channels) == ((0, 9, 10, 11), (1, 2, 3, 4, 5, 6, 7, 8))
    assert "padding adds a literal number of channels" in str(padded.lock)
    assert others.lock is None


def test_a_name_without_channels_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"^Residual has no layer 'steem' with channels; the nearest are stem$"):
        explain(Residual(), IMAGE, "steem")
    with pytest.raises(ModelError, match=r"^Flatten has no layer 'conv' with channels; the nearest are none$"):
        explain(nn.Flatten(), IMAGE, "conv")


@pytest.mark.parametrize("model", ["resnet20", "mobilenet_v2_cifar", "digits_cnn"])
def test_every_layer_of_a_group_is_named_and_nothing_else(model: str) -> None:
    """The oracle is `inspect`: its groups come from all ties at once."""
    network = create_model(model)
    shape = {"digits_cnn": (1, 1, 8, 8)}.get(model, (1, 3, 32, 32))
    structure = amc.inspect(network, torch.zeros(shape))
    for group in structure.groups[:6]:
        found = next(each for each in explain(network, torch.zeros(shape), group.name) if each.lock is None)
        named = {name for step in found.steps for name in step.joined} | {f"outputs of {group.name}"}
        producers = {f"outputs of {structure.layers[index].name}" for index in group.producers}
        # The weight of a depthwise convolution has no dimension of its own for the inputs: its outputs are the inputs.
        readers = [index for index in group.consumers if index not in group.producers]
        consumers = {f"inputs of {structure.layers[index].name}" for index in readers}
        assert {name for name in named if name.startswith("outputs of ")} >= producers
        assert {name for name in named if name.startswith("inputs of ")} == consumers
