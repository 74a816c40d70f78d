"""The weights that a run began with, as its config.json names them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc.compression.load import check_weights, weights_key
from amc.errors import RunError
from amc.run.directory import RunDir
from amc.run.weights import digest


class Holder(nn.Module):
    """Nothing but one buffer, whose bytes could be those of several tensors."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("held", value)


WEIGHTS = torch.arange(6, dtype=torch.float32)
OTHERS = {
    "another shape": WEIGHTS.reshape(2, 3),
    "another type": WEIGHTS.view(torch.int32),
    "another value": WEIGHTS + 1,
}


def test_the_key_names_the_rule_and_the_digest() -> None:
    by_hand = hashlib.sha256(b"held torch.float32 [6] " + WEIGHTS.numpy().tobytes()).hexdigest()
    assert weights_key(Holder(WEIGHTS)) == {"weights_digest": f"2:{by_hand}"}


@pytest.mark.parametrize("other", OTHERS)
def test_only_the_same_weights_pass(tmp_path: Path, other: str) -> None:
    run = RunDir.create(tmp_path / "run", weights_key(Holder(WEIGHTS)))
    check_weights(run, Holder(WEIGHTS.clone()))
    with pytest.raises(RunError, match=r"was started with other weights; resume it with the weights of its config"):
        check_weights(run, Holder(OTHERS[other]))


def test_a_run_with_the_first_digest_is_checked_by_the_first_rule(tmp_path: Path) -> None:
    by_hand = hashlib.sha256(b"held" + WEIGHTS.numpy().tobytes()).hexdigest()
    run = RunDir.create(tmp_path / "run", {"weights_sha256": by_hand})
    for same in (WEIGHTS, OTHERS["another shape"], OTHERS["another type"]):  # which it could not tell apart
        check_weights(run, Holder(same))
    with pytest.raises(RunError, match="was started with other weights"):
        check_weights(run, Holder(OTHERS["another value"]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "was started with other weights"),
        ({"weights_digest": "3:00ff"}, r"weights_digest by another rule \('3:00ff'\), which this version cannot check"),
        ({"weights_digest": "00ff"}, r"weights_digest by another rule \('00ff'\)"),
    ],
)
def test_what_cannot_be_checked_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message) as refusal:
        check_weights(RunDir.create(tmp_path / "run", config), Holder(WEIGHTS))
    assert "\n" not in str(refusal.value)


def test_a_digest_is_of_the_values_wherever_they_lie() -> None:
    grid = torch.arange(6.0).reshape(2, 3)
    same = digest({"a": grid, "b": torch.zeros(0), "c": torch.tensor(True)})
    assert digest({"c": torch.tensor(True), "a": grid.T.contiguous().T, "b": torch.zeros(0)}) == same
    assert digest({"a": grid, "b": torch.zeros(0), "c": torch.tensor(False)}) != same
    assert digest({"a": grid, "b": torch.zeros(0, 2), "c": torch.tensor(True)}) != same
