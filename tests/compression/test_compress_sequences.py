"""The whole job on networks with recurrent layers and with weights that are used through functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amc
from amc.errors import ModelError
from tests.structure.sequences import Gpt, Recogniser
from tests.structure.test_counting import Moody


def distilled(model: nn.Module, x: Tensor) -> Any:
    """A score: how close a network's answers are to those of `model`, 1 at best."""
    with torch.no_grad():
        wanted = model.eval()(x)

    def score(other: nn.Module) -> float:
        with torch.no_grad():
            return 1 / (1 + float((other(x) - wanted).square().mean()))

    return score


def search(model: nn.Module, x: Tensor, run: Path | None = None, **options: Any) -> amc.Result:
    settings = {"budget": "macs<=50%", "episodes": 3, "keep_sets": 1, "seed": 0} | options
    return amc.compress(model, x[:1], calibration=[x], evaluate=distilled(model, x), run_dir=run, **settings)


def recogniser() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Recogniser(hidden=24, bidirectional=True).eval(), torch.randn(16, 1, 8, 12)


def gpt() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Gpt().eval(), torch.randint(0, 50, (16, 6))


# 12 columns of 8 rows; the LSTM's two directions take 4 * 8 features and their own 24 units
RECOGNISER = 8 * 12 * 9 * (6 + 24) + 12 * 2 * 4 * 24 * (32 + 24) + 2 * 24 * 5
GPT = 2 * (6 * 24 * (3 * 24 + 24 + 2 * 40) + 2 * 4 * 6 * 6 * 6) + 24 * 5


@pytest.mark.parametrize("keep_sets", [0, 1])
def test_a_recurrent_network_is_sliced_within_its_budget(tmp_path: Path, keep_sets: int) -> None:
    model, x = recogniser()
    result = search(model, x, tmp_path / "run", keep_sets=keep_sets)
    counts = dict(zip([group.name for group in result.policy.groups], result.policy.keep_counts, strict=True))
    first, second, hidden = (counts[name] for name in ("first", "second", "rnn.weight_ih_l0"))
    slim = 8 * 12 * 9 * (first + first * second) + 12 * 2 * 4 * hidden * (8 * second + hidden) + 2 * hidden * 5
    assert result.summary["dense"]["macs"] == RECOGNISER
    assert result.summary["slim"]["macs"] == slim == amc.count_macs(result.model, x[:1]) <= RECOGNISER / 2
    assert (result.model.rnn.hidden_size, result.model.rnn.input_size) == (hidden, 8 * second)
    again = amc.load_run(tmp_path / "run", model, x[:1])
    with torch.no_grad():
        torch.testing.assert_close(again(x), result.model(x))


@pytest.mark.parametrize("method", ["fine-grained", "2:4"])
def test_recurrent_weights_are_masked_within_the_budget(method: str) -> None:
    model, x = recogniser()
    result = search(model, x, method=method, budget="macs<=60%")
    assert result.summary["dense"]["macs"] == RECOGNISER
    assert result.summary["slim"]["macs"] <= 0.6 * RECOGNISER
    rows = {entry.name: entry.kept / entry.size for entry in result.policy.groups}
    assert rows["rnn.weight_hh_l0"] < 1
    weight = result.model.rnn.weight_hh_l0
    assert int(torch.count_nonzero(weight)) == round(rows["rnn.weight_hh_l0"] * weight.numel())


def test_a_gpt2_loses_heads_and_hidden_units() -> None:
    model, x = gpt()
    result = search(model, x, budget="macs<=75%")
    kept = {entry.name: entry.kept for entry in result.policy.groups}
    expected = 24 * 5
    for block in (0, 1):
        heads, hidden = kept[f"h.{block}.c_attn"], kept[f"h.{block}.c_fc"]
        expected += 6 * 24 * (4 * 6 * heads + 2 * hidden) + 2 * heads * 6 * 6 * 6
    assert result.summary["dense"]["macs"] == GPT
    assert amc.count_macs(result.model, x[:1]) == result.summary["slim"]["macs"] == expected <= 0.75 * GPT


@pytest.mark.parametrize("method", ["fine-grained", "2:4", "blocks:4x4"])
def test_a_gpt2_is_masked_in_every_block(method: str, tmp_path: Path) -> None:
    """Before, no weight of GPT-2 was known as a layer but the head: there was nothing to mask."""
    model, x = gpt()
    result = search(model, x, tmp_path / "run", method=method, budget="params<=70%")
    names = [entry.name for entry in result.policy.groups]
    assert names == [f"h.{i}.{part}" for i in (0, 1) for part in ("c_attn", "c_proj", "c_fc", "c_out")] + (
        ["head"] if "head" in names else []
    )
    assert result.summary["slim"]["params"] <= 0.7 * amc.count_params(model)
    zeros = sum(int((p == 0).sum()) for p in result.model.parameters() if p.ndim == 2)
    assert result.summary["slim"]["params"] == amc.count_params(model) - zeros
    with torch.no_grad():
        torch.testing.assert_close(amc.load_run(tmp_path / "run", model, x[:1])(x), result.model(x))


@pytest.mark.parametrize("options", [{"keep_sets": 0}, {"keep_sets": 1}, {"method": "fine-grained"}], ids=str)
def test_a_cost_that_is_not_torchs_stops_the_job_before_anything_is_scored(options: dict[str, Any]) -> None:
    model, x = Moody().eval(), torch.randn(5, 6)

    def never(_: nn.Module) -> float:
        raise AssertionError("scored")

    with pytest.raises(ModelError, match=r"torch counts .* in 'head\.1' .*aten\.mm"):
        amc.compress(model, x, calibration=[x], evaluate=never, budget="macs<=50%", episodes=1, **options)
