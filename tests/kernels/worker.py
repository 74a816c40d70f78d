"""Cases on the standard input, one JSON record a line -> their outcomes on the standard output.

    python -m tests.kernels.worker --threads 2 [--guarded]

Some cases at a time run in a process forked for them, so that a crash costs that process alone. The allocator may
notice only later what an earlier case has overwritten: after a crash the last few cases run again, each in a process of
its own. The program itself never computes anything, so that forking is safe.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from amc.recovery.kernels import RightGradients
from tests.kernels.cases import Case
from tests.kernels.operations import Backward, errors

Outcome = dict[str, Any]  # {"errors": by name} or {CRASH: how}
CRASH = "crash"
SUSPECTS = 4  # cases up to a crash that may have caused it
REPEATS = 2  # the heap differs each time
HANG = 120.0  # seconds without an outcome after which a case hangs
PLANTED = {"planted crash": os.abort, "planted hang": signal.pause}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--guarded", action="store_true", help="compute gradients as amc does")
    parser.add_argument("--together", type=int, default=64, help="cases a process")
    parser.add_argument("--hang", type=float, default=HANG, help="seconds")
    args = parser.parse_args()
    cases = [Case.from_json(json.loads(line)) for line in sys.stdin]
    backward: Backward = RightGradients if args.guarded else nullcontext
    for first in range(0, len(cases), args.together):
        for outcome in _outcomes(cases[first : first + args.together], args.threads, backward, args.hang):
            sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()


def _outcomes(cases: Sequence[Case], threads: int, backward: Backward, hang: float) -> list[Outcome]:
    """Of every case."""
    found: list[Outcome] = []
    while len(found) < len(cases):
        part = _forked(cases[len(found) :], threads, backward, hang)
        if CRASH in part[-1]:
            start = max(0, len(part) - SUSPECTS)
            suspects = cases[len(found) + start : len(found) + len(part)]
            alone = [_forked([case], threads, backward, hang)[0] for case in suspects]
            if any(CRASH in outcome for outcome in alone):
                part[start:] = alone
        found += part
    return found


def _forked(cases: Sequence[Case], threads: int, backward: Backward, hang: float) -> list[Outcome]:
    """The outcomes in one new process, up to the one that ends it."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(cases, threads, backward, sender))
    process.start()
    sender.close()
    found: list[Outcome] = []
    while len(found) < len(cases) and not (found and CRASH in found[-1]):
        try:
            found.append(receiver.recv() if receiver.poll(hang) else {CRASH: "hangs"})
        except EOFError:
            process.join()
            found.append({CRASH: _signal(process.exitcode)})
    process.kill()  # nothing more is wanted of it
    process.join()
    return found


def _run(cases: Sequence[Case], threads: int, backward: Backward, sender: Connection) -> None:
    """In the forked process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the allocator's last words; the signal says enough
    torch.set_num_threads(threads)
    for case in cases:
        found = PLANTED[case.operation]() if case.operation in PLANTED else errors(case, backward, REPEATS)
        sender.send({"errors": {name: min(error, sys.float_info.max) for name, error in found.items()}})


def _signal(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


if __name__ == "__main__":
    main()
