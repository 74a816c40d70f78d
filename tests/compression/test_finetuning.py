"""`amc.finetune` and `result.masks`: what a Python caller gives to fine-tuning and hears of it."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

import amc
from amc import recovery
from amc.errors import AmcError, EvaluationError
from tests.tiny import compress, labelled, tiny

QUICK = {"epochs": 2, "lr": 0.01}


class Heard(amc.Observer):
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def stage(self, name):
        self.calls.append(("stage", name))

    def training_step(self, step):
        self.calls.append(("step", step.step, step.total_steps))

    def epoch(self, epoch, score):
        self.calls.append(("epoch", epoch.epoch, score))

    def close(self):
        self.calls.append(("close",))


def test_it_trains_as_the_loop_does_in_place() -> None:
    mine, theirs = tiny(), tiny()
    train = labelled(mine, 64, 3)
    result = amc.finetune(mine, train, **QUICK)
    recovery.finetune(theirs, train, amc.FineTuneConfig(**QUICK))
    assert result.model is mine
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert not torch.equal(mine.a.weight, tiny().a.weight)


def test_an_observer_hears_every_step_and_epoch() -> None:
    model, heard = tiny(), Heard()
    train = labelled(model, 64, 3)
    result = amc.finetune(model, train, evaluate=lambda _: 0.25, observer=heard, **QUICK)
    steps = [("step", step, 4) for step in range(1, 5)]
    epochs = [("epoch", 1, 0.25), ("epoch", 2, 0.25)]
    assert heard.calls == [
        ("stage", "fine-tuning"), *steps[:2], epochs[0], *steps[2:], epochs[1], ("close",),
    ]  # fmt: skip
    assert [epoch.score for epoch in result.epochs] == [0.25, 0.25]


def test_without_evaluate_there_is_no_score(caplog: pytest.LogCaptureFixture) -> None:
    model, heard = tiny(), Heard()
    with caplog.at_level(logging.INFO, logger="amc"):
        result = amc.finetune(model, labelled(model, 32, 3), observer=heard, epochs=1)
    assert result.epochs[0].score is None
    assert ("epoch", 1, None) in heard.calls
    assert f"epoch 1: loss {result.epochs[0].loss:.6g}" in [record.getMessage() for record in caplog.records]


def test_a_loader_scores_by_name() -> None:
    model = tiny()
    data = labelled(model, 64, 3)
    result = amc.finetune(model, data, evaluate=data, score="balanced-accuracy", epochs=1)
    assert 0 < result.epochs[0].score <= 1


def test_progress_says_each_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    result = amc.finetune(model, labelled(model, 32, 3), evaluate=lambda _: 0.5, progress=True, epochs=1)
    out = capsys.readouterr()
    assert f"epoch 1: loss {result.epochs[0].loss:.3f}, score 50.00%" in out.err
    assert out.out == ""


def test_training_resumes_from_its_checkpoint(tmp_path) -> None:
    model = tiny()
    train = labelled(model, 64, 3)
    whole = amc.finetune(copy.deepcopy(model), train, **QUICK).model

    def stop(_: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 0.5

    calls: list[int] = []
    start = copy.deepcopy(model)
    with pytest.raises(KeyboardInterrupt):
        amc.finetune(copy.deepcopy(model), train, evaluate=stop, checkpoint=tmp_path / "a.ckpt", **QUICK)
    result = amc.finetune(start, train, checkpoint=tmp_path / "a.ckpt", **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), result.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lrr": 0.1}, "unknown setting 'lrr'; did you mean 'lr'?"),
        ({"epochs": 0}, "fine-tuning epochs is out of range: 0; it must be at least 1"),
        ({"score": "top7"}, "score 'top7' is unknown"),
        ({"evaluate": 3}, "evaluate is a int; give a function"),
        ({"distill": 0.5}, "needs a teacher"),
    ],
)
def test_a_wrong_setting_is_one_line(settings: dict[str, object], message: str) -> None:
    model = tiny()
    with pytest.raises(AmcError) as error:
        amc.finetune(model, labelled(model, 32, 3), **settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_evaluate_that_fails_names_the_network() -> None:
    model = tiny()

    def fails(_: nn.Module) -> float:
        raise ValueError("no data")

    with pytest.raises(EvaluationError, match="evaluate fails on the fine-tuned network"):
        amc.finetune(model, labelled(model, 32, 3), evaluate=fails, epochs=1)


def test_masks_keep_zeros_zero_and_let_the_rest_change() -> None:
    result = compress(tiny(), method="fine-grained", budget="params<=50%", episodes=2, baselines=())
    named = dict(result.model.named_parameters())
    assert set(result.masks) == {"a.weight", "b.weight", "c.weight", "head.weight"}
    assert all(mask.dtype == torch.bool and mask.shape == named[name].shape for name, mask in result.masks.items())
    assert sum(int((~mask).sum()) for mask in result.masks.values()) > 0
    before = {name: named[name].detach().clone() for name in result.masks}
    amc.finetune(result.model, labelled(tiny(), 64, 3), masks=result.masks, **QUICK)
    for name, mask in result.masks.items():
        assert not named[name][~mask].any()
        assert not torch.equal(named[name][mask], before[name][mask])


def test_a_slice_has_no_masks() -> None:
    assert compress(tiny(), episodes=1, baselines=()).masks == {}
