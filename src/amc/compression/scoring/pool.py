"""Processes that score policies beside each other, each on one thread.

The network, the tables of its layers and the images are written to a file once, and every worker maps it: a machine
holds them once. A policy's score is a pure function, so it does not matter which worker scores it, or when. A worker
that dies is replaced, and its policy is scored again.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from amc.compression.observer import Observer
from amc.compression.scoring.engine.memory import LIMIT
from amc.compression.scoring.policy import PolicyScorer, Scored, ScoreTiming
from amc.compression.settings import SearchConfig
from amc.errors import AmcError, EvaluationError, ResourceError, check_resources, reason_of
from amc.run.mapped import BY_NAME
from amc.run.memory import free_memory
from amc.run.provenance import CPU
from amc.search.statistics import Measured

ATTEMPTS = 3  # to score a policy whose worker dies
PROCESS = 500 << 20  # bytes of a worker, without the activations that it remembers; measured by benchmarks/workers.py
GRACE = 5.0  # seconds for a process that has closed its output to end
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

Keep = tuple[int, ...]
Answer = tuple[Scored, list[str]]  # and the engine's new warnings


def memory_of(workers: int) -> int:
    """Bytes that so many workers hold at most, but for the images and the network, which are held once."""
    return workers * PROCESS + LIMIT


def check_memory(workers: int) -> None:
    """Raise AmcError if so many workers do not fit into the memory that is free."""
    free = free_memory()
    if free is not None and memory_of(workers) > free:
        fitting = (free - LIMIT) // PROCESS
        remedy = f"ask for {fitting} at most" if fitting > 0 else "leave workers out"
        raise AmcError(
            f"{workers} worker{'s' * (workers > 1)} may need {memory_of(workers) / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free; {remedy}"
        )


@contextmanager
def scoring(
    scorer: PolicyScorer, config: SearchConfig, watch: Observer, device: torch.device = CPU
) -> Iterator[Pool | None]:
    """A pool of the workers that a search asks for; None if it asks for none. `device`: of the networks."""
    workers = config.workers
    if workers is None:
        yield None
        return
    watch.stage(f"start of {workers} worker{'s' * (workers > 1)}, {memory_of(workers) / 1e9:.1f} GB at most")
    if workers > config.batch:  # no warning of the result, which the number of workers does not change
        watch.warning(f"{workers} workers share batches of {config.batch}, so some are idle; raise batch")
    with Pool(scorer, workers, timeout=config.score_timeout, device=device) as pool:
        yield pool


def gpus_of(device: torch.device, workers: int) -> list[int | None]:
    """The index of the GPU of each worker; None on the CPU.

    On the first GPU, the workers are dealt to all that there are; on another one, they share it.
    """
    if device.type != "cuda":
        return [None] * workers
    first = device.index or 0
    return [first or number % torch.cuda.device_count() for number in range(workers)]


class Pool:
    """`workers` processes that score policies, from `__enter__` to `__exit__`."""

    def __init__(
        self, scorer: PolicyScorer, workers: int, *, timeout: float | None = None, device: torch.device = CPU
    ) -> None:
        """`timeout`: seconds after which a policy fails; its worker is replaced. None: a worker may take for ever.

        Raises AmcError if something of the scorer cannot be sent to another process.
        """
        self._scorer, self._timeout = scorer, timeout
        self._tasks: queue.SimpleQueue[tuple[Keep, Future[Answer]] | None] = queue.SimpleQueue()
        self._futures: dict[Keep, Future[Answer]] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="amc-workers-"))  # of its user alone
        self._greeting = {"path": sys.path, "scorer": str(self._folder / "scorer.pt"), "memory": LIMIT // workers}
        try:
            self._write(self._folder / "scorer.pt")
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._workers = [_Worker({**self._greeting, "gpu": gpu}) for gpu in gpus_of(device, workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), name=f"amc-worker-{number}", daemon=True)
            for number, worker in enumerate(self._workers, start=1)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers, whatever they do."""
        for future in self._futures.values():
            future.cancel()
        for _ in self._threads:
            self._tasks.put(None)
        for worker in self._workers:
            worker.close()
        for thread in self._threads:
            thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def processes(self) -> list[int]:
        """The process ids of the workers that run."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def ready(self) -> None:
        """Wait until every worker has started, or has failed to."""
        for worker in self._workers:
            worker.tried.wait()

    def begin(self, policies: Sequence[Keep]) -> None:
        """Let the workers score these policies, in this order; forget earlier ones that nobody has asked for."""
        for policy in set(self._futures) - set(policies):
            self._futures.pop(policy).cancel()
        for policy in policies:
            if policy not in self._futures:
                self._futures[policy] = Future()
                self._tasks.put((policy, self._futures[policy]))

    def scored(self, policy: Keep) -> Scored:
        """The policy's score, when it is there.

        Raises EvaluationError if the policy fails, ResourceError if memory or disk space runs out or no worker can be
        started.
        """
        if policy not in self._futures:
            self.begin([*self._futures, policy])
        try:
            scored, warnings = self._futures[policy].result()
        finally:
            del self._futures[policy]
        known = self._scorer.engine.warnings  # in the order of the policies, whoever scored them first
        known += [text for text in warnings if text not in known]
        self._scorer.remember(policy, scored.score)
        return scored

    def _write(self, path: Path) -> None:
        """The scorer, for the workers to map."""
        try:
            torch.save(self._scorer, path, pickle_module=BY_NAME)
        except Exception as error:  # the user's network or `evaluate` may hold anything
            check_resources(error)
            raise AmcError(
                f"the search cannot be sent to workers ({reason_of(error)}); leave out what cannot be pickled from "
                "evaluate and from the network, or leave out workers"
            ) from error

    def _serve(self, worker: _Worker) -> None:
        """Score the policies of the queue with one worker, in a thread of its own."""
        with suppress(ResourceError):  # the first policy tries again, and tells
            worker.start()
        worker.tried.set()
        while (task := self._tasks.get()) is not None:
            policy, future = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._score(worker, policy))
            except BaseException as error:  # it belongs to who waits for the score
                future.set_exception(error)

    def _score(self, worker: _Worker, policy: Keep) -> Answer:
        for _ in range(ATTEMPTS):
            worker.start()
            answer = worker.ask(policy, self._timeout)
            if answer is not None:
                return self._read(answer)
            if worker.slow:
                raise EvaluationError(f"its score took more than {self._timeout:g} seconds (score-timeout)")
        if worker.killed:  # from outside, as systems do whose memory is full
            raise ResourceError(f"the machine seems to be out of memory ({ATTEMPTS} workers were killed by SIGKILL)")
        raise EvaluationError(f"{ATTEMPTS} workers died of it, the last {worker.end()}")

    @staticmethod
    def _read(answer: dict[str, Any]) -> Answer:
        if "resource" in answer:
            raise ResourceError(answer["resource"])
        if "error" in answer:
            raise EvaluationError(answer["error"])
        score, deviation = answer["score"], answer["standard_error"]
        measured = score if deviation is None else Measured(score, deviation)
        return Scored(measured, ScoreTiming(*answer["seconds"])), answer["warnings"]


class _Worker:
    """One process; a new one takes its place when it dies."""

    def __init__(self, greeting: dict[str, Any]) -> None:
        self._greeting = greeting
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._lock = threading.Lock()  # closing may come while the process starts
        self.slow = False  # whether the latest policy took too long
        self.tried = threading.Event()  # to start for the first time

    @property
    def pid(self) -> int | None:
        """Of the process, if it runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """Start the process, unless it runs. Raises ResourceError if it ends before it is ready."""
        if self._process is not None and self._process.poll() is None:
            return
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "amc.compression.scoring.worker"]
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
