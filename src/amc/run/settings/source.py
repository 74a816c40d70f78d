"""The names of a run's network and data: with them a run can be resumed, fine-tuned or exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amc.run.settings.options import Panel, argument, option


@dataclass(frozen=True, slots=True)
class Source:
    """The network and the data of a run, as its config.json names them."""

    model: str = field(
        metadata=argument(
            "MODEL",
            help="A zoo or torchvision name, timm:NAME, hf:NAME, package.module:factory, or a run to continue from.",
        )
    )
    weights: str | None = option(  # None: the built-in ones
        None, panel=Panel.DATA, is_path=True,
        help="State dict of the trained network: safetensors, or torch.save of tensors only.",
    )  # fmt: skip
    pretrained: bool = option(
        False, panel=Panel.DATA, help="Take the published weights of a torchvision, timm: or hf: network."
    )
    data: str | None = option(  # None: those of the zoo network
        None, panel=Panel.DATA, help="digits, cifar10:ROOT, imagefolder:ROOT, or package.module:factory."
    )
    evaluate: str | None = option(
        None, panel=Panel.DATA, help="package.module:function, module -> score, instead of top-1 accuracy."
    )
    search_images: int | None = option(
        None, panel=Panel.DATA, help="Images that give the score (default: the whole split)."
    )
    image_size: int | None = option(
        None, panel=Panel.DATA, help="Image size of an imagefolder, pixels (default: 224, or that of MODEL's run)."
    )
    device: str | None = option(  # None: where the network is, as in runs of earlier versions
        "auto", panel=Panel.SEARCH, help="auto (a GPU if there is one), cpu, cuda or cuda:1."
    )
    test: bool = option(True, panel=Panel.OUTPUT, help="Evaluate dense and slim on the test split at the end.")
    command: str = "search"  # the command that started the run
    preprocessing: Mapping[str, Any] | None = None  # of an imagefolder's images, if the network needs it
    parent: str | None = None  # path of the run whose result is the network, from the run's own directory
    repeat: str | None = None  # the command line that does the same again, but for where its files go
    input_shape: tuple[int, ...] | None = None  # of one example, without the batch; known once the data is loaded

    def to_json(self) -> dict[str, Any]:
        """For config.json. The last five fields are written if they are known."""
        names = ("command", "model", "weights", "data", "evaluate", "search_images", "image_size", "test", "device")
        optional = {
            "preprocessing": self.preprocessing,
            "parent": self.parent,
            "repeat": self.repeat,
            "input_shape": self.input_shape,
            "pretrained": self.pretrained or None,
        }
        known = {name: value for name, value in optional.items() if value is not None}
        return {name: getattr(self, name) for name in names} | known

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Source:
        """From a run's config.json. Ignores its other fields; missing fields have their defaults, or are as before."""
        known: dict[str, Any] = {"device": None}
        known |= {name: config[name] for name in cls.__dataclass_fields__ if config.get(name) is not None}
        if "input_shape" in known:
            known["input_shape"] = tuple(known["input_shape"])
        return cls(**known)
