"""An Android phone as a device, over adb; the runtime's own benchmark program times the models.

The program (TFLite's `benchmark_model`, ExecuTorch's `executor_runner`) must be on the phone; docs/device.md says where
to get one. Models are pushed to a new directory, which is always removed afterwards. Every round runs each model once,
so a phone that becomes warm slows all models equally. Accesses the phone only through `Adb`.
"""

from __future__ import annotations

import math
import secrets
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from amc.deploy.device.benchmark_output import Reading, complaint, parse_benchmark_model, parse_executor_runner
from amc.deploy.device.formats import FILES, check_model
from amc.deploy.device.protocol import DeviceError, DeviceInfo, Request
from amc.deploy.device.strict import RefusedError
from amc.deploy.measure import MeasureSettings, Timing, compare, steady
from amc.run.provenance import amc_version

PROGRAMS = {"benchmark_model": "litert", "executor_runner": "executorch"}
_ROOT = "/data/local/tmp"  # where adb may write and run programs
_LOG_TAG = "ExecuTorch"  # tag of ExecuTorch's messages in Android's log; some builds print nothing
_BODY_BYTES = 1 << 31
_ENDED_BY_TIMEOUT = 124
# As in amc.deploy.measure; one call of the program is one round.
_LEAST_RUNS, _MOST_RUNS = 3, 1000
_SUPPORT = 3
_MORE = 5


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished command."""

    code: int
    text: str  # standard output and standard error


Execute = Callable[[Sequence[str], float], Finished]


def execute(command: Sequence[str], seconds: float) -> Finished:
    """Run a command on this host; `DeviceError` if the program does not exist or takes too long."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=seconds, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise DeviceError(
            f"no program '{command[0]}' here; install Android's platform-tools and put them in the PATH"
        ) from None
    except subprocess.TimeoutExpired:
        raise DeviceError(f"'{' '.join(command[:5])} …' did not end within {seconds:g} s") from None
    return Finished(done.returncode, done.stdout.decode(errors="replace"))


class Adb:
    """adb for one phone; `serial` chooses one of several phones."""

    def __init__(self, serial: str | None = None, *, execute: Execute = execute) -> None:
        self._command = ["adb", *(["-s", serial] if serial else [])]
        self._execute = execute

    def shell(self, arguments: Sequence[str], *, seconds: float = 60.0, check: bool = True) -> str:
        """The output of a command on the phone; `DeviceError` if the command fails."""
        line = " ".join(shlex.quote(argument) for argument in arguments)  # adb passes one line to the phone's shell
        return self._run(["shell", line], seconds, check)

    def push(self, path: Path, target: str, *, seconds: float = 600.0) -> None:
        """Copy a file to the phone."""
        self._run(["push", str(path), target], seconds, check=True)

    def _run(self, arguments: Sequence[str], seconds: float, check: bool) -> str:
        done = self._execute([*self._command, *arguments], seconds)
        if done.code == _ENDED_BY_TIMEOUT:
            raise DeviceError(f"the program on the phone did not end within {seconds:g} s and was stopped")
        lines = done.text.splitlines()
        if done.code != 0 and (check or any(line.startswith(("adb: ", "error: ")) for line in lines)):
            raise DeviceError(_explain(arguments[0], done))
        return done.text


def _explain(command: str, done: Finished) -> str:
    reason = complaint(done.text)
    advice = {
        "no devices": "connect the phone, switch on USB debugging, and see `adb devices`",
        "more than one device": "name one: adb://SERIAL/…",
        "unauthorized": "confirm this computer on the phone's screen",
        "offline": "reconnect the phone",
        "not found": "is the serial number or the path right? `adb devices` lists phones",
    }
    hint = next((text for words, text in advice.items() if words in done.text), "see `adb devices`")
    return f"adb {command} failed (exit code {done.code}): {reason}; {hint}"


class AndroidDevice:
    """A phone with a benchmark program; a `Device` like a device server."""

    def __init__(
        self, program: str, *, adb: Adb, run_seconds: float = 300.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`program`: absolute path on the phone; its name tells its kind. `DeviceError` if the kind is unknown."""
        name = program.rpartition("/")[2]
        kinds = [kind for kind in PROGRAMS if name.startswith(kind)]
        if not program.startswith("/") or not kinds:
            raise DeviceError(
                f"'{program}' is not a known benchmark program; give the path on the phone of {' or '.join(PROGRAMS)}"
            )
        self._program = program
        self._kind = kinds[0]
        self._adb = adb
        self._run_seconds = run_seconds
        self._clock = clock
        self.runtime = PROGRAMS[self._kind]

    def describe(self) -> DeviceInfo:
        """The phone, and the program's name and checksum, because the programs do not print their version."""
        line = self._adb.shell(["sha256sum", self._program])
        checksum = line.split()[0] if line.split() else ""
        if len(checksum) != 64:
            raise DeviceError(f"there is no program {self._program} on the phone: {complaint(line)}")
        return DeviceInfo(
            amc_version=amc_version(), machine=self._machine(),
            runtimes={self.runtime: f"{self._kind}-{checksum[:12]}"},
            body_bytes=_BODY_BYTES, run_seconds=self._run_seconds,
        )  # fmt: skip

    def measure(self, request: Request, files: Sequence[Sequence[bytes]]) -> dict[str, Any]:
        """See `Device.measure`."""
        info = self.describe()
        self._check(request, files, info)
        with self._pushed(files) as models:
            begin = self._clock()
            timings = self._rounds(models, request.threads, request.settings)
            seconds = self._clock() - begin
        return _record(request, info, files, timings) | {"seconds": seconds}

    def _rounds(self, models: Sequence[str], threads: int, settings: MeasureSettings) -> list[Timing]:
        """Run every model once per round, alternately forwards and backwards; add rounds while the timings disagree."""
        begin = self._clock()
        counts = [self._runs_a_round(model, threads, settings) for model in models]
        rounds: list[list[Reading]] = [[] for _ in models]
        order = list(range(len(models)))
        wanted = settings.rounds
        while True:
            for _ in range(wanted):
                for index in order:
                    rounds[index].append(self._once(models[index], threads, counts[index], settings))
                order.reverse()
            timings = [_timing(readings, settings.precision) for readings in rounds]
            if steady(_named(timings), settings.precision) or self._clock() - begin >= settings.max_seconds:
                return timings
            wanted = _MORE

    def _runs_a_round(self, model: str, threads: int, settings: MeasureSettings) -> int:
        fastest = self._once(model, threads, _LEAST_RUNS, settings).least_ms
        return min(_MOST_RUNS, max(_LEAST_RUNS, math.ceil(settings.round_seconds * 1000 / fastest)))

    def _machine(self) -> dict[str, Any]:
        names = ("ro.product.manufacturer", "ro.product.model", "ro.product.cpu.abi", "ro.build.version.release")
        maker, model, abi, release = (self._adb.shell(["getprop", name]).strip() for name in names)
        cores = self._adb.shell(["nproc"], check=False).strip()
        load = self._adb.shell(["cat", "/proc/loadavg"], check=False).split(" ")[0]
        return {
            "cpu": f"{maker} {model}".strip(),
            "architecture": abi,
            "cores": int(cores) if cores.isdecimal() else 0,  # 0: unknown
            "system": f"Android {release}",
            "load": float(load) if load.replace(".", "", 1).isdecimal() else 0.0,
        }

    def _check(self, request: Request, files: Sequence[Sequence[bytes]], info: DeviceInfo) -> None:
        has = info.runtimes.get(request.runtime)
        if has is None:
            raise DeviceError(f"{self._program} runs models for {self.runtime}, not for {request.runtime}")
        if request.version not in (None, has):
            raise DeviceError(
                f"the phone has {has}, but {request.version} is required; measure the table again, or install that one"
            )
        if request.half:
            raise DeviceError("over adb models are timed in 32 bits; leave half off")
        try:
            for model in files:
                check_model(request.runtime, model)
        except RefusedError as error:
            raise DeviceError(str(error)) from None

    @contextmanager
    def _pushed(self, files: Sequence[Sequence[bytes]]) -> Iterator[list[str]]:
        """Push the models; yields their paths on the phone, and removes the models after the block."""
        folder = f"{_ROOT}/amc-{secrets.token_hex(8)}"
        self._adb.shell(["mkdir", "-p", folder])
        try:
            with tempfile.TemporaryDirectory() as here:
                paths = []
                for index, (data,) in enumerate(files):
                    name = f"model{index}{FILES[self.runtime][0]}"
                    Path(here, name).write_bytes(data)
                    self._adb.push(Path(here, name), f"{folder}/{name}")
                    paths.append(f"{folder}/{name}")
            yield paths
        finally:
            with suppress(DeviceError):  # the phone may be disconnected; an earlier error must not be hidden
                self._adb.shell(["rm", "-rf", folder])

    def _once(self, model: str, threads: int, runs: int, settings: MeasureSettings) -> Reading:
        if self._kind == "benchmark_model":
            return parse_benchmark_model(self._run(self._benchmark_model(model, threads, runs, settings.warmup)))
        mark = f"amc-{secrets.token_hex(8)}"
        self._adb.shell(["log", "-t", _LOG_TAG, mark])
        text = self._run(self._executor_runner(model, threads, runs + settings.warmup))
        if "executed successfully" not in text:  # this build writes to Android's log
            log = self._adb.shell(["logcat", "-d", "-v", "raw", "-s", f"{_LOG_TAG}:I"])
            text += log.rpartition(mark)[2]
        return parse_executor_runner(text, warmup=settings.warmup)

    def _benchmark_model(self, model: str, threads: int, runs: int, warmup: int) -> list[str]:
        return [
            self._program, f"--graph={model}", f"--num_threads={threads}", f"--num_runs={runs}",
            f"--warmup_runs={max(1, warmup)}", "--min_secs=0", "--warmup_min_secs=0", "--use_xnnpack=true",
        ]  # fmt: skip

    def _executor_runner(self, model: str, threads: int, runs: int) -> list[str]:
        return [self._program, f"--model_path={model}", f"--num_executions={runs}", f"--cpu_threads={threads}"]

    def _run(self, command: Sequence[str]) -> str:
        limited = ["timeout", f"{self._run_seconds:g}", *command]
        # adb gets more time than the program, so that `timeout` on the phone stops the program first.
        return self._adb.shell(limited, seconds=self._run_seconds + 15, check=False)


def _named(timings: Sequence[Timing]) -> dict[str, Timing]:
    return {str(index): timing for index, timing in enumerate(timings)}


def _timing(readings: Sequence[Reading], precision: float) -> Timing:
    times = [reading.latency_ms for reading in readings]
    best = sorted(times)[:_SUPPORT]
    spread = best[-1] / best[0] - 1
    return Timing(
        latency_ms=best[0], spread=spread, typical_ms=median(times), calls=readings[0].runs,
        steady=spread <= precision, round_ms=tuple(times),
    )  # fmt: skip


def _record(
    request: Request, info: DeviceInfo, files: Sequence[Sequence[bytes]], timings: Sequence[Timing]
) -> dict[str, Any]:
    networks = {
        model.name: {"file_bytes": sum(len(data) for data in parts)}
        | timing.to_json()
        | (compare(timing, timings[0]).to_json() if timing is not timings[0] else {})
        for model, parts, timing in zip(request.models, files, timings, strict=True)
    }
    return {
        "runtime": request.runtime,
        "runtime_version": info.runtimes[request.runtime],
        "threads": request.threads,
        "batch": request.models[0].inputs[0].shape[0] if request.models[0].inputs[0].shape else 1,
        "precision": "float32",
        "machine": dict(info.machine),
        "settings": asdict(request.settings),
        "busy": False,  # a phone's load includes sleeping drivers, so it is not used; the spread shows other load
        "steady": steady(_named(timings), request.settings.precision),
        "networks": networks,
    }
