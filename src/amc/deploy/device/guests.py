"""The connections that have sent the token, called guests: each has a thread, and their number is limited."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress


class Guests:
    """Serves each connection in a thread of its own; `close` ends all of them."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._here: dict[threading.Thread, socket.socket] = {}

    def take(self, connection: socket.socket, serve: Callable[[], None]) -> bool:
        """Serve a connection in a thread, and close it afterwards; without a free place, only returns False."""
        thread = threading.Thread(target=self._attend, args=(connection, serve), name="guest", daemon=True)
        with self._lock:
            if len(self._here) >= self._places:
                return False
            self._here[thread] = connection
        try:
            connection.setblocking(True)
            thread.start()
        except BaseException:  # the system has no more threads
            self._leave(thread)
            raise
        return True

    def close(self) -> None:
        """Shut down every connection and wait for all threads, so that no thread writes files afterwards."""
        with self._lock:
            here = dict(self._here)
        for connection in here.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in here:
            thread.join()

    def _attend(self, connection: socket.socket, serve: Callable[[], None]) -> None:
        try:
            serve()
        finally:
            connection.close()
            self._leave(threading.current_thread())

    def _leave(self, thread: threading.Thread) -> None:
        with self._lock:
            self._here.pop(thread, None)
