"""Logging services by name. Nothing of a service is imported before a job has something to log to it."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from amc.compression.loggers.base import Logger, Open
from amc.compression.observer import LOG, Observer, Together
from amc.errors import AmcError
from amc.run import files

LOGGERS: Mapping[str, str] = {"tensorboard": "TensorBoard", "mlflow": "Mlflow", "wandb": "Wandb"}  # name -> class
NO_LOGGER = "none"


def logger(*names: str, directory: str | os.PathLike[str]) -> Observer:
    """An observer that logs a job to these services: "tensorboard", "mlflow" or "wandb".

    directory: the job's `run_dir`, or a directory of its own for a job without one. A file in it, `logged-NAME.jsonl`,
        makes a resumed job go on in the same run of the service, without logging an episode twice.

    The series are `search/AGENT` (score, reward, best and every cost of each episode), `finetune` (loss, lr and score
    of each epoch), `dense` and `result`; the parts of a sweep have `point-N/` before them. If a service fails, the
    logger `amc` warns once, and the job goes on.

    Raises AmcError for an unknown name, and for a package that is not installed.

    >>> amc.logger("tensorbord", directory="runs/mine")
    Traceback (most recent call last):
    amc.errors.AmcError: unknown logger 'tensorbord'; did you mean 'tensorboard'?
    """
    return together(names, Path(directory), lambda text: LOG.warning("%s", text))


def together(names: Sequence[str], directory: Path, warn: Callable[[str], None]) -> Observer:
    """The observer of `logger`; `warn` hears of a service that fails."""
    distinct = check_loggers(names)
    return Together(*(Logger(name, _opener(name), directory, warn) for name in distinct))


def check_loggers(names: Sequence[str]) -> tuple[str, ...]:
    """The distinct names, in order. Raises AmcError for an unknown one, or one whose package is not installed."""
    distinct = tuple(dict.fromkeys(names))
    for name in distinct:
        if name not in LOGGERS:
            close = difflib.get_close_matches(name.lower(), LOGGERS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(LOGGERS)}"
            raise AmcError(f"unknown logger {name!r}; {hint}")
        if not _installed(name):
            raise AmcError(
                f"logger {name} needs the package {name}, which is not installed; "
                f"run: pip install 'amc-compress[{name}]'"
            )
    return distinct


def logged_in(directory: Path) -> tuple[str, ...]:
    """The loggers that earlier sessions of the job in this directory have used."""
    return tuple(name for name in LOGGERS if (directory / files.logged(name)).exists())


def _installed(package: str) -> bool:
    """Whether a package is there, without its import. A directory of that name, which services make, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _opener(name: str) -> Open:
    def opened(directory: Path, key: str | None) -> object:
        return getattr(importlib.import_module(f"amc.compression.loggers.{name}"), LOGGERS[name])(directory, key)

    return opened  # type: ignore[return-value]
