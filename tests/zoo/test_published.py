"""The channel lists that the paper's authors published, recounted."""

import numpy as np
import pytest
import torch

from amc.errors import ModelError
from amc.structure import count_macs, inspect, slice_model
from amc.zoo import create_model

HALF_THE_FLOPS = (24, 48, 96, 80, 192, 200, 328, 352, 368, 360, 328, 400, 736, 752)
HALF_THE_TIME = (16, 48, 88, 80, 192, 168, 336, 360, 360, 352, 352, 368, 768, 680)


@pytest.mark.parametrize(("counts", "millions"), [(HALF_THE_FLOPS, 293.9), (HALF_THE_TIME, 274.0)])
def test_published_mobilenet_v1_recounts(counts: tuple[int, ...], millions: float) -> None:
    model, example = create_model("mobilenet_v1_imagenet"), torch.zeros(1, 3, 224, 224)
    structure = inspect(model, example)
    assert len(structure.groups) == len(counts)
    assert structure.macs / 1e6 == pytest.approx(568.7, abs=0.05)
    assert structure.cost.macs(counts) / 1e6 == pytest.approx(millions, abs=0.1)
    kept = {group.name: np.arange(count) for group, count in zip(structure.groups, counts, strict=True)}
    assert count_macs(slice_model(model, structure, structure.mask(kept)), example) == structure.cost.macs(counts)


def test_mobilenet_v2_has_the_papers_macs() -> None:
    model = create_model("mobilenet_v2")
    assert count_macs(model, torch.zeros(1, 3, 224, 224)) / 1e6 == pytest.approx(300.77, abs=0.05)


def test_small_image_variants_keep_resolution() -> None:
    # At 224x224: 4089.2 M, of which the stem 118.0 M and the classifier 2.0 M; the rest starts at 56x56, here at 32x32.
    expected = (4089.2 - 118.0 - 2.0) * (32 / 56) ** 2 + 3 * 9 * 64 * 32 * 32 / 1e6 + 2048 * 10 / 1e6
    assert count_macs(create_model("resnet50_cifar"), torch.zeros(1, 3, 32, 32)) / 1e6 == pytest.approx(
        expected, abs=0.5
    )
    assert create_model("mobilenet_v2_cifar").features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280, 4, 4)


def test_names_of_other_packages() -> None:
    assert type(create_model("torchvision:squeezenet1_1")).__name__ == "SqueezeNet"
    assert type(create_model("timm:resnet18", num_classes=7).fc).__name__ == "Linear"
    with pytest.raises(ModelError, match="timm has no model 'resnet19'"):
        create_model("timm:resnet19")
    assert create_model("timm:resnet18.a1_in1k").pretrained_cfg["tag"] == "a1_in1k"
    with pytest.raises(ModelError, match=r"no weights 'resnet18\.a1_in'; did you mean resnet18\.a1_in1k"):
        create_model("timm:resnet18.a1_in")
    with pytest.raises(ModelError, match="torchvision has no model"):
        create_model("torchvision:nothing")
