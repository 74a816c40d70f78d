"""What listens to a command's job: the progress on the terminal, and the loggers that `--log` names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from amc.cli.common import err
from amc.errors import AmcError
from amc.run.settings import Panel

if TYPE_CHECKING:
    from amc.compression.observer import Observer

LogOption = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        help="Log to tensorboard, mlflow or wandb (repeat). A resumed job goes on with its loggers; none ends that.",
        rich_help_panel=Panel.OUTPUT,
    ),
]


@contextmanager
def listening(run: Path, log: Sequence[str] | None = None) -> Iterator[Observer]:
    """All that listens to the job on `run` inside the block. Raises AmcError for a logger that cannot be used."""
    from amc.compression.loggers import together
    from amc.compression.observer import Together
    from amc.compression.progress import ProgressBar
    from amc.compression.status import StatusFile

    bar = ProgressBar(err)
    lasting = Together(together(_loggers(run, log), run, bar.warning), StatusFile(run))
    watch = Together(bar, lasting)
    watch.close = bar.close  # type: ignore[method-assign]  # each round of a schedule closes it, and the others go on
    try:
        yield watch
    finally:
        bar.close()  # again where the job has: one that fails early has not
        lasting.close()


def _loggers(run: Path, log: Sequence[str] | None) -> Sequence[str]:
    """The loggers that are asked for or, without any, those of the job's earlier sessions. Raises AmcError."""
    from amc.compression.loggers import NO_LOGGER, check_loggers, logged_in

    if log is not None:
        return check_loggers([name for name in log if name != NO_LOGGER])
    try:
        return check_loggers(logged_in(run))
    except AmcError as error:
        raise AmcError(f"{error}; or go on without it: --log {NO_LOGGER}") from None
