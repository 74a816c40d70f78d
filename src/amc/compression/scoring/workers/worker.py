"""A process that scores policies for `processes`, one at a time and on one thread.

It is started as `python -m amc.compression.scoring.workers.worker` and talks in lines of JSON. On its standard input
come a greeting (`path`: where modules are found, `scorer`: a file that `processes` has written, `memory`: bytes that
its engine may remember) and then a policy a line; on its standard output go "ready" and then an answer a line. What the
user's code prints goes to the standard error stream. It ends when its input ends, so no worker outlives its pool; if
the pool was killed, the worker removes the pool's folder.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, TextIO


def main() -> None:
    """Score policies until the input ends."""
    answers, policies = os.fdopen(os.dup(1), "w", encoding="utf-8"), os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(2, 1)  # from now on, print writes to the standard error stream
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # and input finds nothing
    greeting = json.loads(policies.readline())
    sys.path[:] = greeting["path"]
    scorer_file = Path(greeting["scorer"])
    if not scorer_file.exists():
        sys.exit(f"amc: a worker finds no file '{scorer_file}': its pool has ended, or the folder was cleaned up")
    try:
        from amc.compression.scoring.workers.sending import answering  # imports torch: sys.path must be the pool's
        from amc.errors import RunError

        try:
            answer = answering(scorer_file, greeting["memory"], greeting["gpu"])
        except RunError as error:  # a file of decoded images, which is mapped as well, was removed
            sys.exit(f"amc: {error}")
        _say(answers, {"ready": True})
        for line in policies:
            _say(answers, answer(tuple(json.loads(line))))
    except BrokenPipeError:  # nobody hears the answer
        os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())  # nor what is flushed at the end
    shutil.rmtree(scorer_file.parent, ignore_errors=True)


def _say(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
