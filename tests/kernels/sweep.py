"""Cases under one instruction set and number of threads -> what is wrong.

The processes of the sweep have the checking allocator of glibc: an overrun ends the process where it would otherwise
go unseen, and fresh memory holds huge numbers, so that reading too far shows in the results.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ctypes.util import find_library
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.kernels.cases import Case
from tests.kernels.worker import CRASH, Outcome

ROOT = Path(__file__).parents[2]
TOLERANCE = {"float32": 1e-4, "bfloat16": 4e-2, "float64": 1e-12}  # of the largest entry


@dataclass(frozen=True, slots=True)
class Setting:
    """The instructions that torch and oneDNN may use: all, or fewer than the processor has."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)


NATIVE = Setting("native")
AVX2 = Setting("AVX2", {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"})
SSE41 = Setting("SSE41", {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"})
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
SETTINGS = (NATIVE, AVX2, SSE41) if IS_X86 else (NATIVE,)


@dataclass(frozen=True, slots=True)
class Finding:
    """A case that is wrong, and how: a signal, or by how much which result is off."""

    case: Case
    how: str

    def __str__(self) -> str:
        return f"{self.how}: {self.case}"


def sweep(
    cases: Sequence[Case], setting: Setting = NATIVE, *, threads: int = 1, guarded: bool = True,
    options: Iterable[str] = (),
) -> list[Outcome]:  # fmt: skip
    """The outcome of every case in subprocesses; with `guarded`, gradients are computed as fine-tuning does it."""
    command = [sys.executable, "-m", "tests.kernels.worker", "--threads", str(threads), *options]
    lines = "".join(json.dumps(asdict(case)) + "\n" for case in cases)
    done = subprocess.run(
        [*command, *(["--guarded"] if guarded else [])], input=lines, env=environment_of(setting, threads),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    outcomes: list[Outcome] = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode != 0 or len(outcomes) != len(cases):
        raise RuntimeError(f"the sweep ended after {len(outcomes)} of {len(cases)} cases:\n{done.stderr[-2000:]}")
    return outcomes


def environment_of(setting: Setting, threads: int = 1) -> dict[str, str]:
    """Of a process in which overruns of the heap show."""
    library = find_library("c_malloc_debug")  # glibc 2.34 and later; before that the checks are in libc itself
    checks = {"LD_PRELOAD": library} if library else {}
    checks |= {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "128"}
    waiting = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}  # else slow on a busy machine
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    return {**os.environ, **checks, **setting.environment, **waiting, **paths}


def findings(cases: Iterable[Case], outcomes: Iterable[Outcome]) -> Iterator[Finding]:
    """What is not right."""
    for case, outcome in zip(cases, outcomes, strict=True):
        if CRASH in outcome:
            yield Finding(case, outcome[CRASH])
            continue
        for name, error in outcome["errors"].items():
            if not error <= TOLERANCE[case.dtype]:
                yield Finding(case, f"{name} off by {error:.1%}")
