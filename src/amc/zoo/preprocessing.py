"""A network's image preprocessing: size, resizing, mean and standard deviation.

A timm network states its own (`pretrained_cfg`). Other networks get the usual preprocessing of ImageNet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from amc.errors import DataError
from amc.zoo.decode import INTERPOLATIONS, Decoder
from amc.zoo.images import Normalisation

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a file's pixels to the network's input: resize the short side, crop the centre, normalise."""

    size: int = 224  # height and width of the input, pixels
    crop: float = 0.875  # share of the short side that the crop keeps, in (0, 1]
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of pixels scaled to [0, 1]
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise DataError(f"image size must be at least 1 pixel, got {self.size}")
        if not 0 < self.crop <= 1 or self.interpolation not in INTERPOLATIONS:
            raise DataError(f"images cannot be resized by {self.interpolation} and cropped to {self.crop:g}")
        numbers = (*self.mean, *self.std)
        if {len(self.mean), len(self.std)} != {3} or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise DataError(f"images cannot be normalised by mean {self.mean} and standard deviation {self.std}")

    @property
    def decoder(self) -> Decoder:
        # The default rounds as in earlier runs; timm rounds down.
        short = None if self.crop == 0.875 else math.floor(self.size / self.crop)
        return Decoder(self.size, short, self.interpolation)

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.mean, self.std)

    def resized(self, size: int) -> Preprocessing:
        """The same preprocessing for images of `size` x `size` pixels."""
        return replace(self, size=size)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Preprocessing:
        """Read what `to_json` wrote. Raises DataError for anything else."""
        try:
            mean, std = tuple(map(float, data["mean"])), tuple(map(float, data["std"]))
            return cls(int(data["size"]), float(data["crop"]), str(data["interpolation"]), mean, std)
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            raise DataError(f"the run's preprocessing is damaged ({problem!r}); start a new run") from problem


def preprocessing_of(model: nn.Module) -> Preprocessing | None:
    """The preprocessing in the network's `pretrained_cfg`; None if absent or not for three channels."""
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, Mapping):
        return None
    usual = Preprocessing()
    interpolation = config.get("interpolation")
    try:
        channels, *sides = config.get("input_size") or (3, usual.size)
        if channels != 3:
            return None
        return Preprocessing.from_json(
            {
                "size": min(sides),
                "crop": config.get("crop_pct") or usual.crop,
                "interpolation": interpolation if interpolation in INTERPOLATIONS else usual.interpolation,
                "mean": config.get("mean") or usual.mean,
                "std": config.get("std") or usual.std,
            }
        )
    except (DataError, TypeError, ValueError):
        return None
