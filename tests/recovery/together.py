"""What one of several processes does in test_together: `python -m tests.recovery.together FOLDER SCENARIO`."""

from __future__ import annotations

import sys
from pathlib import Path

import safetensors.torch
import torch

from amc.recovery import FineTuneConfig, StepRecord, finetune
from amc.recovery.workers import launched
from tests.recovery.samples import half_masks, stripes
from tests.recovery.test_together import CONFIG, plain_network


def main(folder: Path, scenario: str) -> None:
    torch.set_num_threads(1)
    accelerator = launched(cpu=True)
    model = plain_network()
    masks = half_masks(model)
    path = folder / "ckpt"
    config = FineTuneConfig(**CONFIG)

    def on_step(record: StepRecord) -> None:
        if scenario == "interrupted" and record.step == 6:
            raise SystemExit(3)

    result = finetune(
        model, stripes(64), config,
        masks=masks, checkpoint=path, checkpoint_every=1, accelerator=accelerator,
        on_step=on_step, on_epoch=lambda record: float(record.epoch),
    )  # fmt: skip
    rank = accelerator.process_index
    assert result.epochs[-1].score == (2.0 if rank == 0 else None)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / f"{scenario}-{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
