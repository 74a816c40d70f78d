"""status.json: there while a job runs, never where it could be in the way, and gone afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import amc
from amc.compression.status import StatusFile
from amc.errors import RunError
from amc.recovery import EpochRecord, StepRecord
from amc.run.directory import RunDir
from tests.tiny import compress, tiny


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run", {"model": "resnet20"})


def content(run: RunDir) -> dict[str, Any]:
    return run.read_json("status.json")


def test_a_stage_is_written_at_once_and_its_steps_at_most_every_second(run: RunDir) -> None:
    clock = Clock()
    status = StatusFile(run.path, clock=clock)
    clock.now = 107.0
    status.stage("calibration")
    assert content(run) == {
        "part": "", "stage": "calibration", "began": 100.0, "stage_began": 107.0, "written": 107.0,
        "done": None, "total": None, "epochs": [], "macs": None,
    }  # fmt: skip
    for done, at, written in ((1, 107.5, None), (2, 108.0, 2), (3, 108.9, 2), (4, 109.0, 4)):
        clock.now = at
        status.stage_step(done, 9)
        assert content(run)["done"] == written
    clock.now = 50.0  # set back
    status.stage_step(5, 9)
    assert content(run)["done"] == 5


def test_a_fine_tuning_has_its_steps_and_epochs(run: RunDir) -> None:
    clock = Clock()
    status = StatusFile(run.path, clock=clock)
    status.job_part("candidate-1")
    status.stage("fine-tuning")
    clock.now += 1
    status.training_step(StepRecord(3, 8, 1, 0.5, 0.1))
    status.epoch(EpochRecord(1, 0.5, 0.1, 2.0), 0.75)
    record = content(run)
    assert (record["part"], record["done"], record["total"]) == ("candidate-1", 3, 8)
    assert record["epochs"] == [{"epoch": 1, "loss": 0.5, "lr": 0.1, "seconds": 2.0, "score": 0.75}]
    status.stage("candidate 2 of 2")
    assert content(run)["epochs"] == []


def test_nothing_is_written_before_the_directory_is_a_run(tmp_path: Path) -> None:
    status = StatusFile(tmp_path / "new")
    status.stage("network and data")
    assert not (tmp_path / "new").exists()
    (tmp_path / "other").mkdir()
    other = StatusFile(tmp_path / "other")
    other.stage("network and data")
    other.close()
    assert list((tmp_path / "other").iterdir()) == []


def test_a_job_that_never_wrote_removes_nothing(run: RunDir) -> None:
    """It may be another's file: a second `amc resume` on a running job is refused, and ends."""
    StatusFile(run.path).stage("search (planner)")
    StatusFile(run.path).close()
    assert content(run)["stage"] == "search (planner)"


def test_a_full_disk_does_not_end_the_job(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    status = StatusFile(run.path)

    def full(*_: Any, **__: Any) -> None:
        raise RunError("no space left")

    monkeypatch.setattr(RunDir, "show_json", full)
    status.stage("calibration")
    status.stage_step(1, 2)
    status.close()
    assert not run.has("status.json")


def test_a_search_keeps_it_while_it_runs(tmp_path: Path) -> None:
    class Looking(amc.Observer):
        def __init__(self) -> None:
            self.seen: list[tuple[str, str]] = []

        def stage(self, name: str) -> None:
            status = tmp_path / "run" / "status.json"
            self.seen.append(
                (name, RunDir(tmp_path / "run").read_json("status.json")["stage"] if status.exists() else "")
            )

    looking = Looking()  # hears of a stage before the file does
    compress(tiny(), episodes=2, run_dir=tmp_path / "run", observer=looking)
    names = [name for name, _ in looking.seen]
    assert [before for _, before in looking.seen] == ["", *names[:-1]]
    assert not (tmp_path / "run" / "status.json").exists()
