"""A phone over adb: the output of the benchmark programs is parsed exactly, and adb is called as intended."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pytest

from amc.deploy.device.adb import Adb, AndroidDevice, Finished, execute
from amc.deploy.device.benchmark_output import parse_benchmark_model, parse_executor_runner
from amc.deploy.device.protocol import DeviceError, Model, Request, TensorSpec
from amc.deploy.measure import MeasureSettings
from tests.deploy.device.stubs import model

# As benchmark_model prints on a phone, with the logger's prefix; figures in microseconds.
NEW = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [1]
INFO: Graph: [/data/local/tmp/amc-0/model0.tflite]
INFO: Loaded model /data/local/tmp/amc-0/model0.tflite
INFO: Initialized TensorFlow Lite runtime.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: Replacing 66 out of 66 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions.
INFO: The input model file size (MB): 13.9787
INFO: Initialized session in 31.402ms.
INFO: Running benchmark for at least 5 iterations and at least 0 seconds but terminate if exceeding 150 seconds.
INFO: count=5 first=14210 curr=11020 min=10990 max=14210 avg=11702.4 std=1254 p5=10990 median=11040 p95=14210

INFO: Running benchmark for at least 20 iterations and at least 0 seconds but terminate if exceeding 150 seconds.
INFO: count=20 first=11102 curr=10950 min=10871 max=12040 avg=11035.2 std=250 p5=10871 median=10987 p95=11500

INFO: Inference timings in us: Init: 31402, First inference: 14210, Warmup (avg): 11702.4, Inference (avg): 11035.2
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE.
INFO: Memory footprint delta from the start of the tool (MB): init=24.1 overall=30.2
"""
OLD = """\
STARTING!
count=1 curr=3512391

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, Inference (avg): 2.95034e+06
"""
RUNNER = """\
I 00:00:00.005833 executorch:executor_runner.cpp:564] Model loaded in 4.463268 ms.
I 00:00:00.031611 executorch:executor_runner.cpp:705] Iteration 1 of 5: 25.100000 ms
I 00:00:00.046611 executorch:executor_runner.cpp:705] Iteration 2 of 5: 15.000000 ms
I 00:00:00.061611 executorch:executor_runner.cpp:705] Iteration 3 of 5: 13.000000 ms
I 00:00:00.076611 executorch:executor_runner.cpp:705] Iteration 4 of 5: 12.000000 ms
I 00:00:00.091611 executorch:executor_runner.cpp:705] Iteration 5 of 5: 14.000000 ms
I 00:00:00.091701 executorch:executor_runner.cpp:714] Model executed successfully 5 time(s) in 79.100000 ms.
I 00:00:00.091720 executorch:executor_runner.cpp:723] 1 outputs:
OutputX 0: tensor(sizes=[1, 1000], [0.1, 0.2])
"""
PTE = (48).to_bytes(4, "little") + b"ET12" + bytes(64)


def test_benchmark_model_gives_the_median_of_the_timed_runs() -> None:
    reading = parse_benchmark_model(NEW)
    assert (reading.latency_ms, reading.statistic, reading.least_ms, reading.runs) == (10.987, "median", 10.871, 20)


def test_old_benchmark_model_gives_the_mean() -> None:
    reading = parse_benchmark_model(OLD)
    assert (reading.latency_ms, reading.statistic, reading.least_ms) == (2950.34, "mean", 2727.568)
    assert reading.runs == 50


def test_single_run_is_its_own_statistic() -> None:
    lines = NEW.replace("count=20 first=11102 curr=10950 min=10871 max=12040 avg=11035.2 std=250", "count=1 curr=9000")
    assert parse_benchmark_model(lines.replace("p5=10871 median=10987 p95=11500", "")).latency_ms == 9.0


def test_executor_runner_gives_the_median_after_the_warm_up() -> None:
    reading = parse_executor_runner(RUNNER, warmup=2)
    assert (reading.latency_ms, reading.statistic, reading.least_ms, reading.runs) == (13.0, "median", 12.0, 3)


def test_old_executor_runner_gives_the_mean_of_all() -> None:
    text = "\n".join(line for line in RUNNER.splitlines() if "Iteration" not in line)
    reading = parse_executor_runner(text, warmup=2)
    assert (reading.latency_ms, reading.statistic, reading.runs) == (pytest.approx(15.82), "mean", 5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it printed nothing"),
        ("INFO: STARTING!\nERROR: Failed to initialize the interpreter\nERROR: Benchmarking failed.", "Failed to init"),
        ("sh: /data/local/tmp/x: not found", "not found"),
        ("Segmentation fault", "Segmentation fault"),
        (NEW.replace("Inference timings", "Inference"), "gave no timings"),
        (NEW.replace("median=10987", "median=0"), "did not time anything"),
    ],
)
def test_output_without_timings_is_one_line(text: str, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        parse_benchmark_model(text)


def test_runner_that_fails_names_the_reason() -> None:
    text = (
        "I 00:00:00.1 executorch:executor_runner.cpp:226] Using method forward\n"
        "F 00:00:00.2 executorch:executor_runner.cpp:251] Loading of method forward failed with status 0x12"
    )
    with pytest.raises(DeviceError, match="Loading of method forward failed with status 0x12"):
        parse_executor_runner(text, warmup=0)


class Phone:
    """Plays adb: remembers what was asked, and answers as a phone with both programs would."""

    def __init__(self, *, times: Sequence[float] = (10.0,), logcat: bool = False) -> None:
        self.commands: list[list[str]] = []
        self.pushed: dict[str, bytes] = {}
        self._times = list(times)
        self._calls = 0
        self._logcat = logcat
        self._log = ""

    def __call__(self, command: Sequence[str], seconds: float) -> Finished:
        assert command[0] == "adb"
        rest = list(command[1:])
        if rest[0] == "-s":
            rest = rest[2:]
        if rest[0] == "push":
            with open(rest[1], "rb") as file:  # noqa: PTH123 - read at once: it is removed afterwards
                self.pushed[rest[2]] = file.read()
            return Finished(0, "1 file pushed")
        words = shlex.split(rest[1])
        self.commands.append(words)
        return self._answer(words)

    def _answer(self, words: list[str]) -> Finished:
        known = {
            "ro.product.manufacturer": "Google", "ro.product.model": "Pixel 6", "ro.product.cpu.abi": "arm64-v8a",
            "ro.build.version.release": "14",
        }  # fmt: skip
        if words[0] == "sha256sum":
            return Finished(0, "ab" * 32 + f"  {words[1]}\n")
        if words[0] == "getprop":
            return Finished(0, known[words[1]] + "\n")
        if words[0] == "nproc":
            return Finished(0, "8\n")
        if words[0] == "cat":
            return Finished(0, "1.50 1.20 1.00 2/900 1234\n")
        if words[0] == "log":
            self._log += words[3] + "\n"
        if words[0] == "logcat":
            return Finished(0, self._log)
        return self._ran(words[2:]) if words[0] == "timeout" else Finished(0, "")

    def _ran(self, words: list[str]) -> Finished:
        ms = self._times[self._calls % len(self._times)]
        self._calls += 1
        if "benchmark_model" in words[0]:
            return Finished(0, NEW.replace("min=10871", f"min={ms * 1000}").replace("=10987", f"={ms * 1000}"))
        runs = next(int(word.split("=")[1]) for word in words if word.startswith("--num_executions"))
        lines = [f"Iteration {index} of {runs}: {ms:f} ms" for index in range(1, runs + 1)]
        text = "\n".join([*lines, f"Model executed successfully {runs} time(s) in {ms * runs:f} ms.\n"])
        if self._logcat:
            self._log += text
            return Finished(0, "OutputX 0: tensor(sizes=[1, 10])")
        return Finished(0, text)

    def ran(self) -> list[list[str]]:
        return [words[2:] for words in self.commands if words[0] == "timeout"]


def request_for(*models: bytes, runtime: str = "litert", **fields: object) -> tuple[Request, list[list[bytes]]]:
    entries = tuple(Model(f"m{i}", (TensorSpec((1, 3, 8, 8)),), (len(data),)) for i, data in enumerate(models))
    settings = MeasureSettings(rounds=3, warmup=2, round_seconds=0.1, max_seconds=0.0)
    return Request(runtime, entries, settings=settings, **fields), [[data] for data in models]  # type: ignore[arg-type]


def test_two_models_are_timed_in_alternation_and_removed() -> None:
    # One call of each model to estimate its duration, then forwards, backwards, forwards.
    phone = Phone(times=[10.0, 5.0, 10.2, 5.0, 5.1, 10.0, 10.1, 5.05])
    device = AndroidDevice("/data/local/tmp/benchmark_model", adb=Adb("R5C", execute=phone))
    request, files = request_for(model(size=1), model(size=2))
    record = device.measure(request, files)
    first, second = record["networks"]["m0"], record["networks"]["m1"]
    assert (first["latency_ms"], second["latency_ms"], first["rounds"]) == (10.0, 5.0, 3)
    assert first["spread"] == pytest.approx(0.02)
    assert second["ratio"] == pytest.approx(0.5)
    assert second["verdict"] == "faster"
    assert (first["file_bytes"], second["file_bytes"]) == (len(files[0][0]), len(files[1][0]))
    assert record["runtime_version"] == "benchmark_model-" + "ab" * 6
    assert record["machine"] == {
        "cpu": "Google Pixel 6", "architecture": "arm64-v8a", "cores": 8, "system": "Android 14", "load": 1.5,
    }  # fmt: skip
    graphs = [words[1] for words in phone.ran()]
    zero, one = graphs[:2]
    assert graphs == [zero, one, zero, one, one, zero, zero, one]
    assert [words[3] for words in phone.ran()[:3]] == ["--num_runs=3", "--num_runs=3", "--num_runs=10"]
    assert list(phone.pushed.values()) == [data for (data,) in files]
    folder = next(iter(phone.pushed)).rpartition("/")[0]
    assert folder.startswith("/data/local/tmp/amc-")
    assert phone.commands[-1] == ["rm", "-rf", folder]


@pytest.mark.parametrize("logcat", [False, True])
def test_executor_runner_is_read_from_its_output_or_from_the_log(logcat: bool) -> None:
    phone = Phone(times=[12.0], logcat=logcat)
    device = AndroidDevice("/data/local/tmp/executor_runner", adb=Adb(execute=phone))
    request, files = request_for(PTE, runtime="executorch", threads=2)
    record = device.measure(request, files)
    assert record["networks"]["m0"]["latency_ms"] == 12.0
    assert record["steady"] is True
    assert phone.ran()[-1][2:] == ["--num_executions=11", "--cpu_threads=2"]  # 100 ms of 12, and two to warm up


def test_noisy_phone_is_measured_longer_and_reported_as_not_steady() -> None:
    now = iter(range(1000))
    phone = Phone(times=[10.0, 20.0, 30.0, 40.0, 50.0])
    device = AndroidDevice("/x/benchmark_model", adb=Adb(execute=phone), clock=lambda: float(next(now)))
    request, files = request_for(model())
    object.__setattr__(request, "settings", MeasureSettings(rounds=3, max_seconds=2.0))
    record = device.measure(request, files)
    assert record["networks"]["m0"]["rounds"] > 3
    assert record["steady"] is (record["networks"]["m0"]["spread"] <= 0.03)


def test_a_request_that_a_phone_cannot_serve_is_one_line_and_leaves_no_files() -> None:
    phone = Phone()
    device = AndroidDevice("/data/local/tmp/benchmark_model", adb=Adb(execute=phone))
    for fields, words in (
        ({"runtime": "executorch"}, "runs models for litert, not for executorch"),
        ({"version": "benchmark_model-000000000000"}, "measure the table again"),
        ({"half": True}, "in 32 bits"),
    ):
        request, files = request_for(model(), **fields)  # type: ignore[arg-type]
        with pytest.raises(DeviceError, match=words):
            device.measure(request, files)
    request, files = request_for(b"\x80\x04 pickle")
    with pytest.raises(DeviceError, match="not a model for litert"):
        device.measure(request, files)
    assert phone.pushed == {}
    phone._ran = lambda words: Finished(1, "ERROR: Failed to load graph")  # type: ignore[method-assign]
    request, files = request_for(model())
    with pytest.raises(DeviceError, match="benchmark_model gave no timings: ERROR: Failed to load graph"):
        device.measure(request, files)
    assert phone.commands[-1][:2] == ["rm", "-rf"]


@pytest.mark.parametrize("program", ["benchmark_model", "/data/local/tmp/other", "/", ""])
def test_unknown_program_is_one_line(program: str) -> None:
    with pytest.raises(DeviceError, match="not a known benchmark program"):
        AndroidDevice(program, adb=Adb(execute=Phone()))


@pytest.mark.parametrize(
    ("code", "text", "words"),
    [
        (1, "adb: no devices/emulators found", "connect the phone, switch on USB debugging"),
        (1, "error: more than one device/emulator", "name one: adb://SERIAL"),
        (1, "adb: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set", "confirm this computer"),
        (1, "error: device offline", "reconnect the phone"),
        (1, "adb: device 'R5C' not found", "`adb devices` lists phones"),
        (124, "", "did not end within 300 s and was stopped"),
    ],
)
def test_adb_that_fails_says_what_to_do(code: int, text: str, words: str) -> None:
    adb = Adb(execute=lambda command, seconds: Finished(code, text))
    with pytest.raises(DeviceError, match=words.replace("(", r"\(")):
        adb.shell(["timeout", "300", "x"], seconds=300, check=False)


def test_arguments_reach_the_phone_as_they_are() -> None:
    phone = Phone()
    Adb(execute=phone).shell(["echo", "a b; rm -rf /", "$HOME"])
    assert phone.commands == [["echo", "a b; rm -rf /", "$HOME"]]


def test_missing_and_hanging_adb_are_one_line() -> None:
    with pytest.raises(DeviceError, match="no program 'no-such-adb' here; install Android's platform-tools"):
        execute(["no-such-adb"], 1.0)
    with pytest.raises(DeviceError, match=r"did not end within 0\.1 s"):
        execute(["sleep", "5"], 0.1)
    assert execute(["sh", "-c", "echo out; echo err >&2; exit 3"], 5.0) == Finished(3, "out\nerr\n")
