"""Stands in for the runtimes: functions that run in a device server's child process, with the standard library only.

A model looks like a TFLite file; the text after its first eight bytes is the command that it runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HEAD = (4).to_bytes(4, "little") + b"TFL3"
STARTED = "started"  # file that a run writes at its beginning into the folder that the model names
MAY_GO_ON = "go-on"  # what `start-slowly` waits for in its folder
MACHINE = {"cpu": "stub", "architecture": "paper", "cores": 2, "system": "none", "load": 0.5}


def model(command: str = "", *, size: int = 0) -> bytes:
    return HEAD + command.encode() + b"\0" + bytes(size)


def describe(argument: Any) -> dict[str, Any]:
    assert argument == {}
    return {
        "amc_version": "0.1.0",
        "machine": MACHINE,
        "runtimes": {"litert": "2.3.0", "onnxruntime": "1.31.1", "eager": "2.13.0"},
    }


def describe_nothing(argument: Any) -> dict[str, Any]:
    return {"amc_version": "0.1.0", "machine": {}, "runtimes": {"eager": "2.13.0"}}


def describe_for_ever(argument: Any) -> dict[str, Any]:
    time.sleep(3600)
    return {}


def prepare(argument: dict[str, Any]) -> None:
    """The model's actions in the start phase of its run, which does not count as measuring time."""
    for entry in argument.get("models", []):
        action, *words = _command(entry)
        if action in _STARTS:
            _STARTS[action](*words)


def measure(argument: dict[str, Any]) -> dict[str, Any]:
    sys.stdout.write("a runtime's chatter\n")
    sys.stdout.flush()
    results = {}
    for entry in argument["models"]:
        action, *words = _command(entry)
        extra = _ACTIONS[action](*words)
        data = Path(entry["files"][0]).read_bytes()
        rest = data[8:].partition(b"\0")[2]
        timing = {"file_bytes": len(data), "latency_ms": 1.5, "typical_ms": 1.5, "spread": 0.0}
        beside = {"ratio": 1.0, "uncertainty": 0.0, "verdict": "undecided"} if results else {}
        results[entry["name"]] = timing | beside | {"bytes": len(rest), "extra": extra, "asked": entry}
    return {
        "runtime": argument["runtime"], "runtime_version": "2.3.0", "threads": argument["threads"],
        "precision": "float16" if argument["half"] else "float32", "machine": MACHINE, "busy": False, "steady": True,
        "seconds": 0.1, "settings": argument["settings"], "networks": results,
    }  # fmt: skip


def _command(entry: dict[str, Any]) -> list[str]:
    data = Path(entry["files"][0]).read_bytes()
    return data[8:].partition(b"\0")[0].decode().split() or ["fine"]


class AmcError(Exception):
    """Told apart by its name, as the child's function may be anyone's."""


def _fine(*_: str) -> None:
    return None


def _hang(*_: str) -> None:
    time.sleep(3600)


def _dig_in(folder: str) -> None:
    """Ignores all signals that can be ignored, and starts a child process that would continue."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    part = Path(folder, STARTED + ".part")
    part.write_text(f"{os.getpid()} {grandchild.pid}")
    part.rename(Path(folder, STARTED))  # atomic


def _wait_for(folder: str) -> None:
    """Starts, and waits for permission to continue."""
    Path(folder, STARTED).touch()
    while not Path(folder, MAY_GO_ON).exists():
        time.sleep(0.01)


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _leave() -> None:
    os.write(2, b"loading\ncannot allocate tensors\n")
    os._exit(3)


def _memory() -> None:
    blocks = []
    while True:
        blocks.append(bytearray(1 << 26))


def _chatter() -> None:
    for _ in range(3000):
        os.write(1, b"x" * 10_000)
        os.write(2, b"y" * 10_000)


def _refuse() -> None:
    raise AmcError("operator FOO is not known\nto this runtime")


def _fault() -> None:
    raise ValueError("shapes differ")


def _nan() -> float:
    return float("nan")


def _secret() -> str | None:
    return os.environ.get("AMC_DEVICE_TOKEN")


def _count(folder: str) -> int:
    """Count this run, and return the number of current runs."""
    running = Path(folder, "running")
    number = len(running.read_text()) if running.exists() else 0
    running.write_text("r" * (number + 1))
    time.sleep(0.01)
    running.write_text("r" * number)
    with Path(folder, "runs").open("a") as file:
        file.write("r")
    return number + 1


_ACTIONS: dict[str, Any] = {
    "fine": _fine, "hang": _hang, "hang-for-good": _hang, "start-slowly": _fine, "crash": _crash, "leave": _leave,
    "memory": _memory, "chatter": _chatter, "refuse": _refuse, "fault": _fault, "nan": _nan, "secret": _secret,
    "count": _count,
}  # fmt: skip
_STARTS: dict[str, Any] = {"hang-for-good": _dig_in, "start-slowly": _wait_for}
