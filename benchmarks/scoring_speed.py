"""Why scoring a network of half the MACs is not twice as fast, and what was tried.

    python benchmarks/scoring_speed.py --model resnet20

Weights and images are random, as speed does not depend on them. Dense and slim alternate, in CPU seconds of one thread,
which other work on the machine disturbs least. The results go to benchmarks/results/speed-MODEL.json.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from amc.run.provenance import environment
from amc.structure import inspect, slice_model
from amc.zoo import create_model
from common import Record, machine, plain_parser, save, table

RESULT = "speed-{model}.json"

Variant = tuple[int, bool, bool, bool]
VARIANTS: dict[str, Variant] = {  # batch size, batch norms folded into convolutions, channels-last, bfloat16
    "as scored: batch 64, channels-last": (64, False, True, False),
    "batch 16": (16, False, True, False),
    "batch 250": (250, False, True, False),
    "batch norm folded": (64, True, True, False),
    "channels first": (64, False, False, False),
    "channels first, batch norm folded": (64, True, False, False),
    "bfloat16": (64, False, True, True),
}


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--lock", nargs="*", default=[], help="groups to leave whole")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    return parser


def measure(args: argparse.Namespace) -> Record:
    torch.set_num_threads(1)
    dense = create_model(args.model).eval()
    structure = inspect(dense, torch.zeros(1, 3, 32, 32))
    counts = [g.size if g.name in args.lock else g.size // 2 for g in structure.groups]
    keep = {group.name: np.arange(count) for group, count in zip(structure.groups, counts, strict=True)}
    slim = slice_model(dense, structure, structure.mask(keep)).eval()
    images = torch.rand(args.images, 3, 32, 32)
    rows = {name: compared(dense, slim, images, variant, args.rounds) for name, variant in VARIANTS.items()}
    record = {"model": args.model, "macs": structure.cost.macs(counts) / structure.macs, "locked": args.lock}
    record |= {"rows": rows, "images": args.images, "rounds": args.rounds, "environment": environment()}
    save(RESULT.format(model=args.model), record)
    return record


def compared(dense: nn.Module, slim: nn.Module, images: Tensor, variant: Variant, rounds: int) -> dict[str, float]:
    """Median seconds of the dense network, and the median ratio to the slim one."""
    batch, folded, channels_last, bf16 = variant
    networks = [fuse(network) for network in (dense, slim)] if folded else [dense, slim]
    x = images.contiguous(memory_format=torch.channels_last) if channels_last else images
    seconds = [[scored(network, x, batch, bf16) for network in networks] for _ in range(rounds + 1)][1:]
    return {
        "dense": statistics.median(pair[0] for pair in seconds),
        "speedup": statistics.median(pair[0] / pair[1] for pair in seconds),
    }


def scored(network: nn.Module, x: Tensor, batch: int, bf16: bool) -> float:
    """CPU seconds of one pass over the images."""
    began = time.process_time()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for part in torch.split(x, batch):
            network(part)
    return time.process_time() - began


def section(record: Record) -> str:
    rows = [[name, f"{row['dense']:.2f} s", f"{row['speedup']:.2f}"] for name, row in record["rows"].items()]
    lock = f" --lock {' '.join(record['locked'])}" if record["locked"] else ""
    return (
        f"## Speed of scoring: {record['model']}\n\n"
        f"`python benchmarks/scoring_speed.py --model {record['model']}{lock}`: every group{' but these' * bool(lock)} "
        f"halved, {record['macs']:.1%} of the MACs, {record['images']} images, CPU seconds of one thread, medians of "
        f"{record['rounds']} alternating rounds.\n\n" + table(["variant", "dense", "times as fast"], rows) + "\n"
        "torch's convolutions (oneDNN) compute channels in blocks of 16 on this processor, so a convolution with 8 "
        "output channels costs nearly as much as one with 16: narrow networks gain less than their MACs say, wide ones "
        "more.\n" + machine(record)
    )


def main() -> None:
    print(section(measure(options().parse_args())))


if __name__ == "__main__":
    main()
