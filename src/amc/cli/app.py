"""The `amc` command: its subcommands and its signal handlers."""

from __future__ import annotations

import signal
import sys
import warnings
from typing import Annotated

import typer

import amc
from amc.cli.common import Stopped, complain, out, send_again, stop
from amc.cli.compare import compare
from amc.cli.deploy import export, latency
from amc.cli.device import app as device
from amc.cli.finetune import finetune
from amc.cli.memory import keep_freed_memory
from amc.cli.options import PanelCommand
from amc.cli.push import push
from amc.cli.search import demo, inspect, resume, search, sweep
from amc.cli.study import study
from amc.cli.watch import report, watch

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        out.print(f"amc {amc.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Prune a trained network to a budget with a reinforcement-learning agent."""


for command in (demo, inspect, search, sweep, study, resume, finetune, export, latency, report, watch, compare, push):
    app.command(cls=PanelCommand)(command)
app.add_typer(device, name="device")


def main() -> None:
    """Entry point of the `amc` command."""
    sys.path.insert(0, "")  # package.module:factory may be in the current directory
    signal.signal(signal.SIGTERM, stop)  # clears away unfinished work
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background job may ignore it
        signal.signal(signal.SIGINT, stop)
    sys.unraisablehook = send_again
    keep_freed_memory()
    warnings.filterwarnings("ignore", module=r"torch\.")  # meant for developers, not for users
    try:
        app()
    except Stopped as stopped:  # before a job began, or in a command without a run
        complain(stopped.word)
        raise
