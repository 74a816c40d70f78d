"""Writes files atomically: they are written and checked under another name in the same folder, then renamed."""

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
    """The paths of an export's files: `path` itself, or for several files model.* in the folder `path`."""
    return [path] if len(suffixes) == 1 else [path / f"model{suffix}" for suffix in suffixes]


@contextmanager
def replacing(path: Path, suffixes: Sequence[str]) -> Iterator[list[Path]]:
    """Yields temporary paths for an export's files. After the block the files replace an earlier export at `path`.

    A single file is replaced by a rename. Several files share a folder, which is renamed as a whole, so the files of
    two exports never mix. If the machine stops during this rename, the earlier folder remains beside `path`. If the
    block raises, nothing changes, except that parent folders of `path` may have been created. Raises AmcError if `path`
    exists and is not an export.
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
            (folder / names[0]).chmod(0o644)  # some converters write executable files
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
            raise AmcError(
                f"'{path}' exists and, judging by its name, is not an earlier export; give a name that ends in {suffix}"
            )
    elif path.exists() and (not path.is_dir() or {part.name for part in path.iterdir()} - set(names)):
        raise AmcError(f"'{path}' exists and is not an earlier export; give another directory")


def _swap(folder: Path, path: Path) -> None:
    """Rename `folder` to `path`; an earlier folder at `path` is restored if that fails."""
    folder.chmod(0o755)  # mkdtemp's folders are readable by their owner only
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
    """Sync a file, or a folder's entries, to the disk. Some file systems cannot sync folders; they only write later."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if path.is_dir():
            with suppress(OSError):
                os.fsync(descriptor)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
