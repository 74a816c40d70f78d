"""`amc device serve`: times models that a host sends, over HTTP.

    GET    /v1/device                    what this device is
    PUT    /v1/measurements/ID           a request (see `protocol`); ID: 32 hexadecimal digits of the client's choice
    GET    /v1/measurements/ID?wait=20   its state; waits up to so many seconds for the end
    DELETE /v1/measurements/ID           end it

Every request needs `Authorization: Bearer TOKEN`. One request a connection. A connection has a thread; their number,
the time a request may take to arrive, its size and the number that wait are limited, and a measurement runs in a
process of its own (`process`). The standard library's `http.server` reads the requests; it is not meant for the open
internet, and neither is this: see docs/device.md.
"""

from __future__ import annotations

import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amc.deploy.device.formats import FILES, file_paths
from amc.deploy.device.handler import Handler
from amc.deploy.device.limits import Limits
from amc.deploy.device.measurements import Measurements
from amc.deploy.device.process import Child, RunFailedError
from amc.deploy.device.protocol import DeviceError, DeviceInfo, Request

PORT = 8765
MEASURE = "amc.deploy.device.runner:measure"
DESCRIBE = "amc.deploy.device.runner:describe"


class DeviceServer:
    """A device server; `serve_forever` until `close`."""

    def __init__(
        self,
        token: str,
        *,
        host: str = "127.0.0.1",
        port: int = PORT,
        limits: Limits | None = None,
        measure: str = MEASURE,
        describe: str = DESCRIBE,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Listen at once; `DeviceError` when the address cannot be had, or when no runtime is installed.

        `measure` and `describe` are the functions ("module:name") that run in the child process.
        """
        self.token = token
        self.limits = limits or Limits()
        self.log = log
        self._measure = measure
        self._stack = ExitStack()
        try:
            self.spool = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="amc-device-")))
            self._http = self._stack.enter_context(_listen(host, port, self))
            self.info = self._describe(describe)
            self.measurements = Measurements(
                self._run, queue=self.limits.queue, spool_bytes=self.limits.spool_bytes,
            )  # fmt: skip
            self._stack.callback(self.measurements.close)
        except BaseException:
            self._stack.close()
            raise

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._http.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def serve_forever(self) -> None:
        """Answer until `shutdown` is called from another thread, or an exception is raised here."""
        self._http.serve_forever(poll_interval=0.1)

    def shutdown(self) -> None:
        """Make `serve_forever` return; from another thread."""
        self._http.shutdown()

    def close(self) -> None:
        """End what runs, stop listening, remove all files."""
        self._stack.close()

    def _describe(self, function: str) -> DeviceInfo:
        """Ask a child process what can run here: a runtime that crashes on import must not end the server."""
        try:
            found = Child(function, seconds=self.limits.run_seconds).run({}, self.spool)
        except RunFailedError as error:
            raise DeviceError(f"this device cannot tell its runtimes: {error.message}") from None
        runtimes = {name: version for name, version in found["runtimes"].items() if name in FILES}
        if not runtimes:
            raise DeviceError(f"no runtime is installed here; install one of {', '.join(FILES)}")
        return DeviceInfo(
            amc_version=found["amc_version"], machine=found["machine"], runtimes=runtimes,
            body_bytes=self.limits.body_bytes, run_seconds=self.limits.run_seconds,
        )  # fmt: skip

    def _run(self, request: Request, folder: Path) -> _Run:
        child = Child(self._measure, seconds=self.limits.run_seconds, data_bytes=self.limits.data_bytes)
        return _Run(child, request, folder)


@dataclass(frozen=True, slots=True)
class _Run:
    child: Child
    request: Request
    folder: Path

    def run(self) -> dict[str, Any]:
        return self.child.run(task_of(self.request, self.folder), self.folder)

    def kill(self) -> None:
        self.child.kill()


def task_of(request: Request, folder: Path) -> dict[str, Any]:
    """The argument of the function that measures: plain values and the paths of the files."""
    return {
        "runtime": request.runtime,
        "threads": request.threads,
        "half": request.half,
        "settings": asdict(request.settings),
        "models": [
            {
                "name": model.name,
                "inputs": [{"shape": list(spec.shape), "dtype": spec.dtype} for spec in model.inputs],
                "files": [str(path) for path in file_paths(request.runtime, index, folder)],
            }
            for index, model in enumerate(request.models)
        ],
    }


class _Http(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False  # their measurements are ended by then; a slow client must not hold up the end
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], owner: DeviceServer) -> None:
        self.owner = owner
        self._free = threading.BoundedSemaphore(owner.limits.connections)
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.setblocking(False)  # this is the thread that accepts: it never waits for a client
            request.send(b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.owner.log(f"{client_address[0]} connection lost")


def _listen(host: str, port: int, owner: DeviceServer) -> _Http:
    class Listener(_Http):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        return Listener((host, port), owner)
    except (OSError, OverflowError, TypeError) as error:  # TypeError: a name that no address can have
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DeviceError(
            f"cannot listen on {host} port {port} ({reason}); choose another with --host or --port"
        ) from None
