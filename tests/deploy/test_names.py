"""Files of networks that are called by name, as those of transformers are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.deploy.export import export
from amc.deploy.formats.onnx import write_exported
from amc.deploy.latencies import latency
from amc.deploy.tensors import inputs_of, taking_tensors

onnxruntime = pytest.importorskip("onnxruntime")


class Masked(nn.Module):
    """Called by name, with a constant, and with an object for its outputs, as networks of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, values: Tensor, scale: float = 1.0, mask: Tensor | None = None, doubled: bool = False) -> Any:
        y = self.layer(values if mask is None else values * mask) * scale
        return {"logits": y + y if doubled else y, "nothing": None}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("format", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
def test_arguments_by_name_are_inputs_and_the_others_constants(
    tmp_path: Path, format: str, suffix: str, half: bool
) -> None:
    values, mask = torch.randn(2, 6), torch.rand(2, 6)
    model = Masked().eval()
    path = tmp_path / f"net{suffix}"
    written = export(
        model, {"mask": mask, "values": values, "doubled": True}, path, format=format, half=half, dynamic=True
    )
    assert written.input_shapes == ((2, 6), (2, 6))
    assert written.dynamic_batch
    if format == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [entry.name for entry in session.get_inputs()] == ["mask", "values"]
        found = session.run(None, {"mask": mask.numpy(), "values": values.numpy()})
        with torch.no_grad():
            expected = model(values, mask=mask, doubled=True)["logits"]
        torch.testing.assert_close(torch.from_numpy(found[0]), expected, rtol=1e-2, atol=1e-2 if half else 1e-5)


def test_arguments_in_order_may_hold_constants(tmp_path: Path) -> None:
    written = export(Masked().eval(), (torch.randn(1, 6), 2.0, None), tmp_path / "net.onnx")
    assert written.input_shapes == ((1, 6),)
    assert max(written.errors.values()) < 1e-5


def test_the_exporter_of_torch_export_takes_names_too(tmp_path: Path) -> None:
    """It comes second, where the first one fails."""
    example = {"values": torch.randn(2, 6), "mask": torch.rand(2, 6)}
    module = taking_tensors(Masked().eval(), example)
    write_exported(module, inputs_of(example), tmp_path / "net.onnx", dynamic=True, half=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["values", "mask"]
    assert session.run(None, {name: value.repeat(2, 1).numpy() for name, value in example.items()})[0].shape == (4, 3)


def test_latency_takes_names_too() -> None:
    times = latency(Masked().eval(), {"values": torch.randn(1, 6)}, rounds=3, max_seconds=0)
    assert times.networks["network"].latency_ms > 0
