"""The secret that a host shows to a device server."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from amc.deploy.device.protocol import TOKEN_VARIABLE, DeviceError

_FORM = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}\Z")  # what may follow "Bearer" in a header; RFC 6750
_MOST_BYTES = 4096  # of a token file


def new_token() -> str:
    """A token that cannot be guessed: 256 random bits."""
    return secrets.token_urlsafe(32)


def same_token(given: str, wanted: str) -> bool:
    """Whether two tokens are equal, in a time that depends on neither."""
    first, second = (hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest() for token in (given, wanted))
    return hmac.compare_digest(first, second)  # of digests, so that not even the length shows


def check_token(token: str, source: str) -> str:
    """The token, if it can be one; `DeviceError` names where it came from, never the token."""
    token = token.strip()
    if _FORM.match(token) is None:
        raise DeviceError(
            f"the token in {source} is not one: it needs 16 to 256 letters, digits or ._~+/=-; "
            f"use the one that `amc device serve` printed"
        )
    return token


def read_token(path: Path) -> str:
    """The token that a file holds."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            text = file.read(_MOST_BYTES).decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise DeviceError(f"cannot read the token file '{path}' ({reason}); give a file that holds one token") from None
    return check_token(text, f"'{path}'")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe that nobody writes into would hold us up


def make_token_file(path: Path) -> str:
    """The token that the file holds; a new one is written there, for its owner's eyes only, if there is no file."""
    if path.exists():
        return read_token(path)
    token = new_token()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(token + "\n")
        except BaseException:
            path.unlink()  # half a token would be refused the next time
            raise
    except OSError as error:
        raise DeviceError(f"cannot write the token file '{path}' ({error.strerror}); choose another place") from None
    return token


def find_token(path: Path | None = None) -> str:
    """The host's token: from the file if one is given, else from the environment variable AMC_DEVICE_TOKEN."""
    if path is not None:
        return read_token(path)
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None:
        raise DeviceError(
            f"the device wants a token; set {TOKEN_VARIABLE} or give --token-file with what `amc device serve` printed"
        )
    return check_token(token, TOKEN_VARIABLE)
