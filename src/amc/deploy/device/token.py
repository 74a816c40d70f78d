"""The token: the secret that a host sends to a device server."""

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

_FORM = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}\Z")  # characters of a bearer token; RFC 6750
_MOST_BYTES = 4096  # largest part of a token file that is read


def new_token() -> str:
    """A token that cannot be guessed: 256 random bits."""
    return secrets.token_urlsafe(32)


def same_token(given: str, wanted: str) -> bool:
    """Whether two tokens are equal; takes the same time for all tokens."""
    first, second = (hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest() for token in (given, wanted))
    return hmac.compare_digest(first, second)  # compares digests, to hide the length too


def check_token(token: str, source: str) -> str:
    """The token, without surrounding blanks; `DeviceError` if it is not valid: names `source`, never the token."""
    token = token.strip()
    if _FORM.match(token) is None:
        raise DeviceError(
            f"the token in {source} is not valid: a token has 16 to 256 letters, digits or ._~+/=-; "
            f"use the one that `amc device serve` printed"
        )
    return token


def read_token(path: Path) -> str:
    """The token in a file; `DeviceError` if the file cannot be read or holds no valid token."""
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
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe without a writer would block


def make_token_file(path: Path) -> str:
    """The token in the file; if the file does not exist, writes a new token that only the owner can read."""
    if path.exists():
        return read_token(path)
    token = new_token()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(token + "\n")
        except BaseException:
            path.unlink()  # an incomplete token would be refused the next time
            raise
    except OSError as error:
        raise DeviceError(f"cannot write the token file '{path}' ({error.strerror}); choose another place") from None
    return token


def find_token(path: Path | None = None) -> str:
    """The host's token: from the file at `path` if given, else from the environment variable AMC_DEVICE_TOKEN."""
    if path is not None:
        return read_token(path)
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None:
        raise DeviceError(
            f"the device requires a token, which `amc device serve` printed; set {TOKEN_VARIABLE} or give --token-file"
        )
    return check_token(token, TOKEN_VARIABLE)
