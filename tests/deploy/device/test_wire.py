"""HTTP heads are parsed strictly and have size limits; replies are complete."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc.deploy.device.strict import RefusedError
from amc.deploy.device.wire import HEAD_BYTES, HEADERS, Head, encode_reply, end_of_head, parse_head, request_line


def test_head_is_read() -> None:
    head = parse_head(b"PUT /v1/x?wait=1 HTTP/1.1\r\nHost: board\r\nX-Twice:a\r\nx-twice: \tb c \r\n\r\n")
    headers = (("host", "board"), ("x-twice", "a"), ("x-twice", "b c"))
    assert head == Head("PUT", "/v1/x?wait=1", headers)
    assert head.values("x-twice") == ["a", "b c"]
    assert head.values("authorization") == []
    assert parse_head(b"GET / HTTP/1.0\nX: 1\n\n") == Head("GET", "/", (("x", "1"),))


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_end_of_a_head_is_found_however_the_bytes_come(line_end: bytes) -> None:
    head = line_end.join([b"GET / HTTP/1.1", b"X: 1", b"", b""])
    data = head + b"body" + line_end * 2
    for size in range(len(data) + 1):
        for searched in range(min(size, len(head) - 1)):
            assert end_of_head(data[:size], searched) == (len(head) if size >= len(head) else None)


def test_head_may_have_exactly_64_kib() -> None:
    start = b"GET / HTTP/1.1\r\nX: "
    fits = start + b"a" * (HEAD_BYTES - len(start) - 4) + b"\r\n\r\n"
    assert HEAD_BYTES == len(fits) == 65_536
    assert end_of_head(fits) == HEAD_BYTES
    assert end_of_head(fits[:-1]) is None
    for data, status in (
        (fits[:-4] + b"a\r\n\r\n", 431),
        (fits[:-4] + b"aaaaa", 431),
        (b"GET /" + b"a" * HEAD_BYTES, 414),
    ):
        with pytest.raises(RefusedError) as caught:
            end_of_head(data)
        assert caught.value.status == status


def test_head_may_have_a_hundred_headers() -> None:
    lines = b"X: 1\r\n" * HEADERS
    assert len(parse_head(b"GET / HTTP/1.1\r\n" + lines + b"\r\n").headers) == 100
    with pytest.raises(RefusedError, match="more than 100 headers") as caught:
        parse_head(b"GET / HTTP/1.1\r\nX: 1\r\n" + lines + b"\r\n")
    assert caught.value.status == 431


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 400),
        (b"GET /", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET / HTTP/1.10", 400),
        (b"GET / /x HTTP/1.1", 400),
        (b"GET /\xc3\xa9 HTTP/1.1", 400),
        (b"GET /\x1b[2J HTTP/1.1", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/0.9", 505),
        (b"GET / HTTP/1.1\r\nno colon", 400),
        (b"GET / HTTP/1.1\r\n: no name", 400),
        (b"GET / HTTP/1.1\r\nContent-Length : 5", 400),  # servers disagree whether this is a length
        (b"GET / HTTP/1.1\r\nX: 1\r\n and more", 400),  # a folded header, which HTTP has abolished
        (b"GET / HTTP/1.1\r\nX: 1\rAuthorization: Bearer x", 400),
        (b"GET / HTTP/1.1\r\nX: \0", 400),
    ],
)
def test_what_is_no_head_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_head(head + b"\r\n\r\n")
    assert caught.value.status == status


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_head_or_refused(data: bytes) -> None:
    for begin in (b"", b"GET / HTTP/1.1\r\n"):
        try:
            head = parse_head(begin + data)
        except RefusedError:
            continue
        assert head.method.isascii()
        assert head.target.isprintable()


@given(data=st.binary(max_size=600))
def test_any_bytes_are_safe_in_a_log(data: bytes) -> None:
    line = request_line(data)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) <= 4 * 200 + 5


def test_reply_is_whole() -> None:
    reply = encode_reply(503, {"error": "é"}, retry_after=7)
    head, _, body = reply.partition(b"\r\n\r\n")
    assert json.loads(body) == {"error": "é"}
    assert head.decode().split("\r\n") == [
        "HTTP/1.1 503 Service Unavailable", "Server: amc-device", "Content-Type: application/json",
        f"Content-Length: {len(body)}", "Connection: close", "Retry-After: 7",
    ]  # fmt: skip
    assert encode_reply(503, {"error": "é"}, retry_after=7, without_body=True) == head + b"\r\n\r\n"
    assert b"\r\nWWW-Authenticate: Bearer\r\n" in encode_reply(401, {})
