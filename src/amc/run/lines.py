"""Writing that a kill or a full disk cannot spoil: line files that lose at most their last line, files replaced whole.

A line file has one JSON object a line. A write that is cut short leaves a line without its newline or, where the file
system kept the length and lost the bytes, a last line that is no JSON. That torn line is left out by whoever reads, and
cut off by whoever writes next. Needs a POSIX system (fsync of directories).
"""

import errno
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path

from amc.errors import RunError
from amc.run.records import check_regular

_BLOCK = 65536  # bytes read from the end of a line file, to begin with


def whole_lines(data: bytes) -> list[bytes]:
    """The lines of a line file that were written to the end, without their newlines."""
    return data[: len(data) - torn(data)].split(b"\n")[:-1]


def torn(data: bytes) -> int:
    """Bytes that a cut write left at the end of `data`, which begins before or at the last whole line.

    No more than one write can be cut short: where a last line has no newline, the line before it counts as whole.
    """
    *lines, rest = data.split(b"\n")
    if rest or not lines or _is_object(lines[-1]):
        return len(rest)
    return len(lines[-1]) + 1


def append_line(path: Path, line: bytes, *, durable: bool = True) -> None:
    """Append a line, given without its newline, to a line file; a torn last line is cut off first.

    With `durable` the line is on the disk when this returns, and so is the name of a new file. On an error the file has
    the whole lines that it had. Raises OSError where the disk refuses, RunError as `open_to_write` does.
    """
    descriptor = open_to_write(path, os.O_RDWR | os.O_APPEND)
    try:
        end = _cut_torn(descriptor)
        try:
            write_all(descriptor, line + b"\n")
            if durable:
                os.fsync(descriptor)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)
    if durable and end == 0:
        sync_directory(path.parent)


def repair(path: Path) -> None:
    """Cut a torn last line off; raises as `append_line` does."""
    descriptor = open_to_write(path, os.O_RDWR)
    try:
        _cut_torn(descriptor)
    finally:
        os.close(descriptor)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at `path` by `data`, whole or not at all, and see it on the disk.

    When it fails (`RunError`) the former file is as it was and nothing else is left behind.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_directory(target.parent)
    except OSError as error:
        raise unwritable(target, error) from error


def is_temporary(name: str) -> bool:
    """Whether `atomic_write_bytes` gives such names to the files that it has not finished."""
    return name.startswith(".") and name.endswith(".tmp")


def open_to_write(path: Path, flags: int) -> int:
    """A descriptor of a regular file, made if it is missing; never of what a link names.

    Raises RunError for a link or another kind of file, OSError where the disk refuses.
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


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, where one call may write less than it was given."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_directory(path: Path) -> None:
    """Make the names in the directory `path` durable; a file system that cannot loses only promptness."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_full(error: OSError) -> bool:
    """Whether there is no space left, or none of this user's."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def unwritable(path: Path, error: OSError) -> RunError:
    """Why a file or directory of a run cannot be written, in one line."""
    if is_full(error):
        return RunError(f"no space left to write '{path}'; free some, then run the command again (or `amc resume`)")
    return RunError(f"'{path}' cannot be written ({error.strerror or error}); choose another directory")


def _cut_torn(descriptor: int) -> int:
    """Cut a torn last line off the open file; returns the bytes that are left."""
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
