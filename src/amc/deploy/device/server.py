"""`amc device serve`: times models that a host sends, over HTTP.

    GET    /v1/device                    what this device is
    PUT    /v1/measurements/ID           a request (see `protocol`); ID: 32 hexadecimal digits of the client's choice
    GET    /v1/measurements/ID?wait=20   its state; waits up to so many seconds for the end
    DELETE /v1/measurements/ID           end it

Every request needs `Authorization: Bearer TOKEN`. One request a connection. One thread, the `door`, hears all who have
not shown the token; who has gets a thread (`handler`). Their number, the time a request may take to arrive, its size
and the number that wait are limited, and a measurement runs in a process of its own (`process`). It is meant for a
laboratory, not for the open internet: see docs/device.md.
"""

from __future__ import annotations

import ipaddress
import resource
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from amc.deploy.device.door import Door
from amc.deploy.device.formats import FILES, file_paths
from amc.deploy.device.guests import Guests
from amc.deploy.device.handler import Handler
from amc.deploy.device.limits import Limits
from amc.deploy.device.measurements import Measurements
from amc.deploy.device.process import Child, RunFailedError
from amc.deploy.device.protocol import DeviceError, DeviceInfo, Request
from amc.deploy.device.wire import Head
from amc.stop import Stop

PORT = 8765
MEASURE = "amc.deploy.device.runner:measure"
DESCRIBE = "amc.deploy.device.runner:describe"
_BACKLOG = 128


class StoppedError(DeviceError):
    """The server was told to stop before it had started."""


class DeviceServer:
    """A device server; `serve_forever` until `shutdown`, then `close`."""

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
        stop: Stop | None = None,
    ) -> None:
        """Listen at once; `DeviceError` when the address cannot be had, or when no runtime is installed.

        `measure` and `describe` are the functions ("module:name") that run in the child process. Once `stop` is set,
        the server serves no longer; `StoppedError` where it has not started yet.
        """
        self.limits = _within_descriptors(limits or Limits())
        self.log = log
        self._measure = measure
        self._stack = ExitStack()
        self._stop = stop or self._stack.enter_context(Stop())
        try:
            self.spool = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="amc-device-")))
            self._listener = self._stack.enter_context(_listen(host, port))
            self.info = self._describe(describe)
            self._guests = Guests(self.limits.connections)
            self._door = Door(self._listener, token, self.limits, admit=self._admit, log=log)
            self._stack.callback(self._guests.close)
            self._stack.callback(self._door.close)
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
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def is_private(self) -> bool:
        """Whether only this machine can reach it."""
        address = ipaddress.ip_address(self._listener.getsockname()[0].partition("%")[0])
        mapped = address.ipv4_mapped if address.version == 6 else None
        return (mapped or address).is_loopback

    def serve_forever(self) -> None:
        """Answer until `shutdown` is called, or the `stop` that was given is set."""
        self._door.serve(self._stop)

    def shutdown(self) -> None:
        """Make `serve_forever` return; from any thread, and from a signal handler."""
        self._stop.set()

    def close(self) -> None:
        """End what runs, stop listening, remove all files; not while `serve_forever` runs."""
        self._stack.close()

    def _describe(self, function: str) -> DeviceInfo:
        """Ask a child process what can run here: a runtime that crashes on import must not end the server."""
        child = Child(function, seconds=self.limits.start_seconds, start_seconds=self.limits.start_seconds)
        try:
            found = child.run({}, self.spool, stop=self._stop)
        except RunFailedError as error:
            if error.kind == "cancelled":
                raise StoppedError("the device server was stopped before it had started") from None
            raise DeviceError(f"this device cannot tell its runtimes: {error.message}") from None
        runtimes = {name: version for name, version in found["runtimes"].items() if name in FILES}
        if not runtimes:
            raise DeviceError(f"no runtime is installed here; install one of {', '.join(FILES)}")
        return DeviceInfo(
            amc_version=found["amc_version"], machine=found["machine"], runtimes=runtimes,
            body_bytes=self.limits.body_bytes, run_seconds=self.limits.run_seconds,
        )  # fmt: skip

    def _admit(self, connection: socket.socket, address: str, head: Head, begun: bytes) -> bool:
        return self._guests.take(connection, Handler(self, connection, address, head, begun).run)

    def _run(self, request: Request, folder: Path) -> _Run:
        child = Child(
            self._measure, seconds=self.limits.run_seconds, start_seconds=self.limits.start_seconds,
            data_bytes=self.limits.data_bytes,
        )  # fmt: skip
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


def _listen(host: str, port: int) -> socket.socket:
    if not host.strip():
        raise DeviceError(
            f"--host must be an address, got '{host}'; use 127.0.0.1 for this machine alone, "
            f"or 0.0.0.0 for every network that it is in"
        )
    try:
        return _bound(host, port)
    except (OSError, OverflowError, TypeError, ValueError) as error:  # the last two: a name that no address can have
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DeviceError(
            f"cannot listen on {host} port {port} ({reason}); choose another with --host or --port"
        ) from None


def _bound(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _within_descriptors(limits: Limits) -> Limits:
    """Connections take at most half of the file descriptors that this process may have; the rest is for its work."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return limits
    quarter = max(1, most // 4)
    return replace(limits, visitors=min(limits.visitors, quarter), connections=min(limits.connections, quarter))
