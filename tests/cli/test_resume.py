"""A search that is killed and resumed ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import amc as library
from tests.commands import AS_PRUNED, amc
from tests.tiny import EXAMPLE, images, labelled, tiny

SAME = ("config.json", "journal.jsonl", "journal-uniform.jsonl", "policy.json", "model.safetensors")
EPISODES = 25
SETTINGS = (
    *("--episodes", EPISODES, "--search-images", 50, "--calibration-images", 128),
    *("--no-test", "--certify", 0, "--bn-images", 64),
    *AS_PRUNED,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of the built-in network that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert amc("search", "digits_cnn", "--out", run, *SETTINGS).code == 0
    return run


def assert_same(run: Path, whole: Path) -> None:
    for name in SAME:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert outcome(run) == outcome(whole)


def outcome(run: Path) -> Any:
    """The summary without the wall clock."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {key: value for key, value in summary.items() if key not in ("seconds", "environment", "sha256")}


def when_lines(path: Path, count: int, delay: float = 0.0) -> Callable[[], bool]:
    """Whether the journal has had `count` lines for `delay` seconds."""
    since: list[float] = []

    def now() -> bool:
        if not since and path.exists() and path.read_bytes().count(b"\n") >= count:
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= delay

    return now


def test_the_same_seed_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    assert amc("search", "digits_cnn", "--out", tmp_path / "run", *SETTINGS, "--seed", 0).code == 0
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_killed_at_ten_random_moments_and_resumed(whole: Path, tmp_path: Path) -> None:
    run, draw = tmp_path / "run", random.Random(2018)
    moments = sorted(draw.sample(range(2, EPISODES + 1), 10))  # lines of the journal, the header among them
    start: tuple[Any, ...] = ("search", "digits_cnn", "--out", run, *SETTINGS)
    sizes = []
    for moment in moments:
        ended = amc(*start, kill_when=when_lines(run / "journal.jsonl", moment, draw.uniform(0, 0.02)))
        assert ended.code == -signal.SIGKILL, ended.stderr
        assert not (run / "summary.json").exists()
        sizes.append((run / "journal.jsonl").stat().st_size)
        start = ("resume", run)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] < (whole / "journal.jsonl").stat().st_size
    assert amc("resume", run).code == 0
    assert_same(run, whole)


def test_killed_before_the_first_episode_and_while_the_result_is_written(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start: tuple[Any, ...] = ("search", "digits_cnn", "--out", run, *SETTINGS)
    assert amc(*start, kill_when=(run / "config.json").exists).code == -signal.SIGKILL
    for name in ("model.safetensors", "policy.json"):
        amc("resume", run, kill_when=(run / name).exists)
    assert amc("resume", run).code == 0
    assert_same(run, whole)
    assert (run / "report.html").exists()


def test_interrupted_by_the_user_and_resumed(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = amc(
        *("search", "digits_cnn", "--out", run, *SETTINGS),
        kill_when=when_lines(run / "journal.jsonl", 6),
        kill_with=signal.SIGINT,
    )
    assert ended.code == 130
    last = ended.stderr.splitlines()[-1]
    assert re.fullmatch(rf"amc: interrupted; \d+ of {EPISODES} episodes are stored; `amc resume {run}` goes on", last)
    assert "Traceback" not in ended.stderr
    assert amc("resume", run).code == 0
    assert_same(run, whole)


def test_a_journal_cut_at_any_byte_is_continued_to_the_same_end(tmp_path: Path) -> None:
    model = tiny()

    def go(run: Path, *, resume: bool) -> library.Result:
        return library.compress(
            model,
            EXAMPLE,
            calibration=[images(32, 1)],
            evaluate=labelled(model, 96, 5),
            episodes=10,
            round_to=1,
            keep_sets=0,
            run_dir=run,
            resume=resume,
        )

    whole = tmp_path / "whole"
    result = go(whole, resume=False)
    journal = (whole / "journal.jsonl").read_bytes()
    for index, cut in enumerate(random.Random(5).sample(range(len(journal)), 4)):
        run = tmp_path / f"cut{index}"
        run.mkdir()
        shutil.copy(whole / "config.json", run)
        (run / "journal.jsonl").write_bytes(journal[:cut])
        assert go(run, resume=True).policy == result.policy
        assert_same(run, whole)


def test_resuming_a_finished_run_keeps_what_was_fine_tuned(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert amc("finetune", run, "--epochs", 1).code == 0
    tuned = {name: (run / name).read_bytes() for name in ("summary.json", "model-finetuned.safetensors")}
    (run / "report.html").unlink()
    assert amc("resume", run).code == 0
    assert {name: (run / name).read_bytes() for name in tuned} == tuned
    assert "score_finetuned" in json.loads(tuned["summary.json"])["slim"]
    assert (run / "report.html").exists()
    for name in ("journal.jsonl", "policy.json", "model.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_search_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    options = (*SETTINGS, "--episodes", 6, "--batch", 3, "--workers", 1, "--baseline", "none", "--recover", "none")
    for name in ("whole", "part"):
        done = amc("search", "digits_cnn", "--out", tmp_path / name, *options)
        assert done.code == 0, done.stderr
    journal = tmp_path / "part" / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:3]))
    (tmp_path / "part" / "summary.json").unlink()
    assert "workers must be between 1 and 1024" in amc("resume", tmp_path / "part", "--workers", 0).complaint
    done = amc("resume", tmp_path / "part", "--workers", 2)
    assert done.code == 0, done.stderr
    assert json.loads((tmp_path / "part" / "config.json").read_text())["workers"] == 2
    for name in ("journal.jsonl", "model.safetensors"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
