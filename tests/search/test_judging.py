"""What users' functions raise and return, and what becomes of it: the same everywhere."""

from __future__ import annotations

import errno
import itertools
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amc.compression.scoring.evaluator import as_evaluator, final_score, score_of
from amc.compression.selection import Choice
from amc.compression.selection.by_confidence import ByConfidence, feasible
from amc.compression.selection.by_finetuning import ByFineTuning, FineTuningTrial
from amc.compression.selection.by_latency import ByLatency, _Timings
from amc.errors import (
    LINE,
    AmcError,
    DataError,
    EvaluationError,
    ResourceError,
    RunError,
    check_resources,
    guarded,
    one_line,
    reason_of,
)
from amc.recovery import DivergenceError
from amc.search import (
    Budget,
    EpisodeRecord,
    Metric,
    Outcome,
    Problem,
    RandomAgent,
    get_reward,
    read_journal,
    search,
)
from amc.search.judging import LARGEST, REWARD, SCORE, number_of
from amc.search.rewards import SmallestWithin
from amc.search.statistics import Measured, PairedDrop
from tests.search.toys import residual_problem
from tests.tiny import compress, tiny


class Mute(Exception):
    """Says nothing, not even when asked."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Stubborn:
    """Looks like a number and is none."""

    def __float__(self) -> float:
        raise ZeroDivisionError("never")

    def __repr__(self) -> str:
        raise OSError("no picture")


CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
CPU = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
EXHAUSTED: list[tuple[BaseException, str]] = [
    (MemoryError(), "memory (MemoryError)"),
    (np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype("f8")), "memory"),
    (RuntimeError(CPU), "memory"),
    (RuntimeError("CUDA error: out of memory"), "memory"),
    (torch.OutOfMemoryError(CUDA), "memory"),
    (OSError(errno.ENOSPC, "No space left on device"), "disk space"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk space (quota)"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
    (ExceptionGroup("two at once", [ValueError("no"), MemoryError("mine")]), "memory (MemoryError: mine)"),
]
FAULTS: list[BaseException] = [
    ValueError("no camera"), AttributeError("mean"), AssertionError(), OSError(errno.ENOENT, "gone"), KeyError("fps"),
    RuntimeError("out of memory\nsecond line"), RecursionError(), StopIteration(),
    UnicodeDecodeError("utf8", b"x", 0, 1, "bad"), Mute(), DataError("one image"),
    ExceptionGroup("several", [ValueError(), KeyError()]),
    Exception("\ud800\x1b[31m\x00"),
    Exception("long" * 10_000), Exception(),
]  # fmt: skip
NO_NUMBERS: list[Any] = [
    None, "0.5", b"0.5", True, np.True_, torch.tensor(True), [0.5], {}, np.zeros(2), torch.zeros(2), torch.zeros(0), 1j,
    np.complex64(1), torch.tensor(1j), object(), Stubborn(), np.array(["0.5"]), float, math.nan, math.inf, -math.inf,
    np.float32("nan"), torch.tensor(math.inf), Decimal("NaN"), Decimal("Infinity"), 1e308, -1e308, 10**400,
    LARGEST * 1.01,    Decimal("1e400"), Fraction(10**400), np.float64(1e16), torch.empty(1, device="meta"),
]  # fmt: skip
NUMBERS: list[tuple[Any, float]] = [
    (0, 0.0), (0.5, 0.5), (-3, -3.0), (np.float16(0.5), 0.5), (np.int64(2), 2.0), (np.array(0.25), 0.25),
    (np.array([0.25]), 0.25), (torch.tensor(0.75), 0.75), (torch.tensor([[0.75]]), 0.75),
    (torch.tensor(0.5, requires_grad=True), 0.5), (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
    (Decimal("0.125"), 0.125), (Fraction(1, 8), 0.125), (LARGEST, LARGEST), (-LARGEST, -LARGEST),
    (Measured(0.5, 0.1), 0.5),
]  # fmt: skip


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any) -> Any:
        raise error

    return function


def fine(text: str) -> bool:
    """One printable line of bounded length."""
    return text.isprintable() and 0 < len(text) <= LINE + 200 and "Traceback" not in text


@pytest.mark.parametrize(("value", "number"), NUMBERS)
def test_numbers_of_every_library_are_numbers(value: Any, number: float) -> None:
    found = number_of(value, SCORE)
    assert type(found) is float
    assert found == number


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_everything_else_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(EvaluationError) as refusal:
        number_of(value, REWARD)
    assert str(refusal.value).startswith("the reward is ")
    assert fine(str(refusal.value))


@given(st.one_of(st.floats(), st.integers(), st.decimals(), st.fractions(), st.complex_numbers(), st.text(), st.none()))
def test_a_number_is_finite_and_bounded_or_refused(value: Any) -> None:
    try:
        number = number_of(value, SCORE)
    except EvaluationError as error:
        assert fine(str(error))  # noqa: PT017
        assert not isinstance(value, int | float | Fraction) or not abs(value) <= LARGEST
    else:
        assert number == float(value)
        assert abs(number) <= LARGEST


@given(st.text(), st.sampled_from([ValueError, OSError, RuntimeError, EvaluationError, KeyError, ArithmeticError]))
def test_a_reason_is_one_printable_line(text: str, kind: type[Exception]) -> None:
    reason = reason_of(kind(text))
    assert reason.isprintable()
    assert 0 < len(reason) <= LINE
    assert reason.encode("utf-8")


def test_the_first_line_that_says_something_is_kept() -> None:
    assert one_line("\n  \n first\nsecond") == "first"
    assert one_line("red \x1b[31m and \ud800") == "red \\x1b[31m and \\ud800"
    assert one_line("a" * 5000) == "a" * (LINE - 1) + "…"
    assert reason_of(Mute()) == "Mute"
    assert reason_of(EvaluationError("mine alone")) == "mine alone"
    assert reason_of(ValueError("no camera")) == "ValueError: no camera"


@pytest.mark.parametrize(("error", "what"), EXHAUSTED, ids=lambda value: type(value).__name__)
def test_a_machine_that_is_out_of_something_is_no_fault_of_a_policy(error: BaseException, what: str) -> None:
    with pytest.raises(ResourceError) as stop:
        guarded(raising(error))
    assert f"the machine is out of {what}" in str(stop.value)
    wrapped = ValueError("the loader failed")
    wrapped.__cause__ = error
    with pytest.raises(ResourceError):
        guarded(raising(wrapped))


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    check_resources(first)  # neither raises nor hangs


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_any_other_error_costs_one_episode(error: BaseException, tmp_path: Path) -> None:
    problem, good = residual_problem(9)
    calls = itertools.count()
    asked: list[tuple[int, ...]] = []

    def score(policy: tuple[int, ...]) -> float:
        asked.append(policy)
        if next(calls) == 1:
            raise error
        return good(policy)

    found = search(problem, score, RandomAgent(problem, seed=0), episodes=4, seed=0, journal_path=tmp_path / "j")
    errors = [record.error for record in found.episodes]
    assert [e is None for e in errors] == [True, False, True, True]
    assert fine(str(errors[1]))
    assert [record.error for record in read_journal(tmp_path / "j")[1]] == errors


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_a_score_or_reward_that_is_none_costs_one_episode(value: Any, tmp_path: Path) -> None:
    problem, good = residual_problem(9)
    answers = {1: value}
    scored, paid = itertools.count(), itertools.count()
    found = search(
        problem,
        lambda policy: answers.get(next(scored), good(policy)),
        RandomAgent(problem, seed=0),
        episodes=4,
        seed=0,
        reward=lambda outcome: answers.get(next(paid), outcome.score),
        journal_path=tmp_path / "j",
    )
    errors = [record.error for record in found.episodes]
    assert [e is None for e in errors] == [True, False, False, True]  # of the score, then of the reward
    assert str(errors[1]).startswith("the score is ")
    assert str(errors[2]).startswith("the reward is ")
    assert b"NaN" not in (tmp_path / "j").read_bytes()


@pytest.mark.parametrize(("error", "what"), EXHAUSTED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("where", ["score", "reward"])
def test_an_exhausted_machine_stops_the_search_which_then_resumes(
    error: BaseException, what: str, where: str, tmp_path: Path
) -> None:
    problem, good = residual_problem(9)

    def run(fails: bool, path: Path) -> Any:
        calls = itertools.count()

        def failing(value: float) -> float:
            if fails and next(calls) == 2:
                raise error
            return value

        return search(
            problem,
            (lambda policy: failing(good(policy))) if where == "score" else good,
            RandomAgent(problem, seed=0),
            episodes=5,
            seed=0,
            reward=(lambda outcome: failing(outcome.score)) if where == "reward" else named,
            journal_path=path / "journal.jsonl",
        )

    def named(outcome: Outcome) -> float:
        return outcome.score

    named.__name__ = "<lambda>"
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    whole = run(False, tmp_path / "whole")
    with pytest.raises(ResourceError) as stop:
        run(True, tmp_path / "stopped")
    assert f"the machine is out of {what}" in str(stop.value)
    resume = f"free some, then resume '{tmp_path / 'stopped'}'"
    assert f"in episode 2; the earlier episodes are kept: {resume}" in str(stop.value)
    assert len(read_journal(tmp_path / "stopped" / "journal.jsonl")[1]) == 2
    assert run(False, tmp_path / "stopped") == whole


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_what_is_no_exception_passes_through(stop: BaseException) -> None:
    problem, _ = residual_problem(9)
    with pytest.raises(type(stop)):
        search(problem, raising(stop), RandomAgent(problem, seed=0), episodes=4, seed=0)
    with pytest.raises(type(stop)):
        score_of(raising(stop), tiny(), "dense")


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_the_dense_network_that_cannot_be_scored_is_told_in_one_line(error: BaseException) -> None:
    with pytest.raises(AmcError) as refusal:
        score_of(as_evaluator(raising(error)), tiny(), "dense")
    assert fine(str(refusal.value))
    if not isinstance(error, AmcError):
        assert str(refusal.value).startswith(f"evaluate fails on the dense network ({type(error).__name__}")
    value, warnings = final_score(as_evaluator(raising(error)), tiny(), "slim")
    assert value is None
    assert warnings == [w for w in warnings if w.startswith("the slim network has no test score: ") and fine(w)] != []


def test_a_test_score_that_fails_costs_only_itself(tmp_path: Path) -> None:
    def test(module: Any) -> float:
        if module.a.out_channels < 10 or module.b.out_channels < 12 or module.c.out_channels < 8:
            raise AssertionError("only for the dense one")
        return 0.5

    result = compress(tiny(), test=test, run_dir=tmp_path / "run")
    assert result.summary["dense"]["test"] == 0.5
    assert "test" not in result.summary["slim"]
    assert (
        "the slim network has no test score: evaluate fails on the slim network (AssertionError: only for the dense "
        "one); it must return a number for any network of this class"
    ) in result.summary["warnings"]
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_an_exhausted_machine_is_told_of_the_dense_network() -> None:
    with pytest.raises(ResourceError, match=r"memory \(MemoryError\) while the dense network is scored; free"):
        score_of(raising(MemoryError()), tiny(), "dense")


def test_a_neighbour_that_fails_is_left_out_of_a_latency_search() -> None:
    problem, _ = residual_problem(9)
    costs = {**problem.costs, Metric.LATENCY: problem.costs[problem.metric]}
    limit = Budget(Metric.LATENCY, absolute=0.6 * problem.cost(problem.metric, problem.dense))
    problem = Problem(problem.decisions, costs, (limit,))
    parent = tuple(problem.least.tolist())
    episode = EpisodeRecord(3, parent, problem.policy_costs(parent), 0.5, -0.5)

    def neighbours(score: Any) -> dict[Any, EpisodeRecord]:
        latency = SimpleNamespace(dense_ms=problem.cost(Metric.LATENCY, problem.dense))
        setup = ByLatency(latency, problem, limit, None, None, score, get_reward("r_err"))  # type: ignore[arg-type]
        timings = _Timings(setup, {parent: episode})
        timings.score_neighbours()
        return timings.pool

    for error in FAULTS:
        assert neighbours(raising(error)) == {parent: episode}
    pool = neighbours(lambda _: 0.25)
    assert len(pool) > 1
    fresh = list(pool.values())[1:]
    assert [(record.score, record.reward) for record in fresh] == [(0.25, -0.75)] * len(fresh)
    assert [record.episode for record in fresh] == list(range(4, 4 + len(fresh)))
    with pytest.raises(ResourceError):
        neighbours(raising(MemoryError()))


def test_a_candidate_that_cannot_be_measured_is_not_confirmed() -> None:
    problem, _ = residual_problem(9)
    found = search(problem, lambda policy: 0.9, RandomAgent(problem, seed=0), episodes=6, seed=0)
    reward = SmallestWithin(0.5, 0.9, problem.metric)
    calls = itertools.count()

    def compare(record: Any) -> PairedDrop:
        if next(calls) == 0:
            raise OSError("a lost disk")
        return PairedDrop(100, 0, 0)

    choice = ByConfidence(reward, compare, images=100).choose(found.episodes)
    assert choice.holds
    assert choice.record == feasible(found.episodes, reward)[1]
    with pytest.raises(EvaluationError, match=r"none of the \d+ candidates can be confirmed, the last: OSError: a"):
        ByConfidence(reward, raising(OSError("a lost disk")), images=100).choose(found.episodes)
    with pytest.raises(ResourceError):
        ByConfidence(reward, raising(MemoryError()), images=100).choose(found.episodes)


class Answers:
    """A `Training` whose scores are known: what is an error is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.kept = answers, list[dict[str, Any]]()

    def recheck(self, record: EpisodeRecord, number: int) -> EpisodeRecord:
        return record

    def train(self, record: EpisodeRecord, number: int) -> float:
        answer = self.answers[number]
        if isinstance(answer, Exception):
            raise answer
        return float(answer)

    def keep(self, trial: FineTuningTrial, number: int) -> FineTuningTrial:
        self.kept.append(trial.to_json())
        return trial


def test_a_candidate_whose_fine_tuning_fails_is_never_the_best() -> None:
    problem, _ = residual_problem(9)
    policies = [tuple((problem.dense - number).tolist()) for number in range(3)]
    records = [EpisodeRecord(n, keep, problem.policy_costs(keep), 0.5, -0.5) for n, keep in enumerate(policies)]

    def choice(*answers: Any, known: Any = ()) -> Choice:
        training = Answers(*answers)
        chosen = ByFineTuning(problem, get_reward("r_err"), training, len(answers), known).choose(records)
        assert training.kept == [trial.to_json() for trial in chosen.trials[len(known) :]]
        return chosen

    diverged = DivergenceError("the loss is nan")
    chosen = choice(diverged, 0.25, 0.75)
    lines = chosen.summary["candidates"]
    assert [line["score_tuned"] for line in lines] == [None, 0.25, 0.75]
    assert [line["reward_tuned"] for line in lines] == [None, -0.75, -0.25]
    assert [line["chosen"] for line in lines] == [False, False, True]
    assert lines[0]["error"] == "the loss is nan"
    assert chosen.record == records[2]
    assert choice(diverged, 0.25).record == records[1]
    assert choice(0.25, 0.25).record == records[0]  # of equal ones the better in the search
    with pytest.raises(RunError, match="none of 1 candidates could be fine-tuned, the last: the loss is nan"):
        choice(diverged)
    with pytest.raises(ResourceError):
        choice(ResourceError("out of memory"))
    again = [trial.to_json() for trial in chosen.trials]  # of an earlier session: nothing is trained
    resumed = choice(*[AssertionError()] * 3, known=again)
    assert (resumed.record, resumed.summary) == (records[2], chosen.summary)
