"""Recovery on the calibration images: what it learns, what it leaves alone, and when it gives the network back."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.errors import DataError
from amc.recovery import distillation
from amc.recovery.distillation import Plan, Recovery, distill_
from amc.recovery.unlabelled import Images
from amc.structure.trace import Example


@pytest.fixture(autouse=True)
def twenty_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images are trained on as briefly as many."""
    monkeypatch.setattr(distillation, "LEAST_STEPS", 1)


def network(outputs: int = 3, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, outputs)
    ).eval()


def images(count: int, *, seed: int = 1) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    return [Example.of(torch.randn(64, 1, 8, 8, generator=generator)) for _ in range(count // 64)]


def damaged(dense: nn.Module, amount: float = 0.3) -> nn.Module:
    """The network with noise on its weights."""
    slim = copy.deepcopy(dense)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in slim.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    return slim


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
def _apart(slim: nn.Module, dense: nn.Module, images: Tensor) -> float:
    return float((slim(images) - dense(images)).square().mean())


@pytest.mark.parametrize("classes", [True, False])
def test_the_outputs_come_nearer_on_images_that_nothing_was_trained_on(classes: bool) -> None:
    dense, fresh = network(), images(256, seed=9)[0].args[0]
    slim, before = damaged(dense), state(dense)
    apart = _apart(slim, dense, fresh)
    found = distill_(slim, dense, images(512), classes=classes)
    assert found.reason is None
    assert found.distance[1] < 0.5 * found.distance[0]
    assert (found.images, found.held_out, found.steps) == (448, 64, distillation.EPOCHS * 448 // 64)
    assert found.plan == Plan(steps=found.steps)
    assert _apart(slim, dense, fresh) < 0.5 * apart
    assert same(before, state(dense))
    assert not any(part.training for part in (*slim.modules(), *dense.modules()))
    assert all(parameter.grad is None for parameter in (*slim.parameters(), *dense.parameters()))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    results = []
    for seed in (0, 0, 1):
        slim = damaged(network())
        distill_(slim, network(), images(256), classes=True, seed=seed)
        results.append(state(slim))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_zeros_of_a_masked_network_stay_zero() -> None:
    dense = network()
    slim = damaged(dense)
    masks = {"0.weight": torch.rand(8, 1, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5}
    found = distill_(slim, dense, images(256), classes=True, masks=masks)
    assert found.reason is None
    kept = slim.get_submodule("0").weight != 0  # type: ignore[operator]
    assert torch.equal(kept, masks["0.weight"])


def unchanged(slim: nn.Module, dense: nn.Module, batches: list[Example], **options: Any) -> Recovery:
    before, flags = state(slim), [parameter.requires_grad for parameter in slim.parameters()]
    found = distill_(slim, dense, batches, **{"classes": True} | options)
    assert same(before, state(slim))
    assert [parameter.requires_grad for parameter in slim.parameters()] == flags
    return found


def test_a_network_that_cannot_come_nearer_stays_as_it_is() -> None:
    found = unchanged(network(), network(), images(256))
    assert found.distance[0] == pytest.approx(0, abs=1e-6)
    assert found.outcome == "no nearer"
    assert found.reason == "training brought its outputs no nearer to the dense network's"


def test_too_few_images_train_nothing() -> None:
    found = unchanged(damaged(network()), network(), [Example.of(images(64)[0].args[0][:16])])
    assert found.reason == "14 images are too few to train on; give at least 36"
    assert (found.outcome, found.steps) == ("too few images", 0)
    with pytest.raises(DataError, match="recovery needs calibration images"):
        distill_(network(), network(), [], classes=True)


@pytest.mark.parametrize("which", ["dense", "slim", "images"])
def test_outputs_that_are_not_finite_train_nothing(which: str) -> None:
    dense, batches = network(), images(256)
    slim = damaged(dense)
    with torch.no_grad():
        if which == "dense":
            dense.get_submodule("5").bias.fill_(math.nan)  # type: ignore[operator, union-attr]
        elif which == "slim":
            slim.get_submodule("5").bias.fill_(math.inf)  # type: ignore[operator, union-attr]
        else:
            batches = [Example.of(torch.full_like(batch.args[0], math.nan)) for batch in batches]
    found = unchanged(slim, dense, batches)
    assert found.reason == "its outputs or the dense network's are not finite on the held-out images"


def test_one_image_that_is_not_finite_is_said() -> None:
    batches = images(512)
    held = Images.divided(batches, torch.Generator().manual_seed(0), torch.channels_last)[1][0].args[0]
    place = next(place for place, image in enumerate(batches[0].args[0]) if not (held == image).flatten(1).all(1).any())
    batches[0].args[0][place] = math.nan  # an image to train on
    found = unchanged(damaged(network()), network(), batches)
    assert found.outcome == "diverged"
    assert found.reason is not None
    assert found.reason.startswith("the distance is nan at step ")


def test_fewer_images_than_a_batch_are_enough() -> None:
    dense = network()
    slim = damaged(dense)
    found = distill_(slim, dense, [Example.of(images(64)[0].args[0][:40])], classes=True)
    assert (found.images, found.held_out, found.steps) == (35, 5, distillation.EPOCHS)
    assert (found.outcome, found.reason) == ("recovered", None)
    assert found.distance[1] < found.distance[0]


class Odd(nn.Module):
    """Outputs that nothing can be learned from."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.weight, self.calls = kind, nn.Parameter(torch.ones(3)), 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        y = x.mean((1, 2, 3)).unsqueeze(1) * self.weight
        if self.kind == "several":
            return [y] * (1 + self.calls % 2)
        return {"words": y.argmax(1), "text": "yes"} if self.kind == "none" else y.detach()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("none", "training fails (ModelError: the network's outputs hold no tensor of real numbers)"),
        ("detached", "training fails (RuntimeError: element 0 of tensors does not require grad"),
        ("several", "training fails (ModelError: its outputs have the shapes [["),
    ],
)
def test_a_network_that_cannot_be_trained_stays_as_it_is(kind: str, reason: str) -> None:
    slim = Odd(kind)
    with torch.no_grad():
        slim.weight.mul_(0.5)
    dense = Odd(kind)
    slim.calls = kind == "several"
    found = unchanged(slim, dense, images(256))
    assert found.reason is not None
    assert found.reason.startswith(reason)
    assert all(value is None or math.isfinite(value) for value in found.to_json().values() if type(value) is float)
    assert found.outcome == "failed"
    json.dumps(found.to_json(), allow_nan=False)


class Several(nn.Module):
    """Two inputs, one of them of whole numbers; outputs nested."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.image, self.value = nn.Embedding(7, 6), nn.Linear(5, 6), nn.Linear(6, 1)

    def forward(self, image: Tensor, *, words: Tensor) -> dict[str, Any]:
        assert words.dtype == torch.int64
        x = self.image(image) + self.words(words).mean(1)
        return {"features": x, "parts": (self.value(x), words)}


def test_any_inputs_and_outputs_will_do() -> None:
    torch.manual_seed(0)
    dense = Several().eval()
    slim = damaged(dense)
    generator = torch.Generator().manual_seed(1)
    batches = [
        Example((torch.randn(32, 5, generator=generator),), {"words": torch.randint(7, (32, 4), generator=generator)})
        for _ in range(16)
    ]
    found = distill_(slim, dense, batches, classes=False)
    assert found.reason is None
    assert found.distance[1] < 0.5 * found.distance[0]
    assert not found.flips


def test_images_of_several_sizes_are_taken_batch_by_batch() -> None:
    dense = network()
    slim = damaged(dense)
    batches = [Example.of(batch.args[0][..., : 6 + number % 3]) for number, batch in enumerate(images(1024))]
    found = distill_(slim, dense, batches, classes=True)
    assert found.reason is None
    assert (found.images, found.held_out) == (896, 128)  # two of sixteen batches


def test_images_are_flipped_only_where_the_dense_network_does_not_mind() -> None:
    class Side(nn.Module):
        """Tells whether the left or the right half is brighter."""

        def __init__(self, blind: bool) -> None:
            super().__init__()
            self.scale, self.blind = nn.Parameter(torch.ones(())), blind

        def forward(self, x: Tensor) -> Tensor:
            left, right = x[..., :4].mean((1, 2, 3)), x[..., 4:].mean((1, 2, 3))
            return self.scale * torch.stack([left + right * self.blind, 0.1 * left + right * (not self.blind)], 1)

    for blind in (False, True):
        found = distill_(Side(blind), Side(blind), images(256), classes=True)
        assert found.flips is blind


@pytest.mark.parametrize(("amount", "shares"), [(1e-3, (0.25, 0.25)), (0.03, (0.26, 0.99)), (0.3, (1.0, 1.0))])
def test_a_network_that_is_near_takes_shorter_steps(amount: float, shares: tuple[float, float]) -> None:
    rates: list[float] = []
    found = distill_(
        damaged(network(), amount), network(), images(256), classes=False,
        on_step=lambda step: rates.append(step.lr),
    )  # fmt: skip
    low, high = (share * distillation.RATE for share in shares)
    assert low - 1e-9 <= max(rates) <= high + 1e-9, found.distance


def test_steps_of_a_loss_of_the_user_have_the_full_length() -> None:
    rates: list[float] = []
    distill_(
        damaged(network(), 1e-3), network(), images(256), classes=False,
        loss=lambda ours, theirs: 1e-3 * (ours - theirs).square().mean(),
        on_step=lambda step: rates.append(step.lr),
    )  # fmt: skip
    assert max(rates) == pytest.approx(distillation.RATE)
