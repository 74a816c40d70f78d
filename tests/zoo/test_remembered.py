"""The cache of decoded images: what is a hit, what is not, and that nothing in its way does harm."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from amc.errors import DataError
from amc.run.cache import cache_folder
from amc.run.mapped import file_of
from amc.zoo import decode, remembered
from amc.zoo.decode import Decoder

SIDE = 8
SIZE = SIDE * SIDE * 3  # bytes of one image


class Images:
    """Four images, the cache, and how often an image was decoded."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.cache = cache / "images"
        self.files = [str(folder / f"{number}.bmp") for number in range(4)]  # their size does not depend on the content
        self.decoded: list[str] = []
        for number, file in enumerate(self.files):
            self.paint(file, number)

    @staticmethod
    def paint(file: str, value: int) -> None:
        Image.new("RGB", (SIDE, SIDE), (value, 2 * value, 255 - value)).save(file)

    @staticmethod
    def expected(*values: int) -> Tensor:
        """[N, 3, 8, 8]."""
        colours = torch.tensor([[value, 2 * value, 255 - value] for value in values], dtype=torch.uint8)
        return colours[:, :, None, None].expand(-1, -1, SIDE, SIDE)

    def read(self, decoder: Decoder | None = None) -> Tensor:
        self.decoded.clear()
        return (decoder or Decoder()).decode(self.files)

    @property
    def entry(self) -> Path:
        """The only entry of the cache."""
        (found,) = self.cache.glob("*.images")
        return found


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", 0.0)
    (tmp_path / "data").mkdir()
    made = Images(tmp_path / "data", tmp_path / "cache")
    array = Decoder._array

    def counting(self: Decoder, file: str, box: object) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
        made.decoded.append(file)
        return array(self, file, box)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "_array", counting)
    return made


def assert_decoded(images: Images, *values: int, again: bool) -> None:
    """The images have these values, and were decoded if `again`."""
    assert torch.equal(images.read(), images.expected(*values))
    assert bool(images.decoded) is again


class TestHits:
    def test_the_second_read_decodes_nothing_and_gives_the_same_tensor(self, images: Images) -> None:
        first = images.read()
        assert len(images.decoded) == 5  # the first file twice: its size is the others'
        second = images.read()
        assert images.decoded == []
        assert torch.equal(first, images.expected(0, 1, 2, 3))
        assert torch.equal(second, first)
        assert second.stride() == first.stride()
        second += 1  # it may be written to, and the cache stays
        assert_decoded(images, 0, 1, 2, 3, again=False)

    def test_a_path_that_is_relative_is_another_one_in_another_folder(
        self, images: Images, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "other").mkdir()
        for number in range(4):
            images.paint(str(tmp_path / "other" / f"{number}.bmp"), 9)
        images.files = [f"{number}.bmp" for number in range(4)]
        monkeypatch.chdir(tmp_path / "data")
        assert_decoded(images, 0, 1, 2, 3, again=True)
        monkeypatch.chdir(tmp_path / "other")
        assert_decoded(images, 9, 9, 9, 9, again=True)

    @pytest.mark.parametrize("other", [Decoder(4), Decoder(4, 5), Decoder(4, interpolation="nearest")])
    def test_other_settings_are_another_entry(self, images: Images, other: Decoder) -> None:
        images.read()
        images.read(other)
        assert images.decoded
        images.read(other)
        assert not images.decoded
        assert_decoded(images, 0, 1, 2, 3, again=False)

    def test_another_order_is_another_entry(self, images: Images) -> None:
        images.read()
        images.files.reverse()
        assert_decoded(images, 3, 2, 1, 0, again=True)


class TestChanges:
    def test_a_touched_file(self, images: Images) -> None:
        images.read()
        os.utime(images.files[2], ns=(1, 1))
        assert_decoded(images, 0, 1, 2, 3, again=True)
        assert_decoded(images, 0, 1, 2, 3, again=False)

    def test_other_content_of_the_same_size(self, images: Images) -> None:
        images.read()
        images.paint(images.files[2], 7)
        assert_decoded(images, 0, 1, 7, 3, again=True)

    def test_other_content_of_the_same_size_with_the_old_time(self, images: Images) -> None:
        before = Path(images.files[2]).stat()
        images.read()
        images.paint(images.files[2], 7)
        os.utime(images.files[2], ns=(before.st_atime_ns, before.st_mtime_ns))
        assert Path(images.files[2]).stat().st_mtime_ns == before.st_mtime_ns
        assert_decoded(images, 0, 1, 7, 3, again=True)

    def test_a_link_to_another_file(self, images: Images, tmp_path: Path) -> None:
        link = tmp_path / "data" / "link.bmp"
        link.symlink_to("1.bmp")
        images.files = [str(link)] * 2
        assert_decoded(images, 1, 1, again=True)
        assert_decoded(images, 1, 1, again=False)
        link.unlink()
        link.symlink_to("3.bmp")
        assert_decoded(images, 3, 3, again=True)

    def test_a_file_that_changes_while_it_is_decoded_is_not_remembered(
        self, images: Images, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chunks = Decoder._chunks

        def slow(self: Decoder, files: list[str], *place: Any) -> Generator[remembered.Pixels]:
            yield from chunks(self, files, *place)
            images.paint(files[0], 8)

        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "_chunks", slow)
            assert torch.equal(images.read(), images.expected(8, 1, 2, 3))
        assert list(images.cache.iterdir()) == []
        assert_decoded(images, 8, 1, 2, 3, again=True)

    def test_a_file_that_has_just_been_written_is_not_remembered(
        self, images: Images, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A second write within the resolution of the file system's clock would not show."""
        monkeypatch.setattr(remembered, "SETTLED_SECONDS", 3600.0)
        images.read()
        assert not images.cache.exists()

    def test_a_missing_file_is_reported_as_without_a_cache(self, images: Images) -> None:
        images.read()
        Path(images.files[2]).unlink()
        with pytest.raises(DataError, match=r"2\.bmp' cannot be decoded"):
            images.read()


def cut(data: bytes) -> bytes:
    return data[:-1]


def extended(data: bytes) -> bytes:
    return data + b"\0"


def emptied(data: bytes) -> bytes:
    return b""


def one_bit(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


def without_header(data: bytes) -> bytes:
    return data[: 4 * SIZE]


def replaced(header: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[: 4 * SIZE] + header.ljust(len(data) - 4 * SIZE)


def changed(**fields: object) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        return replaced(json.dumps({**json.loads(data[4 * SIZE :]), **fields}).encode())(data)

    return change


DAMAGE = {
    "cut": cut, "extended": extended, "emptied": emptied, "one bit": one_bit, "no header": without_header,
    "a list": replaced(b"[1]"), "deep": replaced(b"[" * 1000), "pickled": replaced(pickle.dumps(np.zeros(4))),
    "version": changed(version=1), "format": changed(format="other"), "key": changed(key="0" * 64),
    "no shape": changed(shape=None), "three": changed(shape=[4, 8, 24]), "negative": changed(shape=[4, -8, -8, 3]),
    "huge": changed(shape=[4, 8, 8, 2**62]), "floats": changed(shape=[4.0, 8, 8, 3]), "digest": changed(sha256=1),
}  # fmt: skip


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGE)
    def test_is_ignored_and_written_again(self, images: Images, damage: str) -> None:
        images.read()
        whole = images.entry.read_bytes()
        images.entry.write_bytes(DAMAGE[damage](whole))
        assert_decoded(images, 0, 1, 2, 3, again=True)
        assert images.entry.read_bytes() == whole
        assert_decoded(images, 0, 1, 2, 3, again=False)

    def test_pixels_of_another_set_under_this_name(self, images: Images) -> None:
        images.read()
        mine = images.entry
        images.files = [images.files[3]] * 4
        images.read()
        other = next(path for path in images.cache.glob("*.images") if path != mine)
        shutil.copy(mine, other)
        assert_decoded(images, 3, 3, 3, 3, again=True)


class TestObstacles:
    def test_a_link_in_place_of_an_entry_is_not_followed(self, images: Images, tmp_path: Path) -> None:
        images.read()
        entry = images.entry
        copied = entry.rename(tmp_path / "elsewhere")
        content = copied.read_bytes()
        entry.symlink_to(copied)
        assert_decoded(images, 0, 1, 2, 3, again=True)
        assert copied.read_bytes() == content
        assert not images.entry.is_symlink()

    @pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
    def test_something_else_in_place_of_an_entry(self, images: Images, make: Callable[[Path], None]) -> None:
        images.read()
        entry = images.entry
        entry.unlink()
        make(entry)
        assert_decoded(images, 0, 1, 2, 3, again=True)

    def test_a_file_in_place_of_the_folder(self, images: Images, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("mine")
        assert_decoded(images, 0, 1, 2, 3, again=True)
        assert (tmp_path / "cache").read_text() == "mine"

    def test_a_folder_in_which_nothing_can_be_written(self, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also a full disk: both are errors of the system while the temporary file is written."""
        images.read()
        entry = images.entry.read_bytes()
        images.entry.unlink()

        def full(descriptor: int, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(remembered, "write_all", full)
            assert_decoded(images, 0, 1, 2, 3, again=True)
        assert list(images.cache.iterdir()) == []
        assert_decoded(images, 0, 1, 2, 3, again=True)
        assert images.entry.read_bytes() == entry

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_read_only_folder(self, images: Images) -> None:
        images.cache.mkdir(parents=True)
        images.cache.chmod(0o500)
        assert_decoded(images, 0, 1, 2, 3, again=True)
        assert_decoded(images, 0, 1, 2, 3, again=True)
        images.cache.chmod(0o700)

    def test_no_home(self, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
        monkeypatch.delenv("AMC_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert_decoded(images, 0, 1, 2, 3, again=True)


class TestPrivacy:
    def test_only_the_user_can_read_the_entries(self, images: Images) -> None:
        before = os.umask(0)
        try:
            images.read()
        finally:
            os.umask(before)
        assert stat.S_IMODE(images.cache.stat().st_mode) == 0o700
        assert stat.S_IMODE(images.entry.stat().st_mode) == 0o600

    def test_what_others_can_write_is_not_read(self, images: Images) -> None:
        images.read()
        images.entry.chmod(0o602)
        assert_decoded(images, 0, 1, 2, 3, again=True)
        images.cache.chmod(0o720)
        assert_decoded(images, 0, 1, 2, 3, again=True)

    def test_a_folder_of_another_user_is_not_used(self, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
        images.read()
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        assert_decoded(images, 0, 1, 2, 3, again=True)


class TestBounds:
    def test_the_entries_unused_for_longest_are_removed(self, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
        everything = images.files
        entries = {}
        for number, file in enumerate(everything[:3]):
            images.files = [file]
            before = set(images.cache.glob("*.images")) if number else set()
            images.read()
            (entries[number],) = set(images.cache.glob("*.images")) - before
            os.utime(entries[number], (1000 + number, 1000 + number))
        images.files = everything[:1]
        images.read()  # used again: now entry 1 is the oldest
        size = entries[0].stat().st_size
        monkeypatch.setattr(remembered, "_limit", lambda: 3 * size)
        images.files = everything[3:]
        images.read()
        assert entries[0].exists()
        assert not entries[1].exists()
        assert entries[2].exists()
        assert sum(path.stat().st_size for path in images.cache.iterdir()) <= 3 * size

    def test_a_set_larger_than_the_bound_is_not_kept(self, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remembered, "_limit", lambda: 4 * SIZE)  # too little by the header
        assert_decoded(images, 0, 1, 2, 3, again=True)
        assert list(images.cache.iterdir()) == []

    def test_what_was_left_before_the_machine_was_started_anew_makes_room(
        self, images: Images, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images.cache.mkdir(parents=True, mode=0o700)
        old = images.cache / ".a-0.part"
        old.write_bytes(bytes(SIZE))
        os.utime(old, (1000, 1000))
        images.read()
        assert old.exists()
        monkeypatch.setattr(remembered, "_limit", lambda: images.entry.stat().st_size * 2)
        images.files.reverse()
        images.read()
        assert not old.exists()

    def test_a_set_that_is_mapped_stays(self, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
        held = images.read()
        entry = images.entry
        monkeypatch.setattr(remembered, "_limit", lambda: entry.stat().st_size + SIZE)
        images.files.reverse()
        assert_decoded(images, 3, 2, 1, 0, again=True)
        assert images.entry == entry  # the second set is not kept
        del held
        assert_decoded(images, 3, 2, 1, 0, again=True)
        assert images.entry != entry

    def test_zero_turns_it_off(self, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
        images.read()
        monkeypatch.setenv("AMC_IMAGE_CACHE_MB", "0")
        assert_decoded(images, 0, 1, 2, 3, again=True)
        images.entry.unlink()
        images.read()
        assert list(images.cache.iterdir()) == []

    @pytest.mark.parametrize("value", ["many", "-1", "1.5", "1 GB", "²"])
    def test_any_other_value_is_refused(self, images: Images, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("AMC_IMAGE_CACHE_MB", value)
        with pytest.raises(DataError, match=rf"AMC_IMAGE_CACHE_MB is '{value}'; give whole megabytes"):
            images.read()

    def test_the_bound_is_in_megabytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AMC_IMAGE_CACHE_MB", "3")
        assert remembered._limit() == 3_000_000
        monkeypatch.delenv("AMC_IMAGE_CACHE_MB")
        assert remembered._limit() == 16_000_000_000


SCRIPT = """
import sys
from amc.zoo import remembered
from amc.zoo.decode import Decoder
remembered.SETTLED_SECONDS = 0.0
for _ in range(20):
    images = Decoder().decode(sys.argv[1:])
    for entry in remembered.cache_folder().glob("images/*.images"):
        entry.unlink(missing_ok=True)
    print(images.flatten().tolist()[::64])
"""


def test_two_processes_at_once(images: Images) -> None:
    """Each writes, reads and removes the entry that the other uses."""
    commands = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, *images.files], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    expected = f"{images.expected(0, 1, 2, 3).flatten().tolist()[::64]}\n"
    for command in commands:
        output, _ = command.communicate()
        assert output == expected * 20
        assert command.returncode == 0
    assert_decoded(images, 0, 1, 2, 3, again=True)
    assert_decoded(images, 0, 1, 2, 3, again=False)


class TestFolder:
    def test_the_users_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AMC_CACHE", "/a")
        monkeypatch.setenv("XDG_CACHE_HOME", "/b")
        assert cache_folder() == Path("/a")

    def test_of_the_desktop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AMC_CACHE")
        monkeypatch.setenv("HOME", "/h")
        monkeypatch.setenv("XDG_CACHE_HOME", "/b")
        assert cache_folder() == Path("/b/amc")
        monkeypatch.setenv("XDG_CACHE_HOME", "b")
        assert cache_folder() == Path("/h/.cache/amc")
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_folder() == Path("/h/.cache/amc")


class TestMapped:
    def test_the_pixels_are_those_of_the_file_and_not_of_memory(self, images: Images) -> None:
        for _ in range(2):  # written, and found
            found = images.read()
            assert file_of(found) == images.entry
            assert found.dtype == torch.uint8
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert images.entry.read_bytes()[: 4 * SIZE] == found.permute(0, 2, 3, 1).numpy().tobytes()

    def test_without_a_cache_they_are_in_memory(self, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AMC_IMAGE_CACHE_MB", "0")
        assert file_of(images.read()) is None

    def test_files_are_not_locked_everywhere(self, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
        def unlockable(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", unlockable)
        assert_decoded(images, 0, 1, 2, 3, again=True)
        assert list(images.cache.glob("*.images")) == []


class TestNoRoom:
    """Of the disk, and then of memory: one line says what is missing and what helps."""

    def test_a_disk_that_is_too_small(self, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remembered, "_free", lambda _: remembered.RESERVE + 4 * SIZE - 1)
        assert_decoded(images, 0, 1, 2, 3, again=True)
        assert list(images.cache.iterdir()) == []
        monkeypatch.setattr(remembered, "_free", lambda _: remembered.RESERVE + 4 * SIZE)
        assert file_of(images.read()) == images.entry

    @pytest.mark.parametrize(
        ("patch", "reason"),
        [
            ({"_free": lambda _: 0}, r"'.*images' has 0\.0 GB of disk space left, and 1\.1 GB are needed"),
            ({"_limit": lambda: 0}, "AMC_IMAGE_CACHE_MB is 0"),
            ({"_limit": lambda: 1}, "AMC_IMAGE_CACHE_MB is 0, and they need 1"),
            ({"SETTLED_SECONDS": 3600.0}, "some of the files have just changed"),
        ],
    )
    def test_nor_of_memory(
        self, images: Images, monkeypatch: pytest.MonkeyPatch, patch: dict[str, Any], reason: str
    ) -> None:
        for name, value in patch.items():
            monkeypatch.setattr(remembered, name, value)
        monkeypatch.setattr(remembered, "free_memory", lambda: 8 * SIZE - 1)
        with pytest.raises(DataError, match=f"^4 decoded images take 0.0 GB, .*: {reason}; mend that") as refusal:
            images.read()
        assert "\n" not in str(refusal.value)
        monkeypatch.setattr(remembered, "free_memory", lambda: 8 * SIZE)
        assert_decoded(images, 0, 1, 2, 3, again=True)

    def test_a_disk_that_fills_up_on_the_way(self, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
        write = remembered.write_all

        def full(descriptor: int, data: memoryview) -> None:
            write(descriptor, data[:-1])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(remembered, "write_all", full)
        assert_decoded(images, 0, 1, 2, 3, again=True)
        assert list(images.cache.iterdir()) == []


KILLED = """
import os, signal, sys
from amc.zoo import decode, remembered
remembered.SETTLED_SECONDS, decode._CHUNK = 0.0, 1
write, left = remembered.write_all, int(sys.argv[1])
def some(descriptor, data):
    global left
    if left == 0:
        os.write(descriptor, data[:7])
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    write(descriptor, data)
remembered.write_all = some
decode.Decoder().decode(sys.argv[2:])
"""


class TestInterrupted:
    @pytest.mark.parametrize("whole", [0, 1, 3, 4])  # images; after the fourth one comes the header
    def test_what_a_killed_process_has_decoded_is_taken_over(self, images: Images, whole: int) -> None:
        command = [sys.executable, "-c", KILLED, str(whole), *images.files]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        (part,) = images.cache.iterdir()
        assert part.stat().st_size == whole * SIZE + 7
        assert_decoded(images, 0, 1, 2, 3, again=True)
        assert images.decoded == [images.files[0], *images.files[whole:]]  # the first one for its size
        assert list(images.cache.iterdir()) == [images.entry]
        assert_decoded(images, 0, 1, 2, 3, again=False)

    def test_but_not_after_the_machine_was_started_anew(self, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk may then have the length of a file without its content."""
        subprocess.run([sys.executable, "-c", KILLED, "2", *images.files], check=False)
        (part,) = images.cache.iterdir()
        part.write_bytes(bytes(part.stat().st_size))
        monkeypatch.setattr(remembered, "_boot", lambda: "another")
        assert_decoded(images, 0, 1, 2, 3, again=True)
        assert len(images.decoded) == 5

    def test_an_interrupt_leaves_it_as_well(self, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decode, "_CHUNK", 1)
        write = remembered.write_all

        def interrupted(descriptor: int, data: memoryview) -> None:
            write(descriptor, data)
            raise KeyboardInterrupt

        monkeypatch.setattr(remembered, "write_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            images.read()
        monkeypatch.setattr(remembered, "write_all", write)
        assert_decoded(images, 0, 1, 2, 3, again=True)
        assert images.decoded == [images.files[0], *images.files[1:]]

    def test_a_broken_image_leaves_nothing(self, images: Images) -> None:
        Path(images.files[3]).write_bytes(b"damaged")
        with pytest.raises(DataError, match=r"3\.bmp' cannot be decoded"):
            images.read()
        assert list(images.cache.iterdir()) == []

    def test_a_second_reader_waits_for_the_first_and_decodes_nothing(
        self, images: Images, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        began, may_end = threading.Event(), threading.Event()
        write = remembered.write_all

        def held_up(descriptor: int, data: memoryview) -> None:
            began.set()
            may_end.wait()
            write(descriptor, data)

        monkeypatch.setattr(remembered, "write_all", held_up)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(Decoder().decode, images.files)
            began.wait()
            second = pool.submit(Decoder().decode, images.files)
            may_end.set()
            assert torch.equal(first.result(), images.expected(0, 1, 2, 3))
            assert torch.equal(second.result(), first.result())
        assert len([file for file in images.decoded if file != images.files[0]]) == 3
        assert list(images.cache.iterdir()) == [images.entry]
