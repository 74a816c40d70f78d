"""Structures of small networks against those of docs/networks.md: what could be pruned can be pruned still."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from amc.structure import certify, inspect

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = json.loads((BENCHMARKS / "results" / "networks.json").read_text(encoding="utf-8"))
SMALL = (
    "zoo/digits_cnn", "zoo/plain20", "zoo/resnet20", "zoo/vgg16_050", "zoo/mobilenet_v1", "zoo/mobilenet_v2_cifar",
    "tests/unet", "tests/yolo", "tests/keyword_spotter", "tests/text_encoder", "resnet18", "squeezenet1_1", "vgg11",
    "shufflenet_v2_x0_5", "timm/mobileone_s0", "timm/efficientvit_b0", "timm/repghostnet_050",
)  # fmt: skip


@pytest.fixture
def tasks(monkeypatch: Any) -> Any:
    """The benchmark's own functions."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("network_tasks")


@pytest.mark.parametrize("name", SMALL)
def test_a_structure_is_the_one_on_the_page(tasks: Any, name: str) -> None:
    """Run `python benchmarks/networks.py --own NAME` after a change that is wanted, and look at the difference."""
    model, example = importlib.import_module("network_list").create(name)
    structure, certificate = certify(model, inspect(model, example), example, keep_sets=tasks.KEEP_SETS)
    known = RESULTS[name]
    assert len(certificate.failed) == known["certificate_failed"]
    assert (len(structure.groups), structure.macs, structure.params) == (
        known["groups"], known["macs"], known["params"]
    )  # fmt: skip
    assert tasks.digest(structure) == known["digest"]


def test_no_network_on_the_page_is_silently_wrong() -> None:
    measured = {name: entry for name, entry in RESULTS.items() if name not in ("environment", "timings")}
    assert len(measured) >= 120
    assert all(entry["costs_agree"] for entry in measured.values() if "error" not in entry)
    assert sum(entry.get("prunable_macs", 0.0) > 0.8 for entry in measured.values()) >= 110
