"""The whole story: a dense network, a search, fine-tuning, a file for a phone, and how fast it is.

    python examples/from_dense_to_phone.py [RUN_DIRECTORY]

The network is one of your own, in no list of known ones. The data is the built-in digits, so it runs offline, in less
than a minute.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import amc
from amc.zoo import load_data


class Branches(nn.Module):
    """Blocks of two convolution branches, concatenated, with a residual around them."""

    def __init__(self, width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        half = width // 2
        self.stem = layer(1, width, 3)
        self.narrow = nn.ModuleList(layer(width, half, 1) for _ in range(blocks))
        self.wide = nn.ModuleList(nn.Sequential(layer(width, half, 3), layer(half, half, 3)) for _ in range(blocks))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 8, 8] -> logits [N, 10]."""
        x = self.stem(x)
        for narrow, wide in zip(self.narrow, self.wide, strict=True):
            x = x + torch.cat([narrow(x), wide(x)], dim=1)
        return self.head(x.mean(dim=(2, 3)))


def layer(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def main(run: Path = Path("runs/phone"), *, episodes: int = 40, epochs: int = 8, **timing: float) -> amc.Result:
    """Tell the story; returns the result of the search, its network fine-tuned."""
    torch.manual_seed(0)
    data, example = load_data("digits"), torch.zeros(1, 1, 8, 8)

    dense = Branches()
    trained = amc.finetune(dense, data.train, evaluate=data.test, epochs=3 * epochs, lr=0.1, batch_size=32)
    print(f"dense network: {trained}")
    structure = amc.inspect(dense, example)
    print(f"network: {structure}", *structure.groups, *structure.locked, sep="\n  ")

    result = amc.compress(
        dense,
        example,
        calibration=data.calibration.batches(256),
        evaluate=data.search,  # scores policies: never the test split
        test=data.test,  # for the record only
        budget="macs<=50%",
        episodes=episodes,
        run_dir=run,
        progress=True,
    )
    print(f"search: {result}")
    print(f"fine-tuning: {amc.finetune(result.model, data.train, evaluate=data.test, epochs=epochs)}")

    written = amc.export(result.model, example, run / "slim.onnx")  # or slim.tflite, slim.pte
    print(f"file: {written}")
    print(f"latency: {amc.latency({'dense': dense, 'slim': result.model}, example, **timing)}")
    print(f"report: {run / 'report.html'}")
    return result


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
