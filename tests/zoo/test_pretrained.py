"""Published weights: the packages' own loading, on checkpoints that are made here. Nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amc.cli.jobs.origin import network_of
from amc.errors import ModelError
from amc.run.settings import Source
from amc.structure import inspect
from amc.zoo import create_model
from amc.zoo._torchvision import import_torchvision
from amc.zoo.preprocessing import preprocessing_of

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(autouse=True)
def offline(monkeypatch: Any, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the environment is read on import
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


@pytest.fixture
def of_timm(tmp_path: Path) -> tuple[str, nn.Module]:
    """A folder as timm publishes it, and the network in it."""
    import_torchvision()
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    net = timm.create_model("resnet10t", num_classes=7).eval()
    folder = tmp_path / "timm"
    folder.mkdir()
    torch.save(net.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architecture": "resnet10t",
                "num_classes": 7,
                "pretrained_cfg": {
                    "input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.9,
                    "interpolation": "bicubic", "num_classes": 7, "first_conv": "conv1.0", "classifier": "fc",
                },
            }
        )
    )  # fmt: skip
    return f"timm:local-dir:{folder}", net


@pytest.fixture
def of_transformers(tmp_path: Path) -> tuple[str, nn.Module]:
    """A folder as transformers writes it, and the network in it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(4)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    net = transformers.ResNetForImageClassification(config).eval()
    net.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf/preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875,
                "image_mean": [0.4] * 3, "image_std": [0.2] * 3, "resample": 3,
            }
        )
    )  # fmt: skip
    return f"hf:{tmp_path / 'hf'}", net


@pytest.mark.parametrize("published", ["of_timm", "of_transformers"])
def test_the_networks_of_a_folder_have_its_weights_where_they_are_asked_for(
    published: str, request: pytest.FixtureRequest
) -> None:
    spec, net = request.getfixturevalue(published)
    loaded = network_of(Source(spec, pretrained=True))
    assert not loaded.training
    for name, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    fresh = create_model(spec)
    assert any(not torch.equal(fresh.state_dict()[name], value) for name, value in net.state_dict().items())
    assert inspect(loaded, IMAGE).prunable_macs() > 0.9


def test_images_are_prepared_as_the_publisher_says(of_timm: Any, of_transformers: Any) -> None:
    timm, hub = (preprocessing_of(create_model(spec, pretrained=True)) for spec, _ in (of_timm, of_transformers))
    assert timm is not None
    assert (timm.size, timm.crop, timm.interpolation, timm.mean) == (32, 0.9, "bicubic", (0.5, 0.5, 0.5))
    assert hub is not None
    assert (hub.size, hub.crop, hub.interpolation, hub.std) == (32, 0.875, "bicubic", (0.2, 0.2, 0.2))


def test_torchvision_gets_its_newest_weights(monkeypatch: Any) -> None:
    asked: list[Any] = []
    models = import_torchvision().models
    real = models.get_model

    def get_model(name: str, weights: Any, **kwargs: Any) -> nn.Module:
        asked.append(weights)
        return real(name, weights=None, **kwargs)

    monkeypatch.setattr(models, "get_model", get_model)
    create_model("squeezenet1_1", pretrained=True)
    create_model("torchvision:squeezenet1_1")
    assert asked == ["DEFAULT", None]


@pytest.mark.parametrize("spec", ["timm:hf-hub:nobody/nothing", "hf:nobody/nothing"])
def test_what_cannot_be_downloaded_is_told_in_one_line(spec: str) -> None:
    if spec.startswith("hf:"):
        pytest.importorskip("transformers")
    with pytest.raises(ModelError, match=rf"^'{spec}' cannot be loaded .*give a file with --weights$") as told:
        create_model(spec, pretrained=True)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("spec", ["resnet20", "digits_cnn", "tests.tiny:factory"])
def test_networks_without_published_weights_are_refused(spec: str) -> None:
    with pytest.raises(ModelError, match="has no published weights; give those of a trained network with --weights"):
        create_model(spec, pretrained=True)


def test_two_sets_of_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="name two sets of weights"):
        network_of(Source("squeezenet1_1", pretrained=True, weights="w.safetensors"))
