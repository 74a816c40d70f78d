"""How long a recovery trains: by its time limit, which is turned into a number of steps before the first one."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from amc.errors import AmcError
from amc.recovery import distillation
from amc.recovery.distillation import Plan, Recovery, distill_
from tests.recovery.test_distillation import damaged, images, network, same, state, twenty_epochs, unchanged

__all__ = ["twenty_epochs"]  # for every test of this file
STEPS = 448 // 64  # an epoch of 512 images, an eighth of them held out


class Clock:
    """Stands still but for a second with each forward pass of a network, or what `seconds` is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.seconds = 0.0, 1.0
        monkeypatch.setattr(distillation, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def of(self, dense: nn.Module) -> nn.Module:
        def tick(*_: Any) -> None:
            self.now += self.seconds

        dense.register_forward_pre_hook(tick)
        return dense


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def recovered(clock: Clock, seconds: float, **options: Any) -> Recovery:
    """By a dense network that takes a second for a batch: one for the held-out images, and one for each step."""
    return distill_(damaged(network()), clock.of(network()), images(512), classes=False, **options | {
        "plan": Plan(max_seconds=seconds)
    })  # fmt: skip


@pytest.mark.parametrize(("seconds", "steps"), [(100, 94), (200, 20 * STEPS), (30, 26), (4, 1)])
def test_the_time_limit_gives_the_number_of_steps(clock: Clock, seconds: float, steps: int) -> None:
    # A second to find the layout, one for the held-out images, and four for the timed steps; or fewer, of which none
    # begins when they took more than 5% of the time.
    found = recovered(clock, seconds)
    assert found.plan == Plan(seconds, steps=steps, limited=steps < 20 * STEPS)
    assert found.steps == steps
    assert clock.now == 2 + (4 if seconds >= 100 else 2 if seconds >= 20 else 1) + steps


@pytest.mark.parametrize("seconds", [0.0, 1.0, 3.0])
def test_a_time_limit_below_one_step_changes_nothing(clock: Clock, seconds: float) -> None:
    plans: list[Plan] = []
    dense = clock.of(network())
    found = unchanged(
        damaged(network()), dense, images(512), plan=Plan(max_seconds=seconds), on_plan=plans.append, classes=False
    )
    assert (found.outcome, found.steps) == ("no time", 0)
    assert found.reason == f"{seconds:g} seconds are too few for a step of training"
    assert plans == [found.plan] == [Plan(seconds, steps=0, limited=True)]


def test_the_whole_schedule_is_trained_in_the_time_that_there_is(clock: Clock) -> None:
    rates: list[float] = []
    recovered(clock, 30, on_step=lambda record: rates.append(record.lr))
    assert len(rates) == 26
    assert max(rates) > 50 * rates[-1]  # the learning rate has come down to nearly nothing


def test_a_plan_that_is_given_back_makes_the_same_network(clock: Clock) -> None:
    plans: list[Plan] = []
    first, second = damaged(network()), damaged(network())
    found = distill_(
        first, clock.of(network()), images(512), classes=True, plan=Plan(max_seconds=40), on_plan=plans.append
    )
    kept = Plan.from_json(json.loads(json.dumps(plans[0].to_json())))
    assert kept == plans[0] == found.plan
    clock.seconds = 1.5  # the machine is slower when the recovery is resumed, which does not matter now
    again = distill_(second, clock.of(network()), images(512), classes=True, plan=kept, on_plan=plans.append)
    assert plans[1] == plans[0]
    assert (again.steps, again.distance) == (found.steps, found.distance)
    assert same(state(first), state(second))


def test_timing_the_steps_leaves_nothing_behind() -> None:
    unlimited, limited = damaged(network()), damaged(network())
    distill_(unlimited, network(), images(512), classes=True)
    found = distill_(limited, network(), images(512), classes=True, plan=Plan(max_seconds=1e6))
    assert not found.plan.limited
    assert same(state(unlimited), state(limited))


def test_a_training_that_becomes_slow_is_stopped_at_twice_the_limit(clock: Clock) -> None:
    def slower(plan: Plan) -> None:
        clock.seconds = 5.0

    found = recovered(clock, 30, on_plan=slower)
    assert found.plan.steps == 26
    assert clock.now == 4 + 12 * 5  # 4 before the training
    assert found.steps == 12
    assert found.stopped == "26 steps take more than 2 times the planned seconds"
    assert (found.outcome, found.reason) == ("recovered", None)  # the network after one epoch
    assert found.distance[1] < found.distance[0]


@pytest.mark.parametrize(("least", "steps"), [(1, 20 * STEPS), (141, 141), (400, 400)])
def test_few_images_take_more_epochs(monkeypatch: pytest.MonkeyPatch, least: int, steps: int) -> None:
    monkeypatch.setattr(distillation, "LEAST_STEPS", least)
    found = distill_(damaged(network()), network(), images(512), classes=True)
    assert (found.steps, found.plan) == (steps, Plan(steps=steps))
    assert found.distance[1] < found.distance[0]


def test_epochs_are_a_limit_too(clock: Clock) -> None:
    found = distill_(damaged(network()), network(), images(512), classes=True, plan=Plan(epochs=2))
    assert (found.steps, found.plan.limited) == (2 * STEPS, False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_seconds": -1.0}, "the time of a recovery must be at least 0 seconds, got -1"),
        ({"max_seconds": math.nan}, "the time of a recovery must be at least 0 seconds, got nan"),
        ({"epochs": 0}, "the epochs of a recovery must be at least 1, got 0"),
        ({"steps": -1}, "the steps of a recovery must be at least 0, got -1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AmcError, match=message):
        Plan(**fields)


def test_a_training_that_diverges_is_said() -> None:
    class Fragile(nn.Module):
        """Fails to be finite once it was changed three times."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.steps = network(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.steps += torch.is_grad_enabled()
            y: torch.Tensor = self.inner(x)
            return y * math.nan if self.steps > self.allowed else y

        allowed = 3

    slim = Fragile()
    slim.inner = damaged(network())
    found = unchanged(slim, network(), images(512))
    assert (found.outcome, found.reason) == ("diverged", "the distance is nan at step 4 of training")
    slim.allowed, slim.steps = 10, 0  # an epoch has seven steps
    found = distill_(slim, network(), images(512), classes=True)
    assert (found.outcome, found.reason) == ("recovered", None)
    assert (found.steps, found.stopped) == (10, "the distance is nan at step 11 of training")
    assert found.distance[1] < found.distance[0]
