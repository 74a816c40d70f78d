import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from amc.errors import RunError
from amc.run import files
from amc.run.directory import RunDir
from amc.run.lines import atomic_write_bytes

CONFIG = {"model": "resnet20", "budget": "macs<=50%", "episodes": 100, "seed": 0}


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_create_makes_parents_and_open_reads_the_config_back(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "runs" / "a", CONFIG)
    assert run.config() == CONFIG
    assert RunDir.open(tmp_path / "runs" / "a").config() == CONFIG
    assert sorted(p.name for p in run.path.iterdir()) == [".lock", "config.json"]


def test_create_accepts_an_empty_directory_and_the_rest_of_a_killed_create(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.77-abcd.tmp").write_text("{")
    assert RunDir.create(tmp_path, CONFIG).config() == CONFIG


def test_create_refuses_another_run_and_leaves_it_untouched(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", CONFIG)
    run.file(files.JOURNAL).write_text('{"journal": 1}\n{"episode": 0}\n{"episode": 1}\n{"epi')
    before = contents(run.path)
    with pytest.raises(RunError) as refusal:
        RunDir.create(run.path, {"model": "other"})
    assert str(refusal.value) == (
        f"'{run.path}' already holds a run (resnet20, macs<=50%, 2 of 100 episodes); "
        f"continue it with `amc resume {run.path}`, or choose another directory"
    )
    assert contents(run.path) == before


def test_create_refuses_a_damaged_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match="already holds another run"):
        RunDir.create(tmp_path, CONFIG)


def test_create_refuses_foreign_files_and_adds_none(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"is not empty \(it holds thesis.tex\); choose another directory"):
        RunDir.create(tmp_path, CONFIG)
    assert contents(tmp_path) == {"thesis.tex": b"precious"}


def test_create_refuses_a_file_and_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file; give a directory"):
        RunDir.create(tmp_path / "file", CONFIG)
    with pytest.raises(RunError, match="cannot be written"):
        RunDir.create(tmp_path / "file" / "run", CONFIG)


def test_open_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run directory"):
        RunDir.open(tmp_path / "absent")
    with pytest.raises(RunError, match=r"holds no run \(config.json is missing\)"):
        RunDir.open(tmp_path)


def test_json_takes_numpy_scalars_and_paths_and_refuses_nan(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, CONFIG)
    run.write_json("summary.json", {"macs": np.int64(3), "kept": np.array([1, 2]), "weights": Path("w.pt")})
    assert run.read_json("summary.json") == {"macs": 3, "kept": [1, 2], "weights": "w.pt"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json("summary.json", {"score": float("nan")})
    assert run.read_json("summary.json")["macs"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1,\n"b": }', "is not valid JSON in line 2"),
        (b"[1]", "holds a list where an object is expected"),
        (b'{"a": "\xff"}', "is not UTF-8 text"),
    ],
)
def test_read_json_names_file_and_damage(tmp_path: Path, text: bytes, message: str) -> None:
    run = RunDir.create(tmp_path, CONFIG)
    run.file("summary.json").write_bytes(text)
    with pytest.raises(RunError, match=message) as failure:
        run.read_json("summary.json")
    assert "summary.json" in str(failure.value)


def test_read_json_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"summary.json' is missing; the run is not that far yet"):
        RunDir.create(tmp_path, CONFIG).read_json("summary.json")


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["write", "fsync", "open"])
def test_full_disk_keeps_the_former_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    run = RunDir.create(tmp_path, CONFIG)
    run.write_text("policy.json", "former")
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, no_space)
        with pytest.raises(RunError, match=r"no space left to write '.*policy.json'; free some"):
            run.write_text("policy.json", "new")
        with pytest.raises(RunError, match="no space left"):
            run.write_bytes("model.safetensors", b"123")
    assert contents(tmp_path) == before


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, bytes(data)[:3]))
    atomic_write_bytes(tmp_path / "f", b"0123456789")
    assert (tmp_path / "f").read_bytes() == b"0123456789"


def test_full_disk_in_the_middle_of_a_line_leaves_the_lines_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.create(tmp_path, CONFIG)
    run.append_jsonl("timings.jsonl", {"episode": 0})
    whole = os.write
    calls = []

    def half_then_full(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        return whole(descriptor, bytes(data)[:4]) if len(calls) == 1 else no_space()

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half_then_full)
        with pytest.raises(RunError, match="no space left"):
            run.append_jsonl("timings.jsonl", {"episode": 1})
    assert len(calls) == 2
    assert run.file("timings.jsonl").read_bytes() == b'{"episode": 0}\n'
    run.append_jsonl("timings.jsonl", {"episode": 1})
    assert run.read_jsonl("timings.jsonl") == [{"episode": 0}, {"episode": 1}]


@pytest.mark.parametrize("torn", [b'{"episode": 1', b'{"episode": 1}', b"\x00\x00\xff", b"\x00\x00\n", b"[2]\n"])
def test_torn_last_line_is_left_out_and_healed_by_the_next_append(tmp_path: Path, torn: bytes) -> None:
    run = RunDir.create(tmp_path, CONFIG)
    run.file("timings.jsonl").write_bytes(b'{"episode": 0}\n' + torn)
    assert run.read_jsonl("timings.jsonl") == [{"episode": 0}]
    run.append_jsonl("timings.jsonl", {"episode": 5})
    assert run.file("timings.jsonl").read_bytes() == b'{"episode": 0}\n{"episode": 5}\n'


@pytest.mark.parametrize("torn", [b"{", b"{\n"])
def test_file_that_is_only_a_torn_line(tmp_path: Path, torn: bytes) -> None:
    run = RunDir.create(tmp_path, CONFIG)
    run.file("timings.jsonl").write_bytes(torn)
    assert run.read_jsonl("timings.jsonl") == []
    run.append_jsonl("timings.jsonl", {"episode": 0})
    assert run.read_jsonl("timings.jsonl") == [{"episode": 0}]


def test_last_line_longer_than_one_block_is_found(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, CONFIG)
    long = {"error": "x" * 200_000}
    run.append_jsonl("timings.jsonl", long)
    with run.file("timings.jsonl").open("ab") as stream:
        stream.write(b'{"error": "' + b"y" * 150_000)
    run.append_jsonl("timings.jsonl", {"episode": 1})
    assert run.read_jsonl("timings.jsonl") == [long, {"episode": 1}]


def test_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, CONFIG)
    run.file("timings.jsonl").write_text('{"episode": 0}\n{"epi\n{"episode": 2}\n')
    with pytest.raises(RunError, match=r"timings.jsonl' line 2 is damaged; restore the file"):
        run.read_jsonl("timings.jsonl")
    run.file("timings.jsonl").write_text('{"episode": 0}\n{"epi\n{"episode')
    with pytest.raises(RunError, match=r"line 2 is damaged"):
        run.read_jsonl("timings.jsonl")


def test_missing_line_file_has_no_records(tmp_path: Path) -> None:
    assert RunDir.create(tmp_path, CONFIG).read_jsonl("timings.jsonl") == []


def test_lock_keeps_a_second_writer_out_and_names_the_first(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, CONFIG)
    second = RunDir.open(tmp_path).lock()
    with run.lock(), pytest.raises(RunError, match=rf"another process \(pid {os.getpid()}\) is writing to"):
        second.__enter__()
    with run.lock():
        assert run.file(files.LOCK).read_text() == str(os.getpid())


def test_lock_removes_files_of_killed_writers_but_not_a_young_file(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, CONFIG)
    old, young = tmp_path / ".policy.json.9-aa.tmp", tmp_path / ".report.html.9-bb.tmp"
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    with run.lock():
        assert not old.exists()
        assert young.exists()


def test_killed_writer_leaves_whole_files_and_frees_the_lock(tmp_path: Path) -> None:
    """SIGKILL at several moments of a process that replaces and appends without pause."""
    program = textwrap.dedent("""
        import sys
        from amc.run.directory import RunDir
        run = RunDir.open(sys.argv[1])
        with run.lock():
            number = len(run.read_jsonl("timings.jsonl"))
            print("ready", flush=True)
            while True:
                run.write_json("number.json", {"number": number, "padding": "x" * 300_000})
                run.append_jsonl("timings.jsonl", {"episode": number}, durable=False)
                number += 1
    """)
    run, lines = RunDir.create(tmp_path, CONFIG), 0
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process, process.stdout as output:
            assert output.readline() == "ready\n"
            _wait_for_lines(tmp_path / "timings.jsonl", lines + 2, process)
            time.sleep(0.003 * attempt)  # into the middle of a round of writing
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        episodes = [record["episode"] for record in run.read_jsonl("timings.jsonl")]
        assert episodes == list(range(len(episodes)))
        assert run.read_json("number.json")["number"] in (len(episodes) - 1, len(episodes))
        assert len(episodes) >= lines + 2
        lines = len(episodes)
    assert run.config() == CONFIG


def _wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until the file has that many lines, however slow the machine is; or the process has ended."""
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
        time.sleep(0.002)
