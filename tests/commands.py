"""`amc …` as a process of its own, without paying the imports each time.

A server process imports amc once and forks a child for every command. The child is a real process: it has its
own exit code and output, and can be killed.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# For a search whose subject is not what happens after it: recovery takes most of the time of a small search.
AS_PRUNED = ("--recover", "none", "--finalists", 0)


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int  # negative: the signal that ended it
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output, all of which must be one JSON document."""
        return json.loads(self.stdout)

    @property
    def complaint(self) -> str:
        """The one line of a user's mistake; checks the form that every mistake must have."""
        assert self.code == 2, f"exit code {self.code}\n{self.stdout}\n{self.stderr}"
        lines = self.stderr.splitlines()
        assert lines, "nothing on standard error"
        assert lines[-1].startswith("amc: "), self.stderr
        progress = [line for line in lines[:-1] if not line.startswith(("· ", "  "))]
        assert progress == [], self.stderr
        assert "Traceback" not in self.stderr
        assert self.stdout == ""
        return lines[-1].removeprefix("amc: ")


def amc(
    *arguments: object,
    cwd: Path | None = None,
    kill_when: Callable[[], bool] | None = None,
    kill_with: signal.Signals = signal.SIGKILL,
    bytes_left: int | None = None,
) -> Finished:
    """Run `amc ARGUMENTS`, in `cwd`.

    The process gets the signal `kill_with` as soon as `kill_when` answers True. After `bytes_left` bytes
    written to files the disk is full.
    """
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        request = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or folder),
            "out": str(out),
            "err": str(err),
            "bytes_left": bytes_left,
        }
        pid = _ask(server, request)["pid"]
        ended = threading.Event()
        if kill_when is not None:
            threading.Thread(target=_killer, args=(pid, kill_when, kill_with, ended), daemon=True).start()
        code = json.loads(_line(server))["code"]
        ended.set()
        texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in (out, err)]  # killed at once
        return Finished(code, *texts)


def contents(directory: Path) -> Mapping[str, str]:
    """Hash of every file below `directory`, without locks (they hold the last writer's process id)."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def _killer(pid: int, kill_when: Callable[[], bool], kill_with: signal.Signals, ended: threading.Event) -> None:
    while not ended.wait(0.002):
        if kill_when():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, kill_with)
            return


@functools.cache
def _server() -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        environment.pop(name, None)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.commands"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.kill)
    assert json.loads(_line(server)) == "ready"
    return server


def _ask(server: subprocess.Popen[str], request: Mapping[str, Any]) -> Any:
    assert server.stdin is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(_line(server))


def _line(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line, "the process that runs commands has died"
    return line


def _serve() -> None:
    """Answer requests on standard input until it closes."""
    _warm_up()
    _say("ready")
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(request)
        _say({"pid": pid})
        _, status = os.waitpid(pid, 0)
        _say({"code": os.waitstatus_to_exitcode(status)})


def _warm_up() -> None:
    """Import all that commands import, and what torch imports on first use. One thread, so that forks are safe."""
    import torch

    import amc
    import amc.cli.jobs
    import amc.cli.terminal
    from amc.report.page import PackageLoader  # noqa: F401

    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(4, 2, 1)).eval()
    example = torch.zeros(1, 1, 4, 4)
    structure = amc.inspect(model, example)
    amc.certify(model, structure, example, keep_sets=1)
    amc.count_macs(model, example)


def _say(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _child(request: Mapping[str, Any]) -> None:
    """Become `amc ARGUMENTS`; never returns."""
    code = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a background job starts with ignores it
    try:
        os.chdir(request["cwd"])
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = _run(request["arguments"], request["bytes_left"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(arguments: Sequence[str], bytes_left: int | None) -> int:
    from amc.cli import main

    sys.argv = ["amc", *arguments]
    sys.modules["__main__"].__package__ = ""  # else the help says `python -m tests.amc`
    sys.path[:] = [entry for entry in sys.path if entry not in ("", str(ROOT))]
    if bytes_left is not None:
        _fill_disk(bytes_left)
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _fill_disk(bytes_left: int) -> None:
    """From now on `os.write` writes this many bytes and then finds no space, as the last blocks of a disk do.

    All but status.json, which is replaced again and again: how often, the clock decides.
    """
    real, left = os.write, bytes_left

    def write(descriptor: int, data: Any) -> int:
        nonlocal left
        if "status.json" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            return real(descriptor, data)
        part = bytes(data)[:left]
        if not part and len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, part)
        left -= written
        return written

    os.write = write


if __name__ == "__main__":
    assert isinstance(sys.stdout, io.TextIOWrapper)
    _serve()
