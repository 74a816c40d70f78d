"""Which engine a search gets."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import amc
from amc.compression.scoring.engine import choice, onnx_operators
from amc.compression.scoring.engine.base import Engine, TorchEngine
from amc.compression.scoring.engine.choice import Task, choose_engine
from amc.compression.scoring.engine.network import PiecewiseEngine
from amc.compression.scoring.evaluator import Evaluator
from amc.search import load_journal
from amc.structure.trace import Example
from tests.threads import one_thread  # noqa: F401 -- a fixture

BIG = 10**9  # multiply-accumulates of an image: as of a network that is worth a choice


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 4)).eval()


def task(model: nn.Module | None = None, macs: int = BIG) -> Task:
    torch.manual_seed(1)
    return Task(model or net(), [Example.of(torch.randn(8, 3, 8, 8)) for _ in range(4)], macs)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what each engine is measured to take, by name."""

    def set_to(**taken: float) -> None:
        def seconds(engine: Engine, task: Task) -> float:
            return taken[engine.name.replace(" ", "_").partition("_1.")[0]]

        monkeypatch.setattr(choice, "seconds", seconds)

    return set_to


def kind(engine: Engine) -> str:
    return f"{type(engine).__name__} {engine.name.partition(' 1.')[0]}"


def test_much_work_is_onnx_runtimes_whatever_the_clock_says(clock: Callable[..., None]) -> None:
    clock()  # no measurement
    enough = int(choice.WORTH // 32)  # 4 batches of 8 images
    chosen = choose_engine(task(macs=enough), "auto")
    assert (kind(chosen.engine), chosen.warnings) == ("PiecewiseEngine onnxruntime", ())
    assert kind(choose_engine(task(macs=enough - 1), "auto").engine) == "TorchEngine torch"


def test_a_setting_decides(clock: Callable[..., None]) -> None:
    clock()
    assert kind(choose_engine(task(), "onnxruntime").engine) == "PiecewiseEngine onnxruntime"
    assert kind(choose_engine(task(macs=1), "onnxruntime").engine) == "PiecewiseEngine onnxruntime"
    assert kind(choose_engine(task(), "torch").engine) == "PiecewiseEngine torch"


def test_images_that_are_not_in_memory_are_torchs() -> None:
    assert kind(choose_engine(Task(net(), [], BIG), "onnxruntime").engine) == "TorchEngine torch"


@pytest.mark.gpu
def test_networks_on_a_gpu_are_torchs() -> None:
    assert kind(choose_engine(task(net().cuda()), "onnxruntime").engine) == "TorchEngine torch"


def test_a_resumed_run_keeps_its_engine(clock: Callable[..., None]) -> None:
    clock()  # no measurement
    assert kind(choose_engine(task(), "auto", recorded="onnxruntime 1.0").engine) == "PiecewiseEngine onnxruntime"
    assert kind(choose_engine(task(), "auto", recorded="torch").engine) == "PiecewiseEngine torch"
    assert kind(choose_engine(task(), "auto", bf16=True, recorded="torch").engine) == "PiecewiseEngine torch"
    kept = choose_engine(task(), "auto", bf16=True, recorded="torch bfloat16")
    assert (kind(kept.engine), kept.warnings) == ("TorchEngine torch bfloat16", ())


def test_bfloat16_is_used_where_it_is_fastest(clock: Callable[..., None]) -> None:
    clock(torch=2.0, onnxruntime=1.0, torch_bfloat16=0.9)
    chosen = choose_engine(task(), "auto", bf16=True)
    assert (kind(chosen.engine), chosen.warnings) == ("TorchEngine torch bfloat16", ())


def test_slow_bfloat16_is_switched_off_with_the_measured_ratio(clock: Callable[..., None]) -> None:
    clock(torch=2.0, onnxruntime=0.5, torch_bfloat16=1.7)
    chosen = choose_engine(task(), "auto", bf16=True)
    assert kind(chosen.engine) == "PiecewiseEngine onnxruntime"
    (warning,) = chosen.warnings
    assert warning.startswith(
        "bfloat16 is switched off: measured here, it takes 3.4 times as long as float32 with onnx"
    )


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


def only_warning(model: nn.Module) -> str:
    chosen = choose_engine(task(model), "auto")
    assert kind(chosen.engine) == "PiecewiseEngine torch"
    assert len(chosen.warnings) == 1
    return chosen.warnings[0]


SAID = "networks are scored with torch, because ONNX Runtime cannot run them: "


def test_an_unknown_operator_is_said() -> None:
    assert only_warning(nn.Sequential(net(), Odd())) == f"{SAID}operator aten.cumsum.default"


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "amc.compression.scoring.engine.onnx_piece", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert only_warning(net()) == f"{SAID}package onnxruntime is not installed"


def test_a_disagreement_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(onnx_operators.CONVERTERS, "relu", onnx_operators.CONVERTERS["sigmoid"])
    assert only_warning(net()) == f"{SAID}its outputs differ from torch's"


def test_a_disagreement_on_later_images_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clamp at 50 changes nothing on the first images, and everything on one of the second batch."""
    monkeypatch.setitem(
        onnx_operators.CONVERTERS, "relu", lambda g, self: onnx_operators.CONVERTERS["clamp"](g, self, 0.0, 50.0)
    )
    given = task()
    assert kind(choose_engine(given, "onnxruntime").engine) == "PiecewiseEngine onnxruntime"
    given.batches[1].args[0][7] *= 1000
    assert choose_engine(given, "onnxruntime").warnings == (f"{SAID}its outputs differ from torch's",)


def test_a_network_that_nothing_can_record_is_called() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.mean() > 0 else -x.flatten(1)

    chosen = choose_engine(task(Branching()), "auto")
    assert kind(chosen.engine) == "TorchEngine torch"
    assert chosen.warnings[0].startswith(SAID)


# Whole searches


def data() -> dict[str, Any]:
    g = torch.Generator().manual_seed(3)
    images, labels = torch.randn(96, 3, 8, 8, generator=g), torch.randint(0, 4, (96,), generator=g)
    return {"calibration": [images[:48]], "evaluate": [(images[48:72], labels[48:72]), (images[72:], labels[72:])]}


def search(run: Path, **settings: Any) -> Any:
    example = torch.zeros(1, 3, 8, 8)
    return amc.compress(net(), example, **data(), run_dir=run, **{"episodes": 6, "bn_images": 24, **settings})


def records(run: Path) -> list[Any]:
    return list(load_journal(run / "journal.jsonl").records)


def test_both_engines_give_the_same_journal(tmp_path: Path) -> None:
    for name in ("torch", "onnxruntime"):
        search(tmp_path / name, engine=name)
    assert records(tmp_path / "onnxruntime") == records(tmp_path / "torch")
    torchs, onnxs = (load_journal(tmp_path / name / "journal.jsonl").places[0] for name in ("torch", "onnxruntime"))
    assert "engine" not in torchs
    assert onnxs == {**torchs, "engine": onnxs["engine"]}
    assert onnxs["engine"].startswith("onnxruntime 1.")


def test_a_search_that_is_cut_short_goes_on_with_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "WORTH", 0)
    search(tmp_path / "whole")

    class Stop(amc.Observer):
        def episode(self, agent: str, record: Any, timing: Any) -> None:
            if (agent, record.episode) == ("planner", 2):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "cut", observer=Stop())
    monkeypatch.setattr(choice, "WORTH", 4e9)  # torch would be chosen now
    search(tmp_path / "cut", resume=True)
    whole, cut = ((tmp_path / name / "journal.jsonl").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert b'"engine": "onnxruntime' in whole


def test_a_run_without_a_recorded_engine_goes_on_with_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search(tmp_path / "run", engine="auto", episodes=3)  # little work
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    (tmp_path / "run" / "journal.jsonl").write_bytes(before[: before.rindex(b'{"episode": 2')])
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setattr(choice, "WORTH", 0)
    search(tmp_path / "run", engine="auto", episodes=3, resume=True)
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before


def test_what_an_engine_says_during_the_search_is_in_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = PiecewiseEngine._checked
    checks: list[int] = []

    def refusing(self: PiecewiseEngine, module: nn.Module) -> Any:
        checks.append(1)
        if len(checks) > 4:
            raise choice.UnfitError("it is Tuesday")
        return dense(self, module)

    monkeypatch.setattr(PiecewiseEngine, "_checked", refusing)
    result = search(tmp_path / "run", engine="onnxruntime")
    said = [warning for warning in result.summary["warnings"] if "Tuesday" in warning]
    assert len(said) == 1
    assert said[0].startswith("some networks are scored with torch instead of onnxruntime 1.")
    search(tmp_path / "torch", engine="torch")
    assert records(tmp_path / "run") == records(tmp_path / "torch")


def test_the_callers_own_evaluator_keeps_its_engine() -> None:
    mine = Evaluator(data()["evaluate"])
    result = amc.compress(
        net(), torch.zeros(1, 3, 8, 8), calibration=data()["calibration"], evaluate=mine, engine="onnxruntime",
        episodes=2, bn_images=24,
    )  # fmt: skip
    assert kind(mine.engine) == "TorchEngine torch"
    assert result.summary["engine"].startswith("onnxruntime 1.")


def test_torch_calls_the_network() -> None:
    model, x = net(), torch.randn(4, 3, 8, 8)
    with TorchEngine().running(model) as run:
        assert torch.equal(run(Example.of(x)), model(x))
    with TorchEngine(autocast=True).running(model) as run:
        assert run(Example.of(x)).dtype == torch.bfloat16
