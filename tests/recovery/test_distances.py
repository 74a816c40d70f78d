"""The distance of two networks' outputs: of any nesting, and the user's own."""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.errors import AmcError, ModelError
from amc.recovery.distances import OutputDistance, output_tensors
from amc.recovery.distillation import checked_loss, distill_
from amc.structure.trace import Example
from tests.recovery.test_distillation import damaged, images, network, same, state, twenty_epochs

__all__ = ["twenty_epochs"]  # for every test of this file


@dataclass
class Parts:
    """Outputs of a kind that torch does not know."""

    logits: Tensor
    more: Any = None


def test_all_numbers_in_nested_outputs_are_found_in_order() -> None:
    one, two, three, four = (torch.full((2, 3), float(number)) for number in range(1, 5))
    nested = {
        "a": [one, Parts(two, UserDict({"b": three}))],
        "c": (four.to(torch.complex64), torch.ones(2).int(), "text"),
    }
    found = output_tensors(nested)
    assert [float(tensor.flatten()[0]) for tensor in found] == [1, 2, 3, 4]
    assert found[3].shape == (2, 3, 2)  # real and imaginary parts
    assert output_tensors((None, 3.0, torch.ones(0, 4), Parts)) == ()


def test_the_distance_of_classes_is_the_divergence_at_temperature_4() -> None:
    target, output = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    by_hand = 0.0
    for ours, theirs in zip(output.tolist(), target.tolist(), strict=True):
        at_4 = ([value / 4 for value in row] for row in (theirs, ours))
        p, q = ([math.exp(value) / sum(map(math.exp, row)) for value in row] for row in at_4)
        by_hand += 4**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
    distance = OutputDistance.of([target], classes=True)
    assert float(distance(output, target)) == pytest.approx(by_hand, rel=1e-5)
    assert float(distance(target, target)) == pytest.approx(0, abs=1e-6)


def test_probabilities_are_compared_as_their_logits_are() -> None:
    target, output = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    logits = OutputDistance.of([target], classes=True)
    probabilities = OutputDistance.of([target.softmax(1)], classes=True)
    assert probabilities.probabilities == (True,)
    assert not logits.probabilities[0]
    assert float(probabilities(output.softmax(1), target.softmax(1))) == pytest.approx(
        float(logits(output, target)), rel=1e-4
    )
    sure = OutputDistance.of([torch.eye(3)], classes=True)(torch.eye(3).flip(0), torch.eye(3))  # log 0 stays finite
    assert 1 < float(sure) < 1000


def test_the_distance_of_values_is_a_share_of_the_variance() -> None:
    targets = [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])]  # variance 5
    distance = OutputDistance.of(targets, classes=False)
    assert float(distance(torch.tensor([[2.0], [6.0]]), targets[0])) == pytest.approx((1 + 9) / 2 / 5)
    both = OutputDistance.of([(target, 2 * target) for target in targets], classes=False)
    assert float(both((targets[0] + 1, targets[1]), (targets[0], targets[1]))) == pytest.approx(1 / 5)
    alike = OutputDistance.of([torch.ones(4, 1)], classes=False)  # of images that are all alike
    assert float(alike(torch.full((4, 1), 3.0), torch.ones(4, 1))) == 4


def test_outputs_that_do_not_fit_together_are_refused() -> None:
    distance = OutputDistance.of([torch.ones(4, 3)], classes=True)
    with pytest.raises(
        ModelError, match=r"its outputs have the shapes \[\[4, 2\]\], and the dense network's \[\[4, 3\]\]"
    ):
        distance(torch.ones(4, 2), torch.ones(4, 3))
    with pytest.raises(ModelError, match="the network's outputs hold no tensor of real numbers"):
        OutputDistance.of([torch.ones(4).int()], classes=False)(torch.ones(4).int(), torch.ones(4).int())


def squared(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def test_the_loss_of_the_user_is_what_is_minimised() -> None:
    def first(output: Tensor, target: Tensor) -> Tensor:
        assert target.grad_fn is None
        return squared(output[:, :1], target[:, :1])

    dense, slim = network(), damaged(network())
    found = distill_(slim, dense, images(512), classes=True, loss=first)
    (fresh,) = images(64, seed=9)[0].args
    apart = (slim(fresh) - dense(fresh)).square().mean(0).detach()
    assert found.reason is None
    assert found.distance[1] < 0.2 * found.distance[0]
    assert apart[0] < 0.2 * apart[1:].min()  # nothing was asked of the other outputs


def failing(output: Tensor, target: Tensor) -> Tensor:
    raise KeyError("logits")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (failing, "distill_loss fails on the dense network's outputs (KeyError: 'logits'); it gets"),
        (lambda output, target: 1.0, "distill_loss returns a float; return a scalar tensor"),
        (lambda output, target: None, "distill_loss returns a NoneType; return a scalar tensor"),
        (lambda output, target: output - target, "distill_loss returns a tensor [64, 3]; return"),
        (lambda output, target: (output != target).sum(), "distill_loss returns a tensor of int64; return"),
        (lambda output, target: squared(output.detach(), target), "distill_loss returns a tensor without a gradient;"),
        (lambda output, target: squared(output, target).sqrt() / 0, "distill_loss returns nan for two equal outputs;"),
    ],
)
def test_a_loss_that_cannot_be_minimised_is_refused_before_training(loss: Callable[..., Any], message: str) -> None:
    slim = damaged(network())
    before, steps = state(slim), []
    with pytest.raises(AmcError) as refused:
        distill_(slim, network(), images(512), classes=True, loss=loss, on_step=steps.append)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
    assert steps == []
    assert same(before, state(slim))
    assert not any(parameter.grad is not None for parameter in slim.parameters())


def test_a_loss_that_fails_later_leaves_the_network_as_it_was_pruned() -> None:
    calls = 0

    def tiring(output: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 10:
            raise RuntimeError("no more")
        return squared(output, target)

    slim = damaged(network())
    before = state(slim)
    found = distill_(slim, network(), images(512), classes=True, loss=tiring)
    assert (found.outcome, found.reason) == ("failed", "training fails (RuntimeError: no more)")
    assert same(before, state(slim))


def test_the_loss_gets_the_outputs_as_the_networks_return_them() -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Parts:
            return Parts(self.inner(x), x.shape)

    def loss(output: Parts, target: Parts) -> Tensor:
        assert output.more == target.more
        return squared(output.logits, target.logits)

    for given in (loss, checked_loss(loss, Wrapped(network()), images(64)[0]), None):
        found = distill_(Wrapped(damaged(network())), Wrapped(network()), images(512), classes=False, loss=given)
        assert found.reason is None
        assert found.distance[1] < 0.5 * found.distance[0]


class Complex(nn.Module):
    """Complex weights and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 2, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.complex64) @ self.weight


class Tied(nn.Module):
    """One weight in two layers, one batch norm in two places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.first, self.second, self.head = (
            nn.BatchNorm1d(4),
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 3),
        )
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.second(self.norm(self.first(x)).relu())))
        return y


class Recurrent(nn.Module):
    """Dropout of the layer itself, between its two parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.GRU(4, 6, 2, batch_first=True, dropout=0.5), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer(x.unsqueeze(1))[0][:, -1])
        return y


class Attentive(nn.Module):
    """A transformer: layer norms, and dropout that must stay off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.unsqueeze(1).repeat(1, 3, 1) * torch.arange(1, 4)[:, None])
        return y.mean(1)


@pytest.mark.parametrize("kind", [Complex, Tied, Recurrent, Attentive])
def test_networks_of_any_kind_come_nearer(kind: Callable[[], nn.Module]) -> None:
    dense = kind().eval()
    slim = damaged(dense)
    generator = torch.Generator().manual_seed(3)
    batches = [Example.of(torch.randn(64, 4, generator=generator)) for _ in range(8)]
    found = distill_(slim, dense, batches, classes=False)
    assert found.reason is None
    assert found.distance[1] < 0.5 * found.distance[0]
    again = damaged(dense)
    assert distill_(again, dense, batches, classes=False).distance == found.distance  # no dropout, so no chance


class Viewing(nn.Module):
    """Calls `view` on an image, which fails in channels-last format."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x).relu()
        z: Tensor = self.head(y.view(len(y), -1))
        return z


@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last])
def test_a_network_that_takes_one_layout_only_gets_it(given: torch.memory_format) -> None:
    dense = Viewing().eval()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        dense(torch.zeros(2, 3, 8, 8)[:, :1].contiguous(memory_format=torch.channels_last))
    batches = [Example.of(batch.args[0].contiguous(memory_format=given)) for batch in images(512)]
    found = distill_(damaged(dense), dense, batches, classes=True)
    assert found.reason is None
    assert found.distance[1] < 0.5 * found.distance[0]


def test_images_that_are_all_alike_are_no_obstacle() -> None:
    dense, slim = network(1), damaged(network(1))
    found = distill_(slim, dense, [Example.of(torch.ones(64, 1, 8, 8))] * 4, classes=False)
    assert found.outcome in ("recovered", "no nearer")
    assert all(tensor.isfinite().all() for tensor in slim.state_dict().values())
