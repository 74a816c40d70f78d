"""Silences converters and runtimes, including their C++ parts.

Their output goes to a temporary file. The caller may read it to explain a failure.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def silenced() -> Iterator[Callable[[], str]]:
    """Keep the block's output away from standard output and error; yields a function that returns that output.

    C++ libraries write to the file descriptors directly, so the descriptors are redirected. Therefore the block also
    silences other threads. Warnings and log records below CRITICAL are dropped.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with (
        tempfile.TemporaryFile() as sink,
        os.fdopen(os.dup(sink.fileno()), "w", errors="replace") as text,
        redirect_stdout(text),  # in a notebook, Python's streams do not write to file descriptors
        redirect_stderr(text),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        saved = [(target, os.dup(target)) for target in (1, 2)]
        level = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            for target, _ in saved:
                os.dup2(sink.fileno(), target)
            yield lambda: _text(sink.fileno())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, copy in saved:
                os.dup2(copy, target)
                os.close(copy)
            logging.disable(level)


def _text(descriptor: int, limit: int = 1 << 20) -> str:
    sys.stdout.flush()
    sys.stderr.flush()
    return os.pread(descriptor, limit, 0).decode(errors="replace")
