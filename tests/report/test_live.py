"""What a run is doing, from its directory: running, killed, finished; a search, a fine-tuning, rounds and points."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from amc.cli.picture import HEIGHT, picture
from amc.report.live import Live, buckets, read_live
from amc.run.directory import RunDir
from tests.commands import contents
from tests.report.runs import SLIM, episode, make_run, make_schedule, make_unfinished_run, write_journal, write_lines

NOW = 1_000_000.0


@contextmanager
def running(run: RunDir, stage: str, **more: Any) -> Iterator[None]:
    """Inside the block a job writes to the run; its stage began 30 s ago and the job a minute before that."""
    status = {
        "part": "", "stage": stage, "began": NOW - 90, "stage_began": NOW - 30, "written": NOW, "done": None,
        "total": None, "epochs": [],
    }  # fmt: skip
    with run.lock():
        run.write_json("status.json", status | more)
        yield


def seen(run: RunDir) -> Live:
    """The run as it is; looking must not change it."""
    before = contents(run.path)
    live = read_live(run, now=NOW)
    assert contents(run.path) == before
    return live


def scored(run: RunDir, values: list[float | None], **header: Any) -> None:
    lines = [episode(n, value, None if value is not None else "boom") for n, value in enumerate(values)]
    write_journal(run.file("journal.jsonl"), lines, agent="planner", **header)


def test_a_job_that_prepares_has_its_stage_its_steps_and_their_pace(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path / "run")
    with running(run, "dense score", done=10, total=40):
        live = seen(run)
    assert (live.state, live.search, live.left) == ("running", None, 90.0)  # 3 s a step
    assert live.sentence == "dense score, 10 of 40 (0:30 in this stage, about 1:30 left, 1:30 in all)"
    assert picture(live) == [
        "resnet20 · cifar10:data · macs<=50%",
        "dense score",
        "0:30 in this stage, about 1:30 left, 1:30 in all",
        "██████████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░ 10/40",
        "",
    ]


def test_a_search_has_its_best_its_curve_and_the_time_that_its_latest_episodes_predict(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path / "run", episodes=8)
    scored(run, [0.5, None, 0.75, 0.25])
    times = [{"agent": "planner", "episode": n, "seconds": {"score": 2.0, "agent": 1.0}} for n in range(4)]
    write_lines(run.file("timings.jsonl"), [{"agent": "uniform", "episode": 0, "seconds": {"score": 99.0}}, *times])
    with running(run, "search (planner)", macs=40_200_000):
        live = seen(run)
    assert live.search is not None
    assert live.search.best_so_far() == [0.5, 0.5, 0.75, 0.75]
    assert live.left == 12.0  # four episodes of three seconds
    lines = picture(live)
    assert lines[1:4] == [
        "search (planner)",
        "0:30 in this stage, about 0:12 left, 1:30 in all",
        "█" * 20 + "░" * 20 + " 4/8",
    ]
    assert "best      75.00% at 50.0% of the MACs (episode 2)" in lines
    assert "last      25.00%" in lines
    curve = lines[5 : 5 + HEIGHT]
    assert curve[0] == "75.00% ┤" + " " * 17 + "━" * 18  # episodes 2 and 3 of 8, in 71 columns
    assert curve[-1] == "50.00% ┤" + "━" * 17
    assert lines[5 + HEIGHT + 1] == " " * 6 + "  0" + f"{'8 episodes':>70}"


def test_the_time_left_is_never_more_than_the_time_limit_leaves(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path / "run", episodes=1000, time_limit="40s")
    write_journal(run.file("journal.jsonl"), [episode(0, 0.5) | {"progress": 0.75}], agent="planner")
    write_lines(run.file("timings.jsonl"), [{"agent": "planner", "episode": 0, "seconds": {"score": 2.0}}])
    with running(run, "search (planner)"):
        assert seen(run).left == 10.0


def test_a_search_without_a_score_says_so(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path / "run")
    scored(run, [None, None])
    with running(run, "search (planner)"):
        lines = picture(seen(run))
    assert "planner: no policy has a score yet" in lines
    assert "last      failed: boom" in lines


def test_scores_that_are_all_the_same_have_a_curve(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path / "run", episodes=3)
    scored(run, [0.5, 0.5, 0.5])
    lines = picture(seen(run))
    assert lines[3].startswith("50.00% ┤" + "━" * 71)


def test_a_killed_job_says_where_it_was_and_what_goes_on(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path / "a run", scored=3)
    with running(run, "calibration"):
        pass
    live = seen(run)
    assert (live.state, live.elapsed, live.left) == ("stopped", None, None)
    assert picture(live)[1] == "stopped in: calibration"
    assert picture(live)[-1] == f"`amc resume '{run.path}'` goes on"


def test_a_job_that_stopped_by_itself_has_no_stage(tmp_path: Path) -> None:
    live = seen(make_unfinished_run(tmp_path / "run", scored=3))
    assert (live.state, live.sentence) == ("stopped", "stopped")


def test_a_finished_run_has_its_scores(tmp_path: Path) -> None:
    live = seen(make_run(tmp_path / "run"))
    assert (live.state, live.sentence) == ("finished", "finished")
    assert picture(live)[-1] == "result    dense 88.41%, pruned 76.42%, fine-tuned 86.22%"


def test_a_fine_tuning_has_its_epochs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finetuned=False)
    epochs = [{"epoch": n, "loss": 1 / n, "lr": 0.1, "seconds": 5.0, "score": 0.8 + n / 100} for n in range(1, 8)]
    with running(run, "fine-tuning", done=70, total=100, epochs=epochs):
        live = seen(run)
    assert live.sentence == "fine-tuning, 70 of 100 (0:30 in this stage, about 0:12 left, 1:30 in all)"
    shown = [line for line in picture(live) if line.startswith("epoch")]
    assert shown[0] == "epoch 3   loss 0.333, score 83.00%"
    assert shown[-1] == "epoch 7   loss 0.143, score 87.00%"
    assert len(shown) == 5
    run.write_json("finetune-state.json", {"settings": {}, "candidates": 1, "candidate_epochs": 1, "measured": []})
    stopped = seen(run)
    assert (stopped.state, stopped.resumed_by) == ("stopped", "finetune")


def test_an_error_is_shown_as_the_metric_has_it(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path / "run", episodes=2, score="mse")
    scored(run, [-0.5, -0.25])
    lines = picture(seen(run))
    assert "best      0.25 at 20.10 M MACs (episode 1)" in lines
    assert [line.split("┤")[0].strip() for line in lines if "┤" in line] == [
        "0.25",
        *[""] * 3,
        "0.3125",
        *[""] * 2,
        "0.375",
    ]


def test_a_schedule_shows_its_rounds_and_the_one_under_way(tmp_path: Path) -> None:
    run = make_schedule(tmp_path / "run", finished=2)
    inner = make_unfinished_run(run.path / "round-3", episodes=4)
    scored(inner, [0.5])
    with running(run, "search (planner)", part="round-3"):
        live = seen(run)
    assert (live.part, live.parts, len(live.finished)) == ("round-3", 4, 2)
    assert live.sentence.startswith("round-3: search (planner), 1 of 4 (")
    lines = picture(live)
    assert "█" * 20 + "░" * 20 + " 2/4 rounds" in lines
    assert [line for line in lines if line.startswith("round-1")] == ["round-1, macs<=50%: 86.22%"]
    assert seen(run).state == "stopped"


def test_a_sweep_shows_its_points_and_the_one_under_way(tmp_path: Path) -> None:
    plan = {"metric": "macs", "start": "80%", "end": "40%", "points": 3}
    run = RunDir.create(tmp_path / "run", {"model": "resnet20", "sweep": plan})
    make_run(run.path / "point-3")
    make_unfinished_run(run.path / "point-2", scored=2)
    live = seen(run)
    assert (live.state, live.part, live.parts) == ("stopped", "point-2", 3)
    assert live.finished == (("point-3, macs<=50%", 0.8622),)
    points = [{"budget": "b", "run": f"point-{n}", "slim": SLIM} for n in (1, 2, 3)]
    run.write_json("summary.json", {"points": points})
    assert seen(run).state == "finished"


@pytest.mark.parametrize("part", ["..", "point-../..", "/etc", "point-9"])
def test_a_status_names_no_directory_outside_the_run(tmp_path: Path, part: str) -> None:
    run = make_unfinished_run(tmp_path / "run")
    with running(run, "calibration", part=part):
        assert seen(run).part == ""


def test_every_line_fits_eighty_columns(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path / "run", scored=100, model="m" * 200, data="d" * 200)
    with running(run, "s" * 200, done=1, total=10**9):
        assert max(map(len, picture(seen(run)))) == 80


def test_columns_stand_for_episodes_in_turn() -> None:
    assert buckets([1, 2, 3, 4, 5, 6], 6, 3) == [[1, 2], [3, 4], [5, 6]]
    assert buckets([1, None], 4, 8) == [[1], [1], [], [], [], [], [], []]
    assert buckets([1, 2, 3], 3, 2) == [[1, 2], [3]]


def test_the_writer_of_a_run_is_the_process_that_holds_its_lock(tmp_path: Path) -> None:
    run = make_unfinished_run(tmp_path / "run")
    assert run.writer() is None  # a free lock with the number of a living process, this one
    with run.lock():
        assert run.writer() == os.getpid()
    run.file(".lock").unlink()
    assert run.writer() is None
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    run.file(".lock").write_bytes(done.stdout)
    assert run.writer() is None
    run.file(".lock").write_text("no number")
    assert run.writer() is None
