"""One run in a process of its own, ended when its time is up.

A model is a stranger's: its runtime may crash, hang, eat the memory or print without end. None of that reaches the
server: the process has its own limits (see `child`), its own session, so that what it started ends with it (unless
that left the process group), and pipes of which only so much is kept.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amc.deploy.device import child
from amc.deploy.device.protocol import REPLY_BYTES, TOKEN_VARIABLE

_TAIL_BYTES = 4096  # of standard error, for the message
_FILE_BYTES = 1 << 30
_GRACE_SECONDS = 5.0  # after which a process that outlived the server ends itself
_LEAVE_SECONDS = 0.2


class RunFailedError(Exception):
    """The run gave no result: a kind for programs, a line for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind  # model | timeout | crash | cancelled
        self.message = message


class Child:
    """Runs one function in one process; `kill` may be called from any thread, before or during the run."""

    def __init__(self, function: str, *, seconds: float, data_bytes: int = 0) -> None:
        self._function = function
        self._seconds = seconds
        self._data_bytes = data_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False

    def run(self, argument: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The function's result, from a process that works in `folder`; `RunFailedError` when there is none."""
        process = self._start(folder)
        try:
            answer, tail, in_time = _collect(process, self._task(argument), time.monotonic() + self._seconds)
        finally:
            code = self._end(process)
        if self._cancelled:
            raise RunFailedError("cancelled", "the measurement was cancelled")
        if not in_time or code == -signal.SIGALRM:
            raise RunFailedError("timeout", f"the run did not end within {self._seconds:g} s and was stopped")
        return _result(answer, tail, code)

    def kill(self) -> None:
        """End the run, now or as soon as it starts."""
        with self._lock:
            self._cancelled = True
            if self._process is not None and self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        with self._lock:
            if self._cancelled:
                raise RunFailedError("cancelled", "the measurement was cancelled")
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(child.__file__).resolve())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                cwd=folder, env=environment, start_new_session=True,
            )  # fmt: skip
            return self._process

    def _task(self, argument: Mapping[str, Any]) -> bytes:
        limits = {
            "seconds": self._seconds + _GRACE_SECONDS, "data_bytes": self._data_bytes, "file_bytes": _FILE_BYTES,
        }  # fmt: skip
        paths = [str(Path(path or ".").resolve()) for path in sys.path]
        task = {"path": paths, "limits": limits, "function": self._function, "argument": argument}
        return json.dumps(task).encode()

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """Stop everything in the process group; the exit code of its leader."""
        leaves = time.monotonic() + _LEAVE_SECONDS
        while not self._cancelled and time.monotonic() < leaves and not _has_ended(process.pid):
            time.sleep(0.005)  # it has answered and is on its way out: let its exit code be its own
        with self._lock:
            os.killpg(process.pid, signal.SIGKILL)  # before its exit is collected, so that the id is still its own
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        return process.returncode


def _has_ended(pid: int) -> bool:
    if not hasattr(os, "waitid"):  # older Pythons on macOS
        return False
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _collect(process: subprocess.Popen[bytes], task: bytes, deadline: float) -> tuple[bytes, bytes, bool]:
    """Give the process its task and read both its outputs until they end or time is up (the third: in time)."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdin.write(task)
        process.stdin.close()
    except BrokenPipeError:
        pass  # it is dead already; its exit code says why
    answer, tail = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, answer)
        selector.register(process.stderr, selectors.EVENT_READ, tail)
        while selector.get_map():
            left = deadline - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready and left <= 0:
                return bytes(answer), bytes(tail), False
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                key.data.extend(data[: REPLY_BYTES + 1 - len(answer)] if key.data is answer else data)
            del tail[:-_TAIL_BYTES]
    return bytes(answer), bytes(tail), True


def _result(answer: bytes, tail: bytes, code: int) -> dict[str, Any]:
    try:
        record = json.loads(answer)
        if "result" in record:
            result = record["result"]
            if not isinstance(result, dict) or len(answer) > REPLY_BYTES:
                raise RunFailedError("crash", "the run's result cannot be sent")
            return result
        error = record["error"]
    except (ValueError, KeyError, TypeError):
        raise RunFailedError("crash", _why_it_died(code, tail)) from None
    text = " ".join(str(error["message"]).split())[:1000]
    raise RunFailedError("model", text if error["ours"] else f"{error['type']}: {text}")


def _why_it_died(code: int, tail: bytes) -> str:
    ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = tail.decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()][-1:]
    return f"the process of the run died ({ended})" + (f": {said[0][:300]}" if said else "")
