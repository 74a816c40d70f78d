"""The client of a device server: sends models and receives timings.

The client chooses the measurement's identifier, so it can repeat every step: after a dropped connection it retries
without a second measurement. It asks a busy device again at the time that the device names. Errors that a retry cannot
solve are `DeviceError`s of one line.
"""

from __future__ import annotations

import http.client
import random
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from amc.deploy.device.formats import check_model
from amc.deploy.device.protocol import (
    REPLY_BYTES,
    DeviceError,
    DeviceInfo,
    Request,
    check_result,
    decode,
    decode_info,
    encode,
)
from amc.deploy.device.strict import RefusedError, parse_object

_CHUNK = 1 << 18
_LONGEST_WAIT = 30.0  # between two attempts, in seconds
_SENT_AGAIN = 3  # how often a measurement is sent if the device forgets it


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    record: dict[str, Any]
    retry_after: float  # seconds

    @property
    def error(self) -> tuple[str, str]:
        """Kind and message of an error reply."""
        error = self.record.get("error")
        if not isinstance(error, dict):
            return "unknown", f"HTTP status {self.status}"
        return str(error.get("kind", "unknown")), str(error.get("message", f"HTTP status {self.status}"))[:1000]


class DeviceClient:
    """A connection to a device server."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = 30.0,
        attempts: int = 5,
        patience: float = 3600.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`timeout`: seconds without data after which a connection counts as dropped.

        `attempts`: consecutive failures after which the client gives up.
        `patience`: longest duration of a measurement in seconds, including the wait for a busy device.
        """
        self.url = url
        self._secure, self._host, self._port = _address(url)
        self._token = token
        self._timeout = timeout
        self._attempts = attempts
        self._patience = patience
        self._sleep = sleep

    def describe(self) -> DeviceInfo:
        """The device's description; `DeviceError` if it is unreachable, refuses the token, or has another protocol."""
        reply = self._asked("GET", "/v1/device", until=time.monotonic() + self._patience)
        try:
            return decode_info(reply.record)
        except RefusedError as error:
            raise DeviceError(f"the server at {self.url} is not a device server of this version: {error}") from None

    def measure(self, request: Request, files: Sequence[Sequence[bytes]]) -> dict[str, Any]:
        """Time the models of a request; `files[i]` are the files of model i, in the order of `formats.FILES`.

        Returns the record of `amc.deploy.timing`. Raises `DeviceError` if a model is refused or fails, if the device's
        runtime does not have the requested version, or if the device stays unreachable.
        """
        _check(request, files)
        self._check_device(request)
        until = time.monotonic() + self._patience
        path = f"/v1/measurements/{secrets.token_hex(16)}"
        try:
            for _ in range(_SENT_AGAIN):
                self._asked("PUT", path, until=until, request=request, files=files)
                record = self._result(path, request, until)
                if record is not None:
                    return record
        except BaseException:  # includes Ctrl-C: the device must not keep running
            with suppress(Exception):
                self._once("DELETE", path)
            raise
        raise DeviceError(f"the device at {self.url} keeps forgetting the measurement; is it restarting?")

    def _check_device(self, request: Request) -> None:
        info = self.describe()
        has = info.runtimes.get(request.runtime)
        if has is None:
            installed = ", ".join(info.runtimes) or "none"
            raise DeviceError(f"{request.runtime} is not installed on the device at {self.url}; it has {installed}")
        if request.version not in (None, has):
            raise DeviceError(
                f"the device at {self.url} has {request.runtime} {has}, but {request.version} is required; "
                f"measure the table again, or install {request.version} there"
            )
        if request.body_bytes > info.body_bytes:
            raise DeviceError(
                f"the models take {request.body_bytes} bytes and the device at {self.url} accepts "
                f"{info.body_bytes}; start it with a larger --max-bytes"
            )

    def _result(self, path: str, request: Request, until: float) -> dict[str, Any] | None:
        """Wait for the measurement's result; None if the device does not know the measurement, or has dropped it."""
        while True:
            reply = self._asked("GET", f"{path}?wait={min(20, self._timeout / 2):g}", until=until, may_miss=True)
            if reply.status == 404:
                return None
            state = reply.record.get("state")
            if state in ("failed", "cancelled"):
                kind, message = reply.error
                if kind == "abandoned":
                    return None
                raise DeviceError(f"the device at {self.url} could not measure the models ({kind}): {message}")
            if state == "done":
                result = reply.record.get("result")
                if isinstance(result, dict):
                    return self._checked(request, result)
            if state not in ("waiting", "running"):
                raise DeviceError(f"the device at {self.url} sent an answer that this host does not understand")
            if time.monotonic() > until:
                raise DeviceError(f"no result from the device at {self.url} in {self._patience:g} s; it is {state}")

    def _checked(self, request: Request, result: dict[str, Any]) -> dict[str, Any]:
        try:
            check_result(request, result)
        except RefusedError as error:
            raise DeviceError(
                f"the device at {self.url} sent an answer that this host does not understand ({error}); "
                f"install the same amc on both sides"
            ) from None
        return result

    def _asked(
        self,
        method: str,
        path: str,
        *,
        until: float,
        request: Request | None = None,
        files: Sequence[Sequence[bytes]] = (),
        may_miss: bool = False,
    ) -> _Reply:
        """Send a request until it is answered; `DeviceError` after too many failures, or if the device refuses it."""
        failed = 0
        while True:
            try:
                reply = self._once(method, path, request, files)
            except (OSError, http.client.HTTPException, RefusedError) as error:
                failed += 1
                if failed >= self._attempts or isinstance(error, (socket.gaierror, ssl.SSLError)):
                    raise DeviceError(self._unreachable(error)) from None
                self._sleep(min(_LONGEST_WAIT, 0.25 * 2**failed) * random.uniform(0.5, 1.0))
                continue
            if reply.status != 503 or time.monotonic() > until:
                break
            failed = 0
            self._sleep(min(_LONGEST_WAIT, reply.retry_after) * random.uniform(0.5, 1.0))
        if reply.status < 400 or (may_miss and reply.status == 404):
            return reply
        raise DeviceError(self._refused(reply))

    def _unreachable(self, error: Exception) -> str:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        return (
            f"the device at {self.url} cannot be reached ({reason}); "
            f"is `amc device serve` running there, and does no firewall block it?"
        )

    def _refused(self, reply: _Reply) -> str:
        kind, message = reply.error
        if reply.status == 401:
            return f"the device at {self.url} refuses the token; give the one that `amc device serve` printed there"
        return f"the device at {self.url} refuses ({kind}): {message}"

    def _once(
        self, method: str, path: str, request: Request | None = None, files: Sequence[Sequence[bytes]] = ()
    ) -> _Reply:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        headers = {"Authorization": f"Bearer {self._token}"}
        body = None
        if request is not None:
            frame = encode(request)
            headers["Content-Length"] = str(len(frame) + request.payload_bytes)
            body = _chunks(frame, files)
        try:
            try:
                connection.request(method, path, body=body, headers=headers)
            except (BrokenPipeError, ConnectionResetError):
                # The server refused before the whole body was sent; it may have sent the reason.
                if connection.sock is None:
                    raise
            response = connection.getresponse()
            data = response.read(REPLY_BYTES + 1)
            if len(data) > REPLY_BYTES:
                raise DeviceError(f"the device at {self.url} answers with more than {REPLY_BYTES} bytes")
            # http.client does not notice headers and bodies that are cut short.
            if response.getheader("Content-Length") != str(len(data)):
                raise http.client.HTTPException("the answer is cut short")
            wait = response.getheader("Retry-After", "")
            record = parse_object(data) if data else {}
            return _Reply(response.status, record, float(wait) if wait.isdecimal() else 1.0)
        finally:
            connection.close()


def _chunks(frame: bytes, files: Sequence[Sequence[bytes]]) -> Iterator[memoryview]:
    for part in (frame, *(data for model in files for data in model)):
        view = memoryview(part)
        for start in range(0, len(view), _CHUNK):
            yield view[start : start + _CHUNK]


def _check(request: Request, files: Sequence[Sequence[bytes]]) -> None:
    """Refuse, before anything is sent, what the device would refuse."""
    sizes = [tuple(len(data) for data in model) for model in files]
    if sizes != [model.file_bytes for model in request.models]:
        raise ValueError("the files do not have the sizes that the request says")
    try:
        decode(encode(request)[8:])
        for model in files:
            check_model(request.runtime, model)
    except RefusedError as error:
        raise DeviceError(str(error)) from None


def _address(url: str) -> tuple[bool, str, int | None]:
    """Split a device's URL into (is https, host, port); `DeviceError` for any other URL."""
    rule = f"device URL '{url}' must look like http://HOST:PORT, as `amc device serve` prints it"
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # a connection encodes it too; labels may be empty or too long
    except ValueError:
        raise DeviceError(rule) from None
    odd = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in ("http", "https") or not parts.hostname or odd:
        raise DeviceError(rule)
    return parts.scheme == "https", parts.hostname, port
