"""Jobs that are killed and gone on with, from the root.

    python -m tests.kills 100 [SEED]     at random moments
    python -m tests.kills every          before each file that they make, replace or remove

Every job of every kind must end with the bytes of the job that nothing happened to, whatever signal came when. The
network and data are those of the stored runs; latency is a known function of the shapes, as what a machine measures is
never the same twice, and a time limit goes by a clock that every look moves on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amc.cli.jobs.resume import run_resume
from amc.run.directory import RunDir
from tests.clocks import ticking
from tests.fixtures.runs import make

KINDS: dict[str, Callable[[Path], None]] = {
    "max-drop": lambda run: make.search(run, max_drop=20.0),
    "time-limit": lambda run: make.search(run, episodes=40, time_limit=25, recover="calibration"),
    "patience": lambda run: make.search(run, episodes=40, patience=2),
    "workers": lambda run: make.search(run, episodes=8, batch=3, workers=2),
    "sweep": make.sweep,
    "study": make.study,
    "max-drop-recovered": lambda run: make.search(run, max_drop=20.0, recover="calibration"),
    **{
        name: make.KINDS[name]
        for name in ("channel", "fine-grained", "2-4", "latency", "schedule", "tuned", "candidates")
    },
}
PAGES = ("report.html", "study.md", "study.csv")
CLOCKED = ("seconds", "finetune_seconds", "environment", "sha256", "date")  # of records: what depends on the clock


def go_on(kind: str, run: Path) -> None:
    """Start the job, or go on with it as a user does."""
    with make.bench(), ticking():
        if not (run / "config.json").exists():
            KINDS[kind](run)
            return
        if not (run / "finetune-state.json").exists():  # else `resume` may tell the user to finish it
            run_resume(run, progress=make.Watch())
        if kind in ("tuned", "candidates") and not _tuned(run):
            make.finetune(run, candidates=2 if kind == "candidates" else 1)


def _tuned(run: Path) -> bool:
    finished = "score_finetuned" in RunDir.open(run).read_json("summary.json")["slim"]
    return finished and not (run / "finetune-state.json").exists()


def contents(run: Path) -> dict[str, Any]:
    """Every file of a run, without what depends on the clock."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        temporary = path.name.startswith(".") and path.name.endswith(
            ".tmp"
        )  # a killed writer's; it goes a minute later
        if path.is_dir() or temporary or path.name in (".lock", "timings.jsonl", *PAGES):
            continue
        if path.name in ("summary.json", "config.json", "study.json"):
            found[name] = _timeless(json.loads(path.read_bytes()))
        elif path.name == "finetune.jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        else:
            found[name] = path.read_bytes()
    return found


def _timeless(record: Any) -> Any:
    if isinstance(record, dict):
        return {key: _timeless(value) for key, value in record.items() if key not in CLOCKED}
    return [_timeless(item) for item in record] if isinstance(record, list) else record


def child(action: Callable[[], None], output: Path | None = None) -> int:
    """Do it in a process of its own; returns the process id. It ends with 0 when the action does."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if output is not None:
            sys.stdout = sys.stderr = output.open("w", encoding="utf-8")
        action()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, seconds: float = 300.0) -> int:
    """The exit code of a child, negative for a signal; it is killed when it takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"process {pid} has not ended after {seconds:.0f} seconds")


@dataclass(frozen=True)
class Whole:
    """A job that nothing happened to."""

    kind: str
    seconds: float
    contents: Mapping[str, Any]


def whole(kind: str, folder: Path) -> Whole:
    run, began = folder / f"whole-{kind}", time.monotonic()
    code = ended(child(lambda: go_on(kind, run)))
    assert code == 0, code
    return Whole(kind, time.monotonic() - began, contents(run))


def killed_until_done(expected: Whole, run: Path, draw: random.Random, kills: int, how: signal.Signals) -> int:
    """Kill the job up to `kills` times, each at a random moment of what is left; how often that was done."""
    done = 0
    for attempt in itertools.count():
        pid = child(lambda: go_on(expected.kind, run))
        if attempt < kills:
            time.sleep(draw.uniform(0, expected.seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
        code = ended(pid)
        if code == 0:
            break
        assert code == -how, f"{expected.kind}: exit code {code}"
        done += 1
    assert_same(expected, run)
    return done


def writes(kind: str, folder: Path) -> int:
    """How many files the job makes, replaces or removes."""
    run, log = folder / f"counted-{kind}", folder / f"counted-{kind}.log"

    def counted() -> None:
        moments = _moments(run)
        go_on(kind, run)
        log.write_text(str(next(moments)))

    assert ended(child(counted)) == 0
    return int(log.read_text())


def killed_before(expected: Whole, run: Path, number: int) -> None:
    """Kill the job just before it changes its directory for the time `number`, from 0, and go on with it."""

    def stopped() -> None:
        _moments(run, last=number)
        go_on(expected.kind, run)

    assert ended(child(stopped)) == -signal.SIGKILL, f"{expected.kind}: no change {number}"
    assert ended(child(lambda: go_on(expected.kind, run))) == 0, f"{expected.kind}, killed before change {number}"
    try:
        assert_same(expected, run)
    except AssertionError as error:
        raise AssertionError(f"killed before change {number}: {error}") from None


def _moments(run: Path, last: int | None = None) -> Iterator[int]:
    """Count what this process changes below `run` by name; it kills itself before the change `last`.

    What is appended to an open file has no moment of its own here: its lines are torn by tests of their own.
    """
    count, inside = itertools.count(), str(run)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.truncate")
        changes |= event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if changes and str(arguments[0]).startswith(inside) and next(count) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    return count


def assert_same(expected: Whole, run: Path) -> None:
    found = contents(run)
    differing = [name for name in {**found, **expected.contents} if found.get(name) != expected.contents.get(name)]
    assert not differing, f"{expected.kind}: {differing} differ"


# Other signals, on the command line.

SEARCH = (
    "search", make.SOURCE.model, "--data", str(make.SOURCE.data), "--budget", "macs<=70%", "--episodes", "40",
    "--round-to", "1", "--certify", "1", "--bn-images", "32", "--calibration-images", "64", "--recover", "none",
)  # fmt: skip


def command(*arguments: str) -> Callable[[], None]:
    """`amc ARGUMENTS` as an action for `child`."""

    def run() -> None:
        from amc.cli import main

        signal.signal(signal.SIGINT, signal.default_int_handler)  # what a background job starts with ignores it
        sys.argv = ["amc", *arguments]
        main()

    return run


def backwards(action: Callable[[], None]) -> Callable[[], None]:
    """The action while the clock goes back by a day with every look at it."""

    def run() -> None:
        real, steps = time.time, itertools.count()
        time.time = lambda: real() - 86_400 * next(steps)
        action()

    return run


def interrupted(out: Path, signals: Sequence[signal.Signals], after: float, pause: float = 0.02) -> tuple[int, str]:
    """A search that gets these signals that long after it has begun; its exit code and its last line."""
    log = out.with_suffix(".log")
    log.unlink(missing_ok=True)
    resumed = (out / "config.json").exists()
    arguments = ("resume", str(out)) if resumed else (*SEARCH, "--out", str(out))
    pid = child(command(*arguments), log)
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(after)
    for number in signals:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        time.sleep(pause)
    code = ended(pid)
    lines = log.read_text().splitlines()
    return code, lines[-1] if lines else ""


def main(kills: str, seed: str = "0") -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.environ["AMC_CACHE"] = f"{place}/cache"
        count = _every(Path(place)) if kills == "every" else _random(Path(place), int(kills), random.Random(int(seed)))
    _say(f"{count} kills: all files the same")


def _every(folder: Path) -> int:
    total = 0
    for kind in KINDS:
        expected, count = whole(kind, folder), writes(kind, folder)
        for number in range(count):
            killed_before(expected, folder / f"{kind}-{number}", number)
        total += count
        _say(f"{kind}: {count}")
    return total


def _random(folder: Path, kills: int, draw: random.Random) -> int:
    done, jobs = Counter[str](), [whole(kind, folder) for kind in KINDS]
    for number in itertools.count():
        if sum(done.values()) >= kills:
            break
        expected = jobs[number % len(KINDS)]
        run = folder / f"run-{number}"
        done[expected.kind] += killed_until_done(expected, run, draw, 4, signal.SIGKILL)
        shutil.rmtree(run)
        _say(f"{dict(done)}")
    return sum(done.values())


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
