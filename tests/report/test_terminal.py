import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from amc.cli.terminal import show_summary
from amc.compression.progress import ProgressBar
from amc.report.tables import format_clock
from amc.run.directory import RunDir
from amc.search import EpisodeRecord, EpisodeTiming
from tests.report.runs import make_guaranteed_run, make_run, make_schedule


def shown(run: RunDir, **changes: Any) -> list[str]:
    """The lines of a terminal of 80 columns."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system=None)
    show_summary(console, run.path, run.read_json("summary.json") | changes)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert all(len(line) <= 80 or "/" in line for line in lines)
    return lines


def test_a_masked_network_has_its_size_its_guarantee_and_its_warnings(tmp_path: Path) -> None:
    text = "\n".join(shown(make_guaranteed_run(tmp_path / "run")))
    assert "dense    masked  change" in text
    assert "File size            1.084 MB  402.1 kB  37.08% left (2.70× less)" in text
    assert (
        "max-drop  Confirmed: on 2,500 images that the search never scored the network\n"
        "          loses 0.21 points, at most 0.46 points (confidence 80%); 0.5 points\n"
        "          allowed."
    ) in text
    assert "masked    dropped weights are zero; most runtimes run the network no faster" in text
    assert "warning   few calibration samples: layer <fc> has 64 inputs" in text
    assert "budget" not in text


def test_a_guarantee_that_does_not_hold(tmp_path: Path) -> None:
    run = make_guaranteed_run(tmp_path / "run", confirmed=False)
    assert any(line.startswith("max-drop  Not confirmed: on 2,500 images") for line in shown(run))


def test_a_score_of_the_user_cannot_be_confirmed(tmp_path: Path) -> None:
    run = make_guaranteed_run(tmp_path / "run")
    own = {"max_drop": 2.0, "confidence": 0.8, "images": None, "confirmed": False, "drop": -1.5, "upper": -1.5}
    text = " ".join(" ".join(shown(run, guarantee=own)).split())
    assert "Not confirmed: the score is the user's own" in text
    assert "by that score the network gains 1.50 points, with 2 points allowed." in text


def test_without_a_budget_a_baseline_says_what_it_keeps(tmp_path: Path) -> None:
    run = make_guaranteed_run(tmp_path / "run", max_drop=None)
    assert "uniform   87.21% at 55.61% of the parameters (best of 10, median 83.00%)" in shown(run)


def test_a_slim_network_under_a_budget(tmp_path: Path) -> None:
    lines = shown(make_run(tmp_path / "run"))
    assert "budget    macs<=50%: 49.71% recounted: held" in lines
    assert "uniform   72.36% (one policy)" in lines
    assert not [line for line in lines if line.startswith(("masked", "warning", "max-drop", "File"))]


def test_the_rounds_of_a_schedule(tmp_path: Path) -> None:
    lines = shown(make_schedule(tmp_path / "run", finished=2))
    assert "round  asked     MACs   params      size  pruned  fine-tuned    test" in lines
    assert "dense         40.55 M  269.7 k  1.084 MB              88.41%  87.90%" in lines
    assert "1        50%   55.00%   50.00%  560.0 kB  85.00%      88.20%  87.60%" in lines
    assert "4        20%        –        –         –       –           –       –" in lines


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_follows_the_reward_and_says_what_the_best_keeps(terminal: bool) -> None:
    file = io.StringIO()
    progress = ProgressBar(Console(file=file, force_terminal=terminal, width=80, color_system=None))
    progress.plan({"ddpg": 2})
    progress._dense_macs = 1000
    progress.stage("search (ddpg)")
    small = EpisodeRecord(0, (1,), {"macs": 300.0}, 0.8, -0.3)
    large = EpisodeRecord(1, (9,), {"macs": 900.0}, 0.9, -0.9)
    for record in (small, large):
        progress.episode("ddpg", record, EpisodeTiming(0.0, 0.1, replayed=False))
    progress._bar.refresh()
    progress.close()
    text = file.getvalue()
    assert "ddpg 2/2: best 0.8000 at 30.0% of the MACs, last 0.9000" in text
    if terminal:
        assert "score 0.9000  best 0.8000 (30.0%)  MACs 90.0%" in text
        assert max(len(line) for line in text.replace("\r", "\n").splitlines()) <= 80 + len("\x1b[2K\x1b[1A")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stage_shows_its_clock_and_its_steps_and_says_how_long_it_took(terminal: bool) -> None:
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, force_terminal=terminal, width=80, color_system=None)
    progress = ProgressBar(console, clock=clock)

    def shown(seconds: float) -> str:
        clock.now += seconds
        begin = len(file.getvalue())
        progress._bar.refresh()
        return file.getvalue()[begin:]

    progress.stage("dense score")
    alone = shown(75)  # no step yet
    progress.stage_step(1, 4)
    clock.now += 5
    progress.stage_step(2, 4)
    stepped = shown(0)
    progress.stage("calibration")
    clock.now += 1.9
    progress.close()
    text = file.getvalue()
    if terminal:
        assert "1:15" in alone
        assert "2/4" in stepped
        assert "1:20<0:10" in stepped  # a step takes 5 s
        assert max(len(line) for line in text.replace("\r", "\n").splitlines()) <= 80 + len("\x1b[2K\x1b[1A")
    else:
        assert text == "· dense score\n  took 1 min 20 s\n· calibration\n"


def test_a_second_pass_over_the_steps_begins_a_new_bar() -> None:
    """The images of the search and those that confirm its result are scored in turn, in one stage."""
    clock = Clock()
    progress = ProgressBar(Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None), clock=clock)
    progress.stage("dense score")
    for done in (1, 2, 1):
        clock.now += 1
        progress.stage_step(done, 2)
    (task,) = progress._bar.tasks
    assert (task.completed, task.total) == (1, 2)
    progress.close()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0:00"), (61, "1:01"), (3599.9, "59:59"), (3600, "1h00m"), (90_060, "25h01m")]
)
def test_a_clock(seconds: float, text: str) -> None:
    assert format_clock(seconds) == text
