"""Runs one function in a process of its own, with a time limit.

Models are untrusted: a runtime may crash, hang, use all memory or print without end. The server is protected from this.
The process has its own limits (see `child`) and its own session, so its children end with it unless they leave the
process group. Only a limited part of its output is kept.
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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amc.deploy.device import child
from amc.deploy.device.protocol import REPLY_BYTES, TOKEN_VARIABLE
from amc.deploy.device.stop import Stop

_TAIL_BYTES = 4096  # last bytes of standard error that are kept for the message
_FILE_BYTES = 1 << 30  # largest file that the process may write
_GRACE_SECONDS = 5.0  # added to the process's own time limit, which only matters if the server dies
_LEAVE_SECONDS = 0.2  # time for a process to exit after its answer


class RunFailedError(Exception):
    """A run has no result: `kind` is for programs, `message` is one line for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind  # model | timeout | crash | cancelled
        self.message = message


class Child:
    """Runs one function in one process; `kill` may be called from any thread, before or during the run."""

    def __init__(self, function: str, *, seconds: float, start_seconds: float, data_bytes: int = 0) -> None:
        """`start_seconds`: time limit for the start of the process and its imports.

        `seconds`: time limit for the function. `data_bytes`: memory limit; 0: no limit.
        """
        self._function = function
        self._seconds = seconds
        self._start_seconds = start_seconds
        self._data_bytes = data_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False

    def run(self, argument: Mapping[str, Any], folder: Path, *, stop: Stop | None = None) -> dict[str, Any]:
        """Run the function in a process that works in `folder`; `RunFailedError` if it returns no result.

        Setting `stop` cancels the run.
        """
        process = self._start(folder)
        try:
            output = _collect(process, self._task(argument), self._start_seconds, self._seconds, stop)
        finally:
            code = self._end(process)
        if self._cancelled or output.stopped:
            raise RunFailedError("cancelled", "the measurement was cancelled")
        if output.late or code == -signal.SIGALRM:
            verb, seconds = ("end", self._seconds) if output.started else ("start", self._start_seconds)
            raise RunFailedError("timeout", f"the run did not {verb} within {seconds:g} s and was stopped")
        return _result(output.answer, output.tail, code)

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
        task = {
            "path": [str(Path(path or ".").resolve()) for path in sys.path],
            "start_seconds": self._start_seconds + _GRACE_SECONDS,
            "seconds": self._seconds + _GRACE_SECONDS,
            "limits": {"data_bytes": self._data_bytes, "file_bytes": _FILE_BYTES},
            "function": self._function,
            "argument": argument,
        }
        return json.dumps(task).encode()

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """End all processes of the group; returns the exit code of the first one."""
        leaves = time.monotonic() + _LEAVE_SECONDS
        while not self._cancelled and time.monotonic() < leaves and not _has_ended(process.pid):
            time.sleep(0.005)  # it has answered and is about to exit; a kill would hide its exit code
        with self._lock:
            os.killpg(process.pid, signal.SIGKILL)  # before `wait`: afterwards another process may have this id
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        return process.returncode


def _has_ended(pid: int) -> bool:
    if not hasattr(os, "waitid"):  # older Pythons on macOS
        return False
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


@dataclass(slots=True)
class _Output:
    """The output of a process, and how it ended."""

    answer: bytearray = field(default_factory=bytearray)  # a line feed, once it has started, and the result
    tail: bytearray = field(default_factory=bytearray)  # last bytes of standard error
    late: bool = False  # its time is up
    stopped: bool = False  # `stop` was set

    @property
    def started(self) -> bool:
        return bool(self.answer)


def _collect(
    process: subprocess.Popen[bytes], task: bytes, start_seconds: float, seconds: float, stop: Stop | None
) -> _Output:
    """Send the process its task, and read both its outputs until they end, time is up, or `stop` is set."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # the process is already dead; its exit code says why
        process.stdin.write(task)
        process.stdin.close()
    output, streams = _Output(), 2
    deadline = time.monotonic() + start_seconds
    with selectors.DefaultSelector() as selector:
        for source in (process.stdout, process.stderr, stop):
            if source is not None:
                selector.register(source, selectors.EVENT_READ)
        while streams and not output.stopped and not output.late:
            left = deadline - time.monotonic()
            output.late = left <= 0
            for key, _ in selector.select(left) if left > 0 else []:
                if key.fileobj is stop:
                    output.stopped = True
                    continue
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                    streams -= 1
                elif key.fileobj is process.stderr:
                    output.tail = (output.tail + data)[-_TAIL_BYTES:]
                else:
                    if not output.started:
                        deadline = time.monotonic() + seconds
                    output.answer += data[: REPLY_BYTES + 1 - len(output.answer)]
    return output


def _result(answer: bytearray, tail: bytearray, code: int) -> dict[str, Any]:
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


def _why_it_died(code: int, tail: bytearray) -> str:
    ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = tail.decode(errors="replace").split("\n")
    last = [line.strip() for line in lines if line.strip()][-1:]
    return f"the process of the run died ({ended})" + (f": {last[0][:300]}" if last else "")
