"""`amc search` in a process of its own, with the CPU seconds at which each stage begins and each policy is scored.

Imports nothing heavy itself: the imports are part of what is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Times:
    """CPU seconds since the process began, of all its threads."""

    stages: tuple[tuple[str, float], ...]  # when each stage began
    scores: tuple[tuple[float, float], ...]  # each newly scored policy: the score, and when it was known

    def parts(self) -> dict[str, float]:
        """CPU seconds of each stage up to the first score, the imports first."""
        names = ["imports", *(name for name, _ in self.stages)]
        marks = [0.0, *(mark for _, mark in self.stages), self.scores[0][1]]
        return {name: end - begin for name, begin, end in zip(names, marks, marks[1:], strict=False)}


def timed_search(
    out: Path, source: dict[str, Any], settings: dict[str, Any], *,
    cache: Path, threads: int = 1, target: float | None = None, resume: bool = False,
) -> Times:  # fmt: skip
    """Search in `out`, or resume there, until a policy is scored whose score is at least `target` (None: any).

    source: the fields of `Source`. settings: those of `SearchConfig`. cache: the folder of decoded images.
    """
    job = {"out": str(out), "source": source, "settings": settings, "target": target, "resume": resume}
    path = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "AMC_CACHE": str(cache), "PYTHONPATH": path}
    program = [sys.executable, "-c", "import timed_search; timed_search.run()"]
    done = subprocess.run(
        program, input=json.dumps(job), env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    times = json.loads(done.stdout.splitlines()[-1])
    return Times(*(tuple((first, second) for first, second in times[name]) for name in ("stages", "scores")))


class Reached(BaseException):
    """The target is reached; not an Exception, so that the run stays as after a kill."""


def run() -> None:
    """In the process of its own: do the job on standard input as the command does, print the times as JSON."""
    job = json.load(sys.stdin)

    from amc.cli.common import loading
    from amc.cli.memory import keep_freed_memory

    keep_freed_memory()
    with loading():
        from amc.cli.jobs.search import resume_search, run_search
        from amc.compression.observer import Observer
        from amc.compression.settings import SearchConfig
        from amc.run.settings import Source

    stages: list[tuple[str, float]] = []
    scores: list[tuple[float, float]] = []

    class Clock(Observer):
        def stage(self, name: str) -> None:
            stages.append((name, time.process_time()))

        def episode(self, agent: str, record: Any, timing: Any) -> None:
            if timing.replayed or record.score is None:
                return
            scores.append((record.score, time.process_time()))
            if job["target"] is None or record.score >= job["target"]:
                raise Reached

    try:
        if job["resume"]:
            resume_search(Path(job["out"]), progress=Clock())
        else:
            run_search(Path(job["out"]), Source(**job["source"]), SearchConfig(**job["settings"]), progress=Clock())
    except Reached:
        pass
    print(json.dumps({"stages": stages, "scores": scores}))
