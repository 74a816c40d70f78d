"""The command line's options, made from the fields of the settings (`amc.run.settings`), where each is defined once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from amc.run.settings import Given, Option, Panel, options_of

OTHER = "Options"  # the section of options without a panel


def takes_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command for typer: a parameter that is a settings class becomes the options of its fields.

    The command gets an instance of the class; for `Given[...]`, only the fields that an option or a recipe gives.
    """
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters
    groups = {name: _Group.of(hints[name]) for name in own if _is_settings(hints[name])}
    plain = [parameter.replace(annotation=hints[name]) for name, parameter in own.items() if name not in groups]
    generated = [parameter for group in groups.values() for parameter in group.parameters()]
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    @wraps(command)
    def run(*, context: typer.Context, **values: Any) -> Any:
        settings = {name: group.take(values, context) for name, group in groups.items()}
        return command(**settings, **values)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (context, *generated, *plain)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


class PanelCommand(TyperCommand):
    """A command whose help has a section for each panel."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the options panel by panel, and the other options."""
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *Panel, OTHER)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections[_section(parameter)].append(record)
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def _section(parameter: Any) -> str:
    """The section of the help that a parameter belongs to."""
    if parameter.param_type_name == "argument":
        return "Arguments"
    return getattr(parameter, "rich_help_panel", None) or OTHER


@dataclass(frozen=True)
class _Group:
    """The options of one settings class."""

    settings: type[Any]
    partial: bool  # whether the command takes only the given fields

    @classmethod
    def of(cls, annotation: Any) -> _Group:
        """From the annotation of a command's parameter."""
        partial = get_origin(annotation) is Given
        return cls(get_args(annotation)[0] if partial else annotation, partial)

    def parameters(self) -> Iterator[inspect.Parameter]:
        """The typer parameter of each option."""
        types, options = get_type_hints(self.settings), options_of(self.settings)
        for field in fields(self.settings):
            if field.name in options:
                default = inspect.Parameter.empty if field.default is MISSING else field.default
                yield _parameter(field.name, types[field.name], default, options[field.name])

    def take(self, values: dict[str, Any], context: typer.Context) -> Any:
        """Remove the options of this class from `values` and return the settings."""
        given = {}
        for field, described in options_of(self.settings).items():
            name = described.name or field
            value = values.pop(name)
            if not self.partial or _was_given(context, name):
                given[field] = str(value.resolve()) if isinstance(value, Path) else value
        settings: Given[Any] = Given(self.settings, given)
        return settings if self.partial else settings.make()


def _is_settings(annotation: Any) -> bool:
    return get_origin(annotation) is Given or (isinstance(annotation, type) and is_dataclass(annotation))


def _was_given(context: typer.Context, name: str) -> bool:
    """Whether an option was on the command line or in a recipe."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _parameter(field: str, annotation: Any, default: Any, described: Option) -> inspect.Parameter:
    """The typer parameter of an option or argument."""
    kind = _click_type(annotation, described)
    info: Any
    if described.metavar is not None:
        info = typer.Argument(metavar=described.metavar, help=described.help)
    else:
        info = typer.Option(*described.flags, help=described.help, rich_help_panel=described.panel, min=described.min)
    default = list(default) if isinstance(default, tuple) else default
    name = described.name or field
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _click_type(annotation: Any, described: Option) -> Any:
    """The type of an option: a file name is a path, names are a list, and one of a few words is text."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    kind = options[0]
    if described.is_path:
        kind = Path
    elif get_origin(kind) is tuple:
        kind = list[str]
    elif get_origin(kind) is Literal:
        kind = str
    return kind | None if NoneType in options else kind
