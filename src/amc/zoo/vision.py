"""Networks of torchvision, timm and transformers by name, and the paper's variants for small images.

`torchvision:NAME`, `timm:NAME` and `hf:NAME` name the package. A name without a package is looked up in the zoo, then
in torchvision. Weights are random and nothing is downloaded, unless the published ones are asked for.
"""

from __future__ import annotations

import difflib
import importlib
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from torch import nn

from amc.errors import ModelError, explained
from amc.zoo._torchvision import import_torchvision

_SHOWN = 3  # names in a suggestion
_PLACES_OF_TIMM = ("hf-hub:", "hf_hub:", "local-dir:")


def from_torchvision(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A torchvision network of this name, with its newest published weights if `pretrained`. Raises ModelError."""
    models = import_torchvision().models
    if name not in models.list_models():
        raise ModelError(
            f"torchvision has no model {name!r}; {_like(name, models.list_models(), 'torchvision.models')}"
        )
    if name in ("googlenet", "inception_v3"):  # their initial weights take a minute and cause a warning
        kwargs.setdefault("init_weights", False)
    with _published(f"torchvision:{name}") if pretrained else nullcontext():
        model: nn.Module = models.get_model(name, weights="DEFAULT" if pretrained else None, **kwargs)
    return model


def from_timm(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A timm network of this name, with its published weights if `pretrained`. Raises ModelError.

    `hf-hub:USER/NAME` and `local-dir:PATH` name a network on the Hugging Face hub or in a folder, as timm does.
    """
    import_torchvision()  # timm imports torchvision, whose import may fail without this
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ModelError("timm is not installed; pip install 'amc-compress[vision]'") from error
    if name.startswith(_PLACES_OF_TIMM):
        with _published(f"timm:{name}"):  # the network's architecture is read there, too
            placed: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
        return placed
    if name.partition(".")[0] not in timm.list_models():  # the part after a dot names trained weights
        raise ModelError(f"timm has no model {name!r}; {_like(name, timm.list_models(), 'timm')}")
    tags = timm.list_pretrained(f"{name.partition('.')[0]}*")
    if "." in name and name not in tags:
        raise ModelError(f"timm has no weights {name!r}; {_like(name, tags, 'timm')}")
    with _published(f"timm:{name}") if pretrained else nullcontext():
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    return model


def from_hub(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """An image classifier of transformers: USER/NAME on the Hugging Face hub, or a folder. Raises ModelError.

    Its images are prepared as its own processor says, if it has one (`amc.zoo.preprocessing`).
    """
    with suppress(ModelError):  # transformers imports torchvision where it is, whose import may fail without this
        import_torchvision()
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise ModelError("transformers is not installed; pip install 'amc-compress[hub]'") from error
    with _published(f"hf:{name}"):
        classifier = transformers.AutoModelForImageClassification
        if pretrained:
            model: nn.Module = classifier.from_pretrained(name, **kwargs)
        else:
            model = classifier.from_config(transformers.AutoConfig.from_pretrained(name, **kwargs))
    model.pretrained_cfg = _processing(transformers, name)  # type: ignore[assignment]
    return model


def _processing(transformers: Any, name: str) -> dict[str, Any] | None:
    """What a network's image processor does, in timm's words; None if it has none."""
    try:
        found = transformers.AutoImageProcessor.from_pretrained(name).to_dict()
    except (OSError, ValueError):
        return None
    size = found.get("size") or {}
    side = size.get("shortest_edge") or min(size.get("height") or 224, size.get("width") or 224)
    cut = found.get("crop_size") or {}
    inner = min(cut.get("height") or side, cut.get("width") or side) if found.get("do_center_crop") else side
    names = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # of PIL
    return {
        "input_size": (3, inner, inner),
        "crop_pct": found.get("crop_pct") or inner / side,
        "mean": found.get("image_mean"),
        "std": found.get("image_std"),
        "interpolation": names.get(int(found.get("resample") or 2)),
    }


def _published(spec: str) -> AbstractContextManager[None]:
    """Say what to do where weights cannot be had: no connection, no such name. Each package has errors of its own."""
    remedy = "check the name and the connection, or give a file with --weights"
    return explained(ModelError, f"'{spec}' cannot be loaded", remedy, doing=" to load weights")


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
