"""Why a search ended before its last episode: the sentence, and where it is shown."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from amc.cli.terminal import show_summary
from amc.compression.progress import ProgressBar
from amc.report import render_report
from amc.report.figures import score_curve
from amc.report.record import load_record
from amc.report.stopping import stop_sentence
from amc.search import EpisodeRecord, EpisodeTiming, Stop
from tests.report.runs import episode, make_run, write_journal

PATIENCE = {"reason": "patience", "planned": 400, "stale": 20, "expected_gain": 0.0012}
DENSE, SLIM = {"score": 0.9}, {"score": 0.8}


@pytest.mark.parametrize(
    ("stop", "changes", "sentence"),
    [
        (
            {"reason": "time limit", "planned": 400, "limit": 1800.0}, {},
            "stopped after 61 of 400 episodes: the time limit of 30 min 0 s was used up",
        ),
        (
            PATIENCE, {},
            "stopped after 61 of 400 episodes: the last 20 were not better, and the model expects at most 0.12 points "
            "more",
        ),
        (
            PATIENCE, {"reward": "r_flops"},
            "stopped after 61 of 400 episodes: the last 20 were not better, and the model expects at most 0.0012 more "
            "reward",
        ),
        (
            PATIENCE, {"slim": {"score": 3.5}},
            "stopped after 61 of 400 episodes: the last 20 were not better, and the model expects at most 0.0012 more "
            "reward",
        ),
        (
            PATIENCE | {"stale": 1, "expected_gain": None}, {},
            "stopped after 61 of 400 episodes: the last one was not better",
        ),
        (None, {}, ""),
    ],
)  # fmt: skip
def test_the_sentence(stop: dict[str, Any] | None, changes: dict[str, Any], sentence: str) -> None:
    summary = {"reward": "r_err", "episodes": 61, "dense": DENSE, "slim": SLIM, "stopped": stop}
    assert stop_sentence(summary | changes) == sentence


def stopped_run(path: Path) -> Any:
    run = make_run(path, episodes=61, finetuned=False)
    lines = [episode(n, 0.7) for n in range(61)]
    write_journal(run.file("journal.jsonl"), [*lines[:-1], lines[-1] | {"stopped": PATIENCE}])
    run.write_json("summary.json", run.read_json("summary.json") | {"reward": "r_err", "stopped": PATIENCE})
    run.write_json("config.json", run.config() | {"episodes": 400})
    return run


def test_the_page_and_the_terminal_say_it(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run")
    page = render_report(run.path).read_text(encoding="utf-8")
    assert "The search stopped after 61 of 400 episodes: the last 20 were not better" in page
    file = io.StringIO()
    show_summary(Console(file=file, width=80), run.path, run.read_json("summary.json"))
    assert (
        "search    stopped after 61 of 400 episodes: the last 20 were not better, and the\n"
        "          model expects at most 0.12 points more\n"
    ) in file.getvalue()


def test_the_chart_ends_where_the_search_ended(tmp_path: Path) -> None:
    record = load_record(stopped_run(tmp_path / "run"))
    assert score_curve(record).planned == 61


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_bar_ends_with_it(terminal: bool) -> None:
    file = io.StringIO()
    bar = ProgressBar(Console(file=file, force_terminal=terminal, width=120, color_system=None))
    bar.plan({"planner": 400})
    bar.stage("search (planner)")
    record = EpisodeRecord(0, (4,), {"macs": 0.5}, 0.75, -0.25)
    bar.episode("planner", record, EpisodeTiming(0.0, 0.0, replayed=False))
    stop = Stop("patience", 400, stale=1)
    bar.episode("planner", replace(record, episode=1, stopped=stop), EpisodeTiming(0.0, 0.0, replayed=False))
    bar.stage("result")
    bar.close()
    text = file.getvalue()
    assert "planner 2/400: best 0.7500" in text
    assert "planner stopped after 2 of 400 episodes: the last one was not better" in text
    assert text.index("stopped after") < text.index("· result")
