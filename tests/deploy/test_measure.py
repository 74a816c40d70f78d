"""Timing with a simulated clock, so that the results can be computed by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.deploy.measure import MeasureSettings, Timing, Watch, compare, measure, steady
from amc.errors import AmcError


class Clock:
    """Time that passes only inside the functions that are timed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.processor = 0.0
        self.switches = 0
        self.order: list[str] = []

    @property
    def watch(self) -> Watch:
        return Watch(lambda: self.now, lambda: self.processor, lambda: self.switches)

    def task(self, name: str, seconds: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            self.order.append(name)
            self.now += next(seconds)

        return call


def timing(*round_ms: float, precision: float = 0.03) -> Timing:
    best = sorted(round_ms)
    spread = best[2] / best[0] - 1
    return Timing(best[0], spread, best[len(best) // 2], 3, spread <= precision, round_ms)


def test_constant_times_are_found_exactly() -> None:
    clock = Clock()
    timings = measure({"a": clock.task("a", cycle([0.004])), "b": clock.task("b", cycle([0.010]))}, watch=clock.watch)
    assert timings["a"].latency_ms == pytest.approx(4)
    assert timings["b"].latency_ms == pytest.approx(10)
    assert timings["a"].spread == pytest.approx(0)
    assert len(timings["a"].round_ms) == len(timings["b"].round_ms) == 20
    assert timings["a"].calls == pytest.approx(25, abs=1)  # a round lasts a tenth of a second
    assert timings["b"].calls == pytest.approx(10, abs=1)
    assert timings["a"].steady


def test_a_round_counts_its_median() -> None:
    """Calls take 1, 1, 1, 1 and 9 ms in any order; the median is 1 ms, so one slow call does not matter."""
    clock = Clock()
    seconds = cycle([0.001, 0.001, 0.009, 0.001, 0.001])
    result = measure({"a": clock.task("a", seconds)}, MeasureSettings(round_seconds=0.02), watch=clock.watch)["a"]
    assert result.latency_ms == pytest.approx(1)
    assert result.typical_ms == pytest.approx(1)


def test_networks_take_turns_forwards_and_backwards() -> None:
    clock = Clock()
    tasks = {name: clock.task(name, cycle([1.0])) for name in "abc"}
    measure(tasks, MeasureSettings(rounds=3, warmup=0, round_seconds=0.1), watch=clock.watch)
    timed = clock.order[9:]  # the first three calls of each network determine the calls per round
    turns = [name for index, name in enumerate(timed) if index == 0 or timed[index - 1] != name]
    assert "".join(turns) == "abcbabc"  # passes abc, cba, abc; equal neighbours appear once
    assert len(timed) == 3 * 3 * (1 + 3)  # one call to warm the caches and three that count


def test_warmup_is_not_timed() -> None:
    clock = Clock()
    slow_start = iter([5.0] * 5 + [0.01] * 10_000)
    assert measure({"a": clock.task("a", slow_start)}, watch=clock.watch)["a"].latency_ms == pytest.approx(10)


def test_noise_is_measured_longer_until_three_rounds_agree() -> None:
    """Each round has a factor of its own: the first rounds differ by 40%, then three quiet rounds follow."""
    clock = Clock()
    factors = iter([1.0, 1.4, 1.9, 1.6, 2.0, 1.5, 1.7, 1.02, 1.01, 1.9, 1.8] + [2.0] * 100)
    per_round = 4  # a call to warm up, three to time
    seconds = (0.1 * factor for factor in factors for _ in range(per_round))
    first = [0.1] * 3  # calls that determine the calls per round
    task = clock.task("a", iter([*first, *seconds]))
    result = measure({"a": task}, MeasureSettings(rounds=5, warmup=0, precision=0.05), watch=clock.watch)["a"]
    assert len(result.round_ms) == 10  # five rounds, and five more
    assert result.latency_ms == pytest.approx(100)
    assert result.spread == pytest.approx(0.02)
    assert result.steady


def test_a_machine_that_stays_noisy_is_called_so() -> None:
    clock = Clock()
    random_factor = random.Random(0)
    seconds = iter(lambda: 0.1 * (1 + 3 * random_factor.random()), None)
    chosen = MeasureSettings(rounds=5, precision=1e-4, max_seconds=20)
    result = measure({"a": clock.task("a", seconds)}, chosen, watch=clock.watch)["a"]
    assert not result.steady
    assert result.spread > chosen.precision
    assert 20 <= clock.now < 20 + 5 * 4 * 0.4 + 1  # the limit, and at most the rounds that had begun


def test_an_exception_of_a_network_passes_through() -> None:
    def broken() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        measure({"a": broken})


def test_ratio_of_quiet_rounds() -> None:
    comparison = compare(timing(2.0, 2.0, 2.02, 2.0), timing(4.0, 4.0, 4.04, 4.0))
    assert comparison.ratio == 0.5
    assert comparison.uncertainty == pytest.approx(0)
    assert comparison.verdict == "faster"
    assert compare(timing(4.0, 4.0, 4.0), timing(2.0, 2.0, 2.0)).verdict == "slower"


def test_a_difference_within_the_spreads_is_undecided() -> None:
    """The ratio is 0.98, but both spreads are 2%."""
    comparison = compare(timing(0.98, 0.99, 0.9996), timing(1.0, 1.01, 1.02))
    assert comparison.ratio == pytest.approx(0.98)
    assert comparison.uncertainty == pytest.approx(0.98 * 0.04, abs=1e-3)
    assert comparison.verdict == "undecided"


def test_a_lucky_network_is_not_called_faster() -> None:
    """Only one network has three quiet rounds: the best rounds differ by 20%, but rounds at the same time agree."""
    lucky = timing(0.8, 0.8, 0.8, *[1.0] * 9)
    comparison = compare(lucky, timing(*[1.0] * 12))
    assert comparison.ratio == pytest.approx(0.8)
    assert comparison.uncertainty == pytest.approx(0.2)  # the gap to the median of the ratios, which is 1
    assert comparison.verdict == "undecided"
    assert not steady({"a": timing(*[1.0] * 12), "b": lucky}, 0.03)


def test_a_neighbour_that_slows_small_networks_more_does_not_hide_the_ratio() -> None:
    """It runs most of the time, and slows one network by 90% and the other by 45%; both have quiet rounds."""
    quiet = [index % 5 == 0 for index in range(30)]
    slim = timing(*(0.12 * (1.0 if each else 1.9) for each in quiet))
    dense = timing(*(0.42 * (1.0 if each else 1.45) for each in quiet))
    comparison = compare(slim, dense)
    assert comparison.ratio == pytest.approx(0.12 / 0.42)
    assert comparison.uncertainty == pytest.approx(0, abs=1e-9)
    assert steady({"dense": dense, "slim": slim}, 0.03)


def preempted(clock: Clock, seconds: float, slice: float, wait: float) -> Callable[[], None]:
    """Takes `seconds`; another process gets `wait` seconds after every `slice` seconds on the processor."""

    def call() -> None:
        for _ in range(int((clock.processor + seconds) / slice) - int(clock.processor / slice)):
            clock.now += wait
            clock.switches += 1
        clock.processor += seconds
        clock.now += seconds

    return call


def test_calls_that_lose_the_processor_do_not_count() -> None:
    """Calls of 2.1 and 0.5 ms among slices of 3 ms: 7 of 10 and 1 of 6 are interrupted, for 6 ms each."""
    clock = Clock()
    tasks = {"long": preempted(clock, 0.0021, 0.003, 0.006), "short": preempted(clock, 0.0005, 0.003, 0.006)}
    timings = measure(tasks, watch=clock.watch)
    assert timings["long"].latency_ms == pytest.approx(2.1)
    assert timings["short"].latency_ms == pytest.approx(0.5)
    assert timings["long"].interrupted == pytest.approx(0.7, abs=0.02)
    assert timings["short"].interrupted == pytest.approx(1 / 6, abs=0.02)
    assert compare(timings["long"], timings["short"]).ratio == pytest.approx(4.2)


def test_a_network_that_is_always_interrupted_is_not_steady() -> None:
    clock = Clock()
    task = preempted(clock, 0.05, 0.003, 0.006)
    result = measure({"a": task}, MeasureSettings(max_seconds=1), watch=clock.watch)["a"]
    assert result.interrupted == 1
    assert not result.steady


def test_a_switch_that_costs_no_time_does_not_count() -> None:
    clock = Clock()
    result = measure({"a": preempted(clock, 0.05, 0.003, 1e-6)}, watch=clock.watch)["a"]
    assert result.interrupted == 0
    assert result.steady


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.floats(0.3, 3.0), st.floats(0.0, 0.9))
def test_the_true_ratio_lies_within_the_uncertainty_of_a_steady_result(seed: int, ratio: float, share: float) -> None:
    """Both networks share a machine that is slow in a random share of the rounds; calls scatter by 1%."""
    clock, dice = Clock(), random.Random(seed)
    slow = 1.0

    def seconds(base: float, *, leads: bool) -> Iterator[float]:
        nonlocal slow
        while True:
            if leads and dice.random() < 0.05:
                slow = 1.4 if dice.random() < share else 1.0
            yield base * slow * (1 + 0.01 * dice.random())

    tasks = {"a": clock.task("a", seconds(0.03, leads=True)), "b": clock.task("b", seconds(0.03 * ratio, leads=False))}
    chosen = MeasureSettings(max_seconds=100)
    timings = measure(tasks, chosen, watch=clock.watch)
    comparison = compare(timings["b"], timings["a"])
    if steady(timings, chosen.precision):
        assert abs(comparison.ratio - ratio) <= comparison.uncertainty + 0.02 * ratio


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rounds", 2),
        ("warmup", -1),
        ("round_seconds", 0.0),
        ("precision", 0.0),
        ("precision", 1.0),
        ("max_seconds", -1.0),
    ],
)
def test_settings_refuse_nonsense(name: str, value: float) -> None:
    with pytest.raises(AmcError, match=f"{name.replace('_', '-')} must be .*, got {value}"):
        MeasureSettings(**{name: value})  # type: ignore[arg-type]


def test_record_for_machines() -> None:
    record = timing(1.0, 1.0, 1.02, 1.5).to_json()
    assert record == {
        "latency_ms": 1.0, "spread": pytest.approx(0.02), "typical_ms": 1.02, "calls": 3, "interrupted": 0.0,
        "steady": True, "rounds": 4,
    }  # fmt: skip
