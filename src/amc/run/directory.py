"""The directory of one run: its files, read with checks and never half written.

A run may be killed, fill the disk, or be started twice in one directory. None of these may harm its files. So files
are replaced whole or not at all, line files lose at most a torn last line, only one process writes at a time, and a
directory with other files is refused untouched. Files may be changed later: JSON files contain their own digest, and
summary.json the digests of the other files. Needs a POSIX system (flock, fsync of directories).
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from amc.errors import RunError
from amc.run import files, records
from amc.run import schema as runfiles
from amc.run.lines import append_line, atomic_write_bytes, is_temporary, open_to_write, unwritable, whole_lines

_STALE_SECONDS = 60.0  # a temporary file this old belongs to a writer that was killed


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's directory; make it with `create` or `open`."""

    path: Path

    @classmethod
    @contextmanager
    def claim(cls, path: str | os.PathLike[str]) -> Iterator[Self]:
        """Make the directory of a new run, and be the only process that writes to it inside the block.

        A directory is a run once it holds `config.json`, which the block writes. If the block raises before that, or
        fails with an error before the first episode, the directory is restored; an interrupted run stays, and can be
        resumed. Raises `RunError`, without any change, if the directory holds a run or any other file, if the path is
        a file or cannot be written, or if another process has claimed it.
        """
        run = cls(Path(path))
        run._refuse_occupied()  # before the lock file is made: a foreign directory stays untouched
        new = _make_directories(run.path)
        try:
            with run.lock():
                run._refuse_occupied()  # again: another process may have been faster
                try:
                    yield run
                except BaseException as error:
                    if not run.has(files.CONFIG) or (isinstance(error, Exception) and not run.begun()):
                        run._clear()
                    raise
        except BaseException:
            for directory in new:
                with suppress(OSError):  # it is not empty
                    directory.rmdir()
            raise

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Mapping[str, object]) -> Self:
        """Make the directory of a new run and write its `config.json`. Raises like `claim`."""
        with cls.claim(path) as run:
            run.write_json(files.CONFIG, config)
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the directory of an existing run. Raises `RunError` if it holds no run."""
        run = cls(Path(path))
        if not run.path.is_dir():
            raise RunError(f"no run directory '{run.path}'; give the directory that `amc search --out` made")
        if not run.has(files.CONFIG):
            raise RunError(
                f"'{run.path}' holds no run ({files.CONFIG} is missing); give the directory that `amc search --out` "
                "made"
            )
        return run

    def file(self, name: str) -> Path:
        """Path of the file `name` in this run."""
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether the run has a file `name` of any kind; only reading it refuses an unreadable file."""
        return self.file(name).exists()

    def begun(self) -> bool:
        """Whether a search has begun here: there is a journal, or a run within (of a schedule, sweep or study)."""
        within = ("journal*.jsonl", "round-*", "point-*", f"*/{files.CONFIG}")
        return any(any(self.path.glob(pattern)) for pattern in within)

    def config(self) -> dict[str, Any]:
        """The settings that the run was started with."""
        return self.read_json(files.CONFIG)

    def read_json(self, name: str) -> dict[str, Any]:
        """Content of a JSON file that holds one object; `RunError` when it is missing, damaged or changed.

        The fields of the files of a run have the types of `amc.run.schema`.
        """
        path = self.file(name)
        data = records.read_bytes(path)
        try:
            record = records.unsealed(records.parse_object(data))
            runfiles.OBJECTS.get(name, records.anything)(record, "")
        except records.DamagedError as error:
            remedy = "" if "restore it" in str(error) else "; restore the file from a copy, or start a new run"
            raise RunError(f"'{path}' {error}{remedy}") from error
        return record

    def write_json(self, name: str, record: Mapping[str, object]) -> None:
        """Replace the file `name` by `record` and its digest as JSON, whole or not at all; `ValueError` for NaN."""
        self.write_bytes(name, records.json_bytes(record))

    def show_json(self, name: str, record: Mapping[str, object]) -> None:
        """The same for other processes to read while this one runs: without waiting for the disk."""
        atomic_write_bytes(self.file(name), records.json_bytes(record), durable=False)

    def writer(self) -> int | None:
        """The process on this machine that is writing to the run; None if there is none. Only reads."""
        try:
            descriptor = os.open(self.file(files.LOCK), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            owner = _owner(descriptor)
            # The lock is tried only while its last owner seems to live (its number may be another's by now): a trial
            # that succeeds holds the lock for a moment, in which a job could not begin.
            return owner if owner is not None and _alive(owner) and not _is_free(descriptor) else None
        finally:
            os.close(descriptor)

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """SHA-256 of each of these files that exists, for the summary."""
        return {name: _sha256(self.file(name)) for name in names if self.has(name)}

    def verify(self, *names: str) -> None:
        """Raise `RunError` for a file that differs from the one that the summary describes.

        Files that the summary does not list pass: the search is not finished, or an earlier version wrote it.
        """
        listed = self.read_json(files.SUMMARY).get("files", {}) if self.has(files.SUMMARY) else {}
        for name in names:
            path = self.file(name)
            if name in listed and self.has(name) and _sha256(path) != listed[name]:
                remedy = "restore it from a copy"
                if self.has(files.FINETUNE_STATE):
                    remedy += f", or finish the fine-tuning under way with `amc finetune {self.path}`"
                raise RunError(f"'{path}' is not the file that {files.SUMMARY} describes; {remedy}")

    def write_text(self, name: str, text: str) -> None:
        """Replace the file `name` by `text` in UTF-8, whole or not at all."""
        atomic_write_bytes(self.file(name), text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Replace the file `name` by `data`, whole or not at all."""
        atomic_write_bytes(self.file(name), data)

    def discard(self, name: str) -> None:
        """Remove a file that is of no use any more; whatever cannot be removed does no harm and stays."""
        with suppress(OSError):
            self.file(name).unlink()

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        """Records of a line file, without a torn last line; a missing file has none.

        Raises `RunError`, with the file and the line's number, if a line before the last is not a JSON object.
        """
        path = self.file(name)
        if not path.exists():
            return []
        check, lines = runfiles.check_of_lines(name), list[dict[str, Any]]()
        for number, line in enumerate(whole_lines(records.read_bytes(path)), start=1):
            try:
                record = records.unsealed(records.parse_object(line))
                check(record, "")
            except records.DamagedError as error:
                raise RunError(
                    f"'{path}' line {number} is damaged; restore the file from a copy, "
                    f"or delete that line and the ones after it, then run the command again ({error})"
                ) from error
            lines.append(record)
        return lines

    def append_jsonl(self, name: str, record: Mapping[str, object], *, durable: bool = True) -> None:
        """Append one line to a line file; a torn last line is removed first.

        With `durable`, the line is on the disk when this returns. Raises `RunError` on a full disk; the file is then
        unchanged.
        """
        path = self.file(name)
        line = records.json_line(record)
        try:
            append_line(path, line, durable=durable)
        except OSError as error:
            raise unwritable(path, error) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that writes to this run. Raises `RunError` at once if another process is writing.

        The lock ends with the process, even if that is killed. Not re-entrant.
        """
        try:
            descriptor = open_to_write(self.file(files.LOCK), os.O_RDWR)
        except OSError as error:
            raise unwritable(self.path, error) from error
        try:
            self._acquire(descriptor)
            self._remove_stale()
            yield
        finally:
            os.close(descriptor)  # releases the lock; the file stays, as removing it would let two processes in

    def _acquire(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _owner(descriptor) or "unknown"
            raise RunError(
                f"another process (pid {owner}) is writing to '{self.path}'; "
                f"wait for it, stop it, or choose another directory"
            ) from error
        except OSError as error:
            raise RunError(f"'{self.path}' cannot be locked ({error.strerror}); use a local disk") from error
        if not _is_at(self.file(files.LOCK), descriptor):
            raise RunError(f"another process has just given up '{self.path}'; run the command again")
        # Only for the message above: losing it (a full disk) does no harm.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)

    def _remove_stale(self) -> None:
        """Remove temporary files of killed writers; a young one may be a report's, which is written unlocked."""
        for path in self.path.iterdir():
            with suppress(OSError):
                if is_temporary(path.name) and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()

    def _clear(self) -> None:
        """Remove the files that this process wrote to a free directory; `config.json` last, as it marks a run."""
        for path in sorted(self.path.iterdir(), key=lambda path: (path.name == files.CONFIG, path.name)):
            if path.name != files.LOCK:
                with suppress(OSError):
                    path.unlink()
        with suppress(OSError):
            self.file(files.LOCK).unlink()

    def _refuse_occupied(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunError(f"'{self.path}' is a file; give a directory for the run")
        try:
            names = sorted(p.name for p in self.path.iterdir() if p.name != files.LOCK and not is_temporary(p.name))
        except OSError as error:
            raise RunError(f"'{self.path}' cannot be read ({error.strerror}); choose another directory") from error
        if files.CONFIG in names:
            raise RunError(
                f"'{self.path}' already holds {self._describe()}; continue it with `amc resume {self.path}`, "
                f"or choose another directory"
            )
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise RunError(f"'{self.path}' is not empty (it holds {shown}); choose another directory")

    def _describe(self) -> str:
        """A description of the run for a message; shorter if its files cannot be read."""
        try:
            config = self.config()
            scored = sum("episode" in record for record in self.read_jsonl(files.JOURNAL))
        except RunError:
            return "another run"
        return (
            f"a run ({config.get('model', 'unknown model')}, {config.get('budget', 'no budget')}, "
            f"{scored} of {config.get('episodes', '?')} episodes)"
        )


def _sha256(path: Path) -> str:
    records.check_regular(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"'{path}' cannot be read ({error.strerror}); check the disk") from error


def _owner(descriptor: int) -> int | None:
    """The process that has last held the open lock."""
    text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True  # another user's
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _is_free(descriptor: int) -> bool:
    """Whether nobody holds the open lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        there, held = path.stat(), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def _make_directories(path: Path) -> list[Path]:
    """Make the directory and its parents. Returns the new ones, the innermost first."""
    new = [directory for directory in (path, *path.parents) if not directory.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    return new
