"""The command line that gives settings: what a report says to repeat a run."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from typing import Any

from amc.run.settings.given import Given
from amc.run.settings.options import Option, options_of


def spelled(command: str, *settings: Any) -> str:
    """`amc COMMAND ...` with the settings that differ from their defaults, for a shell.

    command: the command, and arguments that no setting holds. settings: instances of settings classes, or `Given` ones;
    fields that are no options are left out.

    >>> spelled("finetune RUN", FineTuneConfig(epochs=5))
    'amc finetune RUN --epochs 5'
    """
    arguments: list[str] = []
    options: list[str] = []
    for each in settings:
        given = each if isinstance(each, Given) else Given.all_of(each)
        described = options_of(given.kind)
        for field in dataclasses.fields(given.kind):
            if field.name not in described or field.name not in given.values:
                continue
            option, value = described[field.name], given.values[field.name]
            if option.metavar is not None:
                arguments.append(str(value))
            elif value is not None and _plain(value) != _plain(field.default):
                options += _words(field.name, option, value)
    return shlex.join(["amc", *command.split(), *arguments, *options])


def _words(field: str, option: Option, value: Any) -> Iterator[str]:
    """The words of one option."""
    named = f"--{(option.name or field).replace('_', '-')}"
    if isinstance(value, bool):
        on, _, off = (option.flags or (f"{named}/--no-{named.removeprefix('--')}",))[0].partition("/")
        yield on if value else off
        return
    flag = option.flags[0] if option.flags else named
    for each in value if isinstance(value, list | tuple) else (value,):
        yield from (flag, str(each))
    if not isinstance(value, str) and value in ((), []):
        yield from (flag, "none")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
