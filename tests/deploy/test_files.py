"""Exports are written atomically."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from amc.deploy.files import replacing, target_files
from amc.errors import AmcError

ONE, TWO = (".onnx",), (".xml", ".bin")


def write(path: Path, suffixes: tuple[str, ...], content: str) -> None:
    with replacing(path, suffixes) as paths:
        for part in paths:
            part.write_text(content)


def left_over(folder: Path) -> list[str]:
    return sorted(part.name for part in folder.iterdir() if part.name.startswith("."))


def test_one_file_is_a_file_and_several_are_a_folder() -> None:
    assert target_files(Path("a/net.onnx"), ONE) == [Path("a/net.onnx")]
    assert target_files(Path("a/net"), TWO) == [Path("a/net/model.xml"), Path("a/net/model.bin")]


@pytest.mark.parametrize("suffixes", [ONE, TWO])
def test_replaces_an_earlier_export(tmp_path: Path, suffixes: tuple[str, ...]) -> None:
    target = tmp_path / "new" / "net"
    write(target, suffixes, "first")
    write(target, suffixes, "second")
    assert [part.read_text() for part in target_files(target, suffixes)] == ["second"] * len(suffixes)
    assert left_over(target.parent) == []


def test_a_file_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    target.write_text("weights")
    with pytest.raises(AmcError, match=r"by its name, is not an earlier export; give a name that ends in \.onnx"):
        write(target, ONE, "network")
    assert target.read_text() == "weights"


def test_a_command_that_is_terminated_leaves_nothing_half_written(tmp_path: Path) -> None:
    script = f"""
import os, signal
import amc.cli.app as cli
from pathlib import Path
from amc.deploy.files import replacing

def app():
    with replacing(Path({str(tmp_path / "net.onnx")!r}), (".onnx",)) as paths:
        paths[0].write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)

cli.app = app
cli.main()
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffixes", [ONE, TWO])
def test_a_failure_changes_nothing(tmp_path: Path, suffixes: tuple[str, ...]) -> None:
    target = tmp_path / "net"
    write(target, suffixes, "first")

    def killed() -> None:
        with replacing(target, suffixes) as paths:
            paths[0].write_text("half of the sec")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        killed()
    assert [part.read_text() for part in target_files(target, suffixes)] == ["first"] * len(suffixes)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("suffixes", [ONE, TWO])
def test_files_appear_only_at_the_end(tmp_path: Path, suffixes: tuple[str, ...]) -> None:
    target = tmp_path / "net"
    with replacing(target, suffixes) as paths:
        for part in paths:
            part.write_text("whole")
        assert not target.exists()
    assert target.exists()


def test_additional_files_of_a_converter_are_removed(tmp_path: Path) -> None:
    with replacing(tmp_path / "net", TWO) as paths:
        for part in (*paths, paths[0].with_name("debug.py")):
            part.write_text("x")
    assert sorted(part.name for part in (tmp_path / "net").iterdir()) == ["model.bin", "model.xml"]


def test_the_old_folder_is_restored_if_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "net"
    write(target, TWO, "first")
    rename, calls = Path.rename, []

    def second_fails(self: Path, to: Path) -> Path:
        calls.append(to)
        if len(calls) == 2:
            raise OSError(5, "Input/output error", str(to))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(OSError, match="Input/output error"):
        write(target, TWO, "second")
    assert [part.read_text() for part in target_files(target, TWO)] == ["first", "first"]
    assert left_over(tmp_path) == []


def test_foreign_things_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(AmcError, match="is a directory; give the name of a file"):
        write(tmp_path / "folder", ONE, "x")
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    with pytest.raises(AmcError, match="is not an earlier export"):
        write(tmp_path / "folder", TWO, "x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(AmcError, match="is not an earlier export"):
        write(tmp_path / "file", TWO, "x")
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "years of work"
