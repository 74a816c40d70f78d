"""What someone without the token can do to a device server, and what that costs it.

    python -m tests.deploy.device.attacks

starts `amc device serve`, makes every attack on it from a hundred connections or more, has a model measured meanwhile,
and prints how much memory the server took. Linux only: the memory is read from /proc.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from amc.deploy.device.client import DeviceClient
from amc.deploy.device.protocol import Model, Request, TensorSpec
from amc.deploy.device.token import read_token
from amc.deploy.measure import MeasureSettings
from tests.deploy.device.test_formats import onnx_model

MEGABYTE = 1 << 20
_HEADER = b"X-Filling: " + b"a" * 65_000 + b"\r\n"
_REQUEST = b"GET /v1/device HTTP/1.1\r\nHost: device\r\n"
_STRANGER = b"Authorization: Bearer not-the-token-of-this-server\r\n"

Over = threading.Event
Attack = Callable[[socket.socket, Over], None]  # what one connection does before it waits to be hung up on


def huge_headers(connection: socket.socket, over: Over) -> None:
    """99 headers of 65,000 bytes, and never the end of them."""
    connection.sendall(_REQUEST)
    for _ in range(99):
        connection.sendall(_HEADER)


def silence(connection: socket.socket, over: Over) -> None:
    """Nothing."""


def slow_heads(connection: socket.socket, over: Over) -> None:
    """A byte now and then, each time before anyone would call the connection idle."""
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
    """Requests one behind the other, no HTTP, half a request and an end, or a reset: one of them, by chance."""
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
    """So many connections at once do this, each again as soon as it is hung up on; every one has begun on entry.

    On leaving, each has done it at least once from beginning to end, or was hung up on in the middle.
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
class Served:
    """`amc device serve` in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    token_file: Path

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return host, int(port)

    def serves(self) -> bool:
        """Whether a holder of the token gets a model measured."""
        data = onnx_model().SerializeToString()
        models = (Model("model", (TensorSpec((2, 2)),), (len(data),)),)
        quick = MeasureSettings(rounds=3, warmup=0, round_seconds=0.001, max_seconds=0.0)
        client = DeviceClient(self.url, read_token(self.token_file))
        return bool(client.measure(Request("onnxruntime", models, settings=quick), [[data]])["networks"])

    def memory(self, *, peak: bool = False) -> int:
        """Bytes of memory of the server's process: now, or the most since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) << 10

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    """A server whose token and files lie in `folder`."""
    token_file = folder / "token"
    command = [sys.executable, "-m", "amc.cli", "device", "serve", "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--token-file", str(token_file), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            text = ""
            while not text.endswith("\n}\n"):
                line = process.stdout.readline()
                assert line, "the server did not start"
                text += line
            yield Served(process, json.loads(text)["url"], token_file)
        finally:
            process.kill()


@dataclass(frozen=True)
class Damage:
    """What an attack did."""

    before: int  # bytes of memory
    peak: int
    served: bool

    @property
    def growth(self) -> int:
        return self.peak - self.before


def damage(server: Served, name: str) -> Damage:
    """Attack the server and have it measure a model meanwhile."""
    connections, attack = ATTACKS[name]
    assert server.serves()  # what the first request costs is not the attack's
    server.forget_peak()
    before = server.memory()
    with under_attack(server.address, connections, attack):
        try:
            served = server.serves()
        except Exception as error:
            print(error)
            served = False
    return Damage(before, server.memory(peak=True), served)


def main() -> None:
    """Every attack, one line each."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
        for name, (connections, _) in ATTACKS.items():
            found = damage(server, name)
            print(
                f"{name:24} x {connections}: {found.before >> 20} MB before, {found.peak >> 20} MB at most "
                f"(+{found.growth >> 20}), {'served' if found.served else 'NOT SERVED'}", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
