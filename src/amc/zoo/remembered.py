"""Decoded images in files of the cache, which are mapped into memory: none is decoded twice, or held twice.

An entry is one file in the folder `images` of `amc.run.cache.cache_folder`: the pixels, then a line of JSON. Its key is
a digest of the decoder and of every image file's path, size and times. So an image that changes, or is replaced, gives
another key. An entry that is damaged, torn, of another user or of another format is ignored, and written again.

The pixels are decoded straight into a partial file, which is renamed when it is complete. A second process that wants
the same entry waits for it. What a killed process has written is the beginning of the entry, as long as the machine is
not started anew (a partial file's name holds the boot): the next process goes on from there.

The entries take at most AMC_IMAGE_CACHE_MB megabytes; those unused for longest are removed, and none that a process has
mapped. 0 turns the cache off. Without an entry, for any reason, the pixels are decoded into memory if they fit there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import secrets
import stat
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amc.errors import DataError
from amc.run.cache import cache_folder
from amc.run.cores import usable_cores
from amc.run.lines import sync_directory, write_all
from amc.run.mapped import is_at, mapped, open_locked, remove_unused
from amc.run.memory import free_memory
from amc.run.records import parse_object

VARIABLE = "AMC_IMAGE_CACHE_MB"
MEGABYTES = 16_000  # of all entries, unless VARIABLE says otherwise: 50,000 images at 224x224 take 7,527
RESERVE = 1 << 30  # bytes of the disk that no entry takes
MEMORY_SHARE = 0.5  # of the free memory that decoded images without an entry may take
SETTLED_SECONDS = 2.0  # a younger file may change again without a change of its times, which a file system may round

_FORMAT, _VERSION, _SUFFIX, _PARTIAL = "amc images", 2, ".images", ".part"
_TRAILER = 1024  # bytes of the line of JSON, filled up with spaces
_BLOCK = 16 << 20  # bytes that are digested at a time

Pixels = npt.NDArray[np.uint8]  # [N, H, W, 3]
Shape = tuple[int, int, int]  # H, W, 3


@dataclass(frozen=True, slots=True)
class Decoding:
    """Images that can be decoded."""

    files: Sequence[str]
    settings: str  # everything else that the pixels depend on
    shape: Callable[[], Shape]  # of every image; may decode the first one
    chunks: Callable[[Shape, int], Generator[Pixels]]  # the images from a number on, in order


class _NoEntryError(Exception):
    """Why there is no entry: a clause for the user."""


def remembered(decoding: Decoding) -> Tensor:
    """The pixels [N, H, W, 3], uint8: mapped from the cache, where they are written first if they are not in it.

    Raises DataError for a wrong AMC_IMAGE_CACHE_MB, or if there is room for the pixels neither in the cache nor in
    memory; and what `decoding` raises.
    """
    limit = _limit()
    try:
        return _entry_of(decoding, limit)
    except _NoEntryError as reason:
        return _in_memory(decoding, str(reason))


def _entry_of(decoding: Decoding, limit: int) -> Tensor:
    """The pixels from the cache. Raises _NoEntryError."""
    if not limit:
        raise _NoEntryError(f"{VARIABLE} is 0")
    key = _key(decoding)
    if key is None:
        raise _NoEntryError("some of the files have just changed")
    entry = _Entry.of(key)
    try:
        found = entry.read()
        return entry.write(decoding, limit) if found is None else found
    except OSError as error:
        raise _NoEntryError(f"'{entry.path.parent}' cannot be used ({error.strerror or error})") from error


def _in_memory(decoding: Decoding, reason: str) -> Tensor:
    """The pixels in memory. Raises DataError, with the reason why they are not in a file, if they do not fit."""
    count, shape = len(decoding.files), decoding.shape()
    free, needed = free_memory(), count * math.prod(shape)
    if free is not None and needed > free * MEMORY_SHARE:
        raise DataError(
            f"{count} decoded images take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB of memory are free, "
            f"and there is no file to map them from: {reason}; mend that (AMC_CACHE chooses another folder), or take "
            "fewer images (--search-images)"
        )
    pixels = np.empty((count, *shape), dtype=np.uint8)
    done = 0
    for chunk in decoding.chunks(shape, 0):
        pixels[done : done + len(chunk)] = chunk
        done += len(chunk)
    return torch.from_numpy(pixels)


def _limit() -> int:
    """The largest size of the cache, bytes."""
    given = os.environ.get(VARIABLE, "").strip()
    if given and not (given.isascii() and given.isdigit()):
        raise DataError(f"{VARIABLE} is {given!r}; give whole megabytes for decoded images, or 0 for no such cache")
    return int(given or MEGABYTES) * 1_000_000


def _key(decoding: Decoding) -> str | None:
    """A digest of the settings and of every file's path, size, times and place on the disk.

    None if a file cannot be found or has just been changed. Links are followed. The time of the last change of a file's
    record (ctime) cannot be set by a program that restores the time of its content.
    """
    here, now, latest = Path.cwd(), time.time(), 0.0
    digest = hashlib.sha256(f"{_FORMAT} {_VERSION} {decoding.settings}\n".encode())
    try:
        for file in decoding.files:
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
    def of(cls, key: str) -> _Entry:
        """Raises _NoEntryError without a folder that only this user can write to."""
        try:
            folder = cache_folder() / "images"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            private = _is_own(folder.stat())
        except (OSError, RuntimeError) as error:
            raise _NoEntryError(f"the cache has no folder ({error})") from error
        if not private:
            raise _NoEntryError(f"'{folder}' belongs to another user, or others can write to it")
        return cls(key, folder / f"{key[:32]}{_SUFFIX}")

    @property
    def part(self) -> Path:
        """The file that becomes the entry."""
        return self.path.with_name(f".{self.key[:32]}-{_boot()}{_PARTIAL}")

    def read(self) -> Tensor | None:
        """The pixels; None if the entry is missing or not as `write` left it."""
        try:
            descriptor = open_locked(self.path)
        except OSError:
            return None
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode) or not _is_own(state):
                return None
            size = state.st_size - _TRAILER
            header = parse_object(os.pread(descriptor, _TRAILER, size))
            shape: Any = header.get("shape")
            if not _is_shape(shape) or math.prod(shape) != size:
                return None
            if header != self._header(shape, _digest(descriptor, size)):
                return None
            with suppress(OSError):  # of a file system that cannot be written
                os.utime(self.path)  # the entries unused for longest are removed first
            return mapped(self.path, descriptor)[:size].view(shape)
        except (OSError, ValueError):
            return None
        finally:
            os.close(descriptor)

    def write(self, decoding: Decoding, limit: int) -> Tensor:
        """Decode into the entry, unless another process does; remove older entries to keep to `limit` bytes.

        Raises _NoEntryError or OSError if there can be no entry, and what `decoding` raises.
        """
        shape = decoding.shape()
        pixels = len(decoding.files) * math.prod(shape)
        if pixels + _TRAILER > limit:
            needed = (pixels + _TRAILER) // 1_000_000 + 1
            raise _NoEntryError(f"{VARIABLE} is {limit // 1_000_000}, and they need {needed}")
        with self._claimed() as descriptor:
            found = self.read()  # of another process, for which this one has waited
            if found is not None:
                self.part.unlink()
                return found
            try:
                self._fill(descriptor, decoding, shape, limit)
            except Exception:  # an interrupt leaves it, like a kill
                with suppress(OSError):
                    self.part.unlink()
                raise
            return mapped(self.path, descriptor)[:pixels].view(-1, *shape)

    def _fill(self, descriptor: int, decoding: Decoding, shape: Shape, limit: int) -> None:
        """Write what is missing to the partial file, and make it the entry, with a shared lock."""
        count, image = len(decoding.files), math.prod(shape)
        done = min(os.fstat(descriptor).st_size // image, count)  # images
        os.ftruncate(descriptor, done * image)
        _make_room(self.part, limit - count * image - _TRAILER, (count - done) * image)
        with closing(decoding.chunks(shape, done)) as chunks:
            for chunk in chunks:
                write_all(descriptor, chunk.reshape(-1).data)
        if _key(decoding) != self.key:
            raise _NoEntryError("some of the files have changed while they were decoded")
        digest = _digest(descriptor, count * image)
        header = json.dumps(self._header((count, *shape), digest)).encode()
        write_all(descriptor, header.ljust(_TRAILER - 1) + b"\n")
        os.fsync(descriptor)
        self.part.replace(self.path)
        sync_directory(self.path.parent)
        fcntl.flock(descriptor, fcntl.LOCK_SH)

    @contextmanager
    def _claimed(self) -> Iterator[int]:
        """The descriptor of the partial file, for this process alone. Waits while another one writes it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        while True:
            descriptor = os.open(self.part, flags, 0o600)
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits until it is written; it stays locked while mapped
                    continue
                state = os.fstat(descriptor)
                if not stat.S_ISREG(state.st_mode) or not _is_own(state):
                    raise _NoEntryError(f"'{self.part}' is not a file of this user")
                if is_at(self.part, descriptor):  # else the other process has finished it
                    yield descriptor
                    return
            finally:
                os.close(descriptor)

    def _header(self, shape: Sequence[int], digest: str) -> dict[str, object]:
        return {"format": _FORMAT, "version": _VERSION, "key": self.key, "shape": list(shape), "sha256": digest}


def _digest(descriptor: int, size: int) -> str:
    """A digest of the file's first `size` bytes: of the SHA-256 of every block, on as many threads as processors."""

    def of_block(start: int) -> bytes:
        block = os.pread(descriptor, min(_BLOCK, size - start), start)
        return hashlib.sha256(block).digest()

    with ThreadPoolExecutor(usable_cores()) as pool:
        return hashlib.sha256(b"".join(pool.map(of_block, range(0, size, _BLOCK)))).hexdigest()


def _boot() -> str:
    """A name of the time since the machine was started; a new one on every call where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
    except (OSError, ValueError):
        return secrets.token_hex(4)


def _is_own(state: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user and nobody else can write to it."""
    return state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_shape(shape: object) -> bool:
    return isinstance(shape, list) and len(shape) == 4 and all(type(size) is int and size > 0 for size in shape)


def _make_room(part: Path, limit: int, needed: int) -> None:
    """Remove the entries unused for longest until the others take at most `limit` bytes and `needed` ones are free.

    Entries that a process has mapped, or is writing, stay. Raises _NoEntryError if that is not enough.
    """
    entries = []
    for file in part.parent.iterdir():
        if file != part:
            with suppress(OSError):  # another process may remove it, too
                state = file.lstat()
                entries.append((state.st_mtime, state.st_size, file))
    total = sum(size for _, size, _ in entries)
    for _, size, file in sorted(entries):
        if total <= limit and _free(part.parent) >= needed + RESERVE:
            return
        with suppress(OSError):
            total -= size if remove_unused(file) else 0
    if total > limit:
        raise _NoEntryError(f"{VARIABLE} is too small beside the {total / 1e9:.1f} GB of images that are in use")
    if _free(part.parent) < needed + RESERVE:
        raise _NoEntryError(
            f"'{part.parent}' has {_free(part.parent) / 1e9:.1f} GB of disk space left, and "
            f"{(needed + RESERVE) / 1e9:.1f} GB are needed"
        )


def _free(folder: Path) -> int:
    """Bytes of the disk that this user may still write."""
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize
