"""What runs on a node of a Ray cluster: an actor that scores policies, and the file that a node's actors share."""

from __future__ import annotations

import fcntl
import os
import platform
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from amc.compression.scoring.workers.sending import answering
from amc.errors import ResourceError, guarded
from amc.run.provenance import amc_version, instructions

LOCK = "lock"  # held while files of the folder come and go


def here() -> dict[str, str]:
    """The name of this machine, and what must be the same on all nodes for the same bytes."""
    return {
        "name": platform.node(), "amc": amc_version(), "torch": torch.__version__,
        "Python": platform.python_version(), "instructions": instructions(),
    }  # fmt: skip


def find_modules(path: Iterable[str]) -> None:
    """Let imports look where the driver's look, as far as this node has these places."""
    sys.path += [place for place in path if place not in sys.path and Path(place).exists()]


class Scoring:
    """Scores policies in a process of its own, on one thread. Ray makes an actor of it."""

    def __init__(self, path: list[str], memory: int, device: str) -> None:
        """`path`: where the driver finds modules; `memory`: bytes that the engine may remember."""
        find_modules(path)
        self._file: SharedFile | None = None
        self._memory, self._gpu = memory, 0 if device == "cuda" else None  # Ray shows an actor its own GPU alone

    def here(self) -> dict[str, str]:
        """The node, as `here` says."""
        return here()

    def load(self, content: Any, digest: str) -> dict[str, Any]:
        """Take the search, an array of bytes that the node has once; empty, or the reason why that failed."""

        def loaded() -> None:
            self._file = SharedFile(folder(), digest, content)
            self._answer = answering(self._file.path, self._memory, self._gpu)

        try:
            guarded(loaded)
        except ResourceError as error:
            return {"resource": str(error)}
        except Exception as error:
            return {"error": str(error)}
        return {}

    def answer(self, policy: tuple[int, ...]) -> dict[str, Any]:
        """The score of a policy; see `answering`."""
        return self._answer(policy)

    def leave(self) -> None:
        """Remove the file, unless another actor of this node has it."""
        if self._file is not None:
            self._file.leave()


def folder() -> Path:
    """Where the shared files of this user are. Raises PermissionError if somebody else could have written there."""
    place = Path(tempfile.gettempdir()) / f"amc-ray-{os.getuid()}"
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"'{place}' is not a folder of this user alone; remove it")
    return place


class SharedFile:
    """A file that all processes of a node that want it map, written by the first of them.

    Each holds a shared lock on it, which the system takes back when the process ends, however it ends. So files that
    nobody holds any more are known, and the next process to come or leave removes them.
    """

    def __init__(self, place: Path, digest: str, content: Any) -> None:
        """`content`: a buffer of bytes, of that digest."""
        self._place, self.path = place, place / f"{digest}.pt"
        with _locked(place):
            _sweep(place, keep=self.path)
            if not self.path.exists():
                unfinished = self.path.with_suffix(".unfinished")
                unfinished.write_bytes(memoryview(content))
                unfinished.replace(self.path)
            self._held = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._held, fcntl.LOCK_SH)

    def leave(self) -> None:
        """Let go of the file; what is mapped stays readable."""
        with _locked(self._place):
            os.close(self._held)
            _sweep(self._place)


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    with (place / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sweep(place: Path, keep: Path | None = None) -> None:
    """Remove the files that no process holds."""
    for path in place.glob("*.unfinished"):
        path.unlink()
    for path in place.glob("*.pt"):
        if path == keep:
            continue
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            path.unlink()
