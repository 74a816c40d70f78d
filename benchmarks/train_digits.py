"""Train the bundled `digits_cnn` on the train split of the digits: the same every time on one kind of processor.

    python benchmarks/train_digits.py [--out FILE]

Writes src/amc/zoo/digits_cnn.safetensors by default. The network is the one after the last epoch; the search and test
splits are scored once, at the end.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from amc.compression.scoring.evaluator import Evaluator
from amc.recovery import EpochRecord, FineTuneConfig, finetune
from amc.zoo import create_model, load_data, model_info
from common import plain_parser

CONFIG = FineTuneConfig(
    epochs=60,
    batch_size=64,
    lr=0.2,
    weight_decay=5e-4,
    warmup=0.05,
    label_smoothing=0.1,
    seed=0,
)


def train() -> torch.nn.Module:
    """The network after the last epoch."""
    torch.set_num_threads(1)  # sums in one order
    torch.manual_seed(CONFIG.seed)
    model = create_model("digits_cnn")

    def report(record: EpochRecord) -> None:
        if record.epoch % 10 == 0:
            print(f"epoch {record.epoch:3d}  loss {record.loss:.4f}  {record.seconds:.2f} s")

    return finetune(model, load_data("digits").train, CONFIG, on_epoch=report).model


def options() -> argparse.ArgumentParser:
    info = model_info("digits_cnn")
    assert info is not None
    assert info.weights is not None
    parser = plain_parser(__doc__)
    parser.add_argument("--out", type=Path, default=info.weights, help="where to write the weights")
    return parser


def main() -> None:
    """Train, save, and print the accuracies."""
    out: Path = options().parse_args().out
    model = train()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, out)
    data = load_data("digits")
    for name, split in (("search", data.search), ("test", data.test)):
        print(f"{name}: {100 * Evaluator(split)(model):.2f}% of {len(split)} images")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
