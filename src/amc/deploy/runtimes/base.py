"""What every runtime offers, and the errors that all of them share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from amc.deploy.tensors import Tensors
from amc.errors import AmcError
from amc.judging import message_of


class RuntimeFailure(AmcError):  # noqa: N818 -- RuntimeError is taken
    """A runtime cannot load a file, or fails while it runs it."""


class Session(Protocol):
    """A loaded network."""

    def run(self, inputs: Tensors) -> Tensors:
        """One forward pass: tensors in main memory in, new ones out. What the runtime raises passes through."""
        ...

    def close(self) -> None:
        """Free what the runtime holds; `run` must not be called any more."""
        ...


class Runtime(Protocol):
    """A program that runs networks from files."""

    name: str
    format: str  # name of the format it loads
    trusted_only: bool  # whether its files can carry code, so that they must not come from strangers

    def version(self) -> str:
        """Version of the installed runtime; MissingExtraError where there is none."""
        ...

    def load(self, paths: Sequence[Path], *, threads: int, half: bool) -> Session:
        """Load the files of one network, to be run on `threads` threads, computing in 32 bits.

        With `half` the runtime may compute in 16 bits where the processor can. Raises RuntimeFailure for files
        that it cannot load.
        """
        ...


@contextmanager
def loading(runtime: str, path: Path) -> Iterator[None]:
    """Whatever a runtime raises while it loads becomes a RuntimeFailure."""
    try:
        yield
    except (AmcError, MemoryError):
        raise
    except Exception as error:
        raise RuntimeFailure(f"{runtime} cannot load '{path.name}': {message_of(error)}") from error
