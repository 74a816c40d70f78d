"""The HTTP/1.1 of a device server: parses the head of a request, and encodes a whole reply.

The head is everything before the body: the request line and the headers. Parsing is strict: anything except HTTP/1.0
and 1.1 raises `RefusedError`. Its time is linear in the number of bytes. Pure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http import HTTPStatus

from amc.deploy.device.strict import RefusedError

HEAD_BYTES = 64 << 10  # of the request line and the headers together
HEADERS = 100
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"  # for a client that waits for permission to send its body

_END = re.compile(rb"\r?\n\r?\n")
_REQUEST = re.compile(rb"([!-~]+) ([!-~]+) HTTP/([0-9])\.([0-9])\Z")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # except the tab
_SHOWN = 200  # characters of a request line in a log


@dataclass(frozen=True, slots=True)
class Head:
    """The part of a request before its body."""

    method: str
    target: str  # printable ASCII: the path and the query
    headers: tuple[tuple[str, str], ...]  # names in lower case; a name may occur several times

    def values(self, name: str) -> list[str]:
        """Every value of one header; `name` in lower case."""
        return [value for key, value in self.headers if key == name]


def end_of_head(data: bytes | bytearray, searched: int = 0) -> int | None:
    """Length of the head at the beginning of `data`; None if the head is not complete.

    The first `searched` bytes were searched before, without success. `RefusedError` (414, 431) if the head is too long.
    """
    end = _END.search(data, max(0, searched - len(b"\r\n\r")))
    if end is not None and end.end() <= HEAD_BYTES:
        return end.end()
    if end is None and len(data) <= HEAD_BYTES:
        return None
    if b"\n" not in data[:HEAD_BYTES]:
        raise RefusedError(414, "http", f"the request line has more than {HEAD_BYTES} bytes")
    raise RefusedError(431, "http", f"the request line and the headers have more than {HEAD_BYTES} bytes")


def parse_head(data: bytes) -> Head:
    """Parse `data`, a complete head; `RefusedError` (400, 431, 505) if it is invalid."""
    request, *lines = [line.removesuffix(b"\r") for line in data.rstrip(b"\r\n").split(b"\n")]
    match = _REQUEST.match(request)
    if match is None:
        raise RefusedError(400, "http", "the first line is not METHOD PATH HTTP/1.1")
    if match[3] != b"1":
        raise RefusedError(505, "http", "this server speaks HTTP/1.1")
    if len(lines) > HEADERS:
        raise RefusedError(431, "http", f"more than {HEADERS} headers")
    return Head(match[1].decode(), match[2].decode(), tuple(_header(line) for line in lines))


def _header(line: bytes) -> tuple[str, str]:
    # A single pattern for the whole line would be slow: on failure it would try every split of a long run of blanks.
    name, colon, value = line.partition(b":")
    if not colon or _NAME.match(name) is None or _CONTROL.search(value):
        raise RefusedError(400, "http", "a header is not NAME: VALUE")
    return name.decode().lower(), value.strip(b" \t").decode("latin-1")


def request_line(data: bytes | bytearray) -> str:
    """The first line of a request, for a log: always printable ASCII of limited length."""
    line = bytes(data[: _SHOWN + 1]).split(b"\n")[0].rstrip(b"\r")
    return ascii(line[:_SHOWN])[1:] + ("..." if len(line) > _SHOWN else "")


def encode_reply(
    status: int, record: dict[str, object], *, retry_after: int | None = None, without_body: bool = False
) -> bytes:
    """A reply with a JSON body; the connection closes after it. `without_body`: for the method HEAD."""
    body = json.dumps(record).encode()
    headers = {
        "Server": "amc-device",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if without_body else body)
