"""Workers that are processes of this machine, each on one thread.

The network, the tables of its layers and the images are written to a file once, and every worker maps it: a machine
holds them once.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from amc.compression.scoring.engine.memory import LIMIT
from amc.compression.scoring.policy import PolicyScorer
from amc.compression.scoring.workers.pool import Keep, Worker
from amc.compression.scoring.workers.sending import write_scorer
from amc.errors import AmcError, ResourceError, check_resources, reason_of
from amc.run.mapped import BY_NAME
from amc.run.memory import free_memory
from amc.run.provenance import CPU

PROCESS = 500 << 20  # bytes of a worker, without the activations that it remembers; measured by benchmarks/workers.py
GRACE = 5.0  # seconds for a process that has closed its output to end
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def memory_of(workers: int) -> int:
    """Bytes that so many workers hold at most, but for the images and the network, which are held once."""
    return workers * PROCESS + LIMIT


def check_memory(workers: int) -> None:
    """Raise AmcError if so many workers do not fit into the memory that is free."""
    free, most = free_memory(), fitting()
    if free is not None and workers > most:
        remedy = f"ask for {most} at most" if most > 0 else "leave workers out"
        raise AmcError(
            f"{workers} worker{'s' * (workers > 1)} may need {memory_of(workers) / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free; {remedy}"
        )


def fitting() -> int:
    """How many workers fit into the memory that is free."""
    free = free_memory()
    return sys.maxsize if free is None else max(0, (free - LIMIT) // PROCESS)


def gpus_of(device: torch.device, workers: int) -> list[int | None]:
    """The index of the GPU of each worker; None on the CPU.

    On the first GPU, the workers are dealt to all that there are; on another one, they share it.
    """
    if device.type != "cuda":
        return [None] * workers
    first = device.index or 0
    return [first or number % torch.cuda.device_count() for number in range(workers)]


class Processes:
    """Worker processes for one search, and the file that they map."""

    def __init__(self, scorer: PolicyScorer, workers: int, *, device: torch.device = CPU) -> None:
        """`device`: of the networks. Raises AmcError if something of the scorer cannot be sent to another process."""
        self.folder = Path(tempfile.mkdtemp(prefix="amc-workers-"))  # of its user alone
        file = self.folder / "scorer.pt"
        try:
            write_scorer(scorer, file, BY_NAME)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        greeting = {"path": sys.path, "scorer": str(file), "memory": LIMIT // workers}
        self.workers = [_Process({**greeting, "gpu": gpu}) for gpu in gpus_of(device, workers)]

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that run."""
        return [worker.pid for worker in self.workers if worker.pid is not None]

    def close(self) -> None:
        """Remove the file; the workers have ended by then."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Process(Worker):
    """One process; a new one takes its place when it dies."""

    def __init__(self, greeting: dict[str, Any]) -> None:
        self._greeting = greeting
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._lock = threading.Lock()  # closing may come while the process starts
        self.slow = self.blameless = False

    @property
    def pid(self) -> int | None:
        """Of the process, if it runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """Start the process, unless it runs. Raises ResourceError if it ends before it is ready."""
        if self._process is not None and self._process.poll() is None:
            return
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "amc.compression.scoring.workers.worker"]
        with self._lock:
            if self._closed:
                raise ResourceError("the workers have ended")
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
                    encoding="utf-8", start_new_session=True,  # Ctrl-C is for the search alone, which ends its workers
                )  # fmt: skip
            except OSError as error:
                check_resources(error)
                raise ResourceError(f"a worker cannot be started ({reason_of(error)})") from error
        if self._exchange(self._greeting) is None:
            raise ResourceError(f"a worker cannot be started (it {self.end()})")

    def ask(self, policy: Keep, timeout: float | None) -> dict[str, Any] | None:
        """The answer for a policy; None if the process dies, or is killed after `timeout` seconds (then `slow`)."""
        self.slow = False
        timer = None if timeout is None else threading.Timer(timeout, self._kill_slow)
        if timer is not None:
            timer.start()
        try:
            return self._exchange(policy)
        finally:
            if timer is not None:
                timer.cancel()

    @property
    def killed(self) -> bool:
        """Whether somebody has killed the process."""
        return self._process is not None and self._process.wait() == -signal.SIGKILL

    def end(self) -> str:
        """How the process ended, in words."""
        code = None if self._process is None else self._process.wait()
        if code is not None and code < 0:
            return f"was ended by signal {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def close(self) -> None:
        """Kill the process, now and for good."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def _kill_slow(self) -> None:
        self.slow = True
        if self._process is not None:
            self._process.kill()

    def _exchange(self, content: Any) -> dict[str, Any] | None:
        """Send a line, and read a line; None if the process is dead by then."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(content) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            answer: dict[str, Any] = json.loads(line)
        except (OSError, ValueError):  # a broken pipe, nothing, or half a line
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            process.kill()
            process.wait()
            return None
        return answer
