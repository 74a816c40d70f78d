"""A YOLO of ultralytics: pruned, and back in an object that its own val, train, save and export accept.

The package is no part of the extras, for its licence and its size; where it is not installed, these tests are skipped.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import amc
from amc.zoo._torchvision import import_torchvision
from tests.compression.test_tasks import tasks

import_torchvision()
ultralytics = pytest.importorskip("ultralytics")

PAGE = Path(__file__).parents[2] / "docs/howto/detection.md"
SETTINGS = {"data": "shapes.yaml", "imgsz": 64, "device": "cpu", "workers": 0, "plots": False, "verbose": False}


def shapes(folder: Path) -> None:
    """Images of 64 pixels with discs, squares and crosses, and their boxes, as ultralytics reads them."""
    for split, count, seed in (("train", 64, 1), ("val", 20, 2)):
        images, _, kinds, boxes = tasks().scenes(count, seed, shown=2)
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for number, image in enumerate(images.repeat_interleave(2, 2).repeat_interleave(2, 3)):
            pixels = (image.permute(1, 2, 0) * 255).byte().numpy()
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            lines = [
                f"{kind - 1} {(x1 + x2) / 64} {(y1 + y2) / 64} {(x2 - x1) / 32} {(y2 - y1) / 32}"
                for kind, (x1, y1, x2, y2) in zip(kinds[number].tolist(), boxes[number].tolist(), strict=True)
                if kind
            ]
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines))
    (folder / "shapes.yaml").write_text(
        f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {{0: disc, 1: square, 2: cross}}\n"
    )


def blocks() -> list[str]:
    """The code of the page's section, small enough for a test."""
    section = PAGE.read_text(encoding="utf-8").partition("## A YOLO of ultralytics")[2].partition("\n## ")[0]
    found = [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)]
    assert len(found) == 2
    code = [block.replace("episodes=60", "episodes=2, baselines=('none',)") for block in found]
    assert code != found
    return [block.replace("epochs=20", "epochs=1").replace('format="onnx"', 'format="torchscript"') for block in code]


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo12n"])
def test_the_code_of_the_page(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils.nms import TorchNMS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.ops.nms", TorchNMS.nms)  # torchvision's own may lack its compiled operators
    shapes(tmp_path / "data")
    (tmp_path / "shapes.yaml").write_text((tmp_path / "data/shapes.yaml").read_text())
    dense = ultralytics.YOLO(f"{name}.yaml")
    dense.train(epochs=1, batch=16, amp=False, project=str(tmp_path / "dense"), **SETTINGS)
    dense.save("best.pt")

    images = [torch.rand(8, 3, 64, 64) for _ in range(2)]
    seen: dict[str, Any] = {"amc": amc, "torch": torch, "images": images}
    first, second = blocks()
    monkeypatch.setattr("ultralytics.utils.DEFAULT_CFG.workers", 0)
    exec(compile(first, "first block", "exec"), seen)
    assert seen["result"].summary["slim"]["macs"] <= 0.5 * seen["result"].summary["dense"]["macs"]
    exec(compile(second, "second block", "exec"), seen)

    slim = seen["slim"]
    again = ultralytics.YOLO("slim.pt")
    shapes_of = [parameter.shape for parameter in slim.parameters()]
    assert [parameter.shape for parameter in again.model.parameters()] == shapes_of
    assert sum(map(torch.Size.numel, shapes_of)) < 0.8 * sum(
        p.numel() for p in ultralytics.YOLO("best.pt").model.parameters()
    )
    (answer,) = again.predict(str(tmp_path / "data/images/val/1.png"), imgsz=64, verbose=False)
    assert answer.boxes is not None
    program = torch.jit.load("slim.torchscript")
    with torch.no_grad():
        torch.testing.assert_close(
            program(images[0][:1]), again.model.float().eval()(images[0][:1])[0], rtol=1e-3, atol=1e-3
        )
