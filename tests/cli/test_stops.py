"""What is said when a job is stopped, and that it is true: every part of every job, on the command line."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from amc.cli import app as cli
from amc.cli import common
from amc.cli.jobs.search import free_place
from amc.cli.jobs.stopped import left_in
from amc.errors import AmcError, RunError
from amc.run.directory import RunDir
from tests.commands import amc
from tests.fixtures.runs import make
from tests.tiny import compress, labelled, tiny

SEARCH = (
    "search",
    "digits_cnn",
    "--search-images",
    50,
    "--calibration-images",
    128,
    "--no-test",
    "--bn-images",
    64,
    "--recover",
    "none",
)
SOON = (*SEARCH, "--certify", 0)


def last(stderr: str) -> str:
    assert "Traceback" not in stderr
    return stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "word", "code"), [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)]
)
def test_stopped_in_the_preparation_nothing_is_scored_and_resume_starts_again(
    tmp_path: Path, number: signal.Signals, word: str, code: int
) -> None:
    run = tmp_path / "my run"
    ended = amc(*SEARCH, "--episodes", 5, "--certify", 60, "--out", run,
                kill_when=(run / "config.json").exists, kill_with=number)  # fmt: skip
    assert ended.code == code
    assert last(ended.stderr) == f"amc: {word}; no episode was scored yet; `amc resume '{run}'` starts the search again"
    assert not list(run.glob("journal*"))
    done = amc("resume", run)
    assert done.code == 0, done.stderr
    assert len((run / "journal.jsonl").read_bytes().splitlines()) == 6


def test_stopped_in_the_search_and_in_the_fine_tuning(tmp_path: Path) -> None:
    run = tmp_path / "run"
    journal = run / "journal.jsonl"
    ended = amc(*SOON, "--episodes", 30, "--out", run,
                kill_when=lambda: journal.exists() and journal.read_bytes().count(b"\n") > 5,
                kill_with=signal.SIGTERM)  # fmt: skip
    assert ended.code == 143
    scored = journal.read_bytes().count(b"\n") - 1
    assert 5 <= scored < 30
    assert last(ended.stderr) == f"amc: terminated; {scored} of 30 episodes are stored; `amc resume {run}` goes on"
    assert amc("resume", run).code == 0
    assert left_in(run) == (
        f"the search is finished and stored; `amc report {run}` shows the result, `amc finetune {run}` trains it"
    )
    state = run / "finetune-state.json"
    ended = amc("finetune", run, "--epochs", 2, "--checkpoint-every", 4,
                kill_when=(run / "finetune.ckpt").exists, kill_with=signal.SIGTERM)  # fmt: skip
    assert ended.code == 143
    assert state.exists()
    assert re.search(r"terminated; the fine-tuning is stored up to step \d+ of \d+; `amc finetune ", last(ended.stderr))
    assert amc("finetune", run).code == 0
    done = "the search and the fine-tuning are finished and stored"
    assert left_in(run) == f"{done}; `amc report {run}` shows the result"


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_before_a_command_begins_is_one_line(
    number: signal.Signals, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(cli, "app", lambda: os.kill(os.getpid(), number))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == f"amc: {word}\n"


DROPPED = """
import os, signal, sys, time, weakref
from amc.cli import app as cli
from amc.cli import common

class Thing: pass

def command():
    number = getattr(signal, sys.argv[1])
    for _ in range(100):  # 100 callbacks that end with the signal's exception, which Python drops
        thing = Thing()
        watch = weakref.ref(thing, lambda _: (os.kill(os.getpid(), number), time.sleep(0.05)))
        del thing
        time.sleep(0.02)
    print("nothing stopped it")

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a background job starts with ignores it
cli.app = command
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_that_python_drops_is_sent_again(number: str, code: int) -> None:
    """An exception in the callback of a weak reference goes nowhere; PyTorch has thousands of them."""
    ended = subprocess.run(
        [sys.executable, "-c", DROPPED, number], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (code, ""), ended.stderr


def test_a_second_signal_does_not_disturb_the_first() -> None:
    """What clears away after the first one is not ended by another."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    cleared: list[int] = []

    def job() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
                cleared.append(number)

    signal.signal(signal.SIGINT, common.interrupt)
    signal.signal(signal.SIGTERM, common.stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            job()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert len(cleared) == 2


def test_a_schedule_names_its_round(tmp_path: Path) -> None:
    make.KINDS["cut-schedule"](tmp_path / "run")
    assert left_in(tmp_path / "run") == (
        f"round 2 of 2: 2 of 4 episodes are stored; `amc resume {tmp_path / 'run'}` goes on"
    )


def test_the_content_of_an_empty_and_of_a_damaged_run(tmp_path: Path) -> None:
    assert left_in(tmp_path / "run") == "nothing was written; run the same command again"
    RunDir.create(tmp_path / "run", {"episodes": 3})
    (tmp_path / "run" / "config.json").write_text("{")
    assert "config.json' is not valid JSON in line 1" in left_in(tmp_path / "run")


def test_all_episodes_without_a_result(tmp_path: Path) -> None:
    make.KINDS["channel"](tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    assert left_in(tmp_path / "run").startswith("all 6 episodes are scored, the result is not written yet; ")


def test_a_second_ctrl_c_changes_nothing(tmp_path: Path) -> None:
    """Sent again and again until the process is gone."""
    from tests.kills import SEARCH as OWN
    from tests.kills import child, command, ended

    for attempt in range(20):  # on a busy machine a search may end before this process sees that it began
        run, log = tmp_path / f"run-{attempt}", tmp_path / f"log-{attempt}"
        pid = child(command(*OWN, "--out", str(run)), log)
        deadline = time.monotonic() + 120
        while not (run / "journal.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        for _ in range(3):
            os.kill(pid, signal.SIGINT)
            time.sleep(0.001)
        code = ended(pid)
        if code != 0:
            break
    assert code == 130
    text = log.read_text()
    assert "Traceback" not in text
    assert re.fullmatch(rf"amc: interrupted; \d+ of 40 episodes are stored; `amc resume {run}` goes on", last(text))


# The directory is made and locked before any work, and is given back where nothing came of it.


def never() -> Any:
    raise AssertionError("work was done before the directory was looked at")


@pytest.mark.parametrize("damage", ["file", "occupied", "run", "locked", "unwritable"])
def test_a_place_that_cannot_be_used_is_found_before_any_work(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = (
        ("amc.cli.jobs.search", "placed_network"),
        ("amc.cli.jobs.search", "data_of"),
        ("amc.compression.pipeline", "prepare"),
    )
    for module, name in work:
        monkeypatch.setattr(sys.modules[module], name, lambda *_, **__: never())
    out = tmp_path / "out"
    words, lock = _make_unusable(out, damage)
    try:
        before = sorted(path.name for path in tmp_path.rglob("*"))
        for start in (lambda: make.search(out), lambda: make.from_python(out), lambda: make.schedule(out)):
            with pytest.raises(RunError, match=words):
                start()
        assert sorted(path.name for path in tmp_path.rglob("*")) == before
    finally:
        if lock is not None:
            lock.__exit__(None, None, None)


def _make_unusable(out: Path, damage: str) -> tuple[str, Any]:
    if damage == "file":
        out.write_text("x")
        return "is a file; give a directory", None
    if damage == "unwritable":
        out.symlink_to("/proc/nothing/here")
        return "cannot be written", None
    out.mkdir()
    if damage == "occupied":
        (out / "thesis.tex").touch()
        return "is not empty", None
    if damage == "run":
        RunDir.create(out, {"model": "m"})
        return "already holds a run", None
    lock = RunDir(out).lock()
    lock.__enter__()
    return "another process .* is writing", lock


@pytest.mark.parametrize("settings", [{"budget": "macs<=1%"}, {"lock": ("nowhere",)}, {"only": ("nowhere",)}])
def test_a_preparation_that_fails_leaves_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    out = tmp_path / "a" / "b"
    with pytest.raises(AmcError):
        make.search(out, **settings)
    assert list(tmp_path.iterdir()) == []
    made = tmp_path / "made"
    made.mkdir()
    with pytest.raises(AmcError):
        make.search(made, **settings)
    assert list(made.iterdir()) == []  # an empty directory of the user's stays
    make.search(made)
    assert (made / "summary.json").exists()


def test_an_evaluate_that_raises_in_the_preparation_leaves_nothing(tmp_path: Path) -> None:
    def broken(module: Any) -> float:
        raise OSError("no camera")

    with pytest.raises(AmcError):
        compress(tiny(), evaluate=broken, run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_interrupted_before_its_first_episode_stays_and_is_resumed(tmp_path: Path) -> None:
    model, calls = tiny(), []

    def stop(module: Any) -> float:
        calls.append(module)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, evaluate=stop, run_dir=tmp_path / "run")
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == [".lock", "config.json"]
    with pytest.raises(RunError, match="already holds a run"):
        compress(model, run_dir=tmp_path / "run")
    result = compress(model, run_dir=tmp_path / "run", resume=True, evaluate=labelled(model, 96, 5))
    assert result.summary["episodes"] == 6


def test_the_directory_is_locked_from_the_start_to_the_end(tmp_path: Path) -> None:
    model, seen = tiny(), list[bool]()
    score = labelled(model, 96, 5)

    def look(module: Any) -> float:
        with pytest.raises(RunError, match="another process"), RunDir(tmp_path / "run").lock():
            pass
        seen.append((tmp_path / "run" / "config.json").exists())
        return sum(float((module(x).argmax(1) == y).float().mean()) for x, y in score) / len(score)

    compress(model, evaluate=look, run_dir=tmp_path / "run")
    assert seen
    assert all(seen)


def test_a_lock_file_that_was_replaced_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a directory that is given up must not hold a lock that nobody else sees."""
    import fcntl

    run, real = RunDir.create(tmp_path / "run", {}), fcntl.flock

    def late(descriptor: int, how: int) -> None:
        run.file(".lock").unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(RunError, match="has just given up"), run.lock():
        pass


def test_the_demo_takes_the_first_free_place(tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    assert free_place(demo) == demo
    RunDir.create(demo, {"command": "demo"})
    (tmp_path / "demo-2").write_text("a file")
    (tmp_path / "demo-3").mkdir()
    assert free_place(demo) == tmp_path / "demo-3"


@pytest.mark.parametrize("failure", [MemoryError(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
def test_out_of_memory_or_disk_stops_the_search_and_the_journal_is_whole(tmp_path: Path, failure: Exception) -> None:
    model, calls = tiny(), []
    batches = labelled(model, 96, 5)

    def evaluate(module: Any) -> float:
        calls.append(module)
        if len(calls) == 5:
            raise failure
        return sum(float((module(x).argmax(1) == y).float().mean()) for x, y in batches) / len(batches)

    with pytest.raises(AmcError) as refusal:
        compress(model, evaluate=evaluate, run_dir=tmp_path / "run")
    assert "\n" not in str(refusal.value)
    found = compress(model, evaluate=evaluate, run_dir=tmp_path / "run", resume=True)
    whole = compress(model, evaluate=evaluate, run_dir=tmp_path / "whole")
    assert found.policy == whole.policy
    assert [record.error for record in found.search.episodes] == [None] * 6
    journals = [(tmp_path / name / "journal.jsonl").read_bytes() for name in ("run", "whole")]
    assert journals[0] == journals[1]
