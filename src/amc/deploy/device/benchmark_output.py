"""What the runtimes' own benchmark programs print, read into milliseconds.

TFLite's `benchmark_model` prints a line of statistics after the warm-up and another after the timed runs, in
microseconds, the newer ones with the median. ExecuTorch's `executor_runner` prints the time of every execution, the
older ones only their sum. Lines may carry a prefix of the logger. Pure: text in, figures out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import median

from amc.deploy.device.protocol import DeviceError

_NUMBER = r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?)"
_COUNT = re.compile(r"\bcount=(\d+)\b(.*)")
_PAIR = re.compile(rf"\b(first|curr|min|max|avg|std|p5|median|p95)={_NUMBER}")
_SUMMARY = re.compile(rf"Inference timings in us: Init: {_NUMBER},.*Inference \(avg\): {_NUMBER}")
_ITERATION = re.compile(rf"Iteration (\d+) of (\d+): {_NUMBER} ms")
_EXECUTED = re.compile(rf"Model executed successfully (\d+) time\(s\) in {_NUMBER} ms")
_COMPLAINT = re.compile(r"error|fail|abort|not found|denied|cannot|can't|unable|invalid|unknown|fatal", re.I)


@dataclass(frozen=True, slots=True)
class Reading:
    """One call of a benchmark program."""

    latency_ms: float  # of one run: the median, or the mean where the program tells no more
    statistic: str  # "median" or "mean"
    least_ms: float
    runs: int


def parse_benchmark_model(text: str) -> Reading:
    """What TFLite's `benchmark_model` measured; `DeviceError` when it measured nothing."""
    lines = [match for line in text.splitlines() if (match := _COUNT.search(line))]
    if _SUMMARY.search(text) is None or not lines:
        raise DeviceError(f"benchmark_model gave no timings: {complaint(text)}")
    count, rest = lines[-1].groups()  # the first is the warm-up's
    figures = {name: float(value) / 1000 for name, value in _PAIR.findall(rest)}
    statistic = "median" if "median" in figures else "avg"
    if statistic not in figures or "min" not in figures:  # a single run: only curr
        statistic = "curr"
    if statistic not in figures:
        raise DeviceError(f"benchmark_model gave no timings: {complaint(text)}")
    return _reading(figures[statistic], statistic, figures.get("min", figures[statistic]), int(count))


def parse_executor_runner(text: str, *, warmup: int) -> Reading:
    """What ExecuTorch's `executor_runner` measured, without its first `warmup` executions; `DeviceError` for none."""
    executed = _EXECUTED.search(text)
    if executed is None:
        raise DeviceError(f"executor_runner gave no timings: {complaint(text)}")
    runs, total_ms = int(executed[1]), float(executed[2])
    each = [float(ms) for _, of, ms in _ITERATION.findall(text) if int(of) == runs]
    if len(each) == runs > warmup:
        timed = each[warmup:]
        return _reading(median(timed), "median", min(timed), len(timed))
    return _reading(total_ms / max(1, runs), "avg", total_ms / max(1, runs), runs)


def complaint(text: str) -> str:
    """The line of a program's output that says best what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if _COMPLAINT.search(line)] or lines[-1:]
    return said[0][:300] if said else "it printed nothing"


def _reading(latency_ms: float, statistic: str, least_ms: float, runs: int) -> Reading:
    if latency_ms <= 0 or runs < 1:
        raise DeviceError(f"the benchmark program reports {runs} runs of {latency_ms:g} ms; it did not time anything")
    return Reading(latency_ms, "median" if statistic == "median" else "mean", least_ms, runs)
