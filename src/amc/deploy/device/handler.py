"""One HTTP request to a device server: who asks, what for, and the answer.

The standard library's `http.server` reads the request line and headers. Added here: a request has a time to arrive in,
the token is compared before anything else is looked at, bodies are bounded and go to disk, and every refusal is JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from amc.deploy.device.formats import check_model_files, check_runtime, file_paths
from amc.deploy.device.limits import Limits
from amc.deploy.device.measurements import Measurements
from amc.deploy.device.protocol import DeviceInfo, Request, decode, encode_info, header_length, is_identifier
from amc.deploy.device.strict import RefusedError, malformed
from amc.deploy.device.token import same_token

_PATH = re.compile(r"/v1/measurements/([^/?]+)\Z")
_WAIT = re.compile(r"wait=(\d{1,4}(?:\.\d{1,3})?)\Z")
_CHUNK = 1 << 16
_LINGER_BYTES = 64 << 20
_LINGER_SECONDS = 2.0


class Owner(Protocol):
    """What a request is answered from; the DeviceServer."""

    token: str
    limits: Limits
    info: DeviceInfo
    measurements: Measurements
    spool: Path  # where the files of those that wait lie
    log: Callable[[str], None]


class _Reader(io.RawIOBase):
    """A connection's bytes, up to a point in time: a client that drips bytes cannot hold a thread for ever."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self.deadline = deadline  # time.monotonic()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long to arrive")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's one request."""

    protocol_version = "HTTP/1.1"
    server: Any  # its `owner` is the DeviceServer

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._owner: Owner = self.server.owner
        self._raw = _Reader(self.connection, time.monotonic() + self._owner.limits.request_seconds)
        self.rfile = io.BufferedReader(self._raw, _CHUNK)
        self._unread = False

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError):
            super().handle()

    def _dispatch(self) -> None:
        self.close_connection = True
        self._unread = "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        try:
            self._authorize()
            self._reply(*self._answer())
        except RefusedError as refusal:
            self._reply(refusal.status, refusal.record(), refusal.retry_after)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # answered, logged, and the server goes on
            fault = RefusedError(500, "fault", f"the device server failed: {type(error).__name__}")
            self._owner.log(f"fault: {type(error).__name__}: {error}")
            self._reply(fault.status, fault.record())
        self._linger()

    def _authorize(self) -> None:
        given = self.headers.get_all("Authorization", [])
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        right = same_token(token.strip(), self._owner.token)  # always compared: every refusal takes the same time
        if scheme.lower() != "bearer" or not right:
            raise RefusedError(401, "token", "wrong or missing token; use the one that `amc device serve` printed")

    def _answer(self) -> tuple[int, dict[str, Any]]:
        try:
            parts = urlsplit(self.path)
        except ValueError:
            raise malformed("the path is not valid") from None
        if parts.path == "/v1/device":
            if self.command != "GET":
                raise RefusedError(405, "method", "only GET goes here")
            return 200, encode_info(self._owner.info)
        match = _PATH.match(parts.path)
        if match is None:
            raise RefusedError(404, "path", "nothing lies here; docs/device.md lists what there is")
        identifier = match[1]
        if not is_identifier(identifier):
            raise malformed("a measurement's identifier is 32 hexadecimal digits in lower case")
        if self.command == "PUT":
            return self._put(identifier)
        if self.command == "DELETE":
            return 200, self._owner.measurements.cancel(identifier)
        if self.command == "GET":
            return 200, self._owner.measurements.status(identifier, self._wait(parts.query))
        raise RefusedError(405, "method", "only GET, PUT and DELETE go here")

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
            folder = Path(tempfile.mkdtemp(dir=self._owner.spool))
            try:
                request, digest = self._receive(length, folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._owner.measurements.submit(identifier, digest, request, folder)
        return 202, self._owner.measurements.status(identifier)

    def _content_length(self) -> int:
        if "Transfer-Encoding" in self.headers:
            raise RefusedError(411, "length", "send the body with a Content-Length, not in chunks")
        given = self.headers.get_all("Content-Length", [])
        if not given:
            raise RefusedError(411, "length", "the body needs a Content-Length")
        if len(given) > 1 or re.match(r"[0-9]{1,15}\Z", given[0]) is None:
            raise malformed("the Content-Length is not one number")
        return int(given[0])

    def _receive(self, length: int, folder: Path) -> tuple[Request, str]:
        """Read the frame, put its files into `folder`, and check everything that can be checked."""
        body = _Body(self.rfile, length)
        try:
            request = decode(body.read(header_length(body.read(min(8, length)))))
            check_runtime(request.runtime, [len(model.file_bytes) for model in request.models])
            self._check_version(request)
            if body.left != request.payload_bytes:
                raise malformed(f"{body.left} bytes of files, where the header says {request.payload_bytes}")
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
            there = ", ".join(self._owner.info.runtimes)
            raise RefusedError(422, "runtime", f"{request.runtime} is not installed on this device; it has {there}")
        if request.version not in (None, has):
            raise RefusedError(409, "version", f"this device has {request.runtime} {has}, not {request.version}")

    def _reply(self, status: int, record: dict[str, Any], retry_after: int | None = None) -> None:
        data = json.dumps(record).encode()
        self.request_version = self.protocol_version  # else an HTTP/0.9 request would get no status line
        self.connection.settimeout(self._owner.limits.request_seconds)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _linger(self) -> None:
        """Read a while of what the client still sends: closed at once, the connection would lose our answer."""
        self.wfile.flush()
        if self._unread:
            self.connection.shutdown(socket.SHUT_WR)
            self._raw.deadline = time.monotonic() + _LINGER_SECONDS
            left = _LINGER_BYTES
            while left > 0 and (data := self.rfile.read1(_CHUNK)):
                left -= len(data)

    def version_string(self) -> str:
        return "amc-device"

    def handle_expect_100(self) -> bool:
        return True  # the body is read or refused after the token was seen; no client of ours waits for leave

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What `http.server` itself refuses, in the form of every other refusal."""
        self.close_connection = True
        self.command = self.command or ""
        self._reply(code, RefusedError(code, "http", message or "the request is not valid HTTP").record())

    def log_message(self, format: str, *args: Any) -> None:
        self._owner.log(f"{self.client_address[0]} {ascii(format % args)[1:-1]}")


for _method in ("GET", "PUT", "DELETE", "POST", "HEAD", "PATCH", "OPTIONS"):
    setattr(Handler, f"do_{_method}", Handler._dispatch)  # the names by which http.server finds them


class _Body:
    """A request's body: exactly `length` bytes, hashed as they are read."""

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
