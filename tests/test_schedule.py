"""Rounds of search, pruning and fine-tuning: what each reaches, and that a kill anywhere changes nothing."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import amc as library
from amc.errors import AmcError
from amc.jobs import parse_schedule
from amc.storage import read_state
from amc.zoo import load_data
from tests.commands import amc

QUICK = ("--episodes", 4, "--search-images", 50, "--calibration-images", 128, "--certify", 0, "--bn-images", 64)
ROUNDS = ("--schedule", "0.6,0.4", "--round-epochs", 1)


@pytest.fixture(scope="module", params=["channel", "fine-grained"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A schedule that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = amc("search", "digits_cnn", "--method", request.param, *ROUNDS, *QUICK, "--out", run)
    assert done.code == 0, done.stderr
    return run


def summary_of(run: Path) -> Any:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def test_every_round_holds_its_share_of_the_first_network(whole: Path) -> None:
    summary = summary_of(whole)
    metric = "macs" if summary["method"] == "channel" else "params"
    first = summary_of(whole / "round-1")["dense"]
    assert summary["dense"] == first
    assert [row["fraction"] for row in summary["rounds"]] == [0.6, 0.4]
    for number, row in enumerate(summary["rounds"], start=1):
        assert 0.85 * row["fraction"] <= row[metric] / first[metric] <= row["fraction"]
        assert row["score_finetuned"] == summary_of(whole / f"round-{number}")["slim"]["score_finetuned"]
        stored = read_state(whole / f"round-{number}" / "model-finetuned.safetensors")
        if metric == "params":
            kept = sum(int(torch.count_nonzero(v)) for name, v in stored.items() if "running" not in name)
            kept -= sum(name.endswith("num_batches_tracked") for name in stored)
            assert kept <= row[metric]


def test_a_round_starts_from_the_weights_the_last_one_ended_with(whole: Path) -> None:
    second = json.loads((whole / "round-2" / "config.json").read_text(encoding="utf-8"))
    assert Path(second["parent"]) == Path("../round-1")
    before, after = (summary_of(whole / name) for name in ("round-1", "round-2"))
    assert after["dense"]["score"] == before["slim"]["score_finetuned"]


def test_the_last_round_is_what_a_schedule_loads_wherever_it_lies(whole: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(whole, tmp_path / "elsewhere"))
    stored = read_state(whole / "round-2" / "model-finetuned.safetensors")
    loaded = library.load_run(moved).state_dict()
    assert {name: value.shape for name, value in loaded.items()} == {n: value.shape for n, value in stored.items()}
    assert all(torch.equal(value, stored[name]) for name, value in loaded.items())
    images, labels = next(iter(load_data("digits").test.batches(400)))
    accuracy = (library.load_run(moved)(images).argmax(1) == labels).float().mean()
    assert float(accuracy) == pytest.approx(summary_of(whole)["rounds"][-1]["test_finetuned"])


@pytest.mark.slow
def test_killed_in_any_part_of_any_round_and_resumed(whole: Path, tmp_path: Path) -> None:
    run, method = tmp_path / "run", summary_of(whole)["method"]
    start: tuple[Any, ...] = ("search", "digits_cnn", "--method", method, *ROUNDS, *QUICK, "--out", run)
    moments = [
        run / "round-1" / "journal.jsonl",
        run / "round-1" / "model.safetensors",
        run / "round-1" / "model-finetuned.safetensors",
        run / "round-2" / "config.json",
        run / "round-2" / "journal.jsonl",
        run / "round-2" / "model-finetuned.safetensors",
    ]
    for moment in moments:
        ended = amc(*start, kill_when=moment.exists)
        assert ended.code in (-signal.SIGKILL, 0), ended.stderr
        start = ("resume", run)
    assert amc("resume", run).code == 0
    for number in (1, 2):
        for name in ("journal.jsonl", "policy.json", "model.safetensors", "model-finetuned.safetensors"):
            same = [(place / f"round-{number}" / name).read_bytes() for place in (run, whole)]
            assert same[0] == same[1], (number, name)
    assert [row["score_finetuned"] for row in summary_of(run)["rounds"]] == [
        row["score_finetuned"] for row in summary_of(whole)["rounds"]
    ]


def test_a_run_can_be_the_network_of_another(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "further"
    done = amc("search", whole / "round-1", "--budget", "macs<=70%", *QUICK, "--out", run)
    assert done.code == 0, done.stderr
    before, after = summary_of(whole / "round-1"), summary_of(run)
    assert after["model"] == "digits_cnn"
    assert after["dense"]["score"] == before["slim"]["score_finetuned"]
    state = library.load_run(run).state_dict()
    stored = safetensors.torch.load_file(run / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in state.items())


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5, unique=True))
def test_falling_shares_are_a_schedule_and_others_are_not(shares: list[float]) -> None:
    falling = sorted(shares, reverse=True)
    assert parse_schedule(",".join(map(repr, falling))) == tuple(falling)
    if shares != falling:
        with pytest.raises(AmcError, match="every round must keep less"):
            parse_schedule(",".join(map(repr, shares)))
