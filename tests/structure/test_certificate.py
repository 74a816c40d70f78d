"""The certificate finds structures that are wrong, locks exactly the offenders, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.errors import ModelError
from amc.structure import certify, inspect
from amc.structure.rules import registry
from tests.structure.checks import assert_costs_are_counted, assert_sliced_is_masked, random_keep
from tests.structure.toys import CASES, Concat, Residual, image


@pytest.mark.parametrize("name", ["residual, zero padding", "shuffle", "u-net", "yolo block", "tied embedding"])
def test_a_right_structure_passes(name: str) -> None:
    model, x = CASES[name]()
    structure = inspect(model, x)
    same, certificate = certify(model, structure, x, keep_sets=4, seed=3)
    assert certificate.passed
    assert (certificate.to_json()["passed"], certificate.to_json()["locked"]) == (True, [])
    assert certificate.keep_sets == 4
    assert certificate.worst_error < 1e-12
    assert [g.name for g in same.groups] == [g.name for g in structure.groups]


def test_a_wrong_rule_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A padding rule that forgets the zeros in front: the sums that follow are misaligned by two channels."""
    right = registry._RULES["pad"]

    def wrong(ctx, x, padding, *rest):  # type: ignore[no-untyped-def]
        dims = list(right(ctx, x, padding, *rest))
        if dims[1] is not None:
            dims[1] = np.roll(dims[1], 2)
        return tuple(dims)

    monkeypatch.setitem(registry._RULES, "pad", wrong)
    model, x = Residual("padding"), image()
    structure, certificate = certify(model, inspect(model, x), x)
    assert [name for name, _ in certificate.failed] == ["stem"]
    assert "differs from the masked one" in certificate.failed[0][1].reason
    assert certificate.to_json() == {
        "keep_sets": 3,
        "worst_error": certificate.worst_error,
        "passed": False,
        "locked": ["stem"],
    }
    assert [g.name for g in structure.groups] == ["a1", "b1"]
    assert_sliced_is_masked(model, structure, x, random_keep(structure, 0))


class Literal(nn.Module):
    """Between two honest layers, one whose width the forward insists on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 5, 1)
        self.d = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(self.a(x)))
        x = self.c(x.narrow(1, 0, 8))
        return self.d(x.mean((2, 3)))


def test_bisection_locks_only_the_literal_size_and_names_its_line() -> None:
    model, x = Literal(), image()
    structure = inspect(model, x)
    assert [g.name for g in structure.groups] == ["a", "b", "c"]
    certified, certificate = certify(model, structure, x)
    assert [name for name, _ in certificate.failed] == ["b"]
    lock = certificate.failed[0][1]
    assert "insists on a literal size" in lock.reason
    assert "test_certificate.py:" in lock.source
    assert [g.name for g in certified.groups] == ["a", "c"]
    assert certified.locked[-1].name == "b"
    keep = random_keep(certified, 1)
    assert_costs_are_counted(assert_sliced_is_masked(model, certified, x, keep), certified, x, keep)


def test_several_offenders_are_all_found() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(9))

        def forward(self, x: Tensor) -> Tensor:
            for index, layer in enumerate(self.layers):
                x = layer(x).relu()
                if index in (1, 4, 5):
                    x = x.reshape(-1, 6)
            return x

    model, x = Many(), torch.randn(2, 6)
    _, certificate = certify(model, inspect(model, x), x)
    assert [name for name, _ in certificate.failed] == ["layers.1", "layers.4", "layers.5"]


def test_it_is_reproducible_and_leaves_the_model_and_torch_alone() -> None:
    model, x = Concat(), image()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    structure = inspect(model, x)
    first, second = (certify(model, structure, x, seed=5)[1] for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_weights_of_zero_do_not_hide_a_mistake() -> None:
    """Layer scale and last batch norms start at zero in many networks: certified weights are random instead."""
    model, x = Literal(), image()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    _, certificate = certify(model, inspect(model, x), x)
    assert [name for name, _ in certificate.failed] == ["b"]


def test_a_forward_in_single_precision_is_checked_in_single_precision() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
            self.table = torch.eye(4)  # neither a parameter nor a buffer: `double()` does not reach it

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x @ self.table).relu())

    model, x = Single(), torch.randn(2, 4)
    structure, certificate = certify(model, inspect(model, x), x)
    assert certificate.passed
    assert certificate.worst_error < 1e-3
    assert [g.size for g in structure.groups] == [6]


def test_a_network_that_returns_nothing_but_nan_is_refused() -> None:
    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) * float("nan")

    model, x = Bad(), torch.randn(2, 4)
    with pytest.raises(ModelError, match="cannot be certified"):
        certify(model, inspect(model, x), x)


def test_a_forward_that_is_random_is_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) + torch.rand(3)

    model, x = Noisy(), torch.randn(2, 4)
    with pytest.raises(ModelError, match=r"does not reproduce itself|random in eval mode"):
        certify(model, inspect(model, x), x)
