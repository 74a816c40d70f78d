"""The journal of a search: one JSON line per episode, on disk before the next episode begins.

The journal is the truth from which a killed search goes on. It holds no wall-clock time: the same seed gives
the same bytes. The first line is a header that ties the journal to its problem, agent and seed.
"""

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from amc.errors import RunError

VERSION = 1


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One scored or failed policy."""

    episode: int  # counted from 0
    keep: tuple[int, ...]  # keep counts, in the order of the problem's decisions
    cost: Mapping[str, float]  # by metric name, in the metric's unit
    score: float | None  # None: failed
    reward: float | None
    error: str | None = None  # why it failed, one line
    standard_error: float | None = None  # of the score's difference from the dense score; None: not known

    def __post_init__(self) -> None:
        if (self.score is None) != (self.error is not None) or (self.score is None) != (self.reward is None):
            raise ValueError(f"episode {self.episode} must have either a score and a reward, or an error")
        if self.standard_error is not None and (self.score is None or self.standard_error < 0):
            raise ValueError(f"episode {self.episode} has a standard error of {self.standard_error} for no score")

    def to_line(self) -> str:
        """The journal's line, without the newline."""
        fields: dict[str, Any] = {
            "episode": self.episode,
            "keep": list(self.keep),
            "cost": {name: _plain(value) for name, value in self.cost.items()},
            "score": self.score,
            "reward": self.reward,
        }
        if self.error is not None:
            fields["error"] = self.error
        if self.standard_error is not None:
            fields["standard_error"] = self.standard_error
        return json.dumps(fields, allow_nan=False)

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Read a line. Raises ValueError if it is not one."""
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("not an object")
        try:
            record = cls(
                episode=int(fields["episode"]),
                keep=tuple(int(count) for count in fields["keep"]),
                cost={str(name): float(value) for name, value in fields["cost"].items()},
                score=_finite_or_none(fields["score"]),
                reward=_finite_or_none(fields["reward"]),
                error=None if fields.get("error") is None else str(fields["error"]),
                standard_error=_finite_or_none(fields.get("standard_error")),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"fields are missing or of the wrong kind: {error}") from None
        return record


class Journal:
    """An append-only journal on disk."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Open the journal at `path`, or begin it with `header`.

        A torn last line, left by a kill or a full disk, is cut off. Raises RunError for a corrupt line before
        the last, for a header that differs from `header`, and for a disk that cannot be written; existing
        content is then left as it was.
        """
        self.path = path
        self.records: tuple[EpisodeRecord, ...] = ()
        self._header = {"journal": VERSION, **header}
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise RunError(f"journal {path} cannot be read: {error.strerror}; check the path and its rights") from error
        lines = _whole_lines(path, content)
        if lines:
            self._check_header(lines[0])
            self.records = tuple(_read_record(path, number, line) for number, line in enumerate(lines[1:], start=2))
            self._check_order()
        self._size = sum(len(line) + 1 for line in lines)
        if self._size < len(content):
            self._truncate()
        if not lines:
            self._write(json.dumps(self._header, allow_nan=False))
            self._sync_directory()

    def append(self, record: EpisodeRecord) -> None:
        """Add an episode and wait until it is on disk. Raises RunError if it cannot be written."""
        self._write(record.to_line())
        self.records = (*self.records, record)

    def _write(self, line: str) -> None:
        data = line.encode() + b"\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                _write_all(file.fileno(), data)
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._truncate()
            remedy = (
                "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the path and its rights"
            )
            raise RunError(
                f"journal {self.path} cannot be written: {error.strerror}; {remedy} and resume, "
                f"the {len(self.records)} episodes before are safe"
            ) from error
        self._size += len(data)

    def _truncate(self) -> None:
        """Cut off whatever follows the last whole line."""
        with self.path.open("r+b") as file:
            file.truncate(self._size)
            os.fsync(file.fileno())

    def _sync_directory(self) -> None:
        """Make the new file's name durable."""
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _check_header(self, line: bytes) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            raise RunError(_corrupt(self.path, 1, "it is not the JSON header of a journal")) from None
        if not isinstance(found, dict) or "journal" not in found:
            raise RunError(_corrupt(self.path, 1, "it is not the header of a journal"))
        wanted = json.loads(json.dumps(self._header))
        for key in sorted({*wanted, *found}):
            if wanted.get(key) != found.get(key):
                raise RunError(
                    f"journal {self.path} belongs to another search: its {key} is {found.get(key)!r}, "
                    f"this search's is {wanted.get(key)!r}; use another directory or the same settings"
                )

    def _check_order(self) -> None:
        for number, record in enumerate(self.records):
            if record.episode != number:
                reason = f"it holds episode {record.episode} where {number} must follow"
                raise RunError(_corrupt(self.path, number + 2, reason))


def read_journal(path: Path) -> tuple[dict[str, Any], tuple[EpisodeRecord, ...]]:
    """Header and episodes of a journal, not touching it; a torn last line is left out. Raises RunError."""
    try:
        lines = _whole_lines(path, path.read_bytes())
    except OSError as error:
        raise RunError(f"journal {path} cannot be read: {error.strerror}; check the path and its rights") from error
    if not lines:
        return {}, ()
    try:
        header = json.loads(lines[0])
    except ValueError:
        raise RunError(_corrupt(path, 1, "it is not the JSON header of a journal")) from None
    return header, tuple(_read_record(path, number, line) for number, line in enumerate(lines[1:], start=2))


def _whole_lines(path: Path, content: bytes) -> list[bytes]:
    """The lines that were written to the end.

    Left out are what follows the last newline, and a last line that is no JSON: a file system may keep a torn
    line's length and lose its bytes.
    """
    lines = content.split(b"\n")[:-1]
    if lines:
        try:
            json.loads(lines[-1])
        except ValueError:
            if len(lines) == 1 and lines[0].strip(b"\0 "):
                raise RunError(_corrupt(path, 1, "it is not the JSON header of a journal")) from None
            lines.pop()
    return lines


def _read_record(path: Path, number: int, line: bytes) -> EpisodeRecord:
    try:
        return EpisodeRecord.from_line(line.decode())
    except ValueError as error:
        raise RunError(_corrupt(path, number, str(error))) from None


def _corrupt(path: Path, number: int, reason: str) -> str:
    return (
        f"journal {path} is corrupt in line {number}: {reason}; restore the file from a copy, "
        f"or delete line {number} and all after it, then resume"
    )


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _plain(value: float) -> int | float:
    """Whole costs without a decimal point."""
    return int(value) if float(value).is_integer() else value


def _finite_or_none(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is not a finite number")
    return float(value)
