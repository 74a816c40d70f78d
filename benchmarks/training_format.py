"""What the ways around oneDNN's broken gradient cost in training, in CPU seconds a step.

    python benchmarks/training_format.py [--threads 2]

Random weights and images; the ways alternate in one process. The outcome goes to results/training-format-THREADS.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from amc import kernels  # noqa: E402
from amc.provenance import environment  # noqa: E402
from amc.zoo import create_model  # noqa: E402
from benchmarks.common import save  # noqa: E402

MODELS = ("resnet20", "mobilenet_v1_050", "vgg16_050", "torchvision.models:resnet18")  # the last has strided 1x1
BATCH, ROUNDS = 64, 9
BACKWARD = torch.ops.aten.convolution_backward.default


class EveryConvolution(TorchDispatchMode):
    """Gradients of all convolutions from tensors in the default format."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is BACKWARD:
            args = (*(tensor.contiguous() for tensor in args[:3]), *args[3:])
        return func(*args, **(kwargs or {}))


Way = tuple[bool, Callable[[], AbstractContextManager[Any]], bool]
WAYS: dict[str, Way] = {  # name: (channels-last, context of the backward pass, oneDNN in it)
    "channels-last, unguarded": (True, nullcontext, True),
    "channels-last, strided 1x1 guarded (as fine-tuning does)": (True, kernels.RightGradients, True),
    "channels-last, every convolution's gradient in the default format": (True, EveryConvolution, True),
    "default format": (False, nullcontext, True),
    "channels-last, gradients without oneDNN": (True, nullcontext, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = {name: measured(name) for name in MODELS}
    save(f"training-format-{args.threads}.json", {"rows": rows, "environment": environment(), "threads": args.threads})
    for name, ways in rows.items():
        for way, seconds in ways.items():
            print(f"{name:28} {way:68} {1000 * seconds:6.0f} ms")


def measured(name: str) -> dict[str, float]:
    """Median CPU seconds of a step, by way; the first round warms up."""
    torch.manual_seed(0)
    network, images, labels = create_model(name).train(), torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) % 10
    rounds = [{way: step(network, images, labels, *how) for way, how in WAYS.items()} for _ in range(ROUNDS + 1)][1:]
    return {way: statistics.median(one[way] for one in rounds) for way in WAYS}


def step(
    network: nn.Module, images: Tensor, labels: Tensor,
    channels_last: bool, backward: Callable[[], AbstractContextManager[Any]], onednn: bool,
) -> float:  # fmt: skip
    inputs = images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    network.zero_grad()
    began = time.process_time()
    loss = nn.functional.cross_entropy(network(inputs), labels)
    torch.backends.mkldnn.set_flags(onednn)
    with backward():
        loss.backward()
    torch.backends.mkldnn.set_flags(True)
    return time.process_time() - began


if __name__ == "__main__":
    main()
