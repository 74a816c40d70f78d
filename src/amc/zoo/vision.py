"""Networks of torchvision and timm by name (extra `vision`), and the paper's variants for small images.

`torchvision:NAME` and `timm:NAME` name the package. A name without a package is looked up in the zoo, then in
torchvision. Weights are random: nothing is downloaded.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from torch import nn

from amc.errors import ModelError
from amc.zoo._torchvision import import_torchvision

_SHOWN = 3  # names in a suggestion


def from_torchvision(name: str, **kwargs: Any) -> nn.Module:
    """A torchvision classification network of this name. Raises ModelError."""
    models = import_torchvision().models
    if name not in models.list_models():
        raise ModelError(
            f"torchvision has no model {name!r}; {_like(name, models.list_models(), 'torchvision.models')}"
        )
    if name in ("googlenet", "inception_v3"):  # their initial weights take a minute and cause a warning
        kwargs.setdefault("init_weights", False)
    model: nn.Module = models.get_model(name, weights=None, **kwargs)
    return model


def from_timm(name: str, **kwargs: Any) -> nn.Module:
    """A timm network of this name. Raises ModelError."""
    import_torchvision()  # timm imports torchvision, whose import may fail without this
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ModelError("timm is not installed; pip install 'amc-compress[vision]'") from error
    if name.partition(".")[0] not in timm.list_models():  # the part after a dot names trained weights
        raise ModelError(f"timm has no model {name!r}; {_like(name, timm.list_models(), 'timm')}")
    tags = timm.list_pretrained(f"{name.partition('.')[0]}*")
    if "." in name and name not in tags:
        raise ModelError(f"timm has no weights {name!r}; {_like(name, tags, 'timm')}")
    model: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
    return model


def _like(name: str, known: list[str], package: str) -> str:
    """A hint with known names that contain `name` or are spelled like it."""
    inside = [other for other in known if name.lower() in other][:_SHOWN]
    close = inside or difflib.get_close_matches(name.lower(), known, n=_SHOWN)
    return f"did you mean {' or '.join(close)}?" if close else f"see {package}.list_models()"


def torchvision_names() -> list[str]:
    """The classification networks of torchvision; empty if it is not installed."""
    try:
        names: list[str] = import_torchvision().models.list_models(module=import_torchvision().models)
    except ModelError:
        return []
    return names


def resnet50_cifar(num_classes: int = 10) -> nn.Module:
    """ResNet-50 for 32x32 images: the first convolution is 3x3 with stride 1, without pooling after it."""
    model = from_torchvision("resnet50", num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def mobilenet_v2_cifar(num_classes: int = 10) -> nn.Module:
    """MobileNet-V2 for 32x32 images: the first two strided convolutions have stride 1."""
    model = from_torchvision("mobilenet_v2", num_classes=num_classes)
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    for convolution in strided[:2]:
        convolution.stride = (1, 1)
    return model
