"""The comparison that decides whether a file may be shipped."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from amc.deploy.parity import ParityError, check, difference
from amc.errors import ModelError


class Answers:
    """A session that returns given outputs."""

    def __init__(self, *outputs: Tensor) -> None:
        self.outputs = outputs

    def run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.outputs

    def close(self) -> None:
        return


def test_error_is_relative_to_the_largest_value() -> None:
    wanted = (torch.tensor([[10.0, -20.0, 0.0]]),)
    assert difference(wanted, (torch.tensor([[10.0, -20.0, 0.5]]),)) == pytest.approx(0.025)
    assert difference(wanted, wanted) == 0


def test_the_worst_output_counts() -> None:
    wanted = (torch.ones(2), torch.full((3,), 100.0))
    given = (torch.ones(2) + 1e-3, torch.full((3,), 150.0))
    assert difference(wanted, given) == pytest.approx(0.5)


def test_zeros_are_compared_absolutely() -> None:
    assert difference((torch.zeros(3),), (torch.full((3,), 0.25),)) == 0.25


def test_nan_is_infinitely_wrong() -> None:
    assert difference((torch.ones(2),), (torch.tensor([1.0, math.nan]),)) == math.inf


def test_case_above_the_tolerance_is_named() -> None:
    module, x = nn.Identity(), torch.tensor([[1.0, 2.0]])
    assert check(module, Answers(x + 1e-4), {"random": (x,)}, 1e-3) == {"random": pytest.approx(5e-5, rel=1e-2)}
    with pytest.raises(
        ParityError, match=r"differs from the network by 5\.0e-01 .* on real inputs, more than the allowed 1e-03"
    ):
        check(module, Answers(x + 1), {"real": (x,)}, 1e-3)


def test_shapes_must_agree() -> None:
    x = torch.ones(1, 5)
    with pytest.raises(ParityError, match=r"the file gives \[1, 1, 5\] .*the network gives \[1, 5\]"):
        check(nn.Identity(), Answers(x[None]), {"random": (x,)}, 1e-3)
    assert check(nn.Identity(), Answers(x[None]), {"random": (x,)}, 1e-3, loose=True) == {"random": 0.0}
    with pytest.raises(ParityError, match=r"the file gives \[5, 2\]"):
        check(nn.Identity(), Answers(torch.ones(5, 2)), {"random": (x,)}, 1e-3, loose=True)


def test_a_network_that_gives_nan_is_the_users_fault() -> None:
    x = torch.tensor([math.nan])
    with pytest.raises(ModelError, match="own output on random inputs is not finite"):
        check(nn.Identity(), Answers(x), {"random": (x,)}, 1e-3)


def test_a_session_that_fails_says_where() -> None:
    class Broken(Answers):
        def run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            raise RuntimeError("kernel failed in operator aten::_fft_r2c.out\nand more")

    with pytest.raises(ParityError, match=r"fails on random inputs in operator aten\._fft_r2c: kernel failed"):
        check(nn.Identity(), Broken(), {"random": (torch.ones(1),)}, 1e-3)
