"""The process that a measurement runs in: a script that limits itself, runs one function and reports.

Started by `process.Child` as a script, with only the standard library, so that the limits hold before any runtime is
imported. It reads its task as JSON on standard input: where to import from, the limits, the function
("package.module:name", chosen by whoever runs the server, never by a client) and its argument. It imports the function
and calls `prepare` of the same module, if there is one, with the same argument. That is the start, which has a time
limit of its own. Then it writes a line feed, runs the function and writes the answer, all on standard output: one JSON
object, {"result": …} or {"error": {"type", "message", "ours"}}.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the task; never returns."""
    reply = os.dup(1)
    os.dup2(2, 1)  # whatever a runtime prints is not the answer
    task = json.load(sys.stdin)
    _alarm(task["start_seconds"])
    _limit(**task["limits"])
    sys.path[:] = task["path"]
    answer = json.dumps(_answer(reply, task)).encode()
    while answer:
        answer = answer[os.write(reply, answer) :]
    os.close(reply)
    os._exit(0)  # not by way of the destructors of a runtime, which may crash or hang


def _answer(reply: int, task: dict[str, Any]) -> dict[str, Any]:
    name, argument = task["function"], task["argument"]
    try:
        module = importlib.import_module(name.partition(":")[0])
        function = getattr(module, name.partition(":")[2])
        if hasattr(module, "prepare"):
            module.prepare(argument)
        os.write(reply, b"\n")
        _alarm(task["seconds"])
        result = function(argument)
        json.dumps(result, allow_nan=False)
    except BaseException as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"error": {"type": kinds[0], "message": str(error), "ours": "AmcError" in kinds}}
    return {"result": result}


def _alarm(seconds: float) -> None:
    # A clock of its own, should the server die: SIGALRM ends the process even inside native code.
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit(*, data_bytes: int, file_bytes: int) -> None:
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    if data_bytes:
        # Private writable memory, which is what a model can ask for; the libraries of a runtime do not count.
        _lower(resource.RLIMIT_DATA, data_bytes)
    score = Path("/proc/self/oom_score_adj")  # short of memory, the kernel should end this process, not the server
    try:
        score.write_text("1000", encoding="ascii")
    except OSError:
        return


def _lower(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(kind, (limit, limit))


if __name__ == "__main__":
    main()
