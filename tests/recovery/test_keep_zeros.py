"""`amc.keep_zeros`: the zeros of a masked network hold in any training loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amc
from amc.errors import AmcError
from amc.zoo._torchvision import import_torchvision
from tests.recovery.samples import half_masks, same, small_network, state, stripes

OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


def batches(count: int = 48) -> list[tuple[Tensor, Tensor]]:
    images, labels = next(iter(stripes(count).batches(count)))
    return list(zip(images.split(16), labels.split(16), strict=True))


def train(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    model.train()
    torch.manual_seed(0)  # of the dropout
    for images, labels in batches():
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()


def dropped_of(model: nn.Module, masks: dict[str, Tensor]) -> int:
    parameters = dict(model.named_parameters())
    return sum(int(parameters[name].detach()[~mask].count_nonzero()) for name, mask in masks.items())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_zeros_hold_and_the_other_weights_learn(name: str) -> None:
    model = small_network()
    masks, before = half_masks(model), state(model)
    with amc.keep_zeros(model, masks):
        assert dropped_of(model, masks) == 0  # from the first forward pass on
        train(model, OPTIMISERS[name](model.parameters()))
        assert dropped_of(model, masks) == 0
    after = state(model)
    assert all(not torch.equal(after[key][mask], before[key][mask]) for key, mask in masks.items())
    train(model, OPTIMISERS[name](model.parameters()))  # outside the block nothing is held
    assert name in ("adamw", "fused", "rmsprop") or dropped_of(model, masks) > 0


def test_what_is_pruned_gathers_no_momentum() -> None:
    model = small_network()
    masks = half_masks(model)
    optimiser = OPTIMISERS["foreach"](model.parameters())
    with amc.keep_zeros(model, masks):
        train(model, optimiser)
    for name, parameter in model.named_parameters():
        if name in masks:
            assert not optimiser.state[parameter]["momentum_buffer"][~masks[name]].any()


def test_another_networks_optimiser_is_left_alone() -> None:
    one, other, alone = small_network(), small_network(1), small_network(1)
    with amc.keep_zeros(one, half_masks(one)):
        train(other, OPTIMISERS["sgd"](other.parameters()))
    train(alone, OPTIMISERS["sgd"](alone.parameters()))
    assert same(state(other), state(alone))


@pytest.mark.parametrize("masks", [None, {}])
def test_without_masks_it_does_nothing(masks: Any) -> None:
    model, alone = small_network(), small_network()
    with amc.keep_zeros(model, masks):
        train(model, OPTIMISERS["sgd"](model.parameters()))
    train(alone, OPTIMISERS["sgd"](alone.parameters()))
    assert same(state(model), state(alone))


def test_an_error_inside_ends_it() -> None:
    model = small_network()
    masks = half_masks(model)
    with pytest.raises(KeyError), amc.keep_zeros(model, masks):
        raise KeyError
    train(model, OPTIMISERS["sgd"](model.parameters()))
    assert dropped_of(model, masks) > 0


def test_masks_of_another_network_are_refused() -> None:
    with (
        pytest.raises(AmcError, match="no parameter of the network"),
        amc.keep_zeros(nn.Linear(2, 2), {"other": torch.ones(2)}),
    ):
        pass


def test_the_trainer_of_transformers_keeps_them(tmp_path: Path) -> None:
    import_torchvision()
    from transformers import Trainer, TrainingArguments

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_network()

        def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.inner(pixel_values)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    model = Named()
    masks = {f"inner.{name}": mask for name, mask in half_masks(model.inner).items()}
    rows = [
        {"pixel_values": image, "labels": label}
        for images, labels in batches()
        for image, label in zip(images, labels, strict=True)
    ]
    before = state(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=16, num_train_epochs=2, learning_rate=0.05,
        weight_decay=0.5, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    with amc.keep_zeros(model, masks):
        Trainer(model=model, args=arguments, train_dataset=rows).train()  # type: ignore[arg-type]
    after = state(model)
    assert dropped_of(model, masks) == 0
    assert all(not torch.equal(after[name][mask], before[name][mask]) for name, mask in masks.items())
