"""Rounds of search, pruning and fine-tuning: what each reaches, and that a kill anywhere changes nothing."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import amc as library
from amc.errors import AmcError
from amc.run.settings import parse_schedule
from amc.run.weights import read_state
from amc.zoo import load_data
from tests.commands import amc

QUICK = (
    "--recover",
    "none",
    "--episodes",
    4,
    "--search-images",
    50,
    "--calibration-images",
    128,
    "--certify",
    0,
    "--bn-images",
    64,
)
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


def test_a_schedule_loads_its_last_round_from_any_place(whole: Path, tmp_path: Path) -> None:
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


def test_going_on_from_a_run_keeps_the_size_of_its_images(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("val", 4)):
        for label, colour in enumerate(("red", "blue")):
            folder = tmp_path / "images" / split / colour
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (20, 20), (200 * (1 - label), number, 200 * label)).save(folder / f"{number}.png")
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def network():\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), "
        "nn.Flatten(), nn.Linear(16, 2))\n"
    )
    data = ("--data", "imagefolder:images", "--image-size", 12)
    quick = ("--episodes", 2, "--baseline", "none", "--certify", 0, "--no-test")
    done = amc("search", "own:network", *data, *quick, "--out", "first", cwd=tmp_path)
    assert done.code == 0, done.stderr
    done = amc("search", "first", "--budget", "macs<=80%", *quick, "--out", "second", cwd=tmp_path)
    assert done.code == 0, done.stderr
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert (config["image_size"], config["input_shape"]) == (12, [3, 12, 12])
    assert summary_of(tmp_path / "second")["dense"]["macs"] == summary_of(tmp_path / "first")["slim"]["macs"]
    complaint = amc("search", "first", "--image-size", 0, "--out", "third", cwd=tmp_path).complaint
    assert "image size must be at least 1 pixel, got 0" in complaint


def test_a_share_that_a_later_round_cannot_reach(tmp_path: Path) -> None:
    """The shares in the message are the schedule's, and the command that it names works."""
    rounds = ("--schedule", "0.5,0.015", "--round-epochs", 1)
    complaint = amc("search", "digits_cnn", *rounds, *QUICK, "--out", "run", cwd=tmp_path).complaint
    found = re.fullmatch(
        r"round 2 of 'run' cannot keep 0\.015 of the macs: after round 1, (0\.\d+) to (0\.\d+) can be "
        r"reached; start another schedule, or go on with the network of that round: "
        r"`amc search run/round-1 --budget \"(macs<=[\d.]+%)\" --out DIR` is the least",
        complaint,
    )
    assert found, complaint
    assert amc("resume", "run", cwd=tmp_path).complaint == complaint
    first = summary_of(tmp_path / "run" / "round-1")
    assert float(found[2]) == pytest.approx(first["slim"]["macs"] / first["dense"]["macs"], abs=5e-4)
    done = amc("search", "run/round-1", "--budget", found[3], *QUICK, "--out", "least", cwd=tmp_path)
    assert done.code == 0, done.stderr
    share = summary_of(tmp_path / "least")["slim"]["macs"] / first["dense"]["macs"]
    assert 0.015 < share <= float(found[1]) < share + 0.002


def test_a_round_that_diverges_goes_on_with_another_learning_rate(tmp_path: Path) -> None:
    run = tmp_path / "run"
    complaint = amc("search", "digits_cnn", *ROUNDS, "--round-lr", 1e12, *QUICK, "--out", run).complaint
    assert complaint.startswith(f"round 1 of '{run}': fine-tuning diverged: ")
    assert complaint.endswith(f"; go on with another learning rate by `amc resume {run} --round-lr LR`")
    assert amc("resume", run).complaint == complaint
    assert "fine-tuning lr is out of range: 0.0" in amc("resume", run, "--round-lr", 0).complaint
    done = amc("resume", run, "--round-lr", 0.01)
    assert done.code == 0, done.stderr
    for number in (1, 2):
        line = json.loads((run / f"round-{number}" / "finetune.jsonl").read_text())
        assert 0 < line["lr"] <= 0.01
    complaint = amc("resume", run / "round-1", "--round-lr", 0.01).complaint
    assert complaint == f"'{run / 'round-1'}' is not a schedule; round-lr 0.01 is for rounds only; leave it out"


def test_a_schedule_can_begin_with_the_result_of_a_run(whole: Path, tmp_path: Path) -> None:
    method, run = summary_of(whole)["method"], tmp_path / "further"
    rounds = ("--method", method, "--schedule", "0.9,0.8" if method == "channel" else "0.5,0.4", "--round-epochs", 1)
    done = amc("search", whole / "round-1", *rounds, *QUICK, "--out", run)
    assert done.code == 0, done.stderr
    before = summary_of(whole / "round-1")
    assert summary_of(run)["dense"]["score"] == before["slim"]["score_finetuned"]
    assert summary_of(run)["model"] == "digits_cnn"


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5, unique=True))
def test_falling_shares_are_a_schedule_and_others_are_not(shares: list[float]) -> None:
    falling = sorted(shares, reverse=True)
    assert parse_schedule(",".join(map(repr, falling))) == tuple(falling)
    if shares != falling:
        with pytest.raises(AmcError, match="every round must keep less"):
            parse_schedule(",".join(map(repr, shares)))
