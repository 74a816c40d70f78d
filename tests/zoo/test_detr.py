"""Detectors of transformers, pruned by mean average precision as docs/howto/detection.md says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import amc
from amc.zoo._torchvision import import_torchvision

import_torchvision()
transformers = pytest.importorskip("transformers")

PAGE = Path(__file__).parents[2] / "docs/howto/detection.md"
STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "embedding_size": 16, "layer_type": "basic"}
SMALL = {
    "d_model": 32, "encoder_attention_heads": 4, "decoder_layers": 1, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 10, "num_labels": 5, "backbone": None,
}  # fmt: skip


def detr() -> tuple[nn.Module, Any]:
    backbone = transformers.ResNetConfig(**STAGES, out_features=["stage4"])
    config = transformers.DetrConfig(
        backbone_config=backbone, encoder_layers=1, use_timm_backbone=False, use_pretrained_backbone=False, **SMALL
    )
    return transformers.DetrForObjectDetection(config), transformers.DetrImageProcessor()


def rt_detr() -> tuple[nn.Module, Any]:
    backbone = transformers.RTDetrResNetConfig(**STAGES, out_features=["stage2", "stage3", "stage4"])
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=32, encoder_in_channels=[24, 32, 48], num_denoising=0,
        decoder_in_channels=[32, 32, 32], **SMALL,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config), transformers.RTDetrImageProcessor()


def code() -> tuple[str, str]:
    """The page's class, and its call with little work."""
    section = PAGE.read_text(encoding="utf-8").partition("## DETR and RT-DETR")[2].partition("\n## ")[0]
    block = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)[0]
    made = block[block.index("class Boxed") : block.index("name = ")]
    call = block[block.index("result = ") :].replace("640", "64")
    few = call.replace('budget="macs<=50%"', 'budget="macs<=50%", episodes=2, baselines=("none",), recover="none"')
    assert few != call
    return made, few


@pytest.mark.parametrize("make", [detr, rt_detr])
def test_the_code_of_the_page(make: Any) -> None:
    """The targets are the dense network's own answers: it finds them all, whatever its weights are."""
    torch.manual_seed(0)
    made, call = code()
    names: dict[str, Any] = {"amc": amc, "nn": nn, "torch": torch}
    exec(made, names)
    detector = names["Boxed"](*make()).eval()
    pixels = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        answers = [{name: answer[name] for name in ("boxes", "labels")} for answer in detector(pixels)]
    names |= {"detector": detector, "images": [pixels], "held_out": [(pixels, answers)]}
    exec(call, names)
    dense, result, slim = detector.net, names["result"], names["slim"]
    assert type(slim) is type(dense)
    assert result.summary["dense"]["score"] == pytest.approx(1.0)
    assert 0 <= result.summary["slim"]["score"] <= 1
    assert result.summary["slim"]["macs"] <= 0.5 * result.summary["dense"]["macs"]
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    slim.train()(pixel_values=pixels[:1], labels=labels).loss.backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in slim.parameters())
    assert any(p.grad is not None for p in slim.parameters())
