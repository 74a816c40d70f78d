"""Measures the latency of calls: many short rounds, networks in alternation, and an estimate of the noise.

Other processes, caches and the processor's clock only make a call slower, and they change within seconds. Therefore
every network runs in many short rounds. Each round runs all networks in turn, alternately forwards and backwards. A
round's result is the median of its calls. The latency is the result of the best round. The spread says how reliable
the latency is: it is how much slower the third best round is than the best round.

A call that loses the processor to another process is not counted if its round has enough other calls. Such calls
would distort comparisons, because they mostly slow down networks that run longer than the kernel's time slice. A
network is not steady unless three of its rounds have three uninterrupted calls each.

Two networks have two ratios: the ratio of their best rounds, and the median of the ratios within each round in which
at least one of the two was about as fast as in its best. On a quiet machine the two ratios agree. The first ratio jumps
if only one network had a quiet round; the second one then says so. Rounds that slowed both networks are left out of it,
because a neighbour on the same core slows small networks more than large ones: their ratio is another one, and not that
of a quiet machine. The first ratio is reported. Its uncertainty is the sum of the two spreads and the gap between the
ratios; a difference within the uncertainty is undecided. While a spread or an uncertainty exceeds the claimed
precision, more rounds are run, up to a time limit. After that the measurement is reported as not steady.

Pure, except for the clock.
"""

from __future__ import annotations

import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from amc.run.settings import check_rules

_LEAST_CALLS = 3  # a median needs at least three values
_MOST_CALLS = 1000
_WHOLE = 0.99  # a call counts as uninterrupted if it had the processor for at least this share of its time
_SUPPORT = 3  # number of best rounds that must agree
_QUIET = 0.03  # a round is quiet for a network that is at most this much slower than in its best round
_PARTS = 3  # terms of a ratio's uncertainty: two spreads and one gap
_MORE = 5  # rounds that are added together while the spread is too large


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """How to measure."""

    rounds: int = 20  # least number of rounds of each network
    warmup: int = 5  # untimed first calls of each network
    round_seconds: float = 0.1  # duration of one network's round; a round has at least three calls
    precision: float = 0.03  # claimed: largest spread, as a share of the latency; three times this for a ratio
    max_seconds: float = 60.0  # no rounds are added after this time

    def __post_init__(self) -> None:
        rules = {
            "rounds": (self.rounds >= _SUPPORT, f"at least {_SUPPORT}"),
            "warmup": (self.warmup >= 0, "at least 0"),
            "round_seconds": (0 < self.round_seconds < math.inf, "above 0"),
            "precision": (0 < self.precision < 1, "in (0, 1)"),
            "max_seconds": (0 <= self.max_seconds < math.inf, "at least 0 and finite"),
        }
        check_rules(self, rules)


@dataclass(frozen=True, slots=True)
class Watch:
    """The clocks of a measurement."""

    now: Callable[[], float]  # seconds
    processor: Callable[[], float]  # processor time of this process, all threads together, in seconds
    switches: Callable[[], int]  # number of times a thread of this process lost the processor to another process


SYSTEM = Watch(time.perf_counter, time.process_time, lambda: resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency of one network."""

    latency_ms: float  # median of the best round
    spread: float  # how much slower the third best round is, as a share of the best
    typical_ms: float  # median over all rounds, which includes the machine's other load
    calls: int  # per round
    steady: bool  # spread within the claimed precision, over rounds of uninterrupted calls
    round_ms: tuple[float, ...] = field(repr=False)  # median of every round, in order
    interrupted: float = 0.0  # share of the calls that lost the processor, in [0, 1]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, with the number of rounds in place of `round_ms`."""
        record = asdict(self)
        record["rounds"] = len(record.pop("round_ms"))
        return record


@dataclass(frozen=True, slots=True)
class Comparison:
    """One network beside another, measured in the same rounds."""

    ratio: float  # of the latencies; below 1: the first network is faster
    uncertainty: float  # the true ratio is within ratio ± uncertainty
    verdict: str  # faster | slower | undecided

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def measure(
    calls: Mapping[str, Callable[[], object]],
    settings: MeasureSettings | None = None,
    *,
    threads: int = 1,
    watch: Watch = SYSTEM,
) -> dict[str, Timing]:
    """Time every function, in alternation; each uses `threads` threads. Exceptions of a function pass through."""
    chosen = settings or MeasureSettings()
    begin = watch.now()
    counts = {name: _calls_a_round(call, chosen, watch) for name, call in calls.items()}
    rounds: dict[str, list[_Round]] = {name: [] for name in calls}
    order = list(calls)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        wanted = chosen.rounds
        while True:
            for _ in range(wanted):
                for name in order:
                    rounds[name].append(_round(calls[name], counts[name], threads, watch))
                order.reverse()
            timings = {name: _timing(measured, chosen.precision) for name, measured in rounds.items()}
            if steady(timings, chosen.precision) or watch.now() - begin >= chosen.max_seconds:
                return timings
            wanted = _MORE
    finally:
        if collecting:
            gc.enable()


def steady(timings: Mapping[str, Timing], precision: float) -> bool:
    """Whether every latency, and every ratio to the first one, is as precise as claimed."""
    first = next(iter(timings.values()))
    ratios = [compare(timing, first) for timing in timings.values() if timing is not first]
    return all(timing.steady for timing in timings.values()) and all(
        other.uncertainty <= _PARTS * precision * other.ratio for other in ratios
    )


def compare(timing: Timing, reference: Timing) -> Comparison:
    """Compare `timing` with `reference`, measured in the same rounds; a difference within the noise is undecided."""
    ratio = timing.latency_ms / reference.latency_ms
    paired = _paired(timing.round_ms, reference.round_ms)
    uncertainty = ratio * (timing.spread + reference.spread) + abs(ratio - paired)
    verdict = "undecided" if abs(ratio - 1) <= uncertainty else ("faster" if ratio < 1 else "slower")
    return Comparison(ratio=ratio, uncertainty=uncertainty, verdict=verdict)


def _paired(first: Sequence[float], second: Sequence[float]) -> float:
    """The median ratio within a round, over the rounds that were quiet for at least one of the two."""
    fastest = min(first) * (1 + _QUIET), min(second) * (1 + _QUIET)
    rounds = list(zip(first, second, strict=True))
    return statistics.median(a / b for a, b in rounds if a <= fastest[0] or b <= fastest[1])


@dataclass(frozen=True, slots=True)
class _Round:
    median_ms: float  # of the uninterrupted calls; of all calls if these are too few
    whole: int  # number of uninterrupted calls
    calls: int


def _calls_a_round(call: Callable[[], object], settings: MeasureSettings, watch: Watch) -> int:
    """Warm up, then compute the number of calls that fill a round."""
    for _ in range(settings.warmup):
        call()
    fastest = min(_seconds(call, watch) for _ in range(_LEAST_CALLS))
    return min(_MOST_CALLS, max(_LEAST_CALLS, math.ceil(settings.round_seconds / max(fastest, 1e-9))))


def _round(call: Callable[[], object], count: int, threads: int, watch: Watch) -> _Round:
    call()  # untimed: the previous network has filled the caches with its own weights
    every, whole = [], []
    for _ in range(count):
        switches, processor = watch.switches(), watch.processor()
        seconds = _seconds(call, watch)
        every.append(seconds)
        # A switch that cost no time does not count. With several threads the expected processor time is unknown.
        share = (watch.processor() - processor) / seconds if threads == 1 and seconds > 0 else 0.0
        if share >= _WHOLE or watch.switches() == switches:
            whole.append(seconds)
    best = whole if len(whole) >= _LEAST_CALLS else every
    return _Round(statistics.median(best) * 1e3, len(whole), count)


def _seconds(call: Callable[[], object], watch: Watch) -> float:
    begin = watch.now()
    call()
    return watch.now() - begin


def _timing(rounds: list[_Round], precision: float) -> Timing:
    medians = [entry.median_ms for entry in rounds]
    undisturbed = [entry.median_ms for entry in rounds if entry.whole >= _LEAST_CALLS]
    enough = len(undisturbed) >= _SUPPORT
    best = sorted(undisturbed if enough else medians)[:_SUPPORT]
    spread = best[-1] / best[0] - 1 if best[0] > 0 else math.inf
    calls = sum(entry.calls for entry in rounds)
    return Timing(
        latency_ms=best[0], spread=spread, typical_ms=statistics.median(medians),
        calls=rounds[0].calls, interrupted=1 - sum(entry.whole for entry in rounds) / calls,
        steady=enough and spread <= precision, round_ms=tuple(medians),
    )  # fmt: skip
