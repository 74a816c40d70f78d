"""ONNX Runtime gives torch's outputs, or the piece is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.compression.scoring.engine import onnx_piece
from amc.compression.scoring.engine.network import PiecewiseEngine, agree
from amc.compression.scoring.engine.onnx_piece import OnnxPiece, model_of
from amc.compression.scoring.engine.pieces import in_pieces, settled_tensors
from amc.compression.scoring.engine.program import UnfitError, record
from amc.structure import inspect, slice_model
from amc.structure.trace import Example
from amc.zoo import create_model
from tests.compression.scoring.engine.test_program import NETS, case
from tests.threads import one_thread  # noqa: F401 -- a fixture

UNKNOWN = {  # networks with an operator that has no converter
    "tied embedding": "aten.glu",
    "group norm": "aten.native_group_norm",
    "pixel shuffle": "aten.pixel_shuffle",
    "transposed, grouped and dilated": "aten.repeat",
    "text": "aten._transformer_encoder_layer_fwd",
}


def engine(model: nn.Module, inputs: Example) -> PiecewiseEngine:
    return PiecewiseEngine("onnxruntime", OnnxPiece, model, inputs, images=5, limit=1 << 24)


def assert_agrees(model: nn.Module, inputs: Example, on: PiecewiseEngine | None = None) -> None:
    on = on or engine(model, inputs)
    with on.running(model) as run, torch.no_grad():
        assert agree(run(inputs), model(*(arg.clone() for arg in inputs.args)))
    assert on.warnings == []  # torch has not stepped in


@pytest.mark.parametrize("name", [name for name in NETS if name not in UNKNOWN])
def test_networks_give_the_same_as_in_torch(name: str) -> None:
    assert_agrees(*case(name))


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_operator_is_named(name: str) -> None:
    with pytest.raises(UnfitError, match=f"operator {UNKNOWN[name]}"):
        engine(*case(name))


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1_050", "vgg16_050", "plain20"])
def test_pruned_networks_of_the_zoo_run(name: str) -> None:
    torch.manual_seed(0)
    dense, x = create_model(name).eval(), torch.randn(5, 3, 32, 32)
    structure = inspect(dense, x[:1])
    half = {group.name: range(0, group.size, 2) for group in structure.groups}
    slim = slice_model(dense, structure, structure.mask(half)).eval()
    assert_agrees(slim, Example.of(x), engine(dense, Example.of(x)))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {  # of images [N, 4, 6, 6]
    **{name: getattr(F, name) for name in ("relu", "relu6", "silu", "hardswish", "hardsigmoid", "elu", "mish")},
    "gelu": F.gelu,
    "gelu, by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky": lambda x: F.leaky_relu(x, 0.3),
    "clamp": lambda x: x.clamp(max=0.25) + x.clamp(-0.5),
    "hardtanh": lambda x: F.hardtanh(x, -0.2, 0.7),
    "functions": lambda x: (x.exp().sqrt() + x.abs().log() - x.tanh().neg() + x.sigmoid().reciprocal()).sin(),
    "root": lambda x: x.square().add(1).rsqrt() * x.pow(2),
    "scaled sum": lambda x: torch.add(x, x.flip(0) if False else x * 2, alpha=3) - 1,
    "scaled difference": lambda x: torch.sub(x, x * x, alpha=0.5),
    "division": lambda x: x / (2 + x * x) / 3,
    "extremes": lambda x: torch.maximum(x, x * 2) + torch.minimum(x, x * x),
    "softmax": lambda x: x.softmax(1) + x.log_softmax(-1),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max pool, rounded up": lambda x: F.max_pool2d(x, 2, 4, ceil_mode=True),
    "average pool": lambda x: F.avg_pool2d(x, (3, 2), 2, (1, 0), count_include_pad=False),
    "average pool, padding counts": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "global pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(12, 18), mode="bilinear"),
    "bilinear, corners": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "pad": lambda x: F.pad(x, (1, 0, 2, 3, 0, 1), value=0.5),
    "reductions": lambda x: x.mean((2, 3), keepdim=True) + x.sum(1, keepdim=True) + x.amax((1, 2, 3), keepdim=True),
    "mean of all of an image": lambda x: x.mean([1, 2, 3]),
    "reshapes": lambda x: x.view(len(x), 2, -1).transpose(1, 2).reshape(2 * len(x), -1).permute(1, 0).t(),
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(-1).squeeze((0, 3)),
    "slices": lambda x: torch.cat([x[:, 1:3, ::2], x[:, -2:, 1::2]], 1).select(2, 1),
    "split": lambda x: torch.cat([part * place for place, part in enumerate(x.split(3, 1))], 1),
    "chunk": lambda x: x.chunk(2, 1)[1] * x.split([2, 2], 1)[0],
    "expand": lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1),
    "products": lambda x: (x.flatten(2) @ x.flatten(2).mT) @ x[:, :, 0],
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1),
    "attention, masked": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.eye(6)),
    "attention, scaled": lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.3),
    "norm": lambda x: F.layer_norm(x, (6, 6), torch.full((6, 6), 2.0), torch.ones(6, 6)),
    "norm, plain": lambda x: F.layer_norm(x, (6,)),
    "a constant on the left": lambda x: torch.arange(6.0) + x * torch.ones(1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators_give_the_same_as_in_torch(name: str) -> None:
    torch.manual_seed(0)
    assert_agrees(Function(FUNCTIONS[name]), Example.of(torch.randn(5, 4, 6, 6)))


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "no converter": lambda x: x.cumsum(1),
    "two types": lambda x: x + torch.arange(6),
    "windows of several sizes": lambda x: F.adaptive_avg_pool2d(x, 4),
    "an upsampling by a fraction": lambda x: F.interpolate(x, size=(9, 9)),
    "another precision": lambda x: x.double() * 2,
    "a causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "an index of a pooling": lambda x: F.max_pool2d(x, 2, return_indices=True)[1],
    "a rounded division": lambda x: torch.div(x, 2, rounding_mode="floor"),
    "a constant for every image": lambda x: torch.ones(1, 4).expand(len(x), 4) * x[:, :, 0, 0],
    "a norm by its batch": lambda x: F.batch_norm(x, None, None, training=True),
    "a slice of the batch": lambda x: x[: len(x)] * 2,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_refused(name: str) -> None:
    function = Function(REFUSED[name])
    inputs = Example.of(torch.randn(5, 4, 6, 6))
    program = record(function, inputs)
    if name == "a slice of the batch" and len(program.ops) == 1:
        pytest.skip("torch leaves such a slice out")
    with pytest.raises(UnfitError):
        model_of(in_pieces(program)[1], program.kinds, settled_tensors(program))


def test_the_model_is_plain_onnx_of_arrays() -> None:
    """By a reading of the file: a convolution with the pruned network's own number of groups."""
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, 3, 2, 1, groups=6).eval()
    program = record(layer, Example.of(torch.randn(5, 6, 8, 8)))
    model = onnx.load_from_string(model_of(in_pieces(program)[1], program.kinds, settled_tensors(program)))
    onnx.checker.check_model(model, full_check=True)
    node = model.graph.node[0]
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    assert node.op_type == "Conv"
    assert attributes == {"strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 6}
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    assert np.array_equal(weight, layer.weight.detach().numpy())


def test_several_inputs_of_several_types() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3)

        def forward(self, tokens: Tensor, x: Tensor) -> dict[str, Tensor]:
            return {"sum": self.table(tokens).mean(1) + x, "x": x * 2}

    model, inputs = Two().eval(), Example((torch.randint(0, 7, (5, 4)), torch.randn(5, 3)), {})
    assert_agrees(model, inputs)


def runs_of(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images run together when a piece runs a batch. Its output must agree with torch's."""
    (_, piece), run, counts = in_pieces(program := record(model, Example.of(x))), OnnxPiece._run, []

    def counted(self: OnnxPiece, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        counts.append(len(tensors[0]))
        return run(self, tensors)

    monkeypatch.setattr(OnnxPiece, "_run", counted)
    (found,) = OnnxPiece(piece, program.kinds, settled_tensors(program))([x])
    with torch.no_grad():
        assert agree(found, model(x))
    return counts


def test_a_batch_is_divided_by_its_largest_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval(), images(7)
    assert runs_of(model, x, monkeypatch) == [7]
    monkeypatch.setattr(onnx_piece, "CACHE", 3 * 4 * 8 * 36 + 1)  # bytes: three images behind the convolution
    assert runs_of(model, x, monkeypatch) == [3, 3, 1]
    monkeypatch.setattr(onnx_piece, "CACHE", 1)
    assert runs_of(model, x, monkeypatch) == [1] * 7


def test_a_batch_whose_images_are_not_its_rows_is_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_piece, "CACHE", 1)
    assert runs_of(Function(lambda x: x.transpose(0, 1).relu()), images(7), monkeypatch) == [7]
    assert runs_of(Function(lambda x: x.relu().reshape(-1, 36)), images(7), monkeypatch) == [7]


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
