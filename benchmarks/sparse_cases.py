"""The networks of docs/sparse.md, their dense and sparse TFLite files, and what was measured of them.

Weights are random, the smallest of the 1x1 convolutions and the classifier zero (of all layers in ResNet-20). A file
that `amc export` would refuse is written all the same, with the check switched off, to see whether it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from amc.deploy.formats import get_format, sparse_tflite
from amc.deploy.formats.sparse_kernels import judge, sparse_kernels
from amc.errors import AmcError
from amc.zoo import create_model
from common import Record, load, save

SPARSE_FILES = "sparse-files.json"
BY_ZEROS = "MobileNet-V1, 224×224, "  # names that begin so differ in their share of zeros only


@dataclass(frozen=True)
class Case:
    """A network with zeros in it."""

    build: Callable[[], nn.Module]
    side: int = 32  # of the square input
    zeros: float = 0.9  # share of the weights of each 1x1 convolution, and of the classifier
    classifier: float | None = None  # where that of the classifier is another
    everywhere: bool = False  # zeros in all other convolutions too
    half: bool = False  # weights stored in 16 bits


def known(name: str) -> Record:
    """What results/ holds of a network."""
    row: Record = load(SPARSE_FILES).get("networks", {}).get(name, {})
    return row


def keep(name: str, part: Record) -> None:
    """Add a part to what results/ holds of a network; networks stay in the order of CASES."""
    networks = load(SPARSE_FILES).get("networks", {})
    networks[name] = networks.get(name, {}) | part
    save(SPARSE_FILES, {"networks": {case: networks[case] for case in CASES if case in networks}})


def written(folder: Path, name: str) -> tuple[Path, Path]:
    """Write the dense and the sparse file and save their bytes. Files that are there already are used again.

    The sparse file is not written for a network without zeros.
    """
    stem = "".join(letter if letter.isalnum() else "-" for letter in name)
    dense, sparse = folder / f"{stem}.tflite", folder / f"{stem}-sparse.tflite"
    if not dense.exists():
        part = folder / f"part-{stem}.tflite"
        case = CASES[name]
        example = torch.randn(1, 3, case.side, case.side, generator=torch.Generator().manual_seed(1))
        get_format("litert").write(network(case), (example,), [part], dynamic=False, half=case.half)
        part.rename(dense)
    if not sparse.exists() and has_zeros(CASES[name]):
        sparse.write_bytes(unchecked(dense.read_bytes()))
    keep(name, described(dense, sparse))
    return dense, sparse


def has_zeros(case: Case) -> bool:
    return max(case.zeros, case.classifier or 0.0) > 0


def unchecked(data: bytes) -> bytes:
    """`sparsify_tflite` without its check for networks that Arm would get wrong."""
    with mock.patch.object(sparse_tflite, "judge", lambda *graph: replace(judge(*graph), wrong=False)):
        return sparse_tflite.sparsify_tflite(data)


def described(dense: Path, sparse: Path) -> Record:
    """Bytes, the verdict on sparse kernels, and the error of `sparsify_tflite` if it refuses."""
    data = dense.read_bytes()
    try:
        sparse_tflite.sparsify_tflite(data)
        refused = None
    except AmcError as error:
        refused = str(error)
    return {
        "dense_bytes": len(data), "sparse_bytes": sparse.stat().st_size if sparse.exists() else None,
        "verdict": asdict(sparse_kernels(data)), "refused": refused,
    }  # fmt: skip


def network(case: Case) -> nn.Module:
    """With random weights, batch norms that do something, and the case's zeros."""
    torch.manual_seed(0)
    model = case.build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.2, 0.2),
            ):  # fmt: skip
                assert values is not None
                values.uniform_(low, high)
        elif isinstance(module, nn.Linear):
            zero_smallest_(module.weight.data, case.zeros if case.classifier is None else case.classifier)
        elif isinstance(module, nn.Conv2d) and (case.everywhere or module.kernel_size == (1, 1)):
            zero_smallest_(module.weight.data, case.zeros)
    return model


def zero_smallest_(weight: Tensor, share: float) -> None:
    """The `share` of the entries that is least in magnitude."""
    count = round(share * weight.numel())
    weight.view(-1)[weight.abs().flatten().argsort()[:count]] = 0


class InvertedResiduals(nn.Module):
    """MobileNet-V2's blocks: all that the sparse kernels take, or one thing that they do not."""

    def __init__(
        self,
        activation: Callable[[], nn.Module] = nn.ReLU6,
        *,
        stem_stride: int = 2,
        middle: nn.Module | None = None,
        squeeze: bool = False,
        window: bool = False,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(3, 32, 3, activation, stride=stem_stride),
            block(32, 128, 1, activation),
            middle or nn.Identity(),
            InvertedResidual(128, 256, activation, squeeze=squeeze),
            InvertedResidual(128, 256, activation, squeeze=squeeze),
            block(128, 512, 1, activation),
        )
        self.classifier = nn.Linear(512, 100)
        self._window = window

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, H, W]` to logits `[N, 100]`."""
        x = self.features(x)
        pooled = avg_pool2d(x, x.shape[-1]).flatten(1) if self._window else x.mean((2, 3))
        logits: Tensor = self.classifier(pooled)
        return logits


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise 3x3, 1x1 back, and a sum."""

    def __init__(self, channels: int, inner: int, activation: Callable[[], nn.Module], *, squeeze: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            block(channels, inner, 1, activation),
            block(inner, inner, 3, activation, groups=inner),
            SqueezeExcitation(inner) if squeeze else nn.Identity(),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.body(x)
        return total


class SqueezeExcitation(nn.Module):
    """Each channel times a factor that depends on the means of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factors = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels // 4, 1), nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1), nn.Hardsigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = x * self.factors(x)
        return scaled


def block(
    inputs: int, outputs: int, kernel: int, activation: Callable[[], nn.Module], *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation())


MOBILENET = partial(create_model, "mobilenet_v1_imagenet")
CASES: dict[str, Case] = {
    **{f"MobileNet-V1, 224×224, {zeros:.0%} zeros": Case(MOBILENET, 224, zeros) for zeros in (0, 0.5, 0.7, 0.8, 0.9)},
    "inverted residuals, ReLU6": Case(InvertedResiduals),
    "the same with LeakyReLU": Case(partial(InvertedResiduals, nn.LeakyReLU)),
    "the same with SiLU": Case(partial(InvertedResiduals, nn.SiLU)),
    "the same in 16 bits": Case(InvertedResiduals, half=True),
    "the same with 70% zeros": Case(InvertedResiduals, zeros=0.7),
    "the same with 60% zeros": Case(InvertedResiduals, zeros=0.6),
    "the same with 80% zeros and a dense classifier": Case(InvertedResiduals, zeros=0.8, classifier=0.0),
    "the same with 90% zeros and a dense classifier": Case(InvertedResiduals, zeros=0.9, classifier=0.0),
    "the same with 60% zeros and 98% in the classifier": Case(InvertedResiduals, zeros=0.6, classifier=0.98),
    "the same with a first layer of stride 1": Case(partial(InvertedResiduals, stem_stride=1), 16),
    "MobileNet-V1 for 32×32": Case(partial(create_model, "mobilenet_v1")),
    "ResNet-20": Case(partial(create_model, "resnet20"), everywhere=True),
    "inverted residuals, average pooling as a window": Case(partial(InvertedResiduals, window=True)),
    "the same with squeeze-and-excitation": Case(partial(InvertedResiduals, squeeze=True)),
    "the same with a max pooling in the middle": Case(lambda: InvertedResiduals(middle=nn.MaxPool2d(2))),
    "the same with a 3x3 convolution in the middle": Case(
        lambda: InvertedResiduals(middle=nn.Conv2d(128, 128, 3, padding=1))
    ),
    "the same with a 1x1 convolution of stride 2 in the middle": Case(
        lambda: InvertedResiduals(middle=nn.Conv2d(128, 128, 1, stride=2))
    ),
    "the same with a depthwise 7x7 convolution in the middle": Case(
        lambda: InvertedResiduals(middle=nn.Conv2d(128, 128, 7, padding=3, groups=128))
    ),
}


def verdict_of(row: Record) -> str:
    """What XNNPACK will do, and why not; of a reason with two halves the first is enough."""
    verdict = row["verdict"]
    if verdict["used"]:
        return "used"
    return f"{'refused' if verdict['wrong'] else 'not used'}: {verdict['reason'].partition(';')[0]}"
