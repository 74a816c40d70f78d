"""The door of a device server: connections that have not shown the token yet.

One thread waits for all of them, so that they cost neither threads nor much memory: a head of at most 64 KiB each, for
two seconds from the moment that the connection was accepted, in a limited number of places. Once all places are taken,
a newcomer gets the place of another: the address with the most connections loses its oldest one. A request that is
there when its connection is accepted is read before that, so nobody can keep others out by holding connections open,
not even from the same address. A connection that shows the token is handed on; all others are answered here.
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
from amc.deploy.device.strict import RefusedError
from amc.deploy.device.token import same_token
from amc.deploy.device.wire import HEAD_BYTES, Head, encode_reply, end_of_head, parse_head, request_line
from amc.stop import Stop

_AT_ONCE = 64  # connections that are accepted before those that are here are heard again
_CHUNK = 1 << 16
_PAUSE_SECONDS = 0.02

# Takes over a connection: its socket, its address, its head and what was read beyond. False: no place inside.
Admit = Callable[[socket.socket, str, Head, bytes], bool]


@dataclass(slots=True, eq=False)
class _Visitor:
    connection: socket.socket
    address: str
    origin: str  # whose share of the places it takes
    until: float  # time.monotonic() at which the connection is closed
    data: bytearray = field(default_factory=bytearray)
    searched: int = 0  # bytes of `data` in which the head does not end
    answered: bool = False  # what comes now is read and forgotten: closed at once, the connection would lose our answer


class Door:
    """Reads the heads of all new connections, and hands on those that show the token."""

    def __init__(
        self, listener: socket.socket, token: str, limits: Limits, *, admit: Admit, log: Callable[[str], None]
    ) -> None:
        """`listener` is bound and listens; it stays the caller's."""
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
                self._hear(visitor)
            self._send_late_ones_away()
            self._accept()

    def close(self) -> None:
        """Hang up on everyone who is at the door."""
        for visitor in list(self._visitors):
            self._hang_up(visitor)
        self._selector.close()

    def _patience(self) -> float | None:
        """Seconds until the next visitor is late; None: there is none."""
        return max(0.0, min(visitor.until for visitor in self._visitors) - time.monotonic()) if self._visitors else None

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # no descriptor left, for instance; until there is, the loop must not spin
                self._log(f"no connection can be accepted: {error.strerror}")
                if self._visitors:
                    self._turn_away()
                time.sleep(_PAUSE_SECONDS)
                return
            connection.setblocking(False)
            until = time.monotonic() + self._limits.head_seconds
            visitor = _Visitor(connection, address[0], origin_of(address[0]), until)
            self._hold(visitor)
            self._hear(visitor)
            if len(self._visitors) > self._limits.visitors:
                self._turn_away()

    def _hear(self, visitor: _Visitor) -> None:
        """Read what came from a visitor, and answer or let in whoever has said enough."""
        try:
            data = visitor.connection.recv(_CHUNK if visitor.answered else HEAD_BYTES + 1 - len(visitor.data))
            if not data:
                self._hang_up(visitor)
            elif not visitor.answered:
                visitor.data += data
                self._judge(visitor)
        except BlockingIOError:
            return
        except RefusedError as refusal:
            self._answer(visitor, refusal)
        except OSError:
            self._log(f"{visitor.address} connection lost")
            self._hang_up(visitor)
        except Exception as error:  # logged, and the server goes on
            self._log(f"fault: {type(error).__name__}: {error}")
            self._hang_up(visitor)

    def _judge(self, visitor: _Visitor) -> None:
        end = end_of_head(visitor.data, visitor.searched)
        if end is None:
            visitor.searched = len(visitor.data)
            return
        head = parse_head(bytes(visitor.data[:end]))
        _check_token(head, self._token)
        self._release(visitor)
        if not self._admit(visitor.connection, visitor.address, head, bytes(visitor.data[end:])):
            self._hold(visitor)
            raise RefusedError(503, "busy", "too many connections; try again later", retry_after=1)

    def _send_late_ones_away(self) -> None:
        now = time.monotonic()
        for visitor in [visitor for visitor in self._visitors if visitor.until <= now]:
            if visitor.data:
                limit = self._limits.head_seconds
                self._answer(visitor, RefusedError(408, "slow", f"the head did not arrive within {limit:g} s"))
            else:
                self._hang_up(visitor)  # it has its answer, or said nothing; a client of ours then tries again

    def _turn_away(self) -> None:
        """Hang up on one visitor: the first that came from the address with the most; those with an answer first."""
        held = Counter(visitor.origin for visitor in self._visitors)
        visitor = min(self._visitors, key=lambda one: (not one.answered, -held[one.origin]))  # of equals the first
        if not visitor.answered:
            self._answer(visitor, RefusedError(503, "busy", "too many connections; try again later", retry_after=1))
        self._hang_up(visitor)

    def _answer(self, visitor: _Visitor, refusal: RefusedError) -> None:
        reply = encode_reply(
            refusal.status, refusal.record(), retry_after=refusal.retry_after,
            without_body=visitor.data.startswith(b"HEAD "),
        )  # fmt: skip
        self._log(f"{visitor.address} {request_line(visitor.data)} {refusal.status}")
        visitor.data.clear()
        visitor.answered = True
        visitor.until = time.monotonic() + LINGER_SECONDS
        with suppress(OSError):  # it may be gone; then the loop hears so
            visitor.connection.send(reply)  # never waits: the reply is the first and fits
            visitor.connection.shutdown(socket.SHUT_WR)

    def _hold(self, visitor: _Visitor) -> None:
        visitor.connection.setblocking(False)
        self._visitors.append(visitor)
        self._selector.register(visitor.connection, selectors.EVENT_READ, visitor)

    def _release(self, visitor: _Visitor) -> None:
        self._selector.unregister(visitor.connection)
        self._visitors.remove(visitor)

    def _hang_up(self, visitor: _Visitor) -> None:
        if visitor in self._visitors:
            self._release(visitor)
        visitor.connection.close()


def _check_token(head: Head, token: str) -> None:
    """`RefusedError` (401) unless the head shows the token, once."""
    given = head.values("authorization")
    scheme, _, shown = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    right = same_token(shown.strip(), token)  # always compared: every refusal takes the same time
    if scheme.lower() != "bearer" or not right:
        raise RefusedError(401, "token", "wrong or missing token; use the one that `amc device serve` printed")


def origin_of(address: str) -> str:
    """The address, or in IPv6 its /64 network: one customer has a whole one, and could take each place from another."""
    parsed = ipaddress.ip_address(address.partition("%")[0])  # without the zone
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
