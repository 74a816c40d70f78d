"""What the commands share: consoles, options, and how a mistake is reported."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from amc.compression.settings import SearchConfig
from amc.errors import AmcError
from amc.run.settings import Panel, Source, options_of

out = Console(highlight=False)  # results
err = Console(stderr=True, highlight=False)  # progress and errors

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object for machines.", rich_help_panel=Panel.OUTPUT)
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The directory that `amc search --out` made.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A zoo or torchvision name, timm:NAME, or package.module:factory.")
]
WeightsOption = Annotated[Path | None, typer.Option(help=options_of(Source)["weights"].help)]
InputOption = Annotated[str | None, typer.Option("--input", help="Shape of one example without the batch: 3x224x224.")]
LockOption = Annotated[list[str] | None, typer.Option(help=options_of(SearchConfig)["lock"].help)]
ApproximateOption = Annotated[bool, typer.Option("--approximate", help=options_of(SearchConfig)["approximate"].help)]
OnlyOption = Annotated[list[str] | None, typer.Option(help=options_of(SearchConfig)["only"].help)]


class Stopped(SystemExit):
    """SIGTERM or SIGINT as an exception, so that unfinished work is cleared away."""

    def __init__(self, number: int) -> None:
        self.number, self.status = number, 128 + number
        super().__init__(self.status)
        self.word = "terminated" if number == signal.SIGTERM else "interrupted"


def stop(number: int, _: object) -> None:
    """Handler of SIGTERM, and of SIGINT until a command begins. Further signals are ignored."""
    _ignore_further()
    raise Stopped(number)


def interrupt(_: int, __: object) -> None:
    """Handler of SIGINT during a command. Further signals are ignored."""
    _ignore_further()
    raise KeyboardInterrupt


def _ignore_further() -> None:
    """A second exception could end what clears away after the first, and leave PyTorch's modes half undone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if handler in (stop, interrupt):
            _handlers[number] = handler
            signal.signal(number, signal.SIG_IGN)


_handlers: dict[int, Any] = {}  # that are out of use because a signal has come


def send_again(lost: sys.UnraisableHookArgs) -> None:
    """Hook for exceptions that Python drops, as in the callback of a weak reference. A signal is sent once more."""
    if not isinstance(lost.exc_value, Stopped | KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    number = lost.exc_value.number if isinstance(lost.exc_value, Stopped) else signal.SIGINT
    for each, handler in _handlers.items():
        signal.signal(each, handler)
    # A little later: now it would be raised, and dropped, in this hook.
    threading.Timer(0.001, os.kill, (os.getpid(), number)).start()


def reported(command: Callable[..., Any]) -> Callable[..., Any]:
    """A user's mistake becomes one line and exit code 2, a signal one line and 130 or 143."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        if signal.getsignal(signal.SIGINT) is stop:
            signal.signal(signal.SIGINT, interrupt)
        try:
            return command(*args, **kwargs)
        except AmcError as error:
            complain(" ".join(str(error).split()))
            raise typer.Exit(2) from None
        except OSError as error:  # a full disk, a path that cannot be written
            place = f" '{error.filename}'" if error.filename else ""
            complain(f"{error.strerror or error}{place}")
            raise typer.Exit(2) from None
        except MemoryError:
            complain("out of memory; close other programs, or use smaller images or batches")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            complain("interrupted")
            raise typer.Exit(130) from None

    return run


@contextmanager
def loading() -> Iterator[None]:
    """Import a job, and PyTorch with it, inside the block: without garbage collection, which takes a fifth of the time.

    PyTorch is a million objects, and none of them is garbage. So later collections pass over them, too.
    """
    first = "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
        gc.enable()


def complain(message: str) -> None:
    """Print the one line that says why a command ended."""
    err.print(f"amc: {message}", style="red", soft_wrap=True, markup=False)


@contextmanager
def stoppable(run: Path) -> Iterator[None]:
    """If the job on `run` is stopped inside the block, print the cause and the content of the directory in one line."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as ended:
        for number in (signal.SIGINT, signal.SIGTERM):  # the job has ended
            signal.signal(number, signal.SIG_IGN)
        word, code = _word_of(ended)
        complain(f"{word}; {_left_in(run)}")
        raise typer.Exit(code) from None
    except MemoryError:
        complain(f"out of memory; {_left_in(run)}")
        raise typer.Exit(2) from None


def _word_of(ended: KeyboardInterrupt | SystemExit) -> tuple[str, int]:
    """What ended the command, and its exit code."""
    if isinstance(ended, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(ended, Stopped):
        return ended.word, ended.status
    return f"the user's code called exit({ended.code!r}), which ends the command", 2


def _left_in(run: Path) -> str:
    from amc.cli.jobs.stopped import left_in

    return left_in(run)


@reported
def take_recipe(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of the command's other options, MODEL included, from the recipe."""
    from amc.cli.recipes import load_recipe

    if path is not None:
        own = {"recipe", "run", "out_dir", "as_json"}  # of this call alone
        options = {parameter.name for parameter in context.command.params if parameter.name} - own
        context.default_map = load_recipe(path, str(context.info_name), options)
    return path


RecipeOption = Annotated[
    Path | None,
    typer.Option(help="TOML file that gives defaults for the other options.", is_eager=True, callback=take_recipe),
]


def finish(run: Path, as_json: bool) -> None:
    """Print the summary of a finished job, as a table or as JSON."""
    from amc.cli.terminal import show_summary
    from amc.run.directory import RunDir
    from amc.run.files import SUMMARY

    summary = RunDir.open(run).read_json(SUMMARY)
    if as_json:
        print_json(summary | {"run": str(run)})
    else:
        show_summary(out, run, summary)


def print_json(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
