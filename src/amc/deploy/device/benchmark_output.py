"""Parses the output of the runtimes' benchmark programs; results are in milliseconds.

TFLite's `benchmark_model` prints one line of statistics after the warm-up and one after the timed runs, in
microseconds; newer versions include the median. ExecuTorch's `executor_runner` prints the time of every execution;
older versions print only the sum. The logger may add a prefix to each line. Pure.
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
    """The result of one call of a benchmark program."""

    latency_ms: float  # of one run: the median, or the mean if the program does not print more
    statistic: str  # "median" or "mean"
    least_ms: float  # of the fastest run, or `latency_ms` if the program prints only the sum
    runs: int


def parse_benchmark_model(text: str) -> Reading:
    """Parse the output of TFLite's `benchmark_model`; `DeviceError` if it contains no timings."""
    lines = [match for line in text.splitlines() if (match := _COUNT.search(line))]
    if _SUMMARY.search(text) is None or not lines:
        raise DeviceError(f"benchmark_model gave no timings: {complaint(text)}")
    count, rest = lines[-1].groups()  # the first line is the warm-up
    figures = {name: float(value) / 1000 for name, value in _PAIR.findall(rest)}
    statistic = "median" if "median" in figures else "avg"
    if statistic not in figures or "min" not in figures:  # a single run prints only curr
        statistic = "curr"
    if statistic not in figures:
        raise DeviceError(f"benchmark_model gave no timings: {complaint(text)}")
    return _reading(figures[statistic], statistic, figures.get("min", figures[statistic]), int(count))


def parse_executor_runner(text: str, *, warmup: int) -> Reading:
    """Parse the output of ExecuTorch's `executor_runner`; `DeviceError` if it contains no timings.

    The first `warmup` executions are left out if the output lists the executions; a sum includes them.
    """
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
    """The line of a program's output that best explains a failure: the first that names one, or the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chosen = [line for line in lines if _COMPLAINT.search(line)] or lines[-1:]
    return chosen[0][:300] if chosen else "it printed nothing"


def _reading(latency_ms: float, statistic: str, least_ms: float, runs: int) -> Reading:
    if latency_ms <= 0 or runs < 1:
        raise DeviceError(f"the benchmark program reports {runs} runs of {latency_ms:g} ms; it did not time anything")
    return Reading(latency_ms, "median" if statistic == "median" else "mean", least_ms, runs)
