"""Tokens are random, are stored privately, and are compared in constant time."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from amc.deploy.device.protocol import DeviceError
from amc.deploy.device.token import find_token, make_token_file, new_token, read_token, same_token


def test_new_tokens_differ_and_fit_a_header() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) == 43 and token.isascii() and token.strip() == token for token in tokens)


def test_only_the_same_token_is_the_same() -> None:
    token = new_token()
    assert same_token(token, token)
    for other in ("", token[:-1], token + "x", token.swapcase(), "é", "\udcff"):
        assert not same_token(other, token)


def test_token_file_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = make_token_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert make_token_file(path) == read_token(path) == token
    assert path.read_text() == token + "\n"


def test_host_finds_its_token_in_the_file_then_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_DEVICE_TOKEN", "token-of-the-environment")
    path = tmp_path / "token"
    path.write_text("  token-of-the-file-1 \n")
    assert find_token(path) == "token-of-the-file-1"
    assert find_token() == "token-of-the-environment"
    monkeypatch.delenv("AMC_DEVICE_TOKEN")
    with pytest.raises(DeviceError, match="set AMC_DEVICE_TOKEN or give --token-file"):
        find_token()


@pytest.mark.parametrize("text", ["", "short", "two words and more of them", "line\nline line line line", "é" * 20])
def test_file_without_a_token_is_one_line_that_does_not_show_it(text: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(DeviceError, match="is not valid: a token has 16 to 256") as caught:
        read_token(path)
    assert not text or text not in str(caught.value)


def test_only_a_regular_file_is_read_and_only_its_beginning(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(
            DeviceError, match=r"cannot read the token file .* \(it is not a regular file\); give a file"
        ):
            read_token(path)
    with pytest.raises(DeviceError, match=r"cannot read the token file .* \(Is a directory\)"):
        read_token(tmp_path)
    (tmp_path / "long").write_text("t" * 5000)
    with pytest.raises(DeviceError, match="is not valid: a token has 16 to 256"):
        read_token(tmp_path / "long")


def test_full_disk_leaves_no_half_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", lambda descriptor, *_, **__: (os.close(descriptor), Full())[1])
        with pytest.raises(DeviceError, match=r"cannot write the token file .* \(No space left on device\)"):
            make_token_file(tmp_path / "token")
    assert len(make_token_file(tmp_path / "token")) == 43


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"cannot read the token file .* \(No such file"):
        read_token(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(DeviceError, match="it is not text"):
        read_token(tmp_path / "binary")
    with pytest.raises(DeviceError, match="cannot write the token file"):
        make_token_file(tmp_path / "none" / "token")
