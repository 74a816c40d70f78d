"""`amc watch` and `amc report --live`, on runs that go on, were killed, or have ended."""

from __future__ import annotations

import io
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from amc.cli import watch as command
from amc.report.live import Live, read_live
from amc.run.directory import RunDir
from tests.commands import amc, contents
from tests.report.runs import make_run, make_unfinished_run

STATUS = {
    "part": "", "stage": "calibration", "began": 1.0, "stage_began": 2.0, "written": 3.0, "done": 1, "total": 4,
    "epochs": [],
}  # fmt: skip
QUICK = ("--recover", "none", "--finalists", "0", "--no-test")


def test_a_running_search_is_seen_from_outside_until_it_ends(tmp_path: Path) -> None:
    run, seen = tmp_path / "run", list[Live]()

    def look() -> bool:
        if (run / "config.json").exists():
            seen.append(read_live(RunDir(run)))
        return False

    done = amc("search", "digits_cnn", "--episodes", 30, *QUICK, "--out", run, kill_when=look)
    assert done.code == 0
    running = [live for live in seen if live.state == "running"]
    assert "search (planner)" in {live.stage for live in running}
    counts = [len(live.search.episodes) for live in running if live.search and live.search.agent == "planner"]
    assert counts == sorted(counts)
    assert 0 < counts[0] < 30
    assert read_live(RunDir(run)).state == "finished"
    assert not (run / "status.json").exists()


def test_a_killed_run_is_shown_with_its_stage_and_left_as_it_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    journal = run / "journal.jsonl"
    killed = amc(
        *("search", "digits_cnn", "--episodes", 40, *QUICK, "--out", run),
        kill_when=lambda: journal.exists() and len(journal.read_bytes().splitlines()) > 3,
    )
    assert killed.code == -9
    before = contents(run)
    done = amc("watch", run)
    assert (done.code, done.stderr) == (0, "")
    assert "\nstopped in: search (planner)\n" in done.stdout
    assert "40 episodes" in done.stdout
    assert contents(run) == before
    found = amc("watch", run, "--json").json
    assert (found["state"], found["stage"], found["search"]["planned"]) == ("stopped", "search (planner)", 40)


def test_no_run_is_a_mistake(tmp_path: Path) -> None:
    assert amc("watch", tmp_path / "none").complaint.startswith("no run directory")


class Job:
    """A job on a run that ends when it is slept on for the third time."""

    def __init__(self, run: RunDir) -> None:
        self.run, self.slept, self.pages = run, list[float](), list[str]()
        self._lock = ExitStack()
        self._lock.enter_context(run.lock())
        run.write_json("status.json", STATUS)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if self.run.has("report.html"):
            self.pages.append(self.run.file("report.html").read_text(encoding="utf-8"))
        if len(self.slept) == 3:
            self._lock.close()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    job = Job(make_unfinished_run(tmp_path / "run", scored=5))
    monkeypatch.setattr(command.time, "sleep", job.sleep)
    return job


def test_on_a_terminal_the_picture_is_drawn_again_until_the_run_ends(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=40, color_system=None)
    monkeypatch.setattr(command, "out", console)
    command.watch(job.run.path)
    text = screen.getvalue()
    assert job.slept == [1.0, 1.0, 1.0]
    assert text.count(" 1/4") == 4  # one at once, then before each sleep
    assert text.index("stopped in: calibration") > text.rindex(" 1/4")


def test_a_live_report_refreshes_itself_until_the_run_ends(job: Job) -> None:
    command.report(job.run.path, live=True)
    assert job.slept == [5.0, 5.0, 5.0]
    assert len(job.pages) == 3
    for page in job.pages:
        assert '<meta http-equiv="refresh" content="5">' in page
        assert re.search(r'role="status">Running: calibration, 1 of 4 \(.* in this stage', page)
    last = job.run.file("report.html").read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in last
    assert 'role="status"' not in last


def test_a_live_report_asks_nothing_of_the_network(job: Job) -> None:
    command.report(job.run.path, live=True)
    for page in job.pages:
        assert re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page) == []
        assert "default-src 'none'" in page


def test_a_live_report_of_a_finished_run_is_written_once(tmp_path: Path, monkeypatch: Any) -> None:
    run = make_run(tmp_path / "run")
    monkeypatch.setattr(command.time, "sleep", lambda _: pytest.fail("there is nothing to wait for"))
    command.report(run.path, live=True)
    assert 'http-equiv="refresh"' not in run.file("report.html").read_text(encoding="utf-8")
