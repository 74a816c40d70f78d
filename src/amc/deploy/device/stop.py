"""A word to stop, for loops that wait on sockets."""

from __future__ import annotations

import socket
from contextlib import suppress
from types import TracebackType


class Stop:
    """Not set, then set for good. `set` may be called from any thread and from a signal handler: it takes no lock."""

    def __init__(self) -> None:
        self._heard, self._said = socket.socketpair()
        self._said.setblocking(False)
        self._set = False

    def fileno(self) -> int:
        """What a selector waits on: readable from the moment that this is set."""
        return self._heard.fileno()

    def is_set(self) -> bool:
        """Whether the word was given."""
        return self._set

    def set(self) -> None:
        """Give the word; again changes nothing."""
        self._set = True
        with suppress(OSError):  # nobody reads, so that it may be full; and nobody may wait any more
            self._said.send(b"\0")

    def close(self) -> None:
        """Give the descriptors back; nothing may wait on this any more."""
        self._heard.close()
        self._said.close()

    def __enter__(self) -> Stop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
