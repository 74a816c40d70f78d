"""Files that appear whole or not at all: written and checked under another name beside their place, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from amc.errors import AmcError


def target_files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """Where the files of an export at `path` lie: `path` itself, or for several files model.* in the folder `path`."""
    return [path] if len(suffixes) == 1 else [path / f"model{suffix}" for suffix in suffixes]


@contextmanager
def replacing(path: Path, suffixes: Sequence[str]) -> Iterator[list[Path]]:
    """Yields where to write an export's files; after the block they are at `path`, replacing an earlier export.

    One file is replaced by a rename. Several go into a folder, which is renamed as one, so that the files of two
    exports never mix; should the machine stop in that very moment, the earlier folder lies beside it. If the block
    raises, everything is as it was, but for folders made on the way to `path`. AmcError where `path` is taken by
    something that is no export.
    """
    names = [file.name for file in target_files(path, suffixes)]
    _refuse_foreign(path, names if len(suffixes) > 1 else None, suffixes[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield [folder / name for name in names]
        for name in names:
            _sync(folder / name)
        if len(names) == 1:
            (folder / names[0]).chmod(0o644)  # some converters write files as programs
            (folder / names[0]).replace(path)
        else:
            for other in set(folder.iterdir()) - {folder / name for name in names}:
                other.unlink()
            _sync(folder)
            _swap(folder, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_foreign(path: Path, names: list[str] | None, suffix: str) -> None:
    if names is None:
        if path.is_dir():
            raise AmcError(f"'{path}' is a directory; give the name of a file")
        if path.exists() and path.suffix not in ("", suffix):
            raise AmcError(f"'{path}' exists and is no earlier export, by its name; give one that ends in {suffix}")
    elif path.exists() and (not path.is_dir() or {part.name for part in path.iterdir()} - set(names)):
        raise AmcError(f"'{path}' exists and is not an earlier export; give another directory")


def _swap(folder: Path, path: Path) -> None:
    """Rename `folder` to `path`; what was there comes back if that fails."""
    folder.chmod(0o755)  # mkdtemp makes folders for its owner alone
    if not path.exists():
        folder.rename(path)
        return
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    path.rename(aside)
    try:
        folder.rename(path)
    except OSError:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    """See a file, or a folder's entries, on the disk; file systems that cannot sync a folder lose only promptness."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if path.is_dir():
            with suppress(OSError):
                os.fsync(descriptor)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
