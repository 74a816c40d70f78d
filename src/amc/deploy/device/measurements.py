"""The measurements of a device server: a queue, the measurement that runs, and the results.

Only one measurement runs at a time, so measurements do not disturb each other. A limited number of measurements may
wait; further clients are refused and told when to retry. The client chooses the identifier of its measurement. The same
request with the same identifier is the same measurement, so a client may repeat its request after a broken connection.
The newest results are kept.
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
    """One run that another thread can end; the server uses `process.Child`."""

    def run(self) -> dict[str, Any]:
        """Run and return the result; `RunFailedError` if there is no result."""
        ...

    def kill(self) -> None:
        """End the run."""
        ...


@dataclass(slots=True)
class _Measurement:
    digest: str  # of the whole request
    request: Request
    folder: Path
    state: str = "waiting"  # then "running", then one of ENDED
    outcome: dict[str, Any] = field(default_factory=dict)  # "result" or "error", once ended
    asked: float = 0.0  # time.monotonic() of its client's last request
    run: Run | None = None


class Measurements:
    """The queue and its only worker; every method may be called from any thread."""

    def __init__(
        self,
        start: Callable[[Request, Path], Run],
        *,
        queue: int,
        spool_bytes: int,
        abandoned_after: float = 120.0,
    ) -> None:
        """`start` creates a run. At most `queue` measurements wait; all their files take at most `spool_bytes`.

        A waiting measurement is dropped if its client has not asked for it for `abandoned_after` seconds.
        """
        self._start = start
        self._queue = queue
        self._spool_bytes = spool_bytes
        self._abandoned_after = abandoned_after
        self._changed = threading.Condition()
        self._all: dict[str, _Measurement] = {}  # in order of arrival
        self._arriving = 0  # current uploads
        self._spooled = 0  # bytes of current uploads and of waiting measurements
        self._last_seconds = 1.0  # duration of the last run, an estimate for Retry-After
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="measurements", daemon=True)
        self._worker.start()

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Reserve a place in the queue while `size` bytes arrive; `RefusedError` (503) if the queue is full."""
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
        """Add a request, with its files in `folder`, to the queue unless it is there already; call inside `room`.

        `RefusedError` (409) if the identifier belongs to another request. The queue removes the folder.
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
        """State of a measurement, with its result or error if it has ended; waits up to `wait` seconds for its end."""
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
        """End a measurement that waits or runs; does not change one that has ended."""
        with self._changed:
            item = self._all.get(identifier)
            if item is not None and item.state == "waiting":
                self._leave(item, "cancelled", {"error": {"kind": "cancelled", "message": "cancelled while waiting"}})
            run = None if item is None else item.run
        if run is not None:
            run.kill()
        return self.status(identifier, wait=1.0)

    def close(self) -> None:
        """Refuse new measurements, end the current one, and wait for the worker to end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            running = [item.run for item in self._all.values() if item.run is not None]
        for run in running:
            run.kill()
        self._worker.join()

    def _ahead(self, identifier: str) -> int:
        """Number of measurements before this one."""
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
            except Exception as error:  # an error must not end the worker
                message = f"the device server failed: {type(error).__name__}: {error}"
                state, outcome = "failed", {"error": {"kind": "fault", "message": message}}
            with self._changed:
                self._last_seconds = time.monotonic() - started
                self._leave(item, state, outcome)

    def _next(self) -> _Measurement | None:
        """Wait for a measurement to run, and return it; None once closed."""
        with self._changed:
            while not self._closed:
                for item in self._all.values():
                    if item.state != "waiting":
                        continue
                    if time.monotonic() - item.asked > self._abandoned_after:
                        error = {"kind": "abandoned", "message": "the client stopped asking for this measurement"}
                        self._leave(item, "failed", {"error": error})
                        continue
                    item.state = "running"
                    self._changed.notify_all()
                    return item
                self._changed.wait()
            return None

    def _leave(self, item: _Measurement, state: str, outcome: dict[str, Any]) -> None:
        """End a measurement and free its files; the caller holds the lock."""
        item.state, item.outcome, item.run = state, outcome, None
        self._spooled -= item.request.payload_bytes
        shutil.rmtree(item.folder, ignore_errors=True)
        self._changed.notify_all()
