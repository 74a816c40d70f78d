"""A process that scores policies for `amc.compression.scoring.pool`, one at a time and on one thread.

It is started as `python -m amc.compression.scoring.worker` and talks in lines of JSON. On its standard input come a
greeting (`path`: where modules are found, `scorer`: a file that the pool has written, `memory`: bytes that its engine
may remember) and then a policy a line; on its standard output go "ready" and then an answer a line. What the user's
code prints goes to the standard error stream. It ends when its input ends, so no worker outlives its pool; if the pool
was killed, the worker removes the pool's folder.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
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
        answer = _answering(scorer_file, greeting["memory"], greeting["gpu"])
        _say(answers, {"ready": True})
        for line in policies:
            _say(answers, answer(tuple(json.loads(line))))
    except BrokenPipeError:  # nobody hears the answer
        os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())  # nor what is flushed at the end
    shutil.rmtree(scorer_file.parent, ignore_errors=True)


def _answering(scorer_file: Path, memory: int, gpu: int | None) -> Callable[[tuple[int, ...]], dict[str, Any]]:
    """A function that scores a policy. Imports torch here: `sys.path` must be the pool's."""
    import torch

    from amc.compression.scoring.engine.network import PiecewiseEngine
    from amc.errors import EvaluationError, ResourceError, RunError, guarded
    from amc.search.statistics import Measured

    torch.set_num_threads(1)

    # The pool has written the file a moment ago, in a directory that is its user's alone. Mapped into memory, it is
    # held once by all workers of a machine.
    def placed(storage: Any, location: str) -> Any:
        return storage.cuda(gpu) if location.startswith("cuda") else storage

    try:
        scorer = torch.load(scorer_file, mmap=True, weights_only=False, map_location=placed)
    except RunError as error:  # a file of decoded images, which is mapped as well, was removed
        sys.exit(f"amc: {error}")
    if isinstance(scorer.engine, PiecewiseEngine):
        scorer.engine.memory.limit = memory

    def answer(policy: tuple[int, ...]) -> dict[str, Any]:
        told = len(scorer.engine.warnings)
        try:
            scored = guarded(lambda: scorer.scored(policy))
        except EvaluationError as error:
            return {"error": str(error)}
        except ResourceError as error:
            return {"resource": str(error)}
        deviation = scored.score.standard_error if isinstance(scored.score, Measured) else None
        timing = scored.timing
        return {
            "score": float(scored.score), "standard_error": deviation,
            "seconds": [timing.build, timing.batch_norm, timing.evaluate], "warnings": scorer.engine.warnings[told:],
        }  # fmt: skip

    return answer


def _say(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
