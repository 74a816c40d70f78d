"""What a Python caller hears of a job: nothing unless asked for; a log, a bar, or an observer of the caller's own."""

import logging
import subprocess
import sys

import pytest

import amc
from amc.compression.observer import Observer, Together
from tests.tiny import compress, tiny


class Heard(amc.Observer):
    def __init__(self):
        self.calls = []

    def stage(self, name):
        self.calls.append(("stage", name))

    def dense(self, score):
        self.calls.append(("dense", score))

    def plan(self, episodes):
        self.calls.append(("plan", dict(episodes)))

    def episode(self, agent, record, timing):
        self.calls.append(("episode", agent, record.episode, record.score))

    def close(self):
        self.calls.append(("close",))


def test_an_observer_hears_the_stages_the_scores_and_the_end():
    heard = Heard()
    result = compress(tiny(), observer=heard, episodes=3, baselines=("uniform",))
    assert [call for call in heard.calls if call[0] == "plan"] == [("plan", {"uniform": 1, "planner": 3})]
    episodes = [call for call in heard.calls if call[0] == "episode"]
    assert [call[1:3] for call in episodes] == [("uniform", 0), ("planner", 0), ("planner", 1), ("planner", 2)]
    assert [call[3] for call in episodes[1:]] == [record.score for record in result.search.episodes]
    assert ("dense", result.summary["dense"]["score"]) in heard.calls
    assert heard.calls[0] == ("stage", "structure")
    assert heard.calls[-1] == ("close",)


def test_the_log_has_every_stage_and_score(caplog):
    with caplog.at_level(logging.INFO, logger="amc"):
        result = compress(tiny(), episodes=2, baselines=())
    lines = [record.getMessage() for record in caplog.records]
    assert {record.name for record in caplog.records} == {"amc"}
    assert "calibration" in lines
    assert f"dense network scores {result.summary['dense']['score']:.6g}" in lines
    for record in result.search.episodes:
        assert f"planner episode {record.episode}: score {record.score:.6g}, reward {record.reward:.6g}" in lines


def test_a_failed_episode_and_a_warning_are_logged_as_warnings(caplog):
    calls = iter(range(100))

    def evaluate(model):
        if next(calls) == 1:
            raise RuntimeError("not this one")
        return 0.5

    with caplog.at_level(logging.WARNING, logger="amc"):
        result = compress(tiny(), evaluate=evaluate, episodes=3, baselines=())
    lines = [record.getMessage() for record in caplog.records]
    assert result.search.failed == 1
    assert "planner episode 0 failed: RuntimeError: not this one" in lines
    assert set(result.summary["warnings"]) <= set(lines)


@pytest.mark.parametrize("progress", [False, True])
def test_a_library_is_silent_unless_progress_is_asked_for(progress):
    program = f"from tests.tiny import compress, tiny; compress(tiny(), episodes=2, progress={progress})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    if progress:
        assert "· search (planner)" in done.stderr
        assert "planner 2/2: best " in done.stderr
    else:
        assert done.stderr == ""


def test_together_tells_everyone_everything():
    methods = [name for name in vars(Observer) if not name.startswith("_")]
    told = []

    def recorder(number):
        class Recorder(Observer):
            pass

        for name in methods:
            setattr(Recorder, name, lambda self, *values, name=name: told.append((number, name, values)))
        return Recorder()

    both = Together(recorder(1), recorder(2))
    arguments = {"structure": 2, "episode": 3, "epoch": 2, "close": 0}
    for name in methods:
        values = tuple(range(arguments.get(name, 1)))
        getattr(both, name)(*values)
        assert told[-2:] == [(1, name, values), (2, name, values)]
    assert len(told) == 2 * len(methods)
