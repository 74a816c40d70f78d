"""JSON from a disk: what is read, what is refused, and in which words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc.errors import RunError
from amc.pruning import Policy
from amc.recovery import resume_point
from amc.run import records
from amc.run import schema as runfiles
from amc.run.directory import RunDir
from amc.run.weights import read_state
from amc.search import read_journal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_what_json_writes_is_read_back(value: Any) -> None:
    assert records.parse(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is not valid JSON in line 1"),
        (b'{"a": 1,\n"b": }', "is not valid JSON in line 2"),
        (b"\xef\xbb\xbf{}", "is not valid JSON"),
        (b'{"a": "\xff"}', "is not UTF-8 text"),
        (b'{"a": NaN}', "holds NaN, which is not a JSON number"),
        (b'{"a": -Infinity}', "holds -Infinity, which is not a JSON number"),
        (b'{"a": 1e999}', "holds the number '1e999', which is not finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "holds a whole number of 5000 digits"),
        (b'{"a": -9223372036854775808}', "holds a whole number of 19 digits"),
        (b'{"a": 1, "a": 2}', "gives a key twice"),
        (b'{"a": "\\ud800"}', "holds text that is not Unicode"),
        (b'{"\\udfff": 1}', "holds text that is not Unicode"),
        (b"[" * 40 + b"]" * 40, "is nested deeper than 32 levels"),
        (b"[" * 200_000 + b"]" * 200_000, "is nested deeper than 32 levels"),
        (b'{"a":' * 2000 + b"1" + b"}" * 2000, "is nested deeper than 32 levels"),
    ],
)
def test_what_is_never_written_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(records.DamagedError) as refusal:
        records.parse(data)
    assert reason in str(refusal.value)
    assert len(str(refusal.value)) < 120


def test_the_largest_and_the_deepest_that_is_read() -> None:
    assert records.parse(b"[9223372036854775807, -9223372036854775807]") == [2**63 - 1, 1 - 2**63]
    assert records.parse(b"[" * 32 + b"]" * 32) is not None


@given(st.dictionaries(st.text(max_size=5).filter(lambda key: key != "sha256"), JSON, max_size=4))
def test_a_seal_holds_for_the_same_values_in_any_order_and_no_others(record: dict[str, Any]) -> None:
    sealed = records.sealed(record)
    assert records.unsealed(dict(reversed(sealed.items()))) == record
    assert records.unsealed(record) == record  # without a seal
    with pytest.raises(records.DamagedError, match="was changed after it was written"):
        records.unsealed({**sealed, "another": 1})


def test_checks_name_the_place_and_the_rule() -> None:
    check = records.fields({"groups": records.many(records.fields({"kept": records.count}, needed=("kept",)))})
    check({"groups": [{"kept": 3}], "other": None}, "")
    for record, words in (
        ({"groups": 3}, "has 3 as groups, which must be a list"),
        ({"groups": [{"kept": 1}, {"kept": -1}]}, "has -1 as groups[1].kept, which must be a whole number, at least 0"),
        ({"groups": [{"kept": True}]}, "has True as groups[0].kept, which must be a whole number, at least 0"),
        ({"groups": [{}]}, "has no groups[0].kept"),
        ([], "has [] as , which must be an object"),
    ):
        with pytest.raises(records.DamagedError) as refusal:
            check(record, "")
        assert str(refusal.value) == words


@pytest.mark.parametrize("value", [1e308, True, "1", None, [1]])
def test_a_figure_is_a_number_that_can_be_calculated_with(value: object) -> None:
    with pytest.raises(records.DamagedError, match=r"has .* as slim.score, which must be a number"):
        runfiles.SUMMARY({"slim": {"score": value if value is not None else "None"}}, "")


def readers(path: Path) -> list[Any]:
    """Everything that reads a file of a run."""
    run = RunDir(path.parent)
    return [
        lambda: records.read_bytes(path),
        lambda: run.read_json(path.name),
        lambda: run.read_jsonl(path.name),
        lambda: run.digests([path.name]),
        lambda: read_journal(path),
        lambda: read_state(path),
        lambda: resume_point(path),
        lambda: Policy.load(path),
    ]


def test_a_pipe_a_device_and_a_directory_are_refused_at_once(tmp_path: Path) -> None:
    pipe, device, directory = tmp_path / "pipe", tmp_path / "device", tmp_path / "directory"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    directory.mkdir()
    for path in (pipe, device, directory):
        for read in readers(path):
            with pytest.raises(RunError, match="is not a regular file; restore the file from a copy"):
                read()


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "summary.json").open("wb") as file:
        file.truncate(records.MAX_BYTES + 1)
    with pytest.raises(RunError, match="is larger than 256 MiB"):
        RunDir(tmp_path).read_json("summary.json")


def test_a_link_to_a_file_is_read_and_never_written(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    run = RunDir.create(tmp_path / "run", {})
    outside.write_bytes(b'{"episode": 0}\n')
    for name in (".lock", "timings.jsonl", "journal.jsonl"):
        run.file(name).unlink(missing_ok=True)
        run.file(name).symlink_to(outside)
    assert run.read_jsonl("timings.jsonl") == [{"episode": 0}]
    with pytest.raises(RunError, match=r"timings.jsonl' is a symbolic link, and nothing is written through one"):
        run.append_jsonl("timings.jsonl", {"episode": 1})
    with pytest.raises(RunError, match=r"\.lock' is a symbolic link"), run.lock():
        pass
    assert outside.read_bytes() == b'{"episode": 0}\n'
    run.file("policy.json").symlink_to(outside)
    run.write_text("policy.json", "new")  # the link is replaced
    assert outside.read_bytes() == b'{"episode": 0}\n'
    assert not run.file("policy.json").is_symlink()


def test_a_lock_that_is_a_pipe_or_a_directory_is_refused(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", {})
    run.file(".lock").unlink()
    os.mkfifo(run.file(".lock"))
    with pytest.raises(RunError, match="is not a regular file"), run.lock():
        pass
    run.file(".lock").unlink()
    run.file(".lock").mkdir()
    with pytest.raises(RunError, match="is not a regular file"), run.lock():
        pass
