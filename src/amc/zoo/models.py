"""Creates networks by name, and loads weights from files.

`create_model` builds a network and reads nothing from disk; `load_weights` loads its weights; `model_info` gives a
network's input shape, classes and data.
"""

import difflib
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import ModelError, RunError
from amc.run.weights import read_state
from amc.structure.copying import unwrapped
from amc.zoo._import import call_factory
from amc.zoo.digits import DigitsCNN
from amc.zoo.mobilenet import MobileNetV1
from amc.zoo.plain import VGG, PlainNet
from amc.zoo.resnet import resnet
from amc.zoo.vision import (
    from_hub,
    from_timm,
    from_torchvision,
    mobilenet_v2_cifar,
    resnet50_cifar,
    torchvision_names,
)

MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": DigitsCNN,
    "resnet20": lambda **kwargs: resnet(20, **kwargs),
    "resnet32": lambda **kwargs: resnet(32, **kwargs),
    "resnet44": lambda **kwargs: resnet(44, **kwargs),
    "resnet56": lambda **kwargs: resnet(56, **kwargs),
    "resnet110": lambda **kwargs: resnet(110, **kwargs),
    "plain20": PlainNet,
    "vgg16": VGG,
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v1_imagenet": lambda **kwargs: MobileNetV1(**{"num_classes": 1000, "stem_stride": 2, **kwargs}),
    "resnet50_cifar": resnet50_cifar,
    "mobilenet_v2_cifar": mobilenet_v2_cifar,
}
IMAGENET = ("mobilenet_v1_imagenet",)  # for 224x224 images and 1,000 classes, like torchvision's and timm's networks
_ELSEWHERE: dict[str, Callable[..., nn.Module]] = {"torchvision": from_torchvision, "timm": from_timm, "hf": from_hub}
SCALABLE = ("vgg16", "mobilenet_v1")  # accept a width factor, also as a suffix in percent: mobilenet_v1_050
_DIGITS_WEIGHTS = Path(__file__).parent / "digits_cnn.safetensors"
_WRAPPERS = ("module", "_orig_mod")  # prefixes that DataParallel and torch.compile add to names
_SHOWN = 3  # keys named in an error before "and N more"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The input, classes, weights and data of a network of the zoo."""

    name: str
    input_shape: tuple[int, int, int]  # C, H, W of one image
    num_classes: int  # the default of create_model
    weights: Path | None  # the checkpoint in the package, if any
    data: str | None  # the data set of that checkpoint, a name for `load_data`


def model_names() -> tuple[str, ...]:
    """The zoo's names for `create_model`, without width suffixes."""
    return tuple(MODELS)


def create_model(spec: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A network with fresh random weights, in train mode; with published ones, if `pretrained`.

    `spec` is a zoo name (the suffix `_050` of mobilenet_v1 or vgg16 means half the width), a name in torchvision,
    `torchvision:NAME`, `timm:NAME` (also `timm:hf-hub:USER/NAME`), `hf:USER/NAME` for an image classifier of
    transformers, or `package.module:factory` for a callable that returns an `nn.Module`. Keyword
    arguments (`num_classes`, `width`) are passed to the network or the factory. Published weights are downloaded by
    their package, once; those of transformers and timm come from the Hugging Face hub. Raises ModelError.
    """
    package, colon, rest = spec.partition(":")
    if colon and package in _ELSEWHERE:
        return _ELSEWHERE[package](rest, pretrained=pretrained, **kwargs)
    if pretrained and (colon or not _of_torchvision(spec)):
        raise ModelError(f"'{spec}' has no published weights; give those of a trained network with --weights FILE")
    if colon:
        model = call_factory(spec, ModelError, **kwargs)
        if not isinstance(model, nn.Module):
            raise ModelError(f"factory '{spec}' returned a {type(model).__name__}; it must return a torch.nn.Module")
        return model
    if _of_torchvision(spec):
        return from_torchvision(spec, pretrained=pretrained, **kwargs)
    name, width = _split_width(spec)
    if width is not None:
        kwargs = {"width": width, **kwargs}
    try:
        return MODELS[name](**kwargs)
    except TypeError as problem:
        raise ModelError(f"model '{spec}' does not take {', '.join(sorted(kwargs))} ({problem})") from problem


def model_info(spec: str) -> ModelInfo | None:
    """The zoo's information on `spec`; None for `package.module:factory`. Raises ModelError for an unknown name."""
    if ":" in spec and spec.partition(":")[0] not in _ELSEWHERE:
        return None
    if spec in IMAGENET or ":" in spec or _of_torchvision(spec):
        return ModelInfo(spec, (3, 224, 224), 1000, None, None)
    name, _ = _split_width(spec)
    if name == "digits_cnn":
        return ModelInfo(spec, (1, 8, 8), 10, _DIGITS_WEIGHTS, "digits")
    return ModelInfo(spec, (3, 32, 32), 10, None, None)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a state dict from disk into `model`, in place: a file of safetensors or of torch.save.

    Only tensors are unpickled; sparse tensors (`amc.run.weights`) become dense. In a checkpoint, the state dict is read
    from `state_dict` or `model`. The prefixes of DataParallel and torch.compile (`module.`, `_orig_mod.`) are removed
    from the names if the network has none. Raises ModelError, and leaves the model unchanged, if the file cannot be
    read or if keys or shapes do not fit; the message names them.
    """
    path, model = Path(path), unwrapped(model)
    own = model.state_dict()
    state = _fitting_names(_read_state(path), own)
    # Old checkpoints have no batch counters, and evaluation does not use them.
    counters = {key for key in own if key.endswith("num_batches_tracked") and key not in state}
    missing = [key for key in own if key not in state and key not in counters]
    unexpected = [key for key in state if key not in own]
    differing = [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    complaints = [
        f"{title}: {_first(keys)}"
        for title, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
        if keys
    ]
    if complaints:
        raise ModelError(
            f"weights '{path}' do not fit {type(model).__name__}: {'; '.join(complaints)}; "
            "choose the network these weights were saved from"
        )
    model.load_state_dict(state, strict=not counters)


def _of_torchvision(spec: str) -> bool:
    """Whether a name is torchvision's. For a name of the zoo, torchvision is not imported: that takes seconds."""
    return _in_zoo(spec) is None and spec in torchvision_names()


def _in_zoo(spec: str) -> tuple[str, float | None] | None:
    """`mobilenet_v1_050` -> (`mobilenet_v1`, 0.5). None if the name is no key of MODELS."""
    if spec in MODELS:
        return spec, None
    match = re.fullmatch(r"(\w+?)_(\d{3})", spec)
    if match and match[1] in SCALABLE and int(match[2]) > 0:
        return match[1], int(match[2]) / 100
    return None


def _split_width(spec: str) -> tuple[str, float | None]:
    """As `_in_zoo`. Raises ModelError for an unknown name."""
    known_name = _in_zoo(spec)
    if known_name is not None:
        return known_name
    known = [*MODELS, *(f"{name}_050" for name in SCALABLE)]
    close = difflib.get_close_matches(spec, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(MODELS)}."
    raise ModelError(f"unknown model '{spec}'; {hint} For your own network write package.module:factory")


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"weights '{path}' not found; check the path")
    try:
        if path.suffix == ".safetensors":
            return read_state(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except RunError as problem:
        raise ModelError(str(problem)) from problem
    except pickle.UnpicklingError as problem:
        raise ModelError(
            f"weights '{path}' hold more than tensors and are not unpickled, for safety; "
            "save model.state_dict() alone, or as safetensors"
        ) from problem
    except Exception as problem:  # a reader may raise any error on a damaged file
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise ModelError(f"weights '{path}' cannot be read ({reason}); the file may be damaged") from problem
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelError(f"weights '{path}' hold no state dict; save model.state_dict()")
    return {str(key): value for key, value in loaded.items()}


def _fitting_names(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with its own names or without wrappers' prefixes, whichever fits the network best."""
    choices = [state]
    while any(all(key.startswith(f"{mark}.") for key in choices[-1]) for mark in _WRAPPERS if choices[-1]):
        choices.append({key.partition(".")[2]: value for key, value in choices[-1].items()})
    choices += [_without(state, {mark}) for mark in _WRAPPERS] + [_without(state, set(_WRAPPERS))]  # wrapped parts
    whole = (names for names in choices if len(names) == len(state))
    return max(whole, key=lambda names: len(names.keys() & own.keys()))


def _without(state: Mapping[str, Tensor], marks: set[str]) -> dict[str, Tensor]:
    return {".".join(part for part in key.split(".") if part not in marks): value for key, value in state.items()}


def _first(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
