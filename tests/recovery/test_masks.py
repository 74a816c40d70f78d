from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from amc.errors import AmcError
from amc.recovery import FineTuneConfig, StepRecord, finetune
from tests.recovery.samples import half_masks, same, small_network, state, stripes


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.0},
        {"optimiser": "adamw", "weight_decay": 0.5},
        {"ema": 0.9},
        {"precision": "bfloat16"},
        {"distill": 0.5},
    ],
)
def test_pruned_weights_stay_zero_and_the_others_learn(settings: dict[str, Any]) -> None:
    model = small_network()
    before, masks = state(model), half_masks(model)
    finetune(
        model, stripes(64), FineTuneConfig(epochs=2, batch_size=16, **settings), masks=masks, teacher=small_network(1)
    )
    after = state(model)
    for name, mask in masks.items():
        assert 0 < int(mask.sum()) < mask.numel()
        assert torch.equal(after[name][~mask], torch.zeros(int((~mask).sum())))
        assert not (after[name][mask] == before[name][mask]).any()


def test_training_under_a_mask_is_training_the_smaller_network() -> None:
    """Momentum and clipping see only what is left: dropping inputs of a linear layer is the same as masking them."""
    torch.manual_seed(0)
    images, labels = torch.randn(16, 6), torch.arange(16) % 3
    whole, part = nn.Linear(6, 3), nn.Linear(4, 3)
    keep = torch.tensor([0, 2, 3, 5])
    with torch.no_grad():
        part.weight.copy_(whole.weight[:, keep])
        part.bias.copy_(whole.bias)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[:, keep] = True
    config = FineTuneConfig(epochs=5, lr=1.0, clip_norm=0.1)
    masked = finetune(whole, [(images, labels)], config, masks={"weight": mask})
    sliced = finetune(part, [(images[:, keep], labels)], config)
    torch.testing.assert_close(whole.weight.detach()[:, keep], part.weight.detach())
    assert [epoch.loss for epoch in masked.epochs] == pytest.approx([epoch.loss for epoch in sliced.epochs])


def test_masks_of_ones_change_nothing() -> None:
    plain, masked = small_network(), small_network()
    config = FineTuneConfig(epochs=2, batch_size=16)
    finetune(plain, stripes(64), config)
    ones = {name: torch.ones_like(mask) for name, mask in half_masks(masked).items()}
    finetune(masked, stripes(64), config, masks=ones)
    assert same(state(plain), state(masked))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_pruned_weight_that_is_not_zero_raises_a_runtime_error(ema: float) -> None:
    model = small_network()

    def break_in(step: StepRecord) -> None:
        if step.step == 4:
            with torch.no_grad():
                model[6].weight.fill_(0.5)

    masks = half_masks(model)
    dropped = int((~masks["6.weight"]).sum())
    config = FineTuneConfig(epochs=1, batch_size=16, ema=ema)
    with pytest.raises(RuntimeError, match=f"{dropped} pruned weights of '6.weight' are no longer zero"):
        finetune(model, stripes(64), config, masks=masks, on_step=break_in)


def test_the_next_step_repairs_a_mask_before_the_average_is_updated() -> None:
    model = small_network()

    def break_in(step: StepRecord) -> None:
        if step.step == 2:
            with torch.no_grad():
                model[6].weight.fill_(0.5)

    masks = half_masks(model)
    finetune(model, stripes(64), FineTuneConfig(epochs=1, batch_size=16, ema=0.9), masks=masks, on_step=break_in)
    assert not state(model)["6.weight"][~masks["6.weight"]].any()


def test_tied_weights_can_be_masked_by_either_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).relu())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, mask = Tied(), torch.eye(4, dtype=torch.bool)
    finetune(
        model, [(torch.randn(8, 4), torch.arange(8) % 4)], FineTuneConfig(epochs=2, ema=0.5), masks={"b.weight": mask}
    )
    assert model.b.weight is model.a.weight
    assert torch.equal(model.a.weight.detach() != 0, mask)


def test_masks_that_do_not_fit_are_named() -> None:
    model = small_network()
    with pytest.raises(AmcError, match=r"a mask for '9\.weight', which is no parameter of the network"):
        finetune(model, stripes(16), masks={"9.weight": torch.ones(1)})
    with pytest.raises(AmcError, match=r"mask of '6\.weight' has shape \[2\] and the parameter \[2, 6\]"):
        finetune(model, stripes(16), masks={"6.weight": torch.ones(2)})
