"""Prune a network of your own from Python: train it, compress it, fine-tune it, load it again.

    python examples/own_network.py [RUN_DIRECTORY]

Uses the built-in digits, so it is offline and takes less than a minute.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import amc
from amc.compression.scoring.evaluator import Evaluator
from amc.recovery import FineTuneConfig, finetune
from amc.zoo import load_data


class Branches(nn.Module):
    """Two convolution branches, concatenated, with a residual around them: not in any list of known networks."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.narrow = nn.Sequential(nn.Conv2d(width, width // 2, 1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU())
        self.wide = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU()
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 8, 8] -> logits [N, 10]."""
        x = self.stem(x)
        x = x + torch.cat([self.narrow(x), self.wide(x)], dim=1)
        return self.head(x.mean(dim=(2, 3)))


def main(run_dir: Path | None = None, *, episodes: int = 40, epochs: int = 8) -> amc.Result:
    """The whole job; returns the result of the search, its model fine-tuned."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load_data("digits")
    model = finetune(Branches(), data.train, FineTuneConfig(epochs=3 * epochs, lr=0.1, batch_size=32)).model

    structure = amc.inspect(model, torch.zeros(1, 1, 8, 8))
    for group in structure.groups:
        print(f"{group.name}: {group.size} channels")
    for locked in structure.locked:
        print(f"locked {locked.name}: {locked.lock}")

    result = amc.compress(
        model,
        torch.zeros(1, 1, 8, 8),
        calibration=data.calibration.batches(256),
        evaluate=data.search,  # scores policies: never the test split
        test=data.test,  # final figures only
        budget="macs<=50%",
        episodes=episodes,
        run_dir=run_dir,
    )
    test = Evaluator(data.test)
    before = test(result.model)
    finetune(result.model, data.train, FineTuneConfig(epochs=epochs))
    print(f"MACs {result.summary['dense']['macs']} -> {amc.count_macs(result.model, torch.zeros(1, 1, 8, 8))}")
    print(f"test accuracy: dense {test(model):.4f}, slim {before:.4f}, fine-tuned {test(result.model):.4f}")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
