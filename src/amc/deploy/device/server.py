"""`amc device serve`: times models that a host sends over HTTP.

    GET    /v1/device                    the device's description
    PUT    /v1/measurements/ID           a new measurement (see `protocol`); ID: 32 hexadecimal digits, client's choice
    GET    /v1/measurements/ID?wait=20   the measurement's state; waits up to 20 seconds for its end
    DELETE /v1/measurements/ID           end the measurement

Every request needs `Authorization: Bearer TOKEN`. A connection serves one request. One thread, the `door`, reads from
all connections that have not sent the token. A connection that has sent it gets a thread of its own (`handler`). The
server limits the number of connections, the size and the arrival time of a request, and the number of waiting
measurements. Each measurement runs in a process of its own (`process`). The server is meant for a laboratory, not for
the open internet: see docs/device.md.
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
from amc.deploy.device.stop import Stop
from amc.deploy.device.wire import Head

PORT = 8765
MEASURE = "amc.deploy.device.runner:measure"
DESCRIBE = "amc.deploy.device.runner:describe"
_BACKLOG = 128


class StoppedError(DeviceError):
    """The server was stopped before it had started."""


class DeviceServer:
    """A device server: `serve_forever` serves until `shutdown`; then call `close`."""

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
        """Start to listen; `DeviceError` if the address is not available, or if no runtime is installed.

        `measure` and `describe` are the functions ("module:name") that run in the child process. Setting `stop` ends
        the server; `StoppedError` if it has not started yet.
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
        """The server's address."""
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def is_private(self) -> bool:
        """Whether only this machine can reach the server."""
        address = ipaddress.ip_address(self._listener.getsockname()[0].partition("%")[0])
        mapped = address.ipv4_mapped if address.version == 6 else None
        return (mapped or address).is_loopback

    def serve_forever(self) -> None:
        """Answer requests until `shutdown` is called or `stop` is set."""
        self._door.serve(self._stop)

    def shutdown(self) -> None:
        """Make `serve_forever` return; may be called from any thread and from a signal handler."""
        self._stop.set()

    def close(self) -> None:
        """End the current measurement, stop listening and remove all files. Call it after `serve_forever` returned."""
        self._stack.close()

    def _describe(self, function: str) -> DeviceInfo:
        """Ask a child process for this device's runtimes: a runtime that crashes on import must not end the server."""
        child = Child(function, seconds=self.limits.start_seconds, start_seconds=self.limits.start_seconds)
        try:
            description = child.run({}, self.spool, stop=self._stop)
        except RunFailedError as error:
            if error.kind == "cancelled":
                raise StoppedError("the device server was stopped before it had started") from None
            raise DeviceError(f"cannot list the runtimes of this device: {error.message}") from None
        runtimes = {name: version for name, version in description["runtimes"].items() if name in FILES}
        if not runtimes:
            raise DeviceError(f"no runtime is installed here; install one of {', '.join(FILES)}")
        return DeviceInfo(
            amc_version=description["amc_version"], machine=description["machine"], runtimes=runtimes,
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
            f"--host must be an address, got '{host}'; use 127.0.0.1 to serve this machine only, "
            f"or 0.0.0.0 to serve all networks"
        )
    try:
        return _bound(host, port)
    except (OSError, OverflowError, TypeError, ValueError) as error:  # TypeError, ValueError: an invalid host name
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
    """Reduce the limits so that connections take at most half of this process's file descriptors."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return limits
    quarter = max(1, most // 4)
    return replace(limits, visitors=min(limits.visitors, quarter), connections=min(limits.connections, quarter))
