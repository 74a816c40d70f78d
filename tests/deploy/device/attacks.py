"""Attacks on a device server by clients without the token, and their cost for the server.

    python -m tests.deploy.device.attacks

starts `amc device serve`, makes every attack on it from a hundred connections or more, has a model measured meanwhile,
and prints how much memory the server took. Linux only: the memory is read from /proc.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.device.command import Served, serving

MEGABYTE = 1 << 20
_HEADER = b"X-Filling: " + b"a" * 65_000 + b"\r\n"
_REQUEST = b"GET /v1/device HTTP/1.1\r\nHost: device\r\n"
_STRANGER = b"Authorization: Bearer not-the-token-of-this-server\r\n"

Over = threading.Event
Attack = Callable[[socket.socket, Over], None]  # the actions of one connection; afterwards the server closes it


def huge_headers(connection: socket.socket, over: Over) -> None:
    """99 headers of 65,000 bytes, and never the end of them."""
    connection.sendall(_REQUEST)
    for _ in range(99):
        connection.sendall(_HEADER)


def silence(connection: socket.socket, over: Over) -> None:
    """Send nothing."""


def slow_heads(connection: socket.socket, over: Over) -> None:
    """Send single bytes, often enough that the connection is never idle."""
    for byte in itertools.chain(_REQUEST, itertools.cycle(b"X-Filling: a\r\n")):
        if over.wait(0.05):
            return
        connection.sendall(bytes([byte]))


def bodies(connection: socket.socket, over: Over) -> None:
    """A request with a wrong token and a gigabyte of body, of which 32 MB are sent."""
    connection.sendall(b"PUT /v1/measurements/" + b"0" * 32 + b" HTTP/1.1\r\nContent-Length: 1073741824\r\n")
    connection.sendall(b"Expect: 100-continue\r\n" + _STRANGER + b"\r\n")
    for _ in range(32):
        connection.sendall(bytes(MEGABYTE))


def garbage(connection: socket.socket, over: Over) -> None:
    """A random choice: several requests in a row, no HTTP, half a request, or a reset."""
    choice = random.randrange(5)
    if choice == 0:
        connection.sendall((_REQUEST + _STRANGER + b"\r\n") * 1000)
    elif choice == 1:
        connection.sendall(random.randbytes(MEGABYTE))
    elif choice == 2:
        connection.sendall(b"GET /" + b"%20" * 10_000 + b" HTTP/1.1\r\n" + (b"X: " + b" \t" * 5_000 + b"\0\r\n\r\n"))
    elif choice == 3:
        connection.sendall(_REQUEST[:30])
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.sendall(_REQUEST)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
        connection.close()


# Name, connections, what each of them does.
ATTACKS: Mapping[str, tuple[int, Attack]] = {
    "huge headers": (100, huge_headers),
    "silent sockets": (150, silence),
    "slow heads": (150, slow_heads),
    "bodies without the token": (100, bodies),
    "garbage": (150, garbage),
}


@contextmanager
def under_attack(address: tuple[str, int], connections: int, attack: Attack) -> Iterator[None]:
    """Run the attack on `connections` connections at once; each repeats it when the server closes the connection.

    All attacks have begun on entry. On exit, each has ended at least once, or the server has closed its connection.
    """
    over, begun = Over(), threading.Semaphore(0)
    threads = [
        threading.Thread(target=_keep_at_it, args=(address, attack, over, begun), daemon=True)
        for _ in range(connections)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        begun.acquire()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _keep_at_it(address: tuple[str, int], attack: Attack, over: Over, begun: threading.Semaphore) -> None:
    for number in itertools.count():
        with contextlib.suppress(OSError), socket.create_connection(address) as connection:
            if number == 0:
                begun.release()
            attack(connection, over)
            _wait_for_the_end(connection, over)
        if over.wait(0.02):
            return


def _wait_for_the_end(connection: socket.socket, over: Over) -> None:
    connection.settimeout(0.05)
    while connection.fileno() >= 0 and not over.is_set():
        with contextlib.suppress(TimeoutError):
            if not connection.recv(1 << 16):
                return


@dataclass(frozen=True)
class Damage:
    """The effect of an attack."""

    before: int  # bytes of memory
    peak: int
    retries: int  # of a host that measured a model during the attack

    @property
    def growth(self) -> int:
        return self.peak - self.before


def damage(server: Served, name: str) -> Damage:
    """Attack the server while it measures a model; raises if the measurement fails."""
    connections, attack = ATTACKS[name]
    server.forget_peak()
    before = server.memory()
    with under_attack(server.address, connections, attack):
        retries = server.measure()
    return Damage(before, server.memory(peak=True), retries)


def main() -> None:
    """Run every attack, and print one line for each."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
        server.measure()  # the first request costs memory too, which is not part of an attack
        for name, (connections, _) in ATTACKS.items():
            done = damage(server, name)
            sys.stdout.write(
                f"{name:24} from {connections} connections: {done.before / MEGABYTE:.1f} MB of memory before, "
                f"{done.growth / MEGABYTE:+.1f} MB at most; a model was measured after {done.retries} retries\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
