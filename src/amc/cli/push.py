"""`amc push`: publish the network of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from amc.cli.common import JsonFlag, RunArgument, loading, out, print_json, reported
from amc.run.settings import Panel


@reported
def push(
    run: RunArgument,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    folder: Annotated[
        bool,
        typer.Option(
            "--folder",
            help="Take USER/NAME as a folder: write there, and upload nothing.",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Publish the network of a run on the Hugging Face hub, with a model card; amc.from_hub loads it."""
    with loading():
        from amc.compression.hub import push_to_hub, write_run

    if folder:
        write_run(run, repo)
        address = repo
    else:
        address = push_to_hub(run, repo, private=private)
    if as_json:
        print_json({"run": str(run), "address": address})
    else:
        out.print(f"published  {address}" if not folder else f"written  {address}", highlight=False, soft_wrap=True)
