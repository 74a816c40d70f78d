from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from amc.compression.scoring.evaluator import Evaluator
from amc.errors import AmcError
from amc.recovery import FineTuneConfig, finetune
from amc.recovery.precision import Arithmetic
from tests.recovery.samples import small_network, stripes


class Spy(nn.Module):
    """Remembers in which type its layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.types = nn.Linear(36, 2), set[torch.dtype]()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        self.types.add(logits.dtype)
        return logits


def test_bfloat16_is_of_the_forward_pass_only() -> None:
    model = Spy()
    finetune(model, stripes(32), FineTuneConfig(epochs=1, precision="bfloat16"))
    assert model.types == {torch.bfloat16}
    assert model.layer.weight.dtype == torch.float32


def test_a_network_learns_in_bfloat16() -> None:
    model = small_network()
    finetune(model, stripes(), FineTuneConfig(epochs=15, batch_size=16, lr=0.1, precision="bfloat16"))
    assert Evaluator(stripes())(model) > 0.95


def test_float16_needs_a_cuda_device() -> None:
    with pytest.raises(
        AmcError, match="float16 training needs a CUDA device and the network is on cpu; choose bfloat16"
    ):
        finetune(small_network(), stripes(16), FineTuneConfig(precision="float16"))


def test_scaled_gradients_come_back_to_scale_and_an_overflow_leaves_the_step_out() -> None:
    """The scaler's part, on the CPU, where only the device check forbids it."""
    arithmetic = Arithmetic("float32", torch.device("cpu"))
    arithmetic.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    weight = nn.Parameter(torch.tensor([2.0]))
    optimiser = torch.optim.SGD([weight], lr=0.5)
    arithmetic.backward_((3 * weight).sum(), optimiser)
    assert weight.grad is not None
    assert weight.grad.item() == 3.0
    arithmetic.step_(optimiser)
    assert weight.item() == 0.5
    optimiser.zero_grad()
    arithmetic.backward_((1e38 * weight).sum(), optimiser)  # times 1024 is infinite
    arithmetic.step_(optimiser)
    assert weight.item() == 0.5
    assert arithmetic.state()["scale"] == 512.0
    other = Arithmetic("float32", torch.device("cpu"))
    other.scaler = torch.amp.GradScaler("cpu")
    other.restore_(arithmetic.state())
    assert other.scaler.get_scale() == 512.0
    assert Arithmetic("bfloat16", torch.device("cpu")).state() == {}


@pytest.mark.gpu
def test_float16_on_cuda_resumes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    def interrupt(step) -> None:  # type: ignore[no-untyped-def]
        if step.step == 7:
            raise KeyboardInterrupt

    config = FineTuneConfig(epochs=3, batch_size=16, precision="float16", ema=0.9)
    whole, resumed = small_network().cuda(), small_network().cuda()
    expected = finetune(whole, stripes(64), config)
    path = tmp_path / "ckpt"
    with pytest.raises(KeyboardInterrupt):
        finetune(resumed, stripes(64), config, checkpoint=path, checkpoint_every=2, on_step=interrupt)
    resumed = small_network().cuda()
    result = finetune(resumed, stripes(64), config, checkpoint=path, checkpoint_every=2)
    assert [epoch.loss for epoch in result.epochs] == pytest.approx([epoch.loss for epoch in expected.epochs], rel=1e-2)
