"""Time limits and patience in the whole job: what the result says, resuming, rounds, and old runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import amc
from amc.cli.jobs.resume import run_resume
from amc.cli.jobs.stopped import left_in
from amc.compression.settings import SearchConfig
from amc.errors import RunError
from amc.report import render_report
from amc.run.directory import RunDir
from amc.search import read_journal
from tests.clocks import ticking
from tests.fixtures.runs import make
from tests.tiny import EXAMPLE, compress, images, labelled, tiny

SEVEN = 20  # seconds by the clock `ticking`: seven episodes


def summary(run: Path) -> dict[str, Any]:
    return RunDir.open(run).read_json("summary.json")


def test_a_time_limit_ends_the_search_and_the_result_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ticking(), caplog.at_level(logging.INFO, "amc"):
        result = compress(tiny(), episodes=40, time_limit=f"{SEVEN}s", run_dir=tmp_path / "run")
    assert len(result.search.episodes) == result.summary["episodes"] == 7
    assert result.summary["stopped"] == {"reason": "time limit", "planned": 40, "limit": 20.0}
    assert summary(tmp_path / "run")["stopped"] == result.summary["stopped"]
    sentence = "stopped after 7 of 40 episodes: the time limit of 20.0 s was used up"
    assert f"planner {sentence}" in caplog.messages
    page = render_report(tmp_path / "run").read_text(encoding="utf-8")
    assert f"The search {sentence}." in page
    assert len(read_journal(tmp_path / "run" / "journal.jsonl")[1]) == 7


def test_patience_ends_the_search_with_what_the_model_expects(tmp_path: Path) -> None:
    result = compress(tiny(), episodes=60, patience=2, run_dir=tmp_path / "run")
    stop = result.search.stopped
    assert stop is not None
    count, rewards = len(result.search.episodes), [record.reward or -9.0 for record in result.search.episodes]
    assert 8 + 2 <= count < 60
    assert stop.stale is not None
    assert 2 <= stop.stale <= 20
    assert max(rewards[-stop.stale :]) <= max(rewards[: -stop.stale])
    assert result.summary["stopped"] == stop.to_json()
    page = render_report(tmp_path / "run").read_text(encoding="utf-8")
    assert f"stopped after {count} of 60 episodes: the last {stop.stale} were not better" in page


def test_a_search_with_all_its_episodes_has_no_stop(tmp_path: Path) -> None:
    with ticking():
        result = compress(tiny(), episodes=6, time_limit="1h", patience=50, run_dir=tmp_path / "run")
    assert (len(result.search.episodes), result.search.stopped) == (6, None)
    assert "stopped" not in result.summary
    assert "The search stopped" not in render_report(tmp_path / "run").read_text(encoding="utf-8")


def test_a_limit_is_not_that_of_baselines_and_patience_neither() -> None:
    """Every agent has the time for itself, random policies a share; patience is the agent's alone."""
    with ticking():
        result = compress(tiny(), episodes=12, time_limit=SEVEN, patience=1, random_share=1.0, agent="swaps")
        shared = compress(tiny(), episodes=12, time_limit=SEVEN, random_share=0.5, agent="swaps")
    assert result.summary["baselines"]["random"]["episodes"] == 7
    assert len(result.search.episodes) <= 7
    assert 2 <= shared.summary["baselines"]["random"]["episodes"] <= 4  # half of the time, and of twelve policies


class Stopper(amc.Observer):
    """Interrupts the job where its result begins, or after an episode."""

    def __init__(self, stage: str = "", episode: int = -1) -> None:
        self._stage, self._episode = stage, episode

    def stage(self, name: str) -> None:
        if name == self._stage:
            raise KeyboardInterrupt

    def episode(self, agent: str, record: Any, timing: Any) -> None:
        if agent == "planner" and record.episode == self._episode:
            raise KeyboardInterrupt


@pytest.mark.parametrize("where", [{"episode": 2}, {"episode": 6}, {"stage": "result"}])
@pytest.mark.parametrize("limits", [{"time_limit": SEVEN}, {"patience": 2}], ids=["time", "patience"])
def test_interrupted_and_resumed_it_stops_at_the_same_policy(
    tmp_path: Path, limits: dict[str, Any], where: dict[str, Any]
) -> None:
    with ticking():
        whole = compress(tiny(), episodes=40, run_dir=tmp_path / "whole", **limits)
    with ticking(), pytest.raises(KeyboardInterrupt):
        compress(tiny(), episodes=40, run_dir=tmp_path / "cut", observer=Stopper(**where), **limits)
    before = (tmp_path / "cut" / "journal.jsonl").read_bytes()
    told = left_in(tmp_path / "cut")
    if "stage" in where or ("time_limit" in limits and where["episode"] == 6):
        assert told.startswith(f"the search has stopped, as asked, after {len(whole.search.episodes)} of 40 episodes; ")
    else:
        assert told.startswith(f"{where['episode'] + 1} of 40 episodes are stored; ")
    with ticking():
        again = compress(tiny(), episodes=40, run_dir=tmp_path / "cut", resume=True, **limits)
    assert again.search == whole.search
    journals = [(tmp_path / name / "journal.jsonl").read_bytes() for name in ("whole", "cut")]
    assert journals[0] == journals[1]
    assert journals[1].startswith(before)
    assert again.summary["stopped"] == whole.summary["stopped"]


def test_a_run_is_resumed_with_the_limits_it_began_with(tmp_path: Path) -> None:
    with ticking(), pytest.raises(KeyboardInterrupt):
        compress(tiny(), run_dir=tmp_path / "run", observer=Stopper(episode=2), time_limit="1m")
    for changed in ({"time_limit": "2m"}, {}, {"time_limit": "60s", "patience": 3}):
        with pytest.raises(RunError, match=r"was started with (time_limit '60s', not|patience None, not 3)"):
            compress(tiny(), run_dir=tmp_path / "run", resume=True, **changed)
    assert compress(tiny(), run_dir=tmp_path / "run", resume=True, time_limit=60).summary["episodes"] == 6


def test_a_run_that_began_before_there_were_limits_has_none(tmp_path: Path) -> None:
    assert (
        SearchConfig.from_json({"episodes": 6}).time_limit is SearchConfig.from_json({"episodes": 6}).patience is None
    )
    with pytest.raises(KeyboardInterrupt):
        compress(tiny(), run_dir=tmp_path / "run", observer=Stopper(episode=2))
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_bytes())
    for name in ("time_limit", "patience", "sha256"):
        del config[name]
    path.write_text(json.dumps(config))
    with pytest.raises(RunError, match="was started with patience None, not 1"):
        compress(tiny(), run_dir=tmp_path / "run", resume=True, patience=1)
    assert compress(tiny(), run_dir=tmp_path / "run", resume=True).summary["episodes"] == 6


def test_in_a_schedule_every_round_has_the_whole_limit(tmp_path: Path) -> None:
    with ticking():
        make.schedule(tmp_path / "run", episodes=12, time_limit=SEVEN, agent="random")
    for number in (1, 2):
        found = summary(tmp_path / "run" / f"round-{number}")
        assert (found["episodes"], found["stopped"]["reason"]) == (7, "time limit")


def test_in_a_sweep_every_point_has_its_share_of_the_limit() -> None:
    """Four of sixteen episodes are the first point's, so that it has a quarter of the time: two episodes."""
    model = tiny()
    with ticking():
        found = amc.sweep(
            model, EXAMPLE, calibration=[images(32, 1), images(32, 2)], evaluate=labelled(model, 96, 5), points=3,
            start="80%", end="60%", episodes=16, time_limit=20, round_to=1, keep_sets=0, recover="none",
        )  # fmt: skip
    # 20 s * 4 / 16 = 5 s: 2 + 3 s. The other two points have 6 episodes and 7.5 s each: 2 + 3 + 3 s.
    assert [point.record["episodes"] for point in found.points] == [3, 3, 2]


def test_resuming_a_finished_search_that_stopped_changes_nothing(tmp_path: Path) -> None:
    with ticking():
        make.search(tmp_path / "run", episodes=40, time_limit=SEVEN)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix != ".html"}
    run_resume(tmp_path / "run", progress=make.Watch())
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix != ".html"}
    assert before == after
