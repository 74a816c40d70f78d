"""The measurements of a device server: who waits, what runs, what came out.

One measurement runs at a time, so that no other disturbs its timings; a bounded number wait, the rest are turned away
with a time to come back. A measurement has an identifier that its client chose: asked for again it is the same one,
so a client whose connection broke repeats its request and loses nothing. Results are kept for a while, then forgotten.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from amc.deploy.device.process import RunFailedError
from amc.deploy.device.protocol import Request
from amc.deploy.device.strict import RefusedError

KEPT_RESULTS = 512
ENDED = ("done", "failed", "cancelled")


class Run(Protocol):
    """One run that can be ended from another thread; `process.Child` by way of the server."""

    def run(self) -> dict[str, Any]:
        """The result; `RunFailedError` when there is none."""
        ...

    def kill(self) -> None:
        """End it."""
        ...


@dataclass(slots=True)
class _Measurement:
    digest: str  # of the whole request
    request: Request
    folder: Path
    state: str = "waiting"  # then "running", then one of ENDED
    outcome: dict[str, Any] = field(default_factory=dict)  # "result" or "error", once ended
    asked: float = 0.0  # when its client last asked; time.monotonic()
    run: Run | None = None


class Measurements:
    """The queue and its one worker; every method may be called from any thread."""

    def __init__(
        self,
        start: Callable[[Request, Path], Run],
        *,
        queue: int,
        spool_bytes: int,
        abandoned_after: float = 120.0,
    ) -> None:
        """`start` makes a run; at most `queue` wait; their files take at most `spool_bytes` together.

        A measurement that waits and whose client has not asked for it for `abandoned_after` seconds is dropped.
        """
        self._start = start
        self._queue = queue
        self._spool_bytes = spool_bytes
        self._abandoned_after = abandoned_after
        self._changed = threading.Condition()
        self._all: dict[str, _Measurement] = {}  # in order of arrival
        self._arriving = 0  # uploads under way
        self._spooled = 0  # bytes promised to uploads and held by those that wait
        self._last_seconds = 1.0  # of the last run: a guess for Retry-After
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="measurements", daemon=True)
        self._worker.start()

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """A place in the queue while `size` bytes arrive; `RefusedError` (503) when there is none."""
        with self._changed:
            waiting = self._arriving + sum(item.state == "waiting" for item in self._all.values())
            if self._closed:
                raise RefusedError(503, "closing", "the device server is shutting down", retry_after=5)
            if waiting >= self._queue or self._spooled + size > self._spool_bytes:
                raise RefusedError(
                    503, "busy", f"{waiting} measurements wait already; try again later",
                    retry_after=min(30, max(1, round(self._last_seconds))),
                )  # fmt: skip
            self._arriving += 1
            self._spooled += size
        try:
            yield
        finally:
            with self._changed:
                self._arriving -= 1
                self._spooled -= size

    def submit(self, identifier: str, digest: str, request: Request, folder: Path) -> None:
        """Put a request whose files lie in `folder` into the queue, or find it there; call inside `room`.

        `RefusedError` (409) when the identifier belongs to another request. The folder is the queue's if it was taken.
        """
        with self._changed:
            known = self._all.get(identifier)
            if known is None:
                self._all[identifier] = _Measurement(digest, request, folder, asked=time.monotonic())
                self._spooled += request.payload_bytes
                self._forget_old()
                self._changed.notify_all()
                return
        shutil.rmtree(folder, ignore_errors=True)
        if known.digest != digest:
            raise RefusedError(409, "conflict", f"measurement {identifier} is another request; choose a new identifier")

    def status(self, identifier: str, wait: float = 0.0) -> dict[str, Any]:
        """State of a measurement, with its result or error once it has one; waits up to `wait` seconds for that."""
        until = time.monotonic() + wait
        with self._changed:
            while True:
                item = self._all.get(identifier)
                if item is None:
                    raise RefusedError(
                        404, "unknown", f"no measurement {identifier}; it may have been forgotten: send it again"
                    )
                item.asked = time.monotonic()
                if item.state in ENDED or self._closed or item.asked >= until:
                    return {"id": identifier, "state": item.state, "ahead": self._ahead(identifier)} | item.outcome
                self._changed.wait(until - item.asked)

    def cancel(self, identifier: str) -> dict[str, Any]:
        """End a measurement that waits or runs; one that has ended stays as it is."""
        with self._changed:
            item = self._all.get(identifier)
            if item is not None and item.state == "waiting":
                self._leave(item, "cancelled", {"error": {"kind": "cancelled", "message": "cancelled while waiting"}})
            run = None if item is None else item.run
        if run is not None:
            run.kill()
        return self.status(identifier, wait=1.0)

    def close(self) -> None:
        """Take no more, end what runs, and return when the worker has."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            running = [item.run for item in self._all.values() if item.run is not None]
        for run in running:
            run.kill()
        self._worker.join()

    def _ahead(self, identifier: str) -> int:
        """Measurements to be served before this one."""
        pending = [key for key, item in self._all.items() if item.state not in ENDED]
        return pending.index(identifier) if identifier in pending else 0

    def _forget_old(self) -> None:
        ended = [key for key, item in self._all.items() if item.state in ENDED]
        for key in ended[: max(0, len(ended) - KEPT_RESULTS)]:
            del self._all[key]

    def _work(self) -> None:
        while (item := self._next()) is not None:
            started = time.monotonic()
            try:
                run = self._start(item.request, item.folder)
                with self._changed:
                    item.run = run
                    closed = self._closed
                if closed:
                    run.kill()
                state, outcome = "done", {"result": run.run()}
            except RunFailedError as error:
                state = "cancelled" if error.kind == "cancelled" else "failed"
                outcome = {"error": {"kind": error.kind, "message": error.message}}
            except Exception as error:  # a fault here must not end the worker, and with it the server
                message = f"the device server failed: {type(error).__name__}: {error}"
                state, outcome = "failed", {"error": {"kind": "fault", "message": message}}
            with self._changed:
                self._last_seconds = time.monotonic() - started
                self._leave(item, state, outcome)

    def _next(self) -> _Measurement | None:
        """The measurement to run now, once there is one; None when closed."""
        with self._changed:
            while not self._closed:
                for item in self._all.values():
                    if item.state != "waiting":
                        continue
                    if time.monotonic() - item.asked > self._abandoned_after:
                        error = {"kind": "abandoned", "message": "nobody asked for this measurement any more"}
                        self._leave(item, "failed", {"error": error})
                        continue
                    item.state = "running"
                    self._changed.notify_all()
                    return item
                self._changed.wait()
            return None

    def _leave(self, item: _Measurement, state: str, outcome: dict[str, Any]) -> None:
        """End a measurement and free what it held; the lock is held."""
        item.state, item.outcome, item.run = state, outcome, None
        self._spooled -= item.request.payload_bytes
        shutil.rmtree(item.folder, ignore_errors=True)
        self._changed.notify_all()
