from __future__ import annotations

import torch
from torch import Tensor

from amc.recovery import FineTuneConfig, finetune
from tests.recovery.samples import same, small_network, state, stripes


def test_the_result_is_the_average_of_weights_and_statistics() -> None:
    """Recomputed in float64 from the weights after every step."""
    plain, averaged = small_network(), small_network()
    expected = {name: value.double() for name, value in state(plain).items()}
    seen: list[dict[str, Tensor]] = []
    config = FineTuneConfig(epochs=2, batch_size=16)
    finetune(plain, stripes(64), config, on_step=lambda step: seen.append(state(plain)))
    for step, values in enumerate(seen, start=1):
        decay = min(0.7, (1 + step) / (10 + step))
        for name, value in values.items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    finetune(averaged, stripes(64), FineTuneConfig(epochs=2, batch_size=16, ema=0.7))
    for name, value in state(averaged).items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert int(averaged[1].num_batches_tracked) == 8  # counts are not averaged


def test_on_epoch_sees_the_average_and_on_step_the_weights() -> None:
    model, watched = small_network(), small_network()
    told: list[dict[str, Tensor]] = []
    steps: list[dict[str, Tensor]] = []
    plain: list[dict[str, Tensor]] = []
    config = FineTuneConfig(epochs=2, batch_size=16, ema=0.9)
    finetune(
        model, stripes(64), config,
        on_step=lambda step: steps.append(state(model)),
        on_epoch=lambda record: told.append(state(model)),
    )  # fmt: skip
    finetune(
        watched, stripes(64), FineTuneConfig(epochs=2, batch_size=16), on_step=lambda s: plain.append(state(watched))
    )
    assert all(same(first, second) for first, second in zip(steps, plain, strict=True))  # training is not disturbed
    assert same(told[-1], state(model))
    assert not same(told[-1], steps[-1])
    assert not same(told[0], told[1])
