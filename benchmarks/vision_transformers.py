"""Small vision transformers for CIFAR-10 and the built-in digits, and their training, for the other benchmarks.

    python benchmarks/vision_transformers.py deit_tiny --data cifar10:ROOT --weights deit_tiny.safetensors
    python benchmarks/recovery.py --model vision_transformers:deit_tiny --weights deit_tiny.safetensors ...

The classes are timm's, with patches of 4 x 4 pixels (2 x 2 of the digits). The train split alone is used, with shifts,
flips and mixtures of two images; the images are on the device once. CIFAR-10 needs a GPU: an epoch takes seconds there,
and an hour on a processor. The digits take half a minute.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from amc.cli.jobs.devices import device_named
from amc.compression.scoring.evaluator import Evaluator
from amc.zoo import load_data
from amc.zoo._torchvision import import_torchvision
from amc.zoo.images import ImageSet
from common import plain_parser

CLASSES = 10
BATCHES, BATCH = 80, 512  # steps an epoch, as far as there are images for them; images a step, at most
WARM_UP, SMOOTHING = 5, 0.1  # epochs, of the labels


def vision_transformer(width: int, heads: int, **changes: Any) -> nn.Module:
    """timm's VisionTransformer, by default of 12 blocks for images of 32 x 32."""
    import_torchvision()  # timm imports it plainly
    from timm.models.vision_transformer import VisionTransformer

    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 4, "depth": 12} | changes
    return VisionTransformer(num_classes=CLASSES, embed_dim=width, num_heads=heads, **sizes)


def deit_tiny() -> nn.Module:
    """5.4 million parameters, as those of DeiT-Ti."""
    return vision_transformer(192, 3)


def vit_small() -> nn.Module:
    """21.3 million parameters, as those of ViT-S."""
    return vision_transformer(384, 6)


def digits_vit() -> nn.Module:
    """Four blocks for images of 1 x 8 x 8: 52 thousand parameters."""
    return vision_transformer(32, 4, img_size=8, patch_size=2, depth=4, in_chans=1)


NETWORKS = {"deit_tiny": deit_tiny, "vit_small": vit_small, "digits_vit": digits_vit}


def options() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("model", choices=NETWORKS)
    parser.add_argument("--data", required=True, help="cifar10:ROOT")
    parser.add_argument("--weights", type=Path, required=True, help="the file to write")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-3, help="the highest learning rate of AdamW")
    parser.add_argument("--mixed", type=float, default=0.8, help="how evenly two images are mixed; 0: not at all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def train(args: argparse.Namespace) -> nn.Module:
    """The trained network, in evaluation mode."""
    torch.manual_seed(args.seed)
    device, split = device_named(args.device), load_data(args.data).train
    assert isinstance(split, ImageSet)
    assert split.normalisation is not None
    images = split.normalisation(split.images.to(device)).contiguous()
    labels = F.one_hot(split.labels.to(device), CLASSES).float()
    labels = (1 - SMOOTHING) * labels + SMOOTHING / CLASSES
    flips = split.augmentation is not None and split.augmentation.flip
    model = NETWORKS[args.model]().to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.05)
    size = min(BATCH, max(1, len(images) // BATCHES))
    steps = len(images) // size
    began = time.perf_counter()
    for epoch in range(args.epochs):
        order, losses = torch.randperm(len(images), device=device), []
        for step in range(steps):
            part = order[step * size : (step + 1) * size]
            for group in optimiser.param_groups:
                group["lr"] = args.rate * share(epoch + step / steps, args.epochs)
            inputs, targets = augmented(images[part], flips=flips), labels[part]
            if args.mixed:
                inputs, targets = mixed(inputs, targets, args.mixed)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = F.cross_entropy(model(inputs), targets)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.detach())
        seconds = time.perf_counter() - began
        print(f"epoch {epoch + 1}: loss {torch.stack(losses).mean():.3f}, {seconds:.0f} s", flush=True)
    return model.eval()


def share(epoch: float, epochs: int) -> float:
    """Of the highest learning rate: a warm-up and half a cosine."""
    if epoch < WARM_UP:
        return epoch / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (epoch - WARM_UP) / max(1, epochs - WARM_UP)))


def augmented(images: Tensor, *, flips: bool) -> Tensor:
    """[B, C, H, W], each shifted by up to an eighth of its height; with `flips`, one in two mirrored."""
    count, _, height, width = images.shape
    most = height // 8
    padded = F.pad(images, (most, most, most, most)).permute(0, 2, 3, 1)
    down, right = torch.randint(0, 2 * most + 1, (2, count, 1), device=images.device)
    rows = torch.arange(height, device=images.device) + down
    columns = torch.arange(width, device=images.device) + right
    mirrored = torch.rand(count, 1, device=images.device) < 0.5 * flips
    columns = torch.where(mirrored, columns.flip(1), columns)
    chosen = padded[torch.arange(count, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return chosen.permute(0, 3, 1, 2)


def mixed(images: Tensor, labels: Tensor, evenly: float) -> tuple[Tensor, Tensor]:
    """Each image mixed with another one, and its label too (mixup, arXiv 1710.09412)."""
    share = float(torch.distributions.Beta(evenly, evenly).sample())
    other = torch.randperm(len(images), device=images.device)
    return share * images + (1 - share) * images[other], share * labels + (1 - share) * labels[other]


def main() -> None:
    args = options().parse_args()
    model = train(args)
    print(f"test: {Evaluator(load_data(args.data).test)(model):.4f}")
    args.weights.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.cpu().contiguous() for name, value in model.state_dict().items()}, args.weights)


if __name__ == "__main__":
    main()
