"""Workers that score policies beside each other. One that dies is replaced, and its policy is scored again."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from amc.compression.scoring.policy import PolicyScorer, Scored, ScoreTiming
from amc.compression.scoring.workers.trial import Trial
from amc.errors import EvaluationError, ResourceError
from amc.search.statistics import Measured

ATTEMPTS = 3  # to score a policy whose worker dies

Keep = tuple[int, ...]
Answer = tuple[Scored, list[str]]  # and the engine's new warnings


class Worker(Protocol):
    """Scores one policy at a time; used by one thread, but for `close`."""

    slow: bool  # whether the latest policy took too long
    blameless: bool  # whether it was no policy's fault that it died, as when its machine is lost

    def start(self) -> None:
        """Start, unless it runs. Raises ResourceError if it cannot."""

    def ask(self, policy: Keep, timeout: float | None) -> dict[str, Any] | None:
        """The answer for a policy (see `answers`); None if it dies, or is ended after `timeout` seconds."""

    def end(self) -> str:
        """How it died, in words: "was ended by ..."."""

    @property
    def killed(self) -> bool:
        """Whether it was killed from outside, as systems do whose memory is full."""

    def close(self) -> None:
        """End it, now and for good."""


class Workers(Protocol):
    """The workers of one search, and what they share."""

    @property
    def workers(self) -> Sequence[Worker]:
        """One after the other."""

    def close(self) -> None:
        """Give back what the workers share; they are closed by then."""


@dataclass(slots=True)
class _Task:
    policy: Keep
    future: Future[Answer] = field(default_factory=Future)
    deaths: int = 0  # of workers that had this policy


class Pool:
    """Workers that score policies, from `__enter__` to `__exit__`."""

    def __init__(self, scorer: PolicyScorer, workers: Workers, *, timeout: float | None = None) -> None:
        """`timeout`: seconds after which a policy fails; its worker is replaced. None: a worker may take for ever."""
        self._scorer, self._staff, self._timeout = scorer, workers, timeout
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._asked: dict[Keep, _Task] = {}
        self._tried = [threading.Event() for _ in workers.workers]
        self._free = threading.Condition()
        self._limit, self._busy = len(workers.workers), 0
        self.trial: Trial | None = None  # hears every batch
        self._threads = [
            threading.Thread(target=self._serve, args=(worker, tried), name=f"amc-worker-{number}", daemon=True)
            for number, (worker, tried) in enumerate(zip(workers.workers, self._tried, strict=True), start=1)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers, whatever they do."""
        for task in self._asked.values():
            task.future.cancel()
        self.limit(len(self._threads))
        for _ in self._threads:
            self._tasks.put(None)
        for worker in self._staff.workers:
            worker.close()
        for thread in self._threads:
            thread.join()
        self._staff.close()

    def limit(self, workers: int) -> None:
        """Let only so many workers score at once, from the next policy on."""
        with self._free:
            self._limit = workers
            self._free.notify_all()

    def ready(self) -> None:
        """Wait until every worker has started, or has failed to."""
        for tried in self._tried:
            tried.wait()

    def begin(self, policies: Sequence[Keep]) -> None:
        """Let the workers score these policies, in this order; forget earlier ones that nobody has asked for."""
        for policy in set(self._asked) - set(policies):
            self._asked.pop(policy).future.cancel()
        new = [_Task(policy) for policy in dict.fromkeys(policies) if policy not in self._asked]
        if self.trial is not None:
            self.trial.begins([task.future for task in new])
        for task in new:
            self._asked[task.policy] = task
            self._tasks.put(task)

    def scored(self, policy: Keep) -> Scored:
        """The policy's score, when it is there.

        Raises EvaluationError if the policy fails, ResourceError if memory or disk space runs out or no worker can be
        started.
        """
        if policy not in self._asked:
            self.begin([*self._asked, policy])
        try:
            scored, warnings = self._asked[policy].future.result()
        finally:
            del self._asked[policy]
        known = self._scorer.engine.warnings  # in the order of the policies, whoever scored them first
        known += [text for text in warnings if text not in known]
        self._scorer.remember(policy, scored.score)
        return scored

    def _serve(self, worker: Worker, tried: threading.Event) -> None:
        """Score the policies of the queue with one worker, in a thread of its own.

        A worker that waits for its place, as in a cluster that is full, holds no policy meanwhile.
        """
        while True:
            with suppress(ResourceError):  # the first policy tries again, and tells
                worker.start()
            tried.set()
            task = self._tasks.get()
            if task is None:
                return
            if not task.future.running() and not task.future.set_running_or_notify_cancel():
                continue
            try:
                with self._turn():
                    worker.start()
                    answer = self._answer(worker, task)
            except BaseException as error:  # it belongs to who waits for the score
                task.future.set_exception(error)
            else:
                if answer is None:
                    self._tasks.put(task)  # for the first worker that is free
                else:
                    task.future.set_result(answer)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One of the places of those that score at once."""
        with self._free:
            self._free.wait_for(lambda: self._busy < self._limit)
            self._busy += 1
        try:
            yield
        finally:
            with self._free:
                self._busy -= 1
                self._free.notify()

    def _answer(self, worker: Worker, task: _Task) -> Answer | None:
        """The worker's answer; None if it died and the policy may be tried again."""
        answer = worker.ask(task.policy, self._timeout)
        if answer is not None:
            return _read(answer)
        if worker.slow:
            raise EvaluationError(f"its score took more than {self._timeout:g} seconds (score-timeout)")
        if worker.blameless:
            return None
        task.deaths += 1
        if task.deaths < ATTEMPTS:
            return None
        if worker.killed:
            raise ResourceError(f"the machine seems to be out of memory ({ATTEMPTS} workers were killed by SIGKILL)")
        raise EvaluationError(f"{ATTEMPTS} workers died of it, the last {worker.end()}")


def _read(answer: dict[str, Any]) -> Answer:
    if "resource" in answer:
        raise ResourceError(answer["resource"])
    if "error" in answer:
        raise EvaluationError(answer["error"])
    score, deviation = answer["score"], answer["standard_error"]
    measured = score if deviation is None else Measured(score, deviation)
    return Scored(measured, ScoreTiming(*answer["seconds"])), answer["warnings"]
