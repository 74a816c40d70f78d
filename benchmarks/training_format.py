"""What the ways around oneDNN's broken gradient cost in training, in CPU seconds a step.

    python benchmarks/training_format.py
    python benchmarks/training_format.py --threads 2 --remark "other work was running on the machine"

Weights and images are random; the ways alternate in one process. The results go to
benchmarks/results/training-format-THREADS.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from amc.recovery import kernels
from amc.run.provenance import environment
from amc.zoo import create_model
from common import Record, plain_parser, save, table

RESULT = "training-format-1.json"  # the page shows the times of one thread
MODELS = ("resnet20", "mobilenet_v1_050", "vgg16_050", "torchvision.models:resnet18")  # the last has strided 1x1
BATCH, ROUNDS = 64, 9
BACKWARD = torch.ops.aten.convolution_backward.default


class EveryConvolution(TorchDispatchMode):  # type: ignore[no-untyped-call]
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


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--remark", help="what the page adds to the machine and the date")
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(args.threads)
    record = {"rows": {name: measured(name) for name in MODELS}, "environment": environment()}
    record |= {"threads": args.threads, "remark": args.remark}
    save(f"training-format-{args.threads}.json", record)
    return record


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
    torch.backends.mkldnn.set_flags(onednn)  # type: ignore[no-untyped-call]
    with backward():
        loss.backward()  # type: ignore[no-untyped-call]
    torch.backends.mkldnn.set_flags(True)  # type: ignore[no-untyped-call]
    return time.process_time() - began


def section(record: Record) -> str:
    models, place = record["rows"], record["environment"]
    rows = [[way, *(f"{1000 * seconds[way]:.0f}" for seconds in models.values())] for way in WAYS]
    header = ["way", *(name.rpartition(":")[2] for name in models)]
    remark = f"; {record['remark']}" if record.get("remark") else ""
    return (
        table(header, rows, rule="|---" + "|--:" * len(models) + "|")
        + f"\n*{place['cpu']}, torch {place['torch']}, {place['date']}{remark}.*\n"
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
