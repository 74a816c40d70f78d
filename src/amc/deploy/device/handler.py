"""Answers one request of a client that has sent the token.

The `door` has read the head. A body has a size limit and a time limit, and is written to disk. Every refusal is JSON.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from amc.deploy.device.formats import check_model_files, check_runtime, file_paths
from amc.deploy.device.limits import LINGER_SECONDS, Limits
from amc.deploy.device.measurements import Measurements
from amc.deploy.device.protocol import DeviceInfo, Request, decode, encode_info, header_length, is_identifier
from amc.deploy.device.strict import RefusedError, malformed
from amc.deploy.device.wire import CONTINUE, Head, encode_reply, request_line

_PATH = re.compile(r"/v1/measurements/([^/?]+)\Z")
_WAIT = re.compile(r"wait=(\d{1,4}(?:\.\d{1,3})?)\Z")
_CHUNK = 1 << 16
_LINGER_BYTES = 64 << 20


class Owner(Protocol):
    """The parts of the DeviceServer that a handler uses."""

    limits: Limits
    info: DeviceInfo
    measurements: Measurements
    spool: Path  # folder for the files of waiting measurements
    log: Callable[[str], None]


class _Reader(io.RawIOBase):
    """Reads a connection until a deadline, so that a client that sends slowly cannot block a thread for ever."""

    def __init__(self, connection: socket.socket, begun: bytes, deadline: float) -> None:
        """`begun`: bytes that were already read from the connection."""
        self._connection = connection
        self._begun = memoryview(begun)
        self.deadline = deadline  # time.monotonic()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._begun:
            part = self._begun[: len(buffer)]
            self._begun = self._begun[len(part) :]
            buffer[: len(part)] = part
            return len(part)
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long to arrive")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class Handler:
    """Answers the only request of one connection."""

    def __init__(self, owner: Owner, connection: socket.socket, address: str, head: Head, begun: bytes) -> None:
        """`begun`: bytes after the head that were already read from the connection."""
        self._owner = owner
        self._connection = connection
        self._address = address
        self._head = head
        self._raw = _Reader(connection, begun, time.monotonic() + owner.limits.request_seconds)
        self._source = io.BufferedReader(self._raw, _CHUNK)
        self._unread = bool(begun or head.values("content-length") or head.values("transfer-encoding"))

    def run(self) -> None:
        """Answer the request; the caller closes the connection."""
        with suppress(OSError):  # the client has disconnected
            self._reply(*self._outcome())
            self._linger()

    def _outcome(self) -> tuple[int, dict[str, Any], int | None]:
        """Status, record, and seconds after which the client should retry."""
        try:
            return *self._answer(), None
        except RefusedError as refusal:
            return refusal.status, refusal.record(), refusal.retry_after
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # the server must continue
            self._owner.log(f"fault: {type(error).__name__}: {error}")
            fault = RefusedError(500, "fault", f"the device server failed: {type(error).__name__}")
            return fault.status, fault.record(), None

    def _answer(self) -> tuple[int, dict[str, Any]]:
        try:
            parts = urlsplit(self._head.target)
        except ValueError:
            raise malformed("the path is not valid") from None
        if parts.path == "/v1/device":
            if self._head.method != "GET":
                raise RefusedError(405, "method", "this path allows only GET")
            return 200, encode_info(self._owner.info)
        match = _PATH.match(parts.path)
        if match is None:
            raise RefusedError(404, "path", "this path does not exist; docs/device.md lists all paths")
        identifier = match[1]
        if not is_identifier(identifier):
            raise malformed("a measurement's identifier is 32 hexadecimal digits in lower case")
        if self._head.method == "PUT":
            return self._put(identifier)
        if self._head.method == "DELETE":
            return 200, self._owner.measurements.cancel(identifier)
        if self._head.method == "GET":
            return 200, self._owner.measurements.status(identifier, self._wait(parts.query))
        raise RefusedError(405, "method", "this path allows only GET, PUT and DELETE")

    def _wait(self, query: str) -> float:
        match = _WAIT.match(query) if query else None
        if query and match is None:
            raise malformed("the query must be wait=SECONDS")
        return min(float(match[1]) if match else 0.0, self._owner.limits.wait_seconds)

    def _put(self, identifier: str) -> tuple[int, dict[str, Any]]:
        length, limits = self._content_length(), self._owner.limits
        if length > limits.body_bytes:
            raise RefusedError(413, "size", f"a request of {length} bytes; this device takes {limits.body_bytes}")
        with self._owner.measurements.room(length):
            self._raw.deadline = time.monotonic() + limits.request_seconds + length / limits.body_rate
            if "100-continue" in map(str.lower, self._head.values("expect")):
                self._connection.sendall(CONTINUE)
            folder = Path(tempfile.mkdtemp(dir=self._owner.spool))
            try:
                request, digest = self._receive(length, folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._owner.measurements.submit(identifier, digest, request, folder)
        return 202, self._owner.measurements.status(identifier)

    def _content_length(self) -> int:
        if self._head.values("transfer-encoding"):
            raise RefusedError(411, "length", "send the body with a Content-Length, not in chunks")
        given = self._head.values("content-length")
        if not given:
            raise RefusedError(411, "length", "the body needs a Content-Length")
        if len(given) > 1 or re.match(r"[0-9]{1,15}\Z", given[0]) is None:
            raise malformed("the Content-Length is not one number")
        return int(given[0])

    def _receive(self, length: int, folder: Path) -> tuple[Request, str]:
        """Read the frame, write its files into `folder` and check them; returns the request and the body's hash."""
        body = _Body(self._source, length)
        try:
            request = decode(body.read(header_length(body.read(min(8, length)))))
            check_runtime(request.runtime, [len(model.file_bytes) for model in request.models])
            self._check_version(request)
            if body.left != request.payload_bytes:
                raise malformed(f"{body.left} bytes of files, but the header says {request.payload_bytes}")
            for index, model in enumerate(request.models):
                for path, size in zip(file_paths(request.runtime, index, folder), model.file_bytes, strict=True):
                    with path.open("wb") as file:
                        body.copy(size, file)
        except TimeoutError:
            raise RefusedError(408, "slow", "the body took too long to arrive") from None
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            raise RefusedError(507, "disk", f"the device cannot store the model ({error.strerror})") from None
        self._unread = False
        for index in range(len(request.models)):
            check_model_files(request.runtime, file_paths(request.runtime, index, folder))
        return request, body.digest.hexdigest()

    def _check_version(self, request: Request) -> None:
        has = self._owner.info.runtimes.get(request.runtime)
        if has is None:
            installed = ", ".join(self._owner.info.runtimes)
            raise RefusedError(422, "runtime", f"{request.runtime} is not installed on this device; it has {installed}")
        if request.version not in (None, has):
            raise RefusedError(409, "version", f"this device has {request.runtime} {has}, not {request.version}")

    def _reply(self, status: int, record: dict[str, Any], retry_after: int | None) -> None:
        method, target = self._head.method, self._head.target
        self._owner.log(f"{self._address} {request_line(f'{method} {target}'.encode())} {status}")
        self._connection.settimeout(self._owner.limits.request_seconds)
        self._connection.sendall(encode_reply(status, record, retry_after=retry_after, without_body=method == "HEAD"))

    def _linger(self) -> None:
        """Read and drop what the client still sends; closing the connection at once would lose our answer."""
        if self._unread:
            self._connection.shutdown(socket.SHUT_WR)
            self._raw.deadline = time.monotonic() + LINGER_SECONDS
            left = _LINGER_BYTES
            while left > 0 and (data := self._source.read1(_CHUNK)):
                left -= len(data)


class _Body:
    """A request's body of exactly `length` bytes; hashes the bytes that are read."""

    def __init__(self, source: io.BufferedIOBase, length: int) -> None:
        self.left = length
        self.digest = hashlib.sha256()
        self._source = source

    def read(self, size: int) -> bytes:
        if size > self.left:
            raise malformed("the body ends within its header")
        data = self._source.read(size)
        if len(data) < size:
            raise malformed("the body is shorter than its Content-Length")
        self.left -= size
        self.digest.update(data)
        return data

    def copy(self, size: int, target: IO[bytes]) -> None:
        while size > 0:
            data = self.read(min(size, _CHUNK))
            target.write(data)
            size -= len(data)
