"""The option of a settings field: its help, its panel and, if they differ from the field's name, its spellings.

The field itself gives the name, the type and the default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

T = TypeVar("T")

_KEY = "option"


class Panel(StrEnum):
    """The sections of `--help`, in their order."""

    BUDGET = "Budget"
    SEARCH = "Search"
    DATA = "Data"
    PRUNING = "Pruning"
    LATENCY = "Latency"
    TRAINING = "Training"
    CANDIDATES = "Candidates"
    SESSION = "Session"
    OUTPUT = "Output"


@dataclass(frozen=True, slots=True)
class Option:
    """How a field is given on the command line."""

    help: str
    panel: Panel | None = None  # None: an argument
    name: str | None = None  # in recipes, and of the option if there are no flags; None: the field's
    flags: tuple[str, ...] = ()  # the spellings; (): --name, or --name/--no-name
    min: int | None = None  # of a whole number
    is_path: bool = False  # of a file; the command line makes it absolute, as a run may be resumed from anywhere
    metavar: str | None = None  # of an argument, which has no flags


def option(
    default: T,
    *,
    help: str,
    panel: Panel,
    name: str | None = None,
    flags: tuple[str, ...] = (),
    min: int | None = None,
    is_path: bool = False,
) -> T:
    """The default of a dataclass field that is also an option; see `Option` for the other arguments."""
    described = Option(help, panel, name, flags, min, is_path)
    field: T = dataclasses.field(default=default, metadata={_KEY: described})
    return field


def argument(metavar: str, *, help: str) -> Mapping[str, Option]:
    """The metadata of a dataclass field that is a positional argument; it has no default."""
    return {_KEY: Option(help, metavar=metavar)}


def options_of(settings: type[Any]) -> dict[str, Option]:
    """The options and arguments among the fields of a dataclass, by the field's name."""
    return {field.name: field.metadata[_KEY] for field in dataclasses.fields(settings) if _KEY in field.metadata}
