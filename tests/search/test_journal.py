"""The journal: what is written, repaired and refused."""

import errno
import hashlib
import json
import os

import pytest

from amc.errors import RunError
from amc.run.settings.scores import get_score
from amc.search.journal import EpisodeRecord, Journal, load_journal, read_journal

HEADER = {"seed": 0, "agent": "random"}
FIRST = EpisodeRecord(0, (4, 8), {"macs": 100.0, "params": 7.5}, 0.1 + 0.2, -0.7)
SECOND = EpisodeRecord(1, (2, 8), {"macs": 50.0, "params": 7.0}, None, None, "RuntimeError: boom")
OLD_LINES = (  # version 1
    b'{"journal": 1, "seed": 0, "agent": "random"}\n'
    b'{"episode": 0, "keep": [4, 8], "cost": {"macs": 100, "params": 7.5}, "score": 0.30000000000000004, '
    b'"reward": -0.7}\n'
    b'{"episode": 1, "keep": [2, 8], "cost": {"macs": 50, "params": 7}, "score": null, "reward": null, '
    b'"error": "RuntimeError: boom"}\n'
)
ORIGIN = {
    "environment": {"amc": "1.0", "torch": "2.13.0", "threads": 1, "instructions": "AVX2"},
    "dense_score": 0.9375,
    "data": {"calibration": "00ff", "search": None},
}


def chained(lines):
    """Every line with the first 16 digits of the SHA-256 of the digest before it and itself."""
    last, found = b"", b""
    for line in lines.splitlines():
        last = hashlib.sha256(last + line).hexdigest()[:16].encode()
        found += line[:-1] + b', "sum": "' + last + b'"}\n'
    return found


LINES = chained(OLD_LINES.replace(b'"journal": 1', b'"journal": 2'))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def write(path):
    journal = Journal(path, HEADER)
    journal.append(FIRST)
    journal.append(SECOND)
    return journal


def test_lines_have_fixed_keys_and_exact_numbers(path):
    write(path)
    assert path.read_bytes() == LINES


def test_records_survive_the_disk(path):
    write(path)
    assert Journal(path, HEADER).records == (FIRST, SECOND)
    header, records = read_journal(path)
    assert header == {"journal": 2, **HEADER}
    assert records == (FIRST, SECOND)


def test_torn_last_line_is_repaired_at_every_byte(path):
    second_ends = LINES.index(b"\n", LINES.index(b"\n") + 1) + 1
    for length in range(len(LINES)):
        path.write_bytes(LINES[:length])
        whole = LINES[:length].rfind(b"\n") + 1
        assert read_journal(path)[1] == ((FIRST,) if length >= second_ends else ())
        journal = Journal(path, HEADER)
        assert len(journal.records) == max(0, LINES[:length].count(b"\n") - 1)
        assert path.read_bytes() == (LINES[:whole] or LINES[: LINES.index(b"\n") + 1])


def test_last_line_of_lost_bytes_is_repaired(path):
    path.write_bytes(LINES + b"\0" * 40 + b"\n")
    assert Journal(path, HEADER).records == (FIRST, SECOND)
    assert path.read_bytes() == LINES


def test_standard_error_is_written_only_where_there_is_one(path):
    write(path)
    before = path.read_bytes()
    sure = EpisodeRecord(2, (4, 4), {"macs": 70.0}, 0.5, -0.5, standard_error=0.0035)
    Journal(path, HEADER).append(sure)
    added = (
        b'{"episode": 2, "keep": [4, 4], "cost": {"macs": 70}, "score": 0.5, "reward": -0.5, '
        b'"standard_error": 0.0035}\n'
    )
    whole = OLD_LINES.replace(b'"journal": 1', b'"journal": 2') + added
    assert path.read_bytes() == chained(whole)
    assert path.read_bytes().startswith(before)
    assert Journal(path, HEADER).records == (FIRST, SECOND, sure)
    path.write_bytes(chained(whole.replace(b"0.0035", b"-1")))
    with pytest.raises(RunError, match=r"corrupt in line 4: .*standard error of -1"):
        Journal(path, HEADER)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (b'{"episode": 0', b'{"epi##\n{"episode": 0', 2),
        (b'"keep": [4, 8]', b'"keep": [4, "x"]', 2),
        (b'"episode": 0, ', b"", 2),
        (b'"score": 0.30000000000000004', b'"score": NaN', 2),
        (b'"score": 0.30000000000000004', b'"score": null', 2),
        (b'"episode": 0', b'"episode": 5', 2),
        (b"{", b"<", 1),
        (b'"journal": 1, ', b"", 1),
    ],
)
def test_corrupt_line_is_named_and_the_file_left_alone(path, old, new, line):
    broken = OLD_LINES.replace(old, new, 1)
    path.write_bytes(broken)
    with pytest.raises(RunError, match=rf"is corrupt in line {line}: .*; restore .* resume") as caught:
        Journal(path, HEADER)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == broken


def test_other_header_is_refused(path):
    write(path)
    with pytest.raises(RunError, match="another search: its seed is 0, this search's is 1"):
        Journal(path, {**HEADER, "seed": 1})
    assert path.read_bytes() == LINES


def test_file_that_is_no_journal_is_refused_and_left_alone(path):
    path.write_bytes(b"precious notes\n")
    with pytest.raises(RunError, match="corrupt in line 1"):
        Journal(path, HEADER)
    assert path.read_bytes() == b"precious notes\n"


def test_full_disk_leaves_a_valid_journal(path, monkeypatch):
    journal = Journal(path, HEADER)
    journal.append(FIRST)
    before, real = path.read_bytes(), os.write

    def write_a_little(descriptor, data):
        if len(data) < len(SECOND.to_line()):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:20])

    monkeypatch.setattr(os, "write", write_a_little)
    with pytest.raises(RunError, match=r"No space left.*free some space and resume, the 1 episodes before are safe"):
        journal.append(SECOND)
    monkeypatch.setattr(os, "write", real)
    assert path.read_bytes() == before
    journal.append(SECOND)
    assert path.read_bytes() == LINES


def test_unwritable_place_is_refused(tmp_path):
    with pytest.raises(RunError, match="cannot be written: No such file"):
        Journal(tmp_path / "missing" / "journal.jsonl", HEADER)
    with pytest.raises(RunError, match="is not a regular file"):
        Journal(tmp_path, HEADER)


def test_record_is_either_scored_or_failed():
    with pytest.raises(ValueError, match="either a score and a reward, or an error"):
        EpisodeRecord(0, (1,), {}, 0.5, 0.5, "boom")
    with pytest.raises(ValueError, match="either a score and a reward, or an error"):
        EpisodeRecord(0, (1,), {}, None, None)


def test_a_record_for_a_reader_has_a_score_that_knows_what_it_is_and_the_same_line():
    error = get_score("mse")
    assert FIRST.named(error).score.kind is error
    assert FIRST.named(error).to_line() == FIRST.to_line()
    assert SECOND.named(error) is SECOND  # it failed


def test_a_journal_of_version_1_is_read_and_goes_on_as_it_began(path):
    path.write_bytes(OLD_LINES)
    assert read_journal(path) == ({"journal": 1, **HEADER}, (FIRST, SECOND))
    journal = Journal(path, HEADER, ORIGIN)
    journal.append(EpisodeRecord(2, (4, 4), {"macs": 70.0}, 0.5, -0.5))
    assert path.read_bytes() == OLD_LINES + (
        b'{"episode": 2, "keep": [4, 4], "cost": {"macs": 70}, "score": 0.5, "reward": -0.5}\n'
    )
    assert load_journal(path).origin == {}
    assert load_journal(path).places == ()


def test_a_journal_of_a_later_version_is_refused(path):
    path.write_bytes(b'{"journal": 3, "seed": 0}\n')
    with pytest.raises(RunError, match="of version 3, this program reads 2; update amc"):
        Journal(path, HEADER)


def test_the_header_says_where_the_search_began_and_a_line_where_it_went_on(path):
    Journal(path, HEADER, ORIGIN).append(FIRST)
    began = path.read_bytes()
    assert json.loads(began.splitlines()[0])["origin"] == ORIGIN
    Journal(path, HEADER, ORIGIN)
    assert path.read_bytes() == began  # the same place: nothing to add
    moved = {**ORIGIN, "environment": {**ORIGIN["environment"], "torch": "2.14.0"}}
    journal = Journal(path, HEADER, moved)
    journal.append(SECOND)
    content = load_journal(path)
    assert content.origin == ORIGIN
    assert content.places == (ORIGIN["environment"], moved["environment"])
    assert content.records == (FIRST, SECOND) == Journal(path, HEADER, moved).records
    assert path.read_bytes().startswith(began)
    assert path.read_bytes().count(b"\n") == 4


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [lines[0], lines[1].replace(b"0.30000000000000004", b"0.9999"), lines[2]], 2),
        (lambda lines: [lines[0], lines[1].replace(b'"reward": -0.7', b'"reward": -0.1'), lines[2]], 2),
        (lambda lines: [lines[0].replace(b'"seed": 0', b'"seed": 1'), *lines[1:]], 1),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: [lines[0], lines[2], lines[1]], 2),
        (lambda lines: [*lines, lines[2]], 4),
        (lambda lines: [lines[0], lines[1][:-28] + b"}", lines[2]], 2),
    ],
    ids=["score", "reward", "header", "left out", "moved", "twice", "without its digest"],
)
def test_a_line_that_was_changed_or_moved_is_named(path, change, line):
    path.write_bytes(b"\n".join(change(LINES.splitlines())) + b"\n")
    before = path.read_bytes()
    for read in (read_journal, lambda path: Journal(path, HEADER)):
        with pytest.raises(RunError, match=f"corrupt in line {line}: it, or its place in the file, was changed"):
            read(path)
    assert path.read_bytes() == before


def test_the_last_lines_may_be_removed(path):
    """What the message advises."""
    path.write_bytes(b"".join(LINES.splitlines(keepends=True)[:2]))
    journal = Journal(path, HEADER)
    assert journal.records == (FIRST,)
    journal.append(SECOND)
    assert path.read_bytes() == LINES
