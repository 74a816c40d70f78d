"""What a Python caller hears of a job: nothing unless asked for; a log, a bar, or an observer of the caller's own."""

import logging
import subprocess
import sys

import pytest

import amc
from amc.compression.observer import Observer, Together
from amc.report import render_report
from amc.search import EpisodeRecord, read_journal
from tests.tiny import compress, images, labelled, tiny


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
    arguments = {"job_settings": 2, "structure": 2, "stage_step": 2, "episode": 3, "stops": 2, "epoch": 2, "close": 0}
    for name in methods:
        values = tuple(range(arguments.get(name, 1)))
        getattr(both, name)(*values)
        assert told[-2:] == [(1, name, values), (2, name, values)]
    assert len(told) == 2 * len(methods)


def record(number):
    return EpisodeRecord(number, (4,), {"macs": 1.0}, 0.5, -0.5)


def test_the_first_reason_to_stop_is_the_answer_of_several_observers():
    class Answer(Observer):
        def __init__(self, words):
            self.words, self.asked = words, 0

        def stops(self, agent, record):
            self.asked += 1
            return self.words

    silent, first, second = Answer(None), Answer("first"), Answer("second")
    assert Together(silent, first, second).stops("planner", record(0)) == "first"
    assert Together(silent).stops("planner", record(0)) is None
    assert (silent.asked, first.asked, second.asked) == (2, 1, 1)


class Enough(amc.Observer):
    """Ends the search of one agent after so many episodes; remembers what it was asked."""

    def __init__(self, episodes, words="the user has\nseen enough", agent="planner"):
        self.episodes, self.words, self.agent = episodes, words, agent
        self.asked = []

    def stops(self, agent, record):
        self.asked.append((agent, record.episode))
        return self.words if agent == self.agent and record.episode + 1 == self.episodes else None


def test_an_observer_ends_a_search_and_the_result_says_why(tmp_path):
    enough = Enough(3)
    result = compress(tiny(), episodes=6, run_dir=tmp_path / "run", observer=enough, baselines=("uniform",))
    stop = {"reason": "observer", "planned": 6, "words": "the user has seen enough"}
    assert result.summary["stopped"] == stop
    assert result.summary["episodes"] == len(result.search.episodes) == 3
    assert read_journal(tmp_path / "run" / "journal.jsonl")[1][-1].stopped.to_json() == stop
    assert enough.asked == [("planner", 0), ("planner", 1), ("planner", 2)]  # not after a last episode, as uniform's is
    page = render_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "The search stopped after 3 of 6 episodes: the user has seen enough." in page


def test_a_search_that_an_observer_ended_is_resumed_where_it_ended(tmp_path):
    class Killed(Enough):
        def stage(self, name):
            if name == "result":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(tiny(), episodes=6, run_dir=tmp_path / "run", observer=Killed(3))
    journal = tmp_path / "run" / "journal.jsonl"
    before, later = journal.read_bytes(), Enough(5)
    result = compress(tiny(), episodes=6, run_dir=tmp_path / "run", observer=later, resume=True)
    assert journal.read_bytes() == before
    assert result.summary["stopped"]["words"] == "the user has seen enough"
    assert later.asked == []  # what a journal holds is decided


def test_a_baseline_alone_may_be_ended(tmp_path):
    result = compress(tiny(), episodes=4, random_share=1.0, observer=Enough(2, agent="random"))
    assert result.summary["baselines"]["random"]["episodes"] == 2
    assert len(result.search.episodes) == 4
    assert "stopped" not in result.summary


@pytest.mark.parametrize("words", ["", " ", 0, True])
def test_a_reason_that_is_no_text_is_refused(words):
    with pytest.raises(amc.AmcError, match=r"an observer's `stops` returned .*; return None to go on, or the reason"):
        compress(tiny(), episodes=4, observer=Enough(1, words))


def test_an_observer_hears_the_settings_and_the_result():
    class Ends(amc.Observer):
        def job_settings(self, job, settings):
            self.heard = settings["budget"], settings["episodes"]

        def job_result(self, summary):
            self.summary = summary

    ends = Ends()
    result = compress(tiny(), episodes=3, budget="macs<=60%", observer=ends)
    assert ends.heard == ("macs<=60%", 3)
    assert ends.summary is result.summary


def test_an_observer_hears_the_steps_of_every_stage_but_the_search():
    class Steps(amc.Observer):
        def __init__(self):
            self.heard, self.name = {}, ""

        def stage(self, name):
            self.name = name

        def stage_step(self, done, total):
            self.heard.setdefault(self.name, []).append((done, total))

    steps, model = Steps(), tiny()
    split = {"evaluate": labelled(model, 96, 5), "test": labelled(model, 64, 6)}  # batches of 32
    compress(model, calibration=[images(32, 1), images(32, 2)], keep_sets=2, episodes=3, observer=steps, **split)
    assert steps.heard == {
        "check of the structure": [(1, 2), (2, 2)],
        "dense score": [(1, 3), (2, 3), (3, 3)],
        "calibration": [(1, 2), (2, 2)],
        "ranking and reconstruction": [(step, 6) for step in range(1, 7)],  # three groups, and three layers
        "result": [(1, 2), (2, 2)] * 2,  # the test split, of the dense network and of the slim one
    }


def test_an_observer_with_an_attribute_of_its_own_named_like_the_old_methods_still_works():
    class Old(amc.Observer):
        def __init__(self):
            self.step, self.part, self.result, self.settings = None, 1, {}, "mine"

    assert len(compress(tiny(), episodes=2, observer=Old()).search.episodes) == 2
