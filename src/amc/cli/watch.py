"""`amc watch` and `amc report`: a run as it is, also while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from amc.cli.common import JsonFlag, RunArgument, out, print_json, reported
from amc.run.settings import Panel

if TYPE_CHECKING:
    from amc.report.live import Live
    from amc.run.directory import RunDir

EVERY = 1.0  # seconds between two pictures
REFRESH = 5  # seconds after which the live page is written, and loaded, again


@reported
def watch(
    run: RunArgument,
    once: Annotated[bool, typer.Option("--once", help="One picture, as without a terminal.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a run is doing: its stage, the best score so far and the time left. Ends with the run; only reads."""
    from rich.live import Live as Screen
    from rich.text import Text

    from amc.cli.picture import picture
    from amc.report.live import read_live
    from amc.run.directory import RunDir

    directory = RunDir.open(run)
    live = read_live(directory)
    if as_json:
        print_json(asdict(live) | {"sentence": live.sentence})
    elif once or not out.is_terminal:
        out.print("\n".join(picture(live)), markup=False, soft_wrap=True)
    else:
        with Screen(Text("\n".join(picture(live))), console=out, auto_refresh=False) as screen:
            _follow(directory, lambda now: screen.update(Text("\n".join(picture(now))), refresh=True), EVERY)


@reported
def report(
    run: RunArgument,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Write it again and again until the run ends; the page refreshes itself.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write RUN/report.html again."""
    from amc.report import render_report
    from amc.run.directory import RunDir
    from amc.run.files import REPORT

    directory = RunDir.open(run)
    if live:
        out.print(f"report: {directory.file(REPORT)}, every {REFRESH} s while the run goes on", soft_wrap=True)
        _follow(directory, lambda now: _write_live(directory, now), REFRESH)
    path = render_report(directory)
    if as_json:
        print_json({"report": str(path)})
    else:
        out.print(f"report: {path}", soft_wrap=True)


def _write_live(directory: RunDir, now: Live) -> None:
    from amc.report import render_report

    if now.state == "running":
        render_report(directory, now=now.sentence, refresh=REFRESH)


def _follow(directory: RunDir, show: Callable[[Live], object], seconds: float) -> None:
    """Show the run every so many seconds, until it ends. Returns after showing its end."""
    from amc.report.live import read_live

    while True:
        live = read_live(directory)
        show(live)
        if live.state != "running":
            return
        time.sleep(seconds)
