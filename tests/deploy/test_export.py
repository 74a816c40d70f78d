"""Files for runtimes: what they compute, how large they are, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from amc.deploy.export import export
from amc.deploy.extras import MissingExtraError
from amc.deploy.failures import ConversionError, find_operator
from amc.deploy.files import target_files
from amc.deploy.formats import FORMATS, get_format
from amc.deploy.parity import ParityError
from amc.deploy.runtimes import get_runtime
from amc.errors import AmcError, ModelError
from tests.deploy.nets import EXAMPLE, Bessel, FixedBatch, Two, available, block, formats
from tests.structure.test_untouched import Cached, FirstUse, Graph, Grid, OfItsClass, WritesItsInput, assert_same, state

WEIGHTS = 4 * sum(value.numel() for value in block().parameters())
UNBOUNDED = ("onnx", "torch", "openvino")


def run_file(format: str, path: Path, inputs: tuple[Tensor, ...], *, half: bool = False) -> tuple[Tensor, ...]:
    """A runtime's outputs for an export."""
    chosen = get_format(format)
    session = get_runtime(chosen.runtime).load(target_files(path, chosen.suffixes), threads=1, half=half)
    try:
        return session.run(inputs)
    finally:
        session.close()


@pytest.mark.parametrize("format", formats())
def test_file_computes_what_the_network_computes(tmp_path: Path, format: str) -> None:
    model, real = block(), torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    written = export(model, EXAMPLE, tmp_path / "net", format=format, real=real)
    assert set(written.errors) == {"random", "real"} | ({"batch"} if format in UNBOUNDED else set())
    assert max(written.errors.values()) < 1e-5
    with torch.no_grad():
        wanted = model(real[2:3])
    (given,) = run_file(format, tmp_path / "net", (real[2:3],))
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
    on_disk = {file.name: file.stat().st_size for file in target_files(tmp_path / "net", get_format(format).suffixes)}
    assert written.files == on_disk
    assert written.bytes == sum(on_disk.values()) > WEIGHTS
    assert written.dynamic_batch == (format in UNBOUNDED)
    assert written.checked_with.startswith(get_format(format).runtime)


@pytest.mark.parametrize("format", formats())
def test_two_inputs_stay_in_order(tmp_path: Path, format: str) -> None:
    torch.manual_seed(0)
    model = Two().eval()
    inputs = (torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8))
    export(model, inputs, tmp_path / "net", format=format)
    with torch.no_grad():
        wanted = model(*inputs)
    given = run_file(format, tmp_path / "net", inputs)
    torch.testing.assert_close(given[0], wanted["map"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given[1], wanted["mean"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", formats())
def test_half_stores_weights_in_16_bits(tmp_path: Path, format: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.AdaptiveAvgPool2d(1)).eval()
    if not get_format(format).half:
        with pytest.raises(AmcError, match=r"does not store convolutions in 16 bits, so half \(--fp16\) would save"):
            export(model, EXAMPLE, tmp_path / "half", format=format, half=True)
        return
    full = export(model, EXAMPLE, tmp_path / "full", format=format)
    half = export(model, EXAMPLE, tmp_path / "half", format=format, half=True)
    weights = 4 * sum(value.numel() for value in model.parameters())
    assert full.bytes - half.bytes > 0.45 * weights
    assert 1e-6 < max(half.errors.values()) < 5e-3  # ten bits, and not 32-bit weights by mistake
    (given,) = run_file(format, tmp_path / "half", (torch.ones(1, 3, 8, 8),), half=True)
    assert given.dtype == torch.float32


@pytest.mark.parametrize("format", [name for name in UNBOUNDED if available(name)])
def test_dynamic_batch_takes_any_size(tmp_path: Path, format: str) -> None:
    model = block()
    export(model, EXAMPLE, tmp_path / "net", format=format)
    x = torch.randn(7, 3, 8, 8)
    (given,) = run_file(format, tmp_path / "net", (x,))
    with torch.no_grad():
        torch.testing.assert_close(given, model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not available("executorch"), reason="executorch is missing")
def test_executorch_takes_batches_up_to_its_bound(tmp_path: Path) -> None:
    written = export(block(), EXAMPLE, tmp_path / "net", format="executorch", dynamic=True)
    assert written.dynamic_batch
    assert written.max_batch == 8
    assert run_file("executorch", tmp_path / "net", (torch.ones(8, 3, 8, 8),))[0].shape == (8, 5)


@pytest.mark.parametrize("format", [name for name in ("onnx", "torch") if available(name)])
def test_a_network_that_fixes_its_batch(tmp_path: Path, format: str) -> None:
    """By default its file has a fixed batch; a dynamic batch is refused with the reason."""
    written = export(FixedBatch().eval(), EXAMPLE, tmp_path / "net", format=format)
    assert not written.dynamic_batch
    with pytest.raises(AmcError, match=r"leave dynamic out for a fixed batch; no .* file was written"):
        export(FixedBatch().eval(), EXAMPLE, tmp_path / "other", format=format, dynamic=True)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("format", [name for name in ("litert", "ncnn") if available(name)])
def test_formats_with_a_fixed_batch_say_so(tmp_path: Path, format: str) -> None:
    with pytest.raises(AmcError, match=f"format {format} has a fixed batch; leave dynamic out"):
        export(block(), EXAMPLE, tmp_path / "net", format=format, dynamic=True)


@pytest.mark.parametrize("format", [name for name in FORMATS if available(name) and name != "torch"])
def test_operator_that_the_format_lacks_is_named(tmp_path: Path, format: str) -> None:
    expected = rf"format {format} cannot express operator aten\.special_i0e \(in module 'odd'\)"
    with pytest.raises(ConversionError, match=expected):
        export(Bessel().eval(), EXAMPLE, tmp_path / "net", format=format)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_does_not_replace_an_earlier_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ONNX exporters write another network here."""
    good = export(block(), EXAMPLE, tmp_path / "net.onnx")
    before = (tmp_path / "net.onnx").read_bytes()
    honest = torch.onnx.export

    def another(model: nn.Module, *rest: object, **options: object) -> object:
        wrong = copy.deepcopy(model)
        with torch.no_grad():
            wrong.head.bias.add_(0.05)  # type: ignore[union-attr,operator]
        return honest(wrong, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.onnx, "export", another)
    with pytest.raises(ParityError, match=r"differs from the network by .*no onnx file was written"):
        export(block(), EXAMPLE, tmp_path / "net.onnx", dynamic=False)
    assert (tmp_path / "net.onnx").read_bytes() == before
    assert len(before) == good.bytes
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_the_second_exporter_is_used_if_the_first_one_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, asked = torch.onnx.export, []

    def newer_only(*arguments: object, dynamo: bool, **options: object) -> object:
        asked.append(dynamo)
        if not dynamo:
            raise ValueError("dynamo=False is no longer available")
        return honest(*arguments, dynamo=dynamo, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.onnx, "export", newer_only)
    written = export(nn.Conv2d(3, 4, 1).eval(), EXAMPLE, tmp_path / "net.onnx")
    assert asked == [False, True]
    assert written.dynamic_batch


def test_the_onnx_file_is_whole_and_valid(tmp_path: Path) -> None:
    export(block(), EXAMPLE, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    onnx.checker.check_model(graph, full_check=True)
    assert [entry.name for entry in graph.graph.input] == ["input"]
    assert [entry.name for entry in graph.graph.output] == ["output"]
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not any(tensor.external_data for tensor in graph.graph.initializer)


def test_the_network_is_not_changed(tmp_path: Path) -> None:
    model = block().train()
    model.norm.eval()
    state = copy.deepcopy(model.state_dict())
    for half in (False, True):
        export(model, EXAMPLE, tmp_path / "net.onnx", half=half)
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_missing_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    with pytest.raises(MissingExtraError) as caught:
        export(block(), EXAMPLE, tmp_path / "net", format="litert")
    assert str(caught.value) == (
        'package ai-edge-litert is not installed; run: pip install -c constraints.txt "amc-compress[litert]"'
    )


@pytest.mark.parametrize(
    ("example", "complaint"),
    [({"x": [EXAMPLE]}, "a list"), ((EXAMPLE, object()), "a object"), ((), "no tensor"), ("text", "no tensor")],
)
def test_only_tensors_and_constants(tmp_path: Path, example: object, complaint: str) -> None:
    with pytest.raises(ModelError, match=f"called with {complaint}; files and runtimes take tensors only"):
        export(block(), example, tmp_path / "net.onnx")


def test_unknown_format_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(AmcError, match=r"unknown format 'onxx'; did you mean onnx\?"):
        export(block(), EXAMPLE, tmp_path / "net", format="onxx")


@pytest.mark.parametrize(
    ("message", "operator"),
    [
        ("Exporting the operator 'aten::special_i0e' to ONNX opset version 18 is not supported", "aten.special_i0e"),
        ("Lowering not found: aten.special_i0e.default", "aten.special_i0e"),
        ("Operator torch._ops.aten.special_i0e.default is not in Core ATen opset", "aten.special_i0e"),
        ("No ONNX function found for <OpOverload(op='prims.bessel_i0e', overload='default')>", "prims.bessel_i0e"),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_operators_are_found_in_messages(message: str, operator: str | None) -> None:
    assert find_operator(message) == operator


@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("kind", [Grid, FirstUse, OfItsClass, Cached, Graph, WritesItsInput])
def test_the_users_network_and_input_are_not_changed(kind: type[nn.Module], format: str, tmp_path: Path) -> None:
    module, x = kind().eval(), torch.randn(2, 3, 8, 8)
    before, attributes, given = state(module), dict(vars(kind)), x.clone()
    export(module, x, tmp_path / f"model.{'onnx' if format == 'onnx' else 'pt2'}", format=format)
    assert_same(before, state(module))
    assert dict(vars(kind)) == attributes
    assert torch.equal(x, given)
    assert type(module(x)) is Tensor


def test_the_network_inside_a_wrapper_is_exported(tmp_path: Path) -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    written = export(nn.DataParallel(inner), torch.randn(1, 3, 8, 8), tmp_path / "model.onnx")
    assert written.errors["random"] < 1e-5
