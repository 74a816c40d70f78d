"""Writing that survives a kill or a full disk: line files lose at most their last line; other files are replaced whole.

A line file has one JSON object per line. An interrupted write leaves a torn line: a line without its newline or, if the
file system kept the length and lost the bytes, a last line that is not JSON. Readers skip the torn line, and the next
writer cuts it off. Needs a POSIX system (fsync of directories).
"""

import errno
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

from amc.errors import RunError
from amc.run.records import check_regular

_BLOCK = 65536  # bytes to read first from the end of a line file


def whole_lines(data: bytes) -> list[bytes]:
    """The complete lines of a line file, without their newlines."""
    return data[: len(data) - torn(data)].split(b"\n")[:-1]


def torn(data: bytes) -> int:
    """Bytes of the torn line at the end of `data`, which must begin at or before the last whole line.

    Only one write can be interrupted: if the last line has no newline, the line before it is whole.
    """
    *lines, rest = data.split(b"\n")
    if rest or not lines or _is_object(lines[-1]):
        return len(rest)
    return len(lines[-1]) + 1


def append_line(path: Path, line: bytes, *, durable: bool = True) -> None:
    """Append a line, given without its newline, to a line file; a torn last line is cut off first.

    With `durable` the line, and the name of a new file, are on the disk when this returns. If the disk fails, the file
    keeps its whole lines. Raises OSError if the disk fails, and RunError like `open_to_write`.
    """
    descriptor = open_to_write(path, os.O_RDWR | os.O_APPEND)
    try:
        end = _cut_torn(descriptor)
        try:
            write_all(descriptor, line + b"\n")
            if durable:
                os.fsync(descriptor)
        except OSError:  # after a signal, a line that is whole stays
            with suppress(OSError):
                os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)
    if durable and end == 0:
        sync_directory(path.parent)


def repair(path: Path) -> None:
    """Cut off a torn last line. Raises like `append_line`."""
    descriptor = open_to_write(path, os.O_RDWR)
    try:
        _cut_torn(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_bytes(
    path: str | os.PathLike[str], *parts: bytes | memoryview, mode: int = 0o666, durable: bool = True
) -> None:
    """Replace the file at `path` by `parts`, one after the other, whole or not at all.

    With `durable`, the file is on the disk when this returns. `mode`: the permissions of the file, less the process's
    umask. Raises RunError; the old file is then unchanged, and no temporary file remains.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                for part in parts:
                    write_all(descriptor, part)
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        if durable:
            sync_directory(target.parent)
    except OSError as error:
        raise unwritable(target, error) from error


def is_temporary(name: str) -> bool:
    """Whether this is the name of an unfinished file of `atomic_write_bytes`."""
    return name.startswith(".") and name.endswith(".tmp")


def open_to_write(path: Path, flags: int) -> int:
    """Open a regular file for writing; create it if it is missing.

    Raises RunError for a link or another kind of file, OSError if the disk fails.
    """
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RunError(f"'{path}' is a symbolic link, and nothing is written through one; remove it") from error
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise RunError(f"'{path}' is not a regular file; remove it") from error
        raise
    try:
        check_regular(path, descriptor)
    except RunError:
        os.close(descriptor)
        raise
    return descriptor


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`; one call of os.write may write only a part."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_directory(path: Path) -> None:
    """Make the names in the directory `path` durable; some file systems cannot, and write them later."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_full(error: OSError) -> bool:
    """Whether the disk, or the user's quota, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def unwritable(path: Path, error: OSError) -> RunError:
    """Why a file or directory of a run cannot be written, in one line."""
    if is_full(error):
        return RunError(f"no space left to write '{path}'; free some, then run the command again (or `amc resume`)")
    return RunError(f"'{path}' cannot be written ({error.strerror or error}); choose another directory")


def _cut_torn(descriptor: int) -> int:
    """Cut a torn last line off the open file. Returns the size that remains, bytes."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    end = size - torn(_tail(descriptor, size))
    if end < size:
        os.ftruncate(descriptor, end)
        os.fsync(descriptor)
    return end


def _tail(descriptor: int, size: int) -> bytes:
    """The end of the open file, from before its last whole line or from its beginning."""
    length = _BLOCK
    while True:
        start = max(0, size - length)
        tail = os.pread(descriptor, size - start, start)
        if start == 0 or tail.count(b"\n") > 1:
            return tail
        length *= 2


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):  # not JSON, or not UTF-8
        return False
