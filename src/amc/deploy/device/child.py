"""The process of a measurement: a script that limits its own resources, runs one function and reports the result.

`process.Child` starts this script. The script uses only the standard library, so its limits are set before any runtime
is imported. It reads its task as JSON from standard input: the import path, the limits, the function
("package.module:name") and its argument. The server's operator chooses the function, never a client. The start phase
imports the function, and calls `prepare(argument)` of its module if that exists; it has a time limit of its own. Then
the script writes a line feed, runs the function and writes the answer, all to standard output. The answer is one JSON
object: {"result": …} or {"error": {"type", "message", "ours"}}.
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
    os.dup2(2, 1)  # a runtime's own output must not mix with the answer
    task = json.load(sys.stdin)
    _alarm(task["start_seconds"])
    _limit(**task["limits"])
    sys.path[:] = task["path"]
    answer = json.dumps(_answer(reply, task)).encode()
    while answer:
        answer = answer[os.write(reply, answer) :]
    os.close(reply)
    os._exit(0)  # skips a runtime's destructors, which may crash or hang


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
    # The process must end even if the server dies; SIGALRM ends it even inside native code.
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit(*, data_bytes: int, file_bytes: int) -> None:
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    if data_bytes:
        # Limits private writable memory, which a model allocates. A runtime's libraries do not count.
        _lower(resource.RLIMIT_DATA, data_bytes)
    score = Path("/proc/self/oom_score_adj")  # without memory, the kernel should end this process first
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
