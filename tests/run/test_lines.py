"""Line files: what counts as torn, for those who read and for those who write."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from amc.errors import RunError
from amc.run.directory import RunDir
from amc.run.lines import append_line, repair, whole_lines
from amc.search.journal import Journal, read_journal

CASES = {  # content: its whole lines
    b"": [],
    b"{": [],
    b"{\n": [],
    b'{"a": 1}': [],
    b'{"a": 1}\n': [b'{"a": 1}'],
    b'{"a": 1}\n{"b': [b'{"a": 1}'],
    b'{"a": 1}\n\0\0\0\n': [b'{"a": 1}'],
    b'{"a": 1}\n[2]\n': [b'{"a": 1}'],
    b'{"a": 1}\n\xff\n': [b'{"a": 1}'],
    b'{"a\n{"b": 2}\n': [b'{"a', b'{"b": 2}'],  # damage that no cut write leaves
    b'{"a": 1}\n{"b\n{"c': [b'{"a": 1}', b'{"b'],  # one write was cut, and it was the last
}


@pytest.mark.parametrize(("data", "lines"), CASES.items())
def test_readers_and_writers_agree_on_the_torn_line(tmp_path: Path, data: bytes, lines: list[bytes]) -> None:
    assert whole_lines(data) == lines
    path = tmp_path / "file.jsonl"
    path.write_bytes(data)
    repair(path)
    kept = b"".join(line + b"\n" for line in lines)
    assert path.read_bytes() == kept
    path.write_bytes(data)
    append_line(path, b'{"new": 1}')
    assert path.read_bytes() == kept + b'{"new": 1}\n'


@pytest.mark.parametrize("length", [10, 65530, 65536, 65540, 200_000])
def test_lines_longer_than_one_block_are_whole(tmp_path: Path, length: int) -> None:
    path, line = tmp_path / "file.jsonl", b'{"a": "' + b"x" * length + b'"}'
    for _ in range(2):
        append_line(path, line)
    with path.open("ab") as file:
        file.write(line[:-1])
    append_line(path, b"{}")
    assert path.read_bytes() == line + b"\n" + line + b"\n{}\n"


def test_a_journal_and_other_line_files_follow_the_same_rule(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", {})
    Journal(run.file("journal.jsonl"), {"seed": 0})
    header = run.file("journal.jsonl").read_bytes()
    for torn in (b'{"episode": 0', b"\0\0\0\n", b'{"episode": 0}'):
        run.file("journal.jsonl").write_bytes(header + torn)
        run.file("timings.jsonl").write_bytes(b'{"episode": 0}\n' + torn)
        assert read_journal(run.file("journal.jsonl")) == ({"journal": 2, "seed": 0}, ())
        assert run.read_jsonl("timings.jsonl") == [{"episode": 0}]


@pytest.mark.parametrize(("durable", "existing", "synced"), [(True, b"", 2), (True, b"{}\n", 1), (False, b"", 0)])
def test_a_durable_line_is_on_the_disk_and_so_is_the_name_of_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, existing: bytes, synced: int
) -> None:
    path, real, kinds = tmp_path / "file.jsonl", os.fsync, list[bool]()
    path.write_bytes(existing)

    def fsync(descriptor: int) -> None:
        kinds.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    append_line(path, b"{}", durable=durable)
    assert kinds == [False, True][:synced]


def test_a_line_that_cannot_be_written_leaves_the_lines_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "file.jsonl", os.write
    append_line(path, b'{"a": 1}')

    def write(descriptor: int, data: bytes) -> int:
        if len(data) < 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:4])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        append_line(path, b'{"b": 2}')
    assert path.read_bytes() == b'{"a": 1}\n'


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"precious\n")
    (tmp_path / "file.jsonl").symlink_to(tmp_path / "elsewhere")
    for write in (repair, lambda path: append_line(path, b"{}")):
        with pytest.raises(RunError, match="is a symbolic link, and nothing is written through one"):
            write(tmp_path / "file.jsonl")
    assert (tmp_path / "elsewhere").read_bytes() == b"precious\n"


@pytest.mark.parametrize(("fault", "kept"), [(OSError(errno.EIO, "broken"), 1), (SystemExit(143), 2)])
def test_a_signal_loses_no_whole_line_and_a_broken_disk_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, kept: int
) -> None:
    path = tmp_path / "file.jsonl"
    append_line(path, b'{"a": 1}')

    def failing(_: int) -> None:
        raise fault

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(type(fault)):
        append_line(path, b'{"b": 2}')
    assert whole_lines(path.read_bytes()) == [b'{"a": 1}', b'{"b": 2}'][:kept]
