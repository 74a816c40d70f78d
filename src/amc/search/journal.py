"""The journal of a search: one JSON line per episode, on disk before the next episode begins.

A killed search resumes from the journal. Without a time limit the journal holds no wall-clock time: the same seed gives
the same bytes on one kind of processor, with the same versions and threads. With a limit it holds the used share of the
time, so that a resumed search does not look at the clock for what is recorded. The last line says if a search stopped
before its last episode.

The first line is the header. It identifies the problem, the agent and the seed. It also records the origin: versions,
threads and instruction set, the dense score, and digests of the data. A search that resumes in another environment adds
a line with that environment. Every line ends with a digest of itself and all lines before it, which detects a changed,
moved or missing line.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from amc.errors import RunError, brief
from amc.run import records as reading
from amc.run.lines import append_line, is_full, repair, whole_lines
from amc.run.schema import EPISODE, ORIGIN
from amc.run.settings.scores import ScoreKind

TIME_LIMIT, PATIENCE, OBSERVER = "time limit", "patience", "observer"  # what ends a search before its last episode

VERSION = 2  # version 1 has no digests, and no origin in its header
_SEAL = re.compile(rb', "sum": "([0-9a-f]{16})"\}\Z')


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a search ended before its last episode."""

    reason: str  # `TIME_LIMIT`, `PATIENCE` or `OBSERVER`
    planned: int  # episodes
    limit: float | None = None  # the time limit in seconds, if that is the reason
    stale: int | None = None  # with patience: the number of last episodes, none of which was better
    expected_gain: float | None = (
        None  # with patience: of reward, that the agent's model still expected; None: no model
    )
    words: str | None = None  # the observer's own, one line, if it ended the search

    def __post_init__(self) -> None:
        if self.reason not in (TIME_LIMIT, PATIENCE, OBSERVER):
            raise ValueError(
                f"a search stops for {TIME_LIMIT!r}, {PATIENCE!r} or {OBSERVER!r}, not for {self.reason!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """The fields that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """From the fields. Raises ValueError for an unknown reason."""
        limit, gain = (_float_or_none(fields.get(name)) for name in ("limit", "expected_gain"))
        return cls(fields["reason"], fields["planned"], limit, fields.get("stale"), gain, fields.get("words"))


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
    progress: float | None = None  # the share of the time limit that is used after its score, in [0, 1]; None: no limit
    stopped: Stop | None = None  # the search ended after this episode, before the last one

    def __post_init__(self) -> None:
        if (self.score is None) != (self.error is not None) or (self.score is None) != (self.reward is None):
            raise ValueError(f"episode {self.episode} must have either a score and a reward, or an error")
        if self.standard_error is not None and (self.score is None or self.standard_error < 0):
            raise ValueError(f"episode {self.episode} has a standard error of {self.standard_error} for no score")
        if self.progress is not None and not 0 <= self.progress <= 1:
            raise ValueError(f"episode {self.episode} has a progress of {self.progress}, which must be in [0, 1]")

    def __repr__(self) -> str:
        outcome = self.error if self.score is None else f"score {self.score:.4f}, reward {self.reward:.4f}"
        return brief(f"EpisodeRecord({self.episode}: {outcome})")

    def named(self, kind: ScoreKind) -> Self:
        """The record with a `NamedScore`, for reports."""
        return self if self.score is None else replace(self, score=kind.named(self.score))

    def to_fields(self) -> dict[str, Any]:
        """The fields of the journal's line."""
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
        if self.progress is not None:
            fields["progress"] = self.progress
        if self.stopped is not None:
            fields["stopped"] = self.stopped.to_json()
        return fields

    def to_line(self) -> str:
        """The journal's line, without the newline."""
        return json.dumps(self.to_fields(), allow_nan=False)

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Read a line. Raises ValueError if it is not one."""
        fields = reading.parse_object(line.encode())
        EPISODE(fields, "")
        return cls.from_fields(fields)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """From the fields of a line, checked. Raises ValueError if one is missing."""
        try:
            record = cls(
                episode=fields["episode"],
                keep=tuple(fields["keep"]),
                cost={name: float(value) for name, value in fields["cost"].items()},
                score=_float_or_none(fields["score"]),
                reward=_float_or_none(fields["reward"]),
                error=fields.get("error"),
                standard_error=_float_or_none(fields.get("standard_error")),
                progress=_float_or_none(fields.get("progress")),
                stopped=Stop.from_json(fields["stopped"]) if fields.get("stopped") else None,
            )
        except KeyError as error:
            raise ValueError(f"has no {error.args[0]}") from None
        return record


@dataclass(frozen=True, slots=True)
class JournalContent:
    """The content of a journal."""

    header: Mapping[str, Any]  # empty if the file has no whole line
    records: tuple[EpisodeRecord, ...] = ()
    places: tuple[Mapping[str, Any], ...] = ()  # environments (`amc.run.provenance.execution`), in order

    @property
    def origin(self) -> Mapping[str, Any]:
        """The header's `environment`, `dense_score` and `data`; empty in a journal of version 1."""
        origin: Mapping[str, Any] = self.header.get("origin", {})
        return origin


class Journal:
    """An append-only journal on disk."""

    def __init__(self, path: Path, header: Mapping[str, Any], origin: Mapping[str, Any] | None = None) -> None:
        """Open the journal at `path`, or create it with `header`.

        `origin` describes this session, see `JournalContent.origin`. An existing journal keeps its own origin; if the
        `environment` differs, a line records the new one. A torn last line, left by a kill or a full disk, is removed.
        Raises RunError, and leaves the content unchanged, if a line before the last is corrupt, if the header differs
        from `header`, or if the disk cannot be written.
        """
        self.path = path
        self.records: tuple[EpisodeRecord, ...] = ()
        self._header = {"journal": VERSION, **header, **({"origin": dict(origin)} if origin else {})}
        lines = _lines_of(path) if path.exists() else []
        content = _content(path, lines)
        self._last = _seal_of(lines[-1]) if lines else ""  # None: version 1, without digests
        if lines:
            self._check_header(content.header)
            self.records = content.records
        if not lines:
            self._write(json.dumps(self._header, allow_nan=False))
        elif origin and content.places and content.places[-1] != origin["environment"]:
            self._write(json.dumps({"environment": origin["environment"]}, allow_nan=False))
        else:
            with self._writing():
                repair(path)

    def append(self, record: EpisodeRecord) -> None:
        """Add an episode and wait until it is on disk. Raises RunError if it cannot be written."""
        self._write(record.to_line())
        self.records = (*self.records, record)

    def _write(self, line: str) -> None:
        if self._last is not None:
            line = _sealed(line, self._last)
        with self._writing():
            append_line(self.path, line.encode())
        self._last = _seal_of(line.encode())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise RunError, with the remedy, if writing to the disk fails within the block."""
        try:
            yield
        except OSError as error:
            remedy = "free some space" if is_full(error) else "check the path and its rights"
            raise RunError(
                f"journal {self.path} cannot be written: {error.strerror}; {remedy} and resume, "
                f"the {len(self.records)} episodes before are safe"
            ) from error

    def _check_header(self, recorded: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(self._header))
        for key in sorted({*wanted, *recorded} - {"journal", "origin"}):
            if wanted.get(key) != recorded.get(key):
                raise RunError(
                    f"journal {self.path} belongs to another search: its {key} is {recorded.get(key)!r}, "
                    f"this search's is {wanted.get(key)!r}; use another directory or the same settings"
                )


def read_journal(path: Path) -> tuple[dict[str, Any], tuple[EpisodeRecord, ...]]:
    """The header and episodes of a journal, without a torn last line. Only reads the file. Raises RunError."""
    content = load_journal(path)
    return dict(content.header), content.records


def load_journal(path: Path) -> JournalContent:
    """The content of a journal, without a torn last line. Only reads the file. Raises RunError."""
    return _content(path, _lines_of(path))


def _lines_of(path: Path) -> list[bytes]:
    """The whole lines of a journal. Raises RunError if the file has one line, which is no journal's."""
    data = reading.read_bytes(path)
    lines = whole_lines(data)
    first, newline, _ = data.partition(b"\n")
    if newline and not lines and first.strip(b"\0 "):  # a torn header may consist of zero bytes
        raise RunError(_corrupt(path, 1, "it is not the JSON header of a journal"))
    return lines


def _content(path: Path, lines: Sequence[bytes]) -> JournalContent:
    """The content of the lines. Raises RunError with the first line that is damaged, changed or out of order."""
    if not lines:
        return JournalContent({})
    header = _header_of(path, lines[0])
    places = [header["origin"]["environment"]] if "origin" in header else []
    records: list[EpisodeRecord] = []
    last = "" if header["journal"] > 1 else None
    for number, line in enumerate(lines, start=1):
        if last is not None:
            last = _checked_seal(path, number, line, last)
        if number == 1:
            continue
        place = _place_of(line) if places else None
        if place is not None:
            places.append(place)
            continue
        record = _read_record(path, number, line)
        if record.episode != len(records):
            raise RunError(
                _corrupt(path, number, f"it holds episode {record.episode} where {len(records)} must follow")
            )
        records.append(record)
    return JournalContent(header, tuple(records), tuple(places))


def _header_of(path: Path, line: bytes) -> dict[str, Any]:
    try:
        header = reading.parse_object(line)
    except reading.DamagedError:
        raise RunError(_corrupt(path, 1, "it is not the JSON header of a journal")) from None
    if type(header.get("journal")) is not int or header["journal"] < 1:
        raise RunError(_corrupt(path, 1, "it is not the header of a journal"))
    if header["journal"] > VERSION:
        raise RunError(
            f"journal {path} is of version {header['journal']}, this program reads {VERSION}; update amc to go on"
        )
    try:
        _HEADER(header, "")
    except reading.DamagedError as error:
        raise RunError(_corrupt(path, 1, f"it {error}")) from None
    return {key: value for key, value in header.items() if key != "sum"}


_HEADER = reading.fields({"origin": ORIGIN})


def _place_of(line: bytes) -> dict[str, Any] | None:
    """The environment that a line records; None for other lines."""
    try:
        place = reading.parse_object(line).get("environment")
    except reading.DamagedError:
        return None
    return place if isinstance(place, dict) else None


def _sealed(line: str, last: str) -> str:
    """The line with its digest. The digest depends on `last`, the digest of the previous line."""
    return f'{line[:-1]}, "sum": "{_digest(line.encode(), last)}"}}'


def _digest(line: bytes, last: str) -> str:
    return hashlib.sha256(last.encode() + line).hexdigest()[:16]


def _seal_of(line: bytes) -> str | None:
    match = _SEAL.search(line)
    return match[1].decode() if match else None


def _checked_seal(path: Path, number: int, line: bytes, last: str) -> str:
    """The line's digest. Raises RunError if it does not fit the line and the lines before it."""
    seal = _seal_of(line)
    if seal is None or seal != _digest(_SEAL.sub(b"}", line), last):
        raise RunError(_corrupt(path, number, "it, or its place in the file, was changed after it was written"))
    return seal


def _read_record(path: Path, number: int, line: bytes) -> EpisodeRecord:
    try:
        return EpisodeRecord.from_line(line.decode())
    except ValueError as error:
        raise RunError(_corrupt(path, number, f"it {error}")) from None


def _corrupt(path: Path, number: int, reason: str) -> str:
    return (
        f"journal {path} is corrupt in line {number}: {reason}; restore the file from a copy, "
        f"or delete line {number} and all after it, then resume"
    )


def _plain(value: float) -> int | float:
    """The cost as an integer if it is whole."""
    return int(value) if float(value).is_integer() else value


def _float_or_none(value: float | None) -> float | None:
    return None if value is None else float(value)
