"""Tensors whose bytes stay in a file. All processes that map a file share one copy of it in memory.

A mapped file stays locked (shared `flock`) as long as a tensor of it lives, so `remove_unused` leaves it alone.
`BY_NAME` pickles such a tensor as the name of its file, and the process that reads the pickle maps the file again.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import torch
from torch import Tensor

from amc.errors import RunError

# Memory is promised for no page: otherwise Linux refuses a file that is larger than the machine's memory, because
# every page of it might be written to. Python names the flag from version 3.13 on.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Identity = tuple[int, int, int]  # of a file's content: device, inode and size


class _Mapping(mmap.mmap):
    """A file in memory; its copy of the descriptor holds the lock."""

    path: Path
    identity: Identity


_mappings: weakref.WeakValueDictionary[int, _Mapping] = weakref.WeakValueDictionary()  # by address


def open_locked(path: Path) -> int:
    """The descriptor of an existing file, locked against removal. Raises OSError, also if it is just being removed."""
    descriptor = os.open(path, _READ)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not is_at(path, descriptor):
            raise FileNotFoundError(f"'{path}' has been removed")
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at `path`."""
    with suppress(OSError):
        return _identity(path.lstat()) == _identity(os.fstat(descriptor))
    return False


def mapped(path: Path, descriptor: int) -> Tensor:
    """All bytes of the open, locked file at `path`: uint8 [size], without reading them. The caller closes it.

    Whoever writes to the tensor gets pages of his own, and the file stays. Raises OSError.
    """
    identity = _identity(os.fstat(descriptor))
    mapping = _Mapping(
        descriptor, identity[2], flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
    )
    mapping.path, mapping.identity = path, identity
    tensor = torch.frombuffer(mapping, dtype=torch.uint8)
    _mappings[tensor.data_ptr()] = mapping
    return tensor


def file_of(tensor: Tensor) -> Path | None:
    """The file that holds the tensor's bytes; None if they are in memory alone."""
    mapping = _mapping_of(tensor)
    return None if mapping is None else mapping.path


def remove_unused(path: Path) -> bool:
    """Remove a file that no process has mapped or is writing. Returns whether it is gone. Raises OSError."""
    descriptor = os.open(path, _WRITE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(path, descriptor):
            path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


class _ByName(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Writes no bytes of mapped files."""

    def reducer_override(self, obj: Any) -> Any:
        mapping = _mapping_of(obj) if type(obj) is Tensor else None
        if mapping is None:
            return super().reducer_override(obj)
        name = str(mapping.path.absolute()), mapping.identity
        return _view, (*name, obj.dtype, obj.storage_offset(), tuple(obj.shape), obj.stride())


BY_NAME = SimpleNamespace(Pickler=_ByName, __name__="amc.run.mapped.BY_NAME")
"""The `pickle_module` of `torch.save` for processes of the same machine."""


def _view(
    path: str, identity: Identity, dtype: torch.dtype, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> Tensor:
    """The tensor that another process has pickled. Raises RunError if its file is not there any more."""
    try:
        descriptor = open_locked(Path(path))
        try:
            if _identity(os.fstat(descriptor)) != identity:
                raise FileNotFoundError("it is another file")
            whole = mapped(Path(path), descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunError(f"'{path}' was removed while it was in use ({error}); start or resume again") from error
    return whole.view(dtype).as_strided(shape, stride, offset)


def _mapping_of(tensor: Tensor) -> _Mapping | None:
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return None
    return _mappings.get(tensor.untyped_storage().data_ptr())


def _identity(state: os.stat_result) -> Identity:
    return state.st_dev, state.st_ino, state.st_size
