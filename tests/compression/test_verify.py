"""What a journal says is checked against the network and the data at hand before it becomes a result."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import amc
from amc.cli.jobs import finetune_state
from amc.cli.jobs.finetune import run_finetune
from amc.compression.verify import Recorded, reconciled
from amc.errors import RunError
from amc.run.directory import RunDir
from amc.run.provenance import data_fingerprint, difference, execution, instructions
from amc.search import JournalContent, load_journal
from tests.fixtures.runs import make
from tests.tiny import compress, images, labelled, tiny

HALF = 3


def stopping(after: int = HALF) -> make.Watch:
    return make.Watch(episode=after, agent="random")


def search(run: Path, **changes: Any) -> amc.Result:
    return compress(tiny(), run_dir=run, **{"agent": "random", **changes})


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A search that was stopped after three of its six episodes."""
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", observer=stopping())
    return tmp_path / "run"


def edit(run: Path, change: Callable[[list[dict[str, Any]]], None], *, forge: bool = True) -> None:
    """Change the journal's records; with `forge`, as someone who computes the digests anew."""
    path = run / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    last, written = "", []
    for line in lines:
        old = line.pop("sum", "")
        text = json.dumps(line)
        last = hashlib.sha256((last + text).encode()).hexdigest()[:16] if forge else old
        written.append(f'{text[:-1]}, "sum": "{last}"}}\n' if old else f"{text}\n")
    path.write_text("".join(written))


def cheat(lines: list[dict[str, Any]]) -> None:
    lines[-1] |= {"score": 0.9999, "reward": 0.9999 - 1}


def warnings(run: Path) -> str:
    return "\n".join(RunDir.open(run).read_json("summary.json")["warnings"])


def test_a_search_in_the_same_place_on_the_same_data_says_nothing(cut: Path, tmp_path: Path) -> None:
    resumed, whole = search(cut, resume=True), search(tmp_path / "whole")
    assert resumed.summary["warnings"] == whole.summary["warnings"]
    for name in ("journal.jsonl", "journal-uniform.jsonl", "policy.json", "model.safetensors"):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_header_has_the_place_the_dense_score_and_the_data(cut: Path) -> None:
    origin = load_journal(cut / "journal.jsonl").origin
    assert origin["environment"] == execution()
    assert set(execution()) == {"amc", "torch", "threads", "instructions"}
    assert execution()["threads"] == torch.get_num_threads()
    assert origin["dense_score"] == 1.0
    assert origin["data"]["calibration"] == data_fingerprint([images(32, 1), images(32, 2)])
    assert origin["data"]["search"] is not None


def test_an_edited_score_never_becomes_the_result(cut: Path) -> None:
    edit(cut, cheat, forge=False)
    with pytest.raises(RunError, match=r"journal\.jsonl is corrupt in line 4"):
        search(cut, resume=True)
    edit(cut, cheat)  # with the digests put right, the network's own score tells
    with pytest.raises(
        RunError, match=r"episode 2 in '.*journal\.jsonl' has the recorded score 0\.9999, and its network now scores"
    ):
        search(cut, resume=True)
    assert not (cut / "summary.json").exists()


def test_an_edited_score_of_another_place_is_measured_again(cut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(cut, cheat)
    monkeypatch.setattr("amc.compression.prepare.execution", lambda *_: execution() | {"torch": "9.9"})
    result = search(cut, resume=True)
    evaluator = amc.compression.scoring.evaluator.Evaluator(labelled(tiny(), 96, 5))
    assert result.summary["slim"]["score"] == evaluator(result.model) < 0.9999
    assert "scored 0.9999 before" in warnings(cut)
    assert "the new one counts" in warnings(cut)


def test_an_edited_score_of_an_old_journal_is_measured_again(cut: Path) -> None:
    def as_old(lines: list[dict[str, Any]]) -> None:
        cheat(lines)
        lines[0] = {key: value for key, value in lines[0].items() if key != "origin"} | {"journal": 1}
        for line in lines:
            line.pop("sum")

    edit(cut, as_old)
    (cut / "journal-uniform.jsonl").unlink()
    result = search(cut, resume=True)
    assert result.summary["slim"]["score"] < 0.9999
    assert "scored 0.9999 before" in warnings(cut)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cost": {"macs": 1, "params": 1, "size": 1}}, r"episode 2 in .* has 1\.0 macs, and its policy costs"),
        ({"cost": {}}, r"episode 2 in .* has None macs"),
        ({"reward": -1e-3}, r"episode 2 in .* has reward -0\.001, and its score and costs give"),
        ({"keep": [10, 12]}, r"episode 2 in .* keeps \[10, 12\], which is no policy of this search"),
        ({"keep": [10, 12, 999]}, r"episode 2 in .* which is no policy of this search"),
    ],
    ids=["costs", "no costs", "reward", "too short", "too large"],
)
def test_costs_and_rewards_are_computed_again(cut: Path, change: dict[str, Any], words: str) -> None:
    edit(cut, lambda lines: lines[-1].update(change))
    before = (cut / "journal.jsonl").read_bytes()
    with pytest.raises(RunError, match=words) as refusal:
        search(cut, resume=True)
    assert "delete the line of episode 2 and all after it" in str(refusal.value)
    assert (cut / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"calibration": [images(32, 1), images(32, 3)]}, "calibration images"),
        ({"calibration": [images(32, 2), images(32, 1)]}, "calibration images"),
        ({"evaluate": [(x, y) for x, y in labelled(tiny(), 96, 6)]}, "search images"),
        ({"evaluate": [(x, y.roll(1)) for x, y in labelled(tiny(), 96, 5)]}, "search images"),
    ],
    ids=["others", "another order", "other search images", "other labels"],
)
def test_other_data_is_refused(cut: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(RunError, match=f"was begun with other {what}; give the same ones in the same order"):
        search(cut, resume=True, **changes)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("torch", "9.9", "torch {}, now 9.9"),
        ("amc", "9.9", "amc {}, now 9.9"),
        ("threads", 99, "threads {}, now 99"),
        ("instructions", "SSE41", "instruction set {}, now SSE41"),
    ],
)
def test_another_machine_is_reported_and_recorded(
    cut: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, words: str
) -> None:
    before = execution()
    monkeypatch.setattr("amc.compression.prepare.execution", lambda *_: before | {key: value})
    watch = make.Watch()
    search(cut, resume=True, observer=watch)
    expected = (
        f"part of this search was scored elsewhere ({words.format(before[key])}): the result may differ in the last"
    )
    assert len([text for text in watch.warnings if text.startswith(expected)]) == 1
    assert expected in warnings(cut)
    assert load_journal(cut / "journal.jsonl").places == (before, before | {key: value})


def test_having_been_elsewhere_is_not_forgotten(cut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = execution()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("amc.compression.prepare.execution", lambda *_: here | {"threads": 99})
        with pytest.raises(KeyboardInterrupt):
            search(cut, resume=True, observer=stopping(HALF + 1))
    search(cut, resume=True)
    assert "scored elsewhere (threads 99, now" in warnings(cut)


def counting(scores: Callable[[int, nn.Module], float]) -> Callable[[nn.Module], float]:
    calls = itertools.count()
    return lambda module: scores(next(calls), module)


def width(module: nn.Module) -> float:
    """A score that follows from the network: what is kept of its channels."""
    return sum(layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)) / 30


def test_another_dense_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", evaluate=width, observer=stopping())
    message = r"the dense network of '.*' has the recorded score 1, and its network now scores 0\.5"
    with pytest.raises(RunError, match=message):
        search(tmp_path / "run", evaluate=lambda module: width(module) / 2, resume=True)


def test_an_evaluate_that_is_not_deterministic_goes_on_with_a_warning(tmp_path: Path) -> None:
    noisy = counting(lambda call, module: width(module) + 0.001 * call)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", evaluate=noisy, observer=stopping())
    result = search(tmp_path / "run", evaluate=noisy, resume=True)
    assert "evaluate gives one network different scores" in warnings(tmp_path / "run")
    assert result.summary["slim"]["score"] != result.search.best.score
    assert result.summary["slim"]["score"] == pytest.approx(width(result.model), abs=0.05)


def test_scores_that_differ() -> None:
    def unused() -> float:
        raise AssertionError

    assert reconciled(0.5, 0.5 + 1e-7, unused, "it", refuse=True) == (0.5, [])
    score, warnings = reconciled(0.9, 0.5, lambda: 0.51, "it", refuse=True)
    assert (score, len(warnings)) == (0.5, 1)
    score, warnings = reconciled(0.9, 0.5, lambda: 0.5, "it", refuse=False)
    assert (score, warnings[0][:50]) == (0.5, "it scored 0.9 before and 0.5 when scored again (the"[:50])
    with pytest.raises(RunError, match=r"it has the recorded score 0\.9, and its network now scores 0\.5"):
        reconciled(0.9, 0.5, lambda: 0.5, "it", refuse=True)


def test_fingerprints_of_data() -> None:
    x, y = torch.arange(6.0), torch.arange(3)
    by_hand = hashlib.sha256(b"torch.float32 [6];" + x.numpy().tobytes() + b"torch.int64 [3];" + y.numpy().tobytes())
    assert data_fingerprint([x, y]) == by_hand.hexdigest()
    example = amc.structure.trace.Example
    for same in ((x.clone(), y), [[x], (y,)], {"b": y, "a": x}, [example((x,), {"y": y})]):
        assert data_fingerprint(same) == by_hand.hexdigest()
    different = [[x, y], [y, x], [x], [x.reshape(2, 3), y], [x.double(), y], [x + 1, y], {"a": y, "b": x}]
    assert len({data_fingerprint(data) for data in different}) == len(different) - 1  # the last is the second
    assert data_fingerprint(x.reshape(2, 3).T) == data_fingerprint(x.reshape(2, 3).T.contiguous())


def test_instruction_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu avx2 fma avx512f sse\nprocessor : 1\nflags : avx2\n")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    assert instructions(tmp_path) == f"{capability} avx2 avx512f"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert instructions(tmp_path) == f"{capability} avx2 avx512f oneDNN<=AVX2"
    assert instructions(tmp_path / "nowhere") == f"{capability} oneDNN<=AVX2"


def test_a_fine_tuning_that_goes_on_elsewhere_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, watch, here = tmp_path / "run", make.Watch(), execution()
    make.KINDS["cut-tuned"](run)
    monkeypatch.setattr(finetune_state, "execution", lambda: here | {"threads": 99})
    run_finetune(run, progress=watch)
    text = f"part of this fine-tuning ran elsewhere (threads {here['threads']}, now 99): the weights may differ"
    assert [warning for warning in watch.warnings if warning.startswith(text)]
    assert text in warnings(run)


@pytest.mark.parametrize(
    ("places", "bf16", "engine"),
    [
        ([], False, "torch"),  # of the first version of the journal
        ([{"torch": "2.13"}], False, "torch"),
        ([{"torch": "2.13"}], True, "torch bfloat16"),  # bfloat16 was not measured then
        ([{"engine": "onnxruntime 1.30"}, {"engine": "torch"}], False, "torch"),
        ([{"engine": "torch"}, {"engine": "onnxruntime 1.30"}], False, "onnxruntime 1.30"),
    ],
)
def test_a_journal_names_the_engine_of_its_last_session(places: list[dict[str, Any]], bf16: bool, engine: str) -> None:
    content = JournalContent({"journal": 2}, (), tuple(places))
    assert Recorded({Path("journal.jsonl"): content}).engine(bf16=bf16) == engine


def test_without_a_journal_no_engine_is_recorded() -> None:
    assert Recorded({}).engine(bf16=True) is None


def test_plain_torch_need_not_be_recorded() -> None:
    here = {"amc": "1", "torch": "2", "threads": 1, "instructions": "AVX2"}
    assert difference(here, {**here, "engine": "torch"}) is None
    assert difference(here, {**here, "engine": "onnxruntime 1.30"}) == "engine torch, now onnxruntime 1.30"
