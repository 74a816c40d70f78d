"""The episode loop: journal, resuming, failures, caching."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from amc.errors import AmcError, EvaluationError, RunError
from amc.search import AGENTS, DDPGAgent, DDPGConfig, SearchTask, create_agent, search
from amc.search.agents import RandomAgent, UniformAgent
from tests.search import kill_me
from tests.search.toys import residual_problem

SMALL = DDPGConfig(warmup_episodes=5, hidden=16, batch_size=8, updates_per_episode=2)
EPISODES = 15


def run(path, *, seed=0, score=None, agent="ddpg", episodes=EPISODES, **options):
    problem, toy_score = residual_problem(9)
    made = DDPGAgent(problem, SMALL, seed=seed) if agent == "ddpg" else RandomAgent(problem, seed=seed)
    return search(problem, score or toy_score, made, episodes=episodes, seed=seed, journal_path=path, **options)


@pytest.mark.parametrize("agent", ["ddpg", "random"])
def test_same_seed_same_journal_byte_for_byte(tmp_path, agent):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, seed=seed, agent=agent)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_journal_holds_every_episode(tmp_path):
    result = run(tmp_path / "j")
    header, *lines = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert header["seed"] == 0
    assert header["agent"] == "ddpg"
    assert header["settings"]["warmup_episodes"] == 5
    assert [line["episode"] for line in lines] == list(range(EPISODES))
    assert [tuple(line["keep"]) for line in lines] == [record.keep for record in result.episodes]
    problem, score = residual_problem(9)
    best = max(lines, key=lambda line: line["score"])
    assert tuple(best["keep"]) == result.best.keep
    assert best["score"] == score(result.best.keep)
    assert best["reward"] == best["score"] - 1
    assert best["cost"] == problem.policy_costs(result.best.keep)
    assert len({record.keep for record in result.episodes}) == EPISODES


def test_truncated_at_any_line_and_resumed_it_is_the_uninterrupted_run(tmp_path):
    whole = run(tmp_path / "whole")
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for kept, torn in [*((n, b"") for n in range(len(lines) + 1)), (0, lines[0][:9]), (7, lines[7][:30])]:
        path = tmp_path / "part"
        path.write_bytes(b"".join(lines[:kept]) + torn)
        scored = []

        def score(policy, scored=scored):
            scored.append(policy)
            return residual_problem(9)[1](policy)

        assert run(path, score=score) == whole
        assert path.read_bytes() == b"".join(lines)
        assert len(scored) == EPISODES - max(0, kept - 1)


def test_killed_at_random_moments_and_resumed_it_is_the_uninterrupted_run(tmp_path):
    expected = kill_me.run(tmp_path / "whole", 0.0)
    whole, path = (tmp_path / "whole").read_bytes(), tmp_path / "killed"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    generator, kills, sizes = np.random.default_rng(), 0, []
    while True:
        command = [sys.executable, str(root / "tests" / "search" / "kill_me.py"), str(path)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            if kills < 3:
                _wait_for_growth(path, process)
                time.sleep(generator.uniform(0, 0.2))
                process.send_signal(signal.SIGKILL)
            output = process.communicate()[0]
        assert process.returncode in (0, -signal.SIGKILL)
        sizes.append(path.stat().st_size)
        if process.returncode == 0 and kills:
            break
        if process.returncode == 0:  # done before the signal came: begin again
            path.unlink()
            sizes.clear()
        else:
            kills += 1
    assert sizes == sorted(sizes)
    assert output.strip() == str(expected)
    assert path.read_bytes() == whole


def _wait_for_growth(path, process):
    """Until the journal has grown, however slow the machine is; or the process has ended."""
    size = path.stat().st_size if path.exists() else 0
    while process.poll() is None and (not path.exists() or path.stat().st_size <= size):
        time.sleep(0.005)


def test_corrupt_middle_line_stops_the_search_and_is_left_alone(tmp_path):
    run(tmp_path / "j")
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    broken = b"".join([*lines[:4], b"garbage\n", *lines[5:]])
    (tmp_path / "j").write_bytes(broken)
    with pytest.raises(RunError, match="corrupt in line 5"):
        run(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == broken


def test_journal_that_does_not_replay_is_refused(tmp_path):
    run(tmp_path / "j")
    lines = (tmp_path / "j").read_text().splitlines(keepends=True)
    lines[0] = lines[0].replace('"journal": 2', '"journal": 1')  # without digests, as another version wrote it
    fields = json.loads(lines[3])
    fields["keep"][0] = 16 if fields["keep"][0] != 16 else 14
    lines[3] = json.dumps(fields) + "\n"
    (tmp_path / "j").write_text("".join(lines))
    with pytest.raises(RunError, match=r"does not replay: episode 2 kept \["):
        run(tmp_path / "j")


def test_journal_of_another_search_is_refused(tmp_path):
    run(tmp_path / "j")
    content = (tmp_path / "j").read_bytes()
    with pytest.raises(RunError, match="its seed is 0, this search's is 1"):
        run(tmp_path / "j", seed=1)
    with pytest.raises(RunError, match="another search: its agent is 'ddpg', this search's is 'random'"):
        run(tmp_path / "j", agent="random")
    with pytest.raises(RunError, match="already holds 15 episodes, more than the 4 asked for"):
        run(tmp_path / "j", episodes=4)
    assert (tmp_path / "j").read_bytes() == content


def test_failing_and_nan_scores_are_recorded_and_the_search_goes_on(tmp_path):
    calls = itertools.count()
    answers = {1: float("nan"), 2: "high", 3: None, 4: float("inf"), 6: True}

    def score(policy):
        call = next(calls)
        if call == 0:
            raise RuntimeError("out of memory\nsecond line")
        return answers.get(call, residual_problem(9)[1](policy))

    result = run(tmp_path / "j", score=score)
    errors = [record.error for record in result.episodes]
    assert errors[:7] == [
        "RuntimeError: out of memory",
        "the score is nan, it must be finite",
        "the score is 'high', not a number",
        "the score is None, not a number",
        "the score is inf, it must be finite",
        None,
        "the score is True, not a number",
    ]
    assert errors[7:] == [None] * (EPISODES - 7)
    assert result.failed == 6
    content = (tmp_path / "j").read_bytes()
    assert b"NaN" not in content
    (tmp_path / "j").write_bytes(b"".join(content.splitlines(keepends=True)[:10]))
    assert run(tmp_path / "j") == result  # failures are replayed as failures


def test_all_failing_stops_with_the_reason(tmp_path):
    calls = []

    def score(policy):
        calls.append(policy)
        raise ValueError("no such image")

    with pytest.raises(EvaluationError, match=r"first 10 episodes failed.*ValueError: no such image"):
        run(tmp_path / "j", score=score)
    assert len(calls) == 10
    with pytest.raises(EvaluationError, match="first 3 episodes failed"):
        run(None, score=score, episodes=3)


def test_interrupt_passes_through_and_leaves_the_finished_episodes(tmp_path):
    whole = run(tmp_path / "whole")
    calls = itertools.count()

    def score(policy):
        if next(calls) == 6:
            raise KeyboardInterrupt
        return residual_problem(9)[1](policy)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "j", score=score)
    assert (tmp_path / "j").read_bytes().count(b"\n") == 7
    assert run(tmp_path / "j") == whole
    assert (tmp_path / "j").read_bytes() == (tmp_path / "whole").read_bytes()


def test_every_episode_is_reported_with_its_times():
    seen = []
    result = run(None, on_episode=lambda record, timing: seen.append((record, timing)))
    assert [record for record, _ in seen] == list(result.episodes)
    assert all(timing.agent > 0 and timing.score > 0 and not timing.replayed for _, timing in seen)


def test_uniform_runs_once_and_a_known_policy_is_scored_once():
    problem, score = residual_problem(1, "macs<=90%")
    assert len(search(problem, score, UniformAgent(problem), episodes=50, seed=0).episodes) == 1
    calls = []

    def counted(policy):
        calls.append(policy)
        return score(policy)

    # One group, one policy on the surface: every episode repeats it.
    result = search(problem, counted, RandomAgent(problem, seed=0), episodes=5, seed=0)
    assert len(calls) == 1
    assert len(result.episodes) == 5
    assert len({record.score for record in result.episodes}) == 1


def test_agent_finds_the_best_policy_of_a_small_problem():
    problem, score = residual_problem(3, "macs<=60%", 4)
    limit = problem.limit(problem.budgets[0])
    every = itertools.product(*(decision.choices for decision in problem.decisions))
    best = max((p for p in every if problem.cost(problem.metric, p) <= limit), key=score)
    agent = create_agent("ddpg", SearchTask(problem, episodes=60, seed=0))
    assert search(problem, score, agent, episodes=60, seed=0).best.keep == best


def test_agents_are_made_by_name():
    problem, _ = residual_problem(3)
    assert [create_agent(name, SearchTask(problem, episodes=40, seed=0)).name for name in AGENTS] == list(AGENTS)
    with pytest.raises(AmcError, match="'sac' is unknown; use one of planner, ddpg, random, uniform"):
        create_agent("sac", SearchTask(problem, episodes=40, seed=0))


@pytest.mark.parametrize(("blocks", "seed"), [(9, 0), (9, 1), (12, 2)])
def test_agent_beats_as_many_random_policies(blocks, seed):
    problem, score = residual_problem(blocks, "macs<=50%", seed)
    found = {
        name: search(
            problem, score, create_agent(name, SearchTask(problem, episodes=100, seed=0)), episodes=100, seed=0
        )
        for name in ("ddpg", "random", "uniform")
    }
    ddpg, random, uniform = (found[name].best.score for name in ("ddpg", "random", "uniform"))
    # Three quarters of a point of accuracy is what a better fine-tuning recipe would buy.
    assert ddpg > random + 0.0075
    assert ddpg > uniform + 0.02
