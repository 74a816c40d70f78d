"""Some of the kills of `tests.kills`, and every other signal: nothing is lost, and what is said is true."""

from __future__ import annotations

import functools
import itertools
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from amc.run.directory import RunDir
from tests import kills

torch.set_num_threads(1)  # children are forked


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Callable[[str], kills.Whole]:
    """The job of a kind that nothing disturbed, run once."""
    return functools.cache(lambda kind: kills.whole(kind, folder))


@pytest.fixture(scope="module")
def search(folder: Path) -> Path:
    """A search on the command line that nothing disturbed."""
    out = folder / "search"
    pid = kills.child(kills.command(*kills.SEARCH, "--out", str(out)), folder / "log")
    assert kills.ended(pid) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", kills.KINDS)
def test_killed_at_random_moments_every_job_ends_with_the_same_bytes(folder: Path, whole: Any, kind: str) -> None:
    expected = whole(kind)
    done = kills.killed_until_done(expected, folder / kind, random.Random(kind), 2, signal.SIGKILL)
    assert 0 <= done <= 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", kills.KINDS)
def test_killed_before_a_file_changes_every_job_ends_with_the_same_bytes(folder: Path, whole: Any, kind: str) -> None:
    """Two of the moments that `python -m tests.kills every` tries one by one."""
    expected, draw = whole(kind), random.Random(kind)
    for number in draw.sample(range(kills.writes(kind, folder)), 2):
        kills.killed_before(expected, folder / f"{kind}-{number}", number)


@pytest.mark.slow
@pytest.mark.parametrize("finished", [1, 2])
def test_a_schedule_stopped_before_the_clean_up_of_a_round_ends_with_the_same_bytes(
    whole: Any, tmp_path: Path, finished: int
) -> None:
    expected, reports = whole("schedule"), itertools.count(1)

    def stop(run: RunDir) -> None:
        if next(reports) == finished:
            raise KeyboardInterrupt

    with mock.patch("amc.cli.jobs.finetune.render_report", stop):
        kills.go_on("schedule", tmp_path / "run")
    left = tmp_path / "run" / f"round-{finished}"
    assert (left / "finetune-state.json").exists()
    kills.go_on("schedule", tmp_path / "run")
    kills.assert_same(expected, tmp_path / "run")
    assert "h-finetune" in (left / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "code", "word"),
    [
        ([signal.SIGTERM], 143, "terminated"),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGINT], 143, "terminated"),
        ([signal.SIGINT, signal.SIGINT], 130, "interrupted"),
    ],
    ids=["SIGTERM", "SIGTERM twice and SIGINT", "SIGINT twice"],
)
def test_signals_end_a_search_with_one_true_line(
    search: Path, tmp_path: Path, signals: list[signal.Signals], code: int, word: str
) -> None:
    out, draw = tmp_path / "run", random.Random(word)
    for _ in range(4):
        found, last = kills.interrupted(out, signals, after=draw.uniform(0.05, 1.5), pause=0.001)
        if found == 0:
            break
        # Of two kinds of signals the second may come while the first ends the search: either may be told.
        assert found in ({code} if len({*signals}) == 1 else {130, 143}), last
        ended = word if found == code else "interrupted"
        stored = _stored(out)
        finished = (out / "summary.json").exists()
        left = (
            "the search is finished" if finished else f"no episode|nothing was|all 40 episodes|{stored} of 40 episodes"
        )
        assert re.search(rf"amc: {ended}; ({left})", last), last
    _finish(out)
    assert kills.contents(out) == kills.contents(search)


def _stored(out: Path) -> int:
    journal = out / "journal.jsonl"
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def _finish(out: Path) -> None:
    arguments = ("resume", str(out)) if (out / "config.json").exists() else (*kills.SEARCH, "--out", str(out))
    assert kills.ended(kills.child(kills.command(*arguments), out.with_suffix(".log"))) == 0


@pytest.mark.slow
def test_a_search_that_is_held_and_goes_on_is_the_same(search: Path, tmp_path: Path) -> None:
    signals = [signal.SIGSTOP, signal.SIGCONT] * 5
    code, last = kills.interrupted(tmp_path / "run", signals, after=0.3, pause=0.05)
    assert code == 0, last
    assert kills.contents(tmp_path / "run") == kills.contents(search)


@pytest.mark.slow
def test_a_clock_that_goes_back_changes_nothing(search: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    action = kills.backwards(kills.command(*kills.SEARCH, "--out", str(out)))
    assert kills.ended(kills.child(action, tmp_path / "log")) == 0
    assert kills.contents(out) == kills.contents(search)
