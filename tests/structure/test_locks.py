"""What cannot be pruned is listed, and what cannot be followed is refused, each with its reason and a remedy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from amc.errors import ModelError
from amc.structure import inspect
from tests.structure.toys import image


def locks(model: nn.Module, x: Tensor | None = None) -> dict[str, str]:
    return {item.name: item.lock.reason for item in inspect(model, image() if x is None else x).locked}


def test_a_network_prepared_for_quantisation_lists_every_layer_with_the_remedy() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    found = locks(torch.ao.quantization.prepare_qat(model))
    assert found.keys() == {"0", "2"}
    assert all("prune first, and prepare the result for quantisation" in reason for reason in found.values())


def test_parameters_of_no_layer_are_listed_with_their_reason() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.unused = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)), nn.Linear(3, 5)
            self.scale, self.filter = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(3, 8, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(torch.fft.irfft2(torch.fft.rfft2(x) * self.filter))

    found = locks(Spare())
    assert found["unused"] == found["scale"] == "the forward does not use it"
    assert "fixed size" in found["filter"]
    assert found["net.1"] == "network output"


@pytest.mark.parametrize("remove", ["remove_spectral_norm", "remove_weight_norm"])
def test_norms_of_the_old_kind_name_the_function_that_removes_them(remove: str) -> None:
    norm = getattr(nn.utils, remove.removeprefix("remove_"))
    found = locks(nn.Sequential(nn.Conv2d(3, 6, 3), norm(nn.Conv2d(6, 8, 3)), nn.Conv2d(8, 4, 1)))
    assert f"remove it first: torch.nn.utils.{remove}" in found["1"]


class Decoder(nn.Module):
    """Returns more than tensors, as decoders do that keep keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.config = nn.Linear(4, 4), type("Config", (), {"use_cache": True})()

    def forward(self, x: Tensor) -> object:
        return type("Output", (), {"logits": self.layer(x)})()


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 6, 3)

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.backbone(torch.stack([image.squeeze(0)[:3].mean(-1) for image in images]))


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), {nn.Linear})


REFUSED = {
    "quantised": (quantised, torch.randn(1, 3, 8, 8), "prune the network in floating point first"),
    "scripted": (lambda: torch.jit.script(nn.Conv2d(3, 6, 3)), torch.randn(1, 3, 8, 8), "TorchScript: give the nn.Mod"),
    "decoder": (Decoder, torch.randn(1, 4), "set model.config.use_cache = False"),
    "detector": (Detector, torch.randn(1, 3, 8, 8), "add part='backbone'"),
    "half": (lambda: nn.Conv2d(3, 6, 3).half(), torch.randn(1, 3, 8, 8), "in float16 and the example in float32"),
    "bytes": (lambda: nn.Conv2d(3, 6, 3), torch.ones(1, 3, 8, 8, dtype=torch.uint8), "the example is uint8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_cannot_be_traced_is_refused_in_one_line_with_a_remedy(name: str) -> None:
    make, x, remedy = REFUSED[name]
    with pytest.raises(ModelError) as caught:
        inspect(make(), x)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)
