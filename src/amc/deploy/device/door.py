"""The door of a device server: it handles the connections that have not sent the token yet, called visitors.

One thread reads from all visitors, so they cost no threads and little memory. A visitor may send a head (request line
and headers) of at most 64 KiB within two seconds after it was accepted. The number of visitors is limited. If there are
too many, one is closed: the oldest visitor of the address that has the most. A request that has already arrived when
its connection is accepted is read before that. Therefore nobody can block others by holding connections open, not even
from the same address. A connection that sends the token is passed on; all others are answered here.
"""

from __future__ import annotations

import ipaddress
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from amc.deploy.device.limits import LINGER_SECONDS, Limits
from amc.deploy.device.stop import Stop
from amc.deploy.device.strict import RefusedError
from amc.deploy.device.token import same_token
from amc.deploy.device.wire import HEAD_BYTES, Head, encode_reply, end_of_head, parse_head, request_line

_AT_ONCE = 64  # connections that are accepted before existing visitors are read again
_CHUNK = 1 << 16
_PAUSE_SECONDS = 0.02

# Takes over a connection: (socket, address, head, bytes read after the head). False: too many connections.
Admit = Callable[[socket.socket, str, Head, bytes], bool]


@dataclass(slots=True, eq=False)
class _Visitor:
    connection: socket.socket
    address: str
    origin: str  # visitors are counted per origin; see `origin_of`
    until: float  # time.monotonic() at which the connection is closed
    data: bytearray = field(default_factory=bytearray)
    searched: int = 0  # bytes of `data` that were searched for the end of the head
    answered: bool = False  # further data is read and dropped: closing the connection now would lose our answer


class Door:
    """Reads the heads of all new connections, and passes on those that send the token."""

    def __init__(
        self, listener: socket.socket, token: str, limits: Limits, *, admit: Admit, log: Callable[[str], None]
    ) -> None:
        """`listener` is bound and listens; the caller closes it."""
        self._listener = listener
        self._token = token
        self._limits = limits
        self._admit = admit
        self._log = log
        self._visitors: list[_Visitor] = []  # in order of arrival
        self._selector = selectors.DefaultSelector()

    def serve(self, stop: Stop) -> None:
        """Accept and read until `stop` is set."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(stop, selectors.EVENT_READ)
        while not stop.is_set():
            ready = [key.data for key, _ in self._selector.select(self._patience()) if key.data is not None]
            for visitor in ready:
                self._read(visitor)
            self._close_late()
            self._accept()

    def close(self) -> None:
        """Close the connections of all visitors."""
        for visitor in list(self._visitors):
            self._close(visitor)
        self._selector.close()

    def _patience(self) -> float | None:
        """Seconds until the next visitor is late; None without visitors."""
        return max(0.0, min(visitor.until for visitor in self._visitors) - time.monotonic()) if self._visitors else None

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # for instance no free file descriptor; without a pause the loop would spin
                self._log(f"no connection can be accepted: {error.strerror}")
                if self._visitors:
                    self._close_one()
                time.sleep(_PAUSE_SECONDS)
                return
            connection.setblocking(False)
            until = time.monotonic() + self._limits.head_seconds
            visitor = _Visitor(connection, address[0], origin_of(address[0]), until)
            self._register(visitor)
            self._read(visitor)
            if len(self._visitors) > self._limits.visitors:
                self._close_one()

    def _read(self, visitor: _Visitor) -> None:
        """Read a visitor's data; when its head is complete, answer the visitor or pass it on."""
        try:
            data = visitor.connection.recv(_CHUNK if visitor.answered else HEAD_BYTES + 1 - len(visitor.data))
            if not data:
                self._close(visitor)
            elif not visitor.answered:
                visitor.data += data
                self._check(visitor)
        except BlockingIOError:
            return
        except RefusedError as refusal:
            self._answer(visitor, refusal)
        except OSError:
            self._log(f"{visitor.address} connection lost")
            self._close(visitor)
        except Exception as error:  # the server must continue
            self._log(f"fault: {type(error).__name__}: {error}")
            self._close(visitor)

    def _check(self, visitor: _Visitor) -> None:
        end = end_of_head(visitor.data, visitor.searched)
        if end is None:
            visitor.searched = len(visitor.data)
            return
        head = parse_head(bytes(visitor.data[:end]))
        _check_token(head, self._token)
        self._unregister(visitor)
        if not self._admit(visitor.connection, visitor.address, head, bytes(visitor.data[end:])):
            self._register(visitor)
            raise RefusedError(503, "busy", "too many connections; try again later", retry_after=1)

    def _close_late(self) -> None:
        now = time.monotonic()
        for visitor in [visitor for visitor in self._visitors if visitor.until <= now]:
            if visitor.data:
                limit = self._limits.head_seconds
                self._answer(visitor, RefusedError(408, "slow", f"the head did not arrive within {limit:g} s"))
            else:
                self._close(visitor)  # it has its answer, or has sent nothing; our client then retries

    def _close_one(self) -> None:
        """Close one visitor: an answered one if possible, then the oldest of the address with the most visitors."""
        counts = Counter(visitor.origin for visitor in self._visitors)
        # `min` returns the first of equal visitors, which is the oldest.
        visitor = min(self._visitors, key=lambda each: (not each.answered, -counts[each.origin]))
        if not visitor.answered:
            self._answer(visitor, RefusedError(503, "busy", "too many connections; try again later", retry_after=1))
        self._close(visitor)

    def _answer(self, visitor: _Visitor, refusal: RefusedError) -> None:
        reply = encode_reply(
            refusal.status, refusal.record(), retry_after=refusal.retry_after,
            without_body=visitor.data.startswith(b"HEAD "),
        )  # fmt: skip
        self._log(f"{visitor.address} {request_line(visitor.data)} {refusal.status}")
        visitor.data.clear()
        visitor.answered = True
        visitor.until = time.monotonic() + LINGER_SECONDS
        with suppress(OSError):  # the visitor may have disconnected; the next read notices this
            visitor.connection.send(reply)  # never blocks: the send buffer is empty and the reply fits into it
            visitor.connection.shutdown(socket.SHUT_WR)

    def _register(self, visitor: _Visitor) -> None:
        visitor.connection.setblocking(False)
        self._visitors.append(visitor)
        self._selector.register(visitor.connection, selectors.EVENT_READ, visitor)

    def _unregister(self, visitor: _Visitor) -> None:
        self._selector.unregister(visitor.connection)
        self._visitors.remove(visitor)

    def _close(self, visitor: _Visitor) -> None:
        if visitor in self._visitors:
            self._unregister(visitor)
        visitor.connection.close()


def _check_token(head: Head, token: str) -> None:
    """`RefusedError` (401) unless the head contains the token, exactly once."""
    given = head.values("authorization")
    scheme, _, shown = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    right = same_token(shown.strip(), token)  # always compared, so that every refusal takes the same time
    if scheme.lower() != "bearer" or not right:
        raise RefusedError(401, "token", "wrong or missing token; use the one that `amc device serve` printed")


def origin_of(address: str) -> str:
    """The address, or for IPv6 its /64 network, because one customer usually owns a whole /64 network."""
    parsed = ipaddress.ip_address(address.partition("%")[0])  # without the zone
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
