"""A program computes what its network computes, for any batch size, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.compression.scoring.engine.pieces import in_pieces, settled_tensors
from amc.compression.scoring.engine.program import Batch, Program, UnfitError, Value, record, record_like, tensors_of
from amc.compression.scoring.engine.torch_piece import TorchPiece
from amc.structure import inspect, slice_model
from amc.structure.trace import Example
from tests.structure import nets
from tests.structure.toys import CASES, Case, image
from tests.threads import one_thread  # noqa: F401 -- a fixture

NETS: dict[str, Callable[[], Case]] = {
    **CASES,
    "unet": nets.unet,
    "yolo": nets.yolo,
    "keywords": nets.keyword_spotter,
    "text": nets.text_encoder,
}


def case(name: str, images: int = 5) -> tuple[nn.Module, Example]:
    """A network in eval mode, and a batch on which its images differ."""
    torch.manual_seed(0)
    model, x = NETS[name]()
    x = torch.cat([x] * images)[:images]
    x = torch.randint(0, 10, x.shape) if not x.is_floating_point() else torch.randn(x.shape)
    return model.eval(), Example.of(x)


def computed(program: Program, inputs: Example) -> Any:
    _, piece = in_pieces(program)
    run = TorchPiece(piece, program.kinds, settled_tensors(program))
    return program.output(dict(zip(piece.outputs, run(tensors_of(inputs)), strict=True)))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return torch.equal(one, other)


@pytest.mark.parametrize("name", NETS)
def test_a_program_gives_the_networks_outputs_to_the_last_bit(name: str) -> None:
    model, inputs = case(name)
    with torch.no_grad():
        assert equal(computed(record(model, inputs), inputs), model(*inputs.args))


@pytest.mark.parametrize("name", ["depthwise", "shuffle", "yolo", "slices by attribute", "text"])
def test_a_pruned_network_is_recorded_by_the_pattern_of_the_dense_one(name: str) -> None:
    model, inputs = case(name)
    structure = inspect(model, inputs.args[0][:1])
    half = {group.name: range(max(1, group.size // 2)) for group in structure.groups}
    slim = slice_model(model, structure, structure.mask(half)).eval()
    program = record_like(slim, inputs, record(model, inputs))
    assert program.ops == record(slim, inputs).ops
    with torch.no_grad():
        assert equal(computed(program, inputs), slim(*inputs.args))


def test_a_network_unlike_the_pattern_is_recorded_anew() -> None:
    inputs = Example.of(image(batch=3))
    pattern = record(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), inputs)
    other = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())
    program = record_like(other, inputs, pattern)
    assert [op.target for op in program.ops] == [torch.ops.aten.convolution.default, torch.ops.aten.view.default]
    assert program.ops[1].args == (Value(program.ops[0].made[0]), [Batch(1), 2 * 8 * 8])


def test_constants_follow_the_network() -> None:
    model, inputs = case("depthwise")
    program = record(model, inputs)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.mul_(2)
        assert equal(computed(program, inputs), model(*inputs.args))


def test_the_network_and_its_mode_stay() -> None:
    model, inputs = case("residual, zero padding")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = inputs.args[0].clone()
    record(model, inputs)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(inputs.args[0], images)


class Calls(nn.Module):
    """A network that is one function of its images, and of a buffer."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("kept", torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.kept)


def half_overwritten(x: Tensor, kept: Tensor) -> Tensor:
    y = x * 2
    y[:, 0].zero_()
    return y


def fails(x: Tensor, kept: Tensor) -> Tensor:
    raise ValueError("only on Sundays")


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "chance": (lambda x, kept: x + torch.rand_like(x), "chance"),
    "dropout that stays on": (lambda x, kept: F.dropout(x, 0.5, training=True), "chance"),
    "a branch by value": (lambda x, kept: x if x.mean() > 0 else -x, "values of a tensor"),
    "a choice of pixels": (lambda x, kept: x[x > 0], "values of a tensor"),
    "a number from the images": (lambda x, kept: x * float(x.sum()), "values of a tensor"),
    "a number by way of NumPy": (lambda x, kept: x * float(x.numpy().sum()), "depends on the images"),
    "a tensor by way of NumPy": (lambda x, kept: x + torch.from_numpy(x.numpy()), "that no operator makes"),
    "the square of the batch size": (lambda x, kept: x * len(x) ** 2, "depends on the images"),
    "operators by batch size": (lambda x, kept: x if len(x) == 2 else x * 2, "depend on the number of images"),
    "a counter": (lambda x, kept: x * kept.add_(1), "changes its own tensors"),
    "a part that is overwritten": (half_overwritten, "a part of a tensor is overwritten"),
    "an error of its own": (fails, r"it fails on 2 images \(.*only on Sundays\)"),
    "a number in the output": (lambda x, kept: (x, len(x)), "number of images in a way of its own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_recording_stands_for_is_refused(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(UnfitError, match=reason):
        record(Calls(function), Example.of(torch.rand(4, 2, 3) + 0.1))


def test_two_images_are_too_few() -> None:
    with pytest.raises(UnfitError, match="fewer than 3 images"):
        record(Calls(lambda x, kept: x), Example.of(torch.rand(2, 2, 3)))


ACCEPTED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a mean over the batch": lambda x, kept: x / len(x),
    "an attention without dropout": lambda x, kept: F.scaled_dot_product_attention(*[x.unsqueeze(1)] * 3),
    "a table looked up": lambda x, kept: x * torch.arange(6.0).view(2, 3)[torch.tensor([1, 0])],
    "a whole tensor overwritten": lambda x, kept: (x * 2).relu_().add_(1),
    "the input overwritten": lambda x, kept: x.relu_(),
    "several outputs": lambda x, kept: {"a": x, "b": [x + kept, 3]},
    "what nobody reads": lambda x, kept: (x.cumsum(0), x + 1)[1],
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_a_recording_stands_for_is_computed(name: str) -> None:
    model, x = Calls(ACCEPTED[name]), torch.rand(4, 2, 3) - 0.5
    inputs = Example.of(x)
    program = record(model, inputs)
    found, wanted = computed(program, inputs), model(x.clone())
    if isinstance(wanted, dict):
        assert found["b"][1] == 3
        assert torch.equal(found["a"], wanted["a"])
        assert torch.equal(found["b"][0], wanted["b"][0])
    else:
        assert torch.equal(found, wanted)
    assert torch.equal(inputs.args[0], x)


def test_an_input_that_all_images_share_stays_whole() -> None:
    class Shared(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return x.view(len(x), -1) @ weight

    x, weight = torch.rand(4, 2, 3), torch.rand(6, 2)
    inputs = Example((x, weight), {})
    assert torch.equal(computed(record(Shared(), inputs), inputs), x.flatten(1) @ weight)


def test_several_inputs_and_keywords() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
            return x.flatten(1) * mask

    x, mask = torch.rand(4, 2, 3), torch.rand(4, 6)
    inputs = Example((x,), {"mask": mask})
    assert torch.equal(computed(record(Two(), inputs), inputs), x.flatten(1) * mask)
