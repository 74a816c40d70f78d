"""How long does a call take? Medians of rounds, networks in alternation, and an honest word on noise.

Other processes, caches and the processor's clock only ever make a call slower, and they come and go within
seconds. So every network runs in many short rounds, all networks in turn, forwards and backwards; a round gives the
median of its calls, and the best round is the latency. How far it can be trusted, the next best rounds say: the spread
is how much slower than the best the third best round is.

A call that loses the processor to another process is not counted, where its round has enough others: such calls
would not make every network slower alike, but those above all that take longer than the kernel's time slice. A
network that never gets three whole calls in each of three rounds is not steady.

Two networks have two ratios: that of their best rounds, and the median of the ratios within each round, where both met
the same conditions. On a quiet machine they agree; on a busy one the first jumps when only one of the two ever had a
quiet round, and the second leans towards whichever suffers less. The first is reported; its uncertainty is the two
spreads and the gap between the ratios, and no difference within it is called one. While a spread or the uncertainty
is above what is claimed, more rounds are run, up to a limit; after that it is reported as not steady.

Pure, but for the clock.
"""

from __future__ import annotations

import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from amc.errors import AmcError

_LEAST_CALLS = 3  # a median of fewer is none
_MOST_CALLS = 1000
_WHOLE = 0.99  # share of a call's time that it must have had the processor
_SUPPORT = 3  # rounds that must agree on the best
_PARTS = 3  # that a ratio's uncertainty adds up from: two spreads and a gap
_MORE = 5  # rounds added at a time while the spread is too large


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """How to measure."""

    rounds: int = 20  # of each network, at least
    warmup: int = 5  # calls of each network before anything is timed
    round_seconds: float = 0.1  # that a network runs in one round, if it takes three calls or more
    precision: float = 0.03  # claimed: largest spread, as a share of the latency; of a ratio, three times this
    max_seconds: float = 60.0  # after this no more rounds are added

    def __post_init__(self) -> None:
        rules = {
            "rounds": (self.rounds >= _SUPPORT, f"at least {_SUPPORT}"),
            "warmup": (self.warmup >= 0, "at least 0"),
            "round_seconds": (0 < self.round_seconds < math.inf, "above 0"),
            "precision": (0 < self.precision < 1, "in (0, 1)"),
            "max_seconds": (0 <= self.max_seconds < math.inf, "at least 0 and finite"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise AmcError(f"{name.replace('_', '-')} must be {rule}, got {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Watch:
    """What a measurement sees of time."""

    now: Callable[[], float]  # seconds
    processor: Callable[[], float]  # seconds that all threads of this process have had a processor
    switches: Callable[[], int]  # how often one of them lost it to another process


SYSTEM = Watch(time.perf_counter, time.process_time, lambda: resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency of one network."""

    latency_ms: float  # median of the best round
    spread: float  # how much slower the third best round is, as a share of the best
    typical_ms: float  # median over all rounds: what the machine was really like
    calls: int  # a round
    steady: bool  # spread within the claimed precision, over rounds of calls that were not interrupted
    round_ms: tuple[float, ...] = field(repr=False)  # median of every round, in order
    interrupted: float = 0.0  # share of the calls that lost the processor, in [0, 1]

    def to_json(self) -> dict[str, Any]:
        """For machines; of the rounds, their number."""
        record = asdict(self)
        record["rounds"] = len(record.pop("round_ms"))
        return record


@dataclass(frozen=True, slots=True)
class Comparison:
    """One network beside another, measured in the same rounds."""

    ratio: float  # of the latencies: below 1, the first is the faster
    uncertainty: float  # the ratio may be off by this much either way
    verdict: str  # faster | slower | undecided

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def measure(
    calls: Mapping[str, Callable[[], object]],
    settings: MeasureSettings | None = None,
    *,
    threads: int = 1,
    watch: Watch = SYSTEM,
) -> dict[str, Timing]:
    """Time every function, in alternation; each computes on `threads` threads. What one raises passes through."""
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
            timings = {name: _timing(done, chosen.precision) for name, done in rounds.items()}
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
    """How `timing` relates to `reference`, measured in the same rounds; a difference within the noise is undecided."""
    ratio = timing.latency_ms / reference.latency_ms
    paired = statistics.median(a / b for a, b in zip(timing.round_ms, reference.round_ms, strict=True))
    uncertainty = ratio * (timing.spread + reference.spread) + abs(ratio - paired)
    verdict = "undecided" if abs(ratio - 1) <= uncertainty else ("faster" if ratio < 1 else "slower")
    return Comparison(ratio=ratio, uncertainty=uncertainty, verdict=verdict)


@dataclass(frozen=True, slots=True)
class _Round:
    median_ms: float  # of the whole calls, or where they are too few of all
    whole: int  # calls that were not interrupted
    calls: int


def _calls_a_round(call: Callable[[], object], settings: MeasureSettings, watch: Watch) -> int:
    """Warm up, then see how many calls fill a round."""
    for _ in range(settings.warmup):
        call()
    fastest = min(_seconds(call, watch) for _ in range(_LEAST_CALLS))
    return min(_MOST_CALLS, max(_LEAST_CALLS, math.ceil(settings.round_seconds / max(fastest, 1e-9))))


def _round(call: Callable[[], object], count: int, threads: int, watch: Watch) -> _Round:
    call()  # the network before has left the caches full of its own weights
    every, whole = [], []
    for _ in range(count):
        switches, processor = watch.switches(), watch.processor()
        seconds = _seconds(call, watch)
        every.append(seconds)
        # A switch that cost nothing is none. How much several threads should have had, nobody knows.
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
    undisturbed = [one.median_ms for one in rounds if one.whole >= _LEAST_CALLS]
    enough = len(undisturbed) >= _SUPPORT
    best = sorted(undisturbed if enough else (one.median_ms for one in rounds))[:_SUPPORT]
    spread = best[-1] / best[0] - 1 if best[0] > 0 else math.inf
    calls = sum(one.calls for one in rounds)
    return Timing(
        latency_ms=best[0], spread=spread, typical_ms=statistics.median(one.median_ms for one in rounds),
        calls=rounds[0].calls, interrupted=1 - sum(one.whole for one in rounds) / calls,
        steady=enough and spread <= precision, round_ms=tuple(one.median_ms for one in rounds),
    )  # fmt: skip
