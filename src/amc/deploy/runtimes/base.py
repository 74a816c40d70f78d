"""The interface of all runtimes, and their common error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from amc.deploy.tensors import Tensors
from amc.errors import AmcError, message_of


class RuntimeFailure(AmcError):  # noqa: N818 -- RuntimeError is taken
    """A runtime cannot load a file, or fails while it runs it."""


class Session(Protocol):
    """A loaded network."""

    def run(self, inputs: Tensors) -> Tensors:
        """One forward pass: takes tensors in main memory, returns new ones. The runtime's exceptions pass through."""
        ...

    def close(self) -> None:
        """Free the runtime's resources; `run` must not be called afterwards."""
        ...


class Runtime(Protocol):
    """A program that runs networks from files."""

    name: str
    format: str  # name of the format that it loads
    trusted_only: bool  # whether its files can contain code, and must come from a trusted source

    def version(self) -> str:
        """Version of the runtime; MissingExtraError if it is not installed."""
        ...

    def load(self, paths: Sequence[Path], *, threads: int, half: bool) -> Session:
        """Load the files of one network; it will use `threads` threads and compute in 32 bits.

        With `half`, the runtime may compute in 16 bits if the processor supports this. Raises RuntimeFailure if it
        cannot load the files.
        """
        ...


@contextmanager
def loading(runtime: str, path: Path) -> Iterator[None]:
    """Exceptions of a runtime that loads a file become RuntimeFailures; AmcError and MemoryError pass through."""
    try:
        yield
    except (AmcError, MemoryError):
        raise
    except Exception as error:
        raise RuntimeFailure(f"{runtime} cannot load '{path.name}': {message_of(error)}") from error
