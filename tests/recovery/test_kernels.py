"""Training is right on processors whose kernels are not, and slow arithmetic is announced."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from amc.recovery import kernels
from amc.recovery.kernels import RightGradients, slow_bfloat16
from tests.commands import amc
from tests.kernels.sweep import AVX2, IS_X86, SETTINGS, Setting, environment_of

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
QUICK = (
    "--episodes", 2, "--agent", "random", "--search-images", 40, "--calibration-images", 20, "--bn-images", 20,
    "--certify", 0, "--no-test", "--recover", "none",
)  # fmt: skip


class Watch(TorchDispatchMode):
    """Remembers the tensors that each convolution's backward is computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append(args[:3])
        return func(*args, **(kwargs or {}))


def last(tensor: Tensor) -> Tensor:
    """The same in channels-last, also where `contiguous` finds nothing to do."""
    if tensor.dim() == 3:
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    form = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
    return torch.empty_like(tensor, memory_format=form).copy_(tensor)


def gradients(convolve: Any, images: Tensor, weight: Tensor, watch: TorchDispatchMode | None = None) -> list[Tensor]:
    """Of images and weight, for a loss that weighs every output differently; guarded where it is watched."""
    images, weight = images.detach().requires_grad_(), weight.detach().requires_grad_()
    output = convolve(images, weight)
    loss = (output * torch.arange(output.numel(), dtype=output.dtype).view(output.shape).cos()).sum()
    if watch is None:
        loss.backward()
    else:
        with watch, RightGradients():
            loss.backward()
    assert images.grad is not None
    assert weight.grad is not None
    return [images.grad, weight.grad]


STRIDED = {
    "conv1d": (lambda x, w: F.conv1d(x, w, stride=2), (4, 3, 9), (5, 3, 1)),
    "conv2d": (lambda x, w: F.conv2d(x, w, stride=2), (4, 3, 9, 8), (5, 3, 1, 1)),
    "padded": (lambda x, w: F.conv2d(x, w, stride=2, padding=1), (4, 3, 9, 8), (5, 3, 1, 1)),
    "one way only": (lambda x, w: F.conv2d(x, w, stride=(1, 3)), (4, 3, 9, 8), (5, 3, 1, 1)),
    "grouped": (lambda x, w: F.conv2d(x, w, stride=2, groups=2), (4, 6, 9, 8), (4, 3, 1, 1)),
    "conv3d": (lambda x, w: F.conv3d(x, w, stride=2), (4, 3, 5, 4, 6), (5, 3, 1, 1, 1)),
    "transposed": (lambda x, w: F.conv_transpose2d(x, w, stride=2), (4, 3, 5, 4), (3, 5, 1, 1)),
    "one pixel": (lambda x, w: F.conv2d(x, w, stride=2), (4, 3, 1, 1), (5, 3, 1, 1)),
}


@pytest.mark.parametrize("which", ["images", "weight", "both"])
@pytest.mark.parametrize("name", STRIDED)
def test_strided_pointwise_gradients_are_computed_in_the_default_format(name: str, which: str) -> None:
    convolve, image_shape, weight_shape = STRIDED[name]
    images, weight = torch.randn(image_shape), torch.randn(weight_shape)
    expected = gradients(convolve, images.double(), weight.double())
    watch = Watch()
    given = last(images) if which != "weight" else images, last(weight) if which != "images" else weight
    found = gradients(convolve, *given, watch)
    for tensor in watch.seen[0]:
        assert tensor.stride() == torch.empty(tensor.shape).stride()
    for gradient, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-5)
    assert found[0].stride() == given[0].stride()


def test_other_convolutions_keep_their_format() -> None:
    for convolve, kernel in ((lambda x, w: F.conv2d(x, w), 1), (lambda x, w: F.conv2d(x, w, stride=2), 3)):
        watch = Watch()
        gradients(convolve, last(torch.randn(2, 3, 8, 8)), torch.randn(5, 3, kernel, kernel), watch)
        assert watch.seen[0][1].is_contiguous(memory_format=torch.channels_last)
        assert not watch.seen[0][1].is_contiguous()


def test_frozen_images_and_frozen_weights_need_no_gradient() -> None:
    images, weight = last(torch.ones(1, 2, 4, 4)), torch.ones(3, 2, 1, 1)
    pixels, outputs = 4.0, 3.0  # that the convolution looks at; of them each
    for frozen, thawed, expected in ((images, weight, pixels), (weight, images, outputs)):
        frozen.requires_grad_(False)
        thawed.requires_grad_()
        frozen.grad = thawed.grad = None
        with RightGradients():
            F.conv2d(images, weight, stride=2).sum().backward()
        assert frozen.grad is None
        assert thawed.grad is not None
        assert float(thawed.grad.max()) == expected


# Run in a process of its own: where the guard fails, the heap is corrupted. The reference is the same training in
# float64, which never comes to oneDNN.
TRAINING = """
import copy, json, sys
import torch
from torch import nn
from amc.recovery import FineTuneConfig, finetune

class Mixed(nn.Module):
    # Channels-last in the middle, by the network's own doing; a strided 1x1 convolution of few channels after it.
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 14, 1, 2)
        self.third, self.last = nn.Conv1d(14, 8, 1, 2), nn.Linear(8, 4)
    def forward(self, x):
        x = self.norm(self.first(x)).relu().to(memory_format=torch.channels_last)
        x = self.second(x).relu().flatten(2)
        return self.last(self.third(x).relu().mean(2))

torch.manual_seed(0)
torch.set_num_threads(int(sys.argv[2]))
model = Mixed()
if sys.argv[1] == "network":
    model.to(memory_format=torch.channels_last)
twin = copy.deepcopy(model).double()
images, labels = torch.randn(32, 3, 64, 64), torch.arange(32) % 4
if sys.argv[1] == "images":
    images = images.to(memory_format=torch.channels_last)
for network, batch in ((model, images), (twin, images.double().contiguous())):
    finetune(network, [(batch, labels)] * 3, FineTuneConfig(epochs=1, lr=0.05))
own, reference = model.state_dict(), twin.state_dict()
print(json.dumps({name: float((own[name] - reference[name]).abs().max()) for name in own}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="checks glibc's heap")
@pytest.mark.parametrize(("layout", "threads"), [("images", 1), ("network", 2)])
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_fine_tuning_equals_float64(setting: Setting, layout: str, threads: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, layout, str(threads)], env=environment_of(setting, threads), cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=300,  # the faulty kernel may also never come back
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    differences = json.loads(done.stdout)
    assert len(differences) == 13
    assert max(differences.values()) < 1e-4


@pytest.mark.slow
def test_compiled_and_scripted_networks_train_the_same() -> None:
    images, labels = last(torch.randn(8, 3, 16, 16)), torch.arange(8) % 3
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    plain.to(memory_format=torch.channels_last)
    results = []
    for wrap in (lambda network: network, torch.compile, torch.jit.script):
        plain.zero_grad()
        loss = F.cross_entropy(wrap(plain)(images), labels)
        with RightGradients():
            loss.backward()
        results.append([parameter.grad.clone() for parameter in plain.parameters() if parameter.grad is not None])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-6)


def test_bfloat16_is_slow_where_the_processor_has_no_instructions_for_it() -> None:
    program = "import torch; from amc.recovery.kernels import slow_bfloat16; print(slow_bfloat16(torch.device('cpu')))"
    for setting in SETTINGS[1:]:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment_of(setting), capture_output=True, text=True, check=True)
        assert done.stdout.startswith("bfloat16 is slower than float32 on this processor, up to 17 times: ")
        assert done.stdout.endswith("; use float32\n")
    assert slow_bfloat16(torch.device("cuda")) is None


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="asks /proc/cpuinfo")
@pytest.mark.skipif("ONEDNN_MAX_CPU_ISA" in os.environ, reason="the processor is not all that counts")
def test_what_is_said_of_bfloat16_agrees_with_the_kernel() -> None:
    has = "avx512_bf16" in Path("/proc/cpuinfo").read_text().split()
    assert (slow_bfloat16(CPU) is None) == has


@pytest.mark.slow
@pytest.mark.skipif(not IS_X86, reason="emulates AVX2")
def test_training_in_slow_bfloat16_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_has_bfloat16", lambda: False)
    said = slow_bfloat16(CPU)
    assert said is not None
    monkeypatch.undo()
    environment = environment_of(AVX2)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "amc.cli"]
    quiet = amc("search", "digits_cnn", "--out", run, *QUICK)
    assert said not in quiet.stdout + quiet.stderr
    arguments = [*command, "finetune", run, "--epochs", "1", "--precision", "bfloat16"]
    done = subprocess.run(list(map(str, arguments)), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"  warning: {said}" in done.stderr.splitlines()
    assert json.loads((run / "summary.json").read_text())["warnings"].count(said) == 1
