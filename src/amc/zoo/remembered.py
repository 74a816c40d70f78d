"""Decoded images, remembered on disk: decoding ten thousand small files takes a second, in every run.

An entry is one file in the folder `images` of `amc.run.cache.cache_folder`: a line of JSON, then the pixels. Its key is
a digest of the decoder and of every image file's path, size and times. So an image that changes, or is replaced, gives
another key. An entry that is damaged, torn, of another user or of another format is ignored, and written again. If an
entry cannot be read or written, for any reason, the images are decoded as without a cache.

The entries take at most AMC_IMAGE_CACHE_MB megabytes; those unused for longest are removed. 0 turns the cache off.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amc.errors import DataError, RunError
from amc.run.cache import cache_folder
from amc.run.lines import atomic_write_bytes, is_temporary
from amc.run.records import parse_object

VARIABLE = "AMC_IMAGE_CACHE_MB"
MEGABYTES = 2048  # of all entries, unless VARIABLE says otherwise
SETTLED_SECONDS = 2.0  # a younger file may change again without a change of its times, which a file system may round

_FORMAT, _VERSION, _SUFFIX = "amc images", 1, ".images"
_LONGEST_HEADER = 1024  # bytes
_STALE_SECONDS = 3600.0  # a temporary file this old belongs to a writer that was killed

Pixels = npt.NDArray[np.uint8]  # [N, H, W, 3]


def remembered(files: Sequence[str], decoder: str, decode: Callable[[], Pixels]) -> Pixels:
    """The pixels that `decode` returns for `files`, from the cache if they are in it.

    decoder: everything else that the pixels depend on. Raises DataError for a wrong AMC_IMAGE_CACHE_MB, and what
    `decode` raises.
    """
    limit = _limit()
    key = _key(files, decoder) if limit else None
    if key is None:
        return decode()
    entry = _Entry.of(key)
    found = entry.read() if entry else None
    if found is not None:
        return found
    pixels = decode()
    if entry and _key(files, decoder) == key:  # no file changed while it was decoded
        entry.write(pixels, limit)
    return pixels


def _limit() -> int:
    """The largest size of the cache, bytes."""
    given = os.environ.get(VARIABLE, "").strip()
    if given and not (given.isascii() and given.isdigit()):
        raise DataError(f"{VARIABLE} is {given!r}; give whole megabytes for decoded images, or 0 for no such cache")
    return int(given or MEGABYTES) * 1_000_000


def _key(files: Sequence[str], decoder: str) -> str | None:
    """A digest of the decoder and of every file's path, size, times and place on the disk.

    None if a file cannot be found or has just been changed. Links are followed. The time of the last change of a file's
    record (ctime) cannot be set by a program that restores the time of its content.
    """
    here, now, latest = Path.cwd(), time.time(), 0.0
    digest = hashlib.sha256(f"{_FORMAT} {_VERSION} {decoder}\n".encode())
    try:
        for file in files:
            state = os.stat(file)  # noqa: PTH116 -- a Path for each of ten thousand files takes ten times as long
            latest = max(latest, state.st_mtime, state.st_ctime)
            facts = f"\0{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}\n"
            digest.update(os.fsencode(os.path.join(here, file)) + facts.encode())  # noqa: PTH118 -- as above
    except OSError:
        return None
    return digest.hexdigest() if latest < now - SETTLED_SECONDS else None


@dataclass(frozen=True, slots=True)
class _Entry:
    """The file of one key, which may be missing."""

    key: str
    path: Path

    @classmethod
    def of(cls, key: str) -> _Entry | None:
        """None without a folder that only this user can write to."""
        try:
            folder = cache_folder() / "images"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_own(folder.stat()):
                return None
        except (OSError, RuntimeError):
            return None
        return cls(key, folder / f"{key[:32]}{_SUFFIX}")

    def read(self) -> Pixels | None:
        """The pixels; None if the entry is missing or not as `write` left it."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with open(self.path, "rb", opener=lambda path, _: os.open(path, flags)) as file:
                pixels = self._read(file)
            if pixels is not None:
                os.utime(self.path)  # the entries unused for longest are removed first
            return pixels
        except (OSError, ValueError):
            return None

    def _read(self, file: BufferedReader) -> Pixels | None:
        """Raises OSError, or ValueError for a header that is no JSON."""
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode) or not _is_own(state):
            return None
        line = file.readline(_LONGEST_HEADER)
        header = parse_object(line)
        shape: Any = header.get("shape")
        if not _is_shape(shape) or math.prod(shape) != state.st_size - len(line):
            return None
        pixels = np.empty(shape, dtype=np.uint8)
        whole = file.readinto(pixels.reshape(-1).data) == pixels.size
        return pixels if whole and header == self._header(pixels) else None

    def write(self, pixels: Pixels, limit: int) -> None:
        """Write the entry, if it fits into `limit` bytes, and remove older ones to keep to the limit."""
        header = json.dumps(self._header(pixels)).encode() + b"\n"
        size = len(header) + pixels.nbytes
        if size > limit:
            return
        with suppress(OSError, RunError):
            _make_room(self.path.parent, limit - size)
            atomic_write_bytes(self.path, header, pixels.reshape(-1).data, mode=0o600)

    def _header(self, pixels: Pixels) -> dict[str, object]:
        digest = hashlib.sha256(pixels.reshape(-1).data).hexdigest()
        shape = list(pixels.shape)
        return {"format": _FORMAT, "version": _VERSION, "key": self.key, "shape": shape, "sha256": digest}


def _is_own(state: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user and nobody else can write to it."""
    return state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_shape(shape: object) -> bool:
    return isinstance(shape, list) and len(shape) == 4 and all(type(size) is int and size > 0 for size in shape)


def _make_room(folder: Path, limit: int) -> None:
    """Remove the entries unused for longest until at most `limit` bytes remain, and what killed writers left."""
    entries = []
    for file in folder.iterdir():
        with suppress(OSError):  # another process may remove it, too
            state = file.lstat()
            if file.name.endswith(_SUFFIX):
                entries.append((state.st_mtime, state.st_size, file))
            elif is_temporary(file.name) and time.time() - state.st_mtime > _STALE_SECONDS:
                file.unlink()
    total = sum(size for _, size, _ in entries)
    for _, size, file in sorted(entries):
        if total <= limit:
            break
        with suppress(OSError):
            file.unlink()
            total -= size
