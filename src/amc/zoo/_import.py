"""Imports a user's factory of networks or data: `package.module:factory` -> the callable.

The current folder is searched too, as with `python -m`. A console script does not search it by itself.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from amc.errors import AmcError
from amc.structure.source import line_of_error
from amc.zoo._torchvision import import_torchvision

_T = TypeVar("_T")


def import_factory(spec: str, error: type[AmcError]) -> Callable[..., Any]:
    """The callable that `spec` = "package.module:factory" names. Raises `error` if it cannot be imported."""
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise error(f"factory '{spec}' must be written package.module:factory")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        target: Any = _helped_by_torchvision(lambda: importlib.import_module(module_name))
        for name in attribute.split("."):
            target = getattr(target, name)
    except Exception as problem:
        raise error(
            f"factory '{spec}' cannot be imported ({_in_one_line(problem)}); check the name and the path"
        ) from problem
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    if not callable(target):
        kind = type(target).__name__
        raise error(f"factory '{spec}' is a {kind}, not a callable; name a function or a class")
    return target  # type: ignore[no-any-return]


def call_factory(spec: str, error: type[AmcError], **kwargs: Any) -> Any:
    """Call the factory and return its result. Raises `error` if the factory raises."""
    factory = import_factory(spec, error)
    try:
        return _helped_by_torchvision(lambda: factory(**kwargs))
    except AmcError:
        raise
    except Exception as problem:
        where = line_of_error(problem)
        raise error(
            f"factory '{spec}' failed ({_in_one_line(problem)}{f', at {where}' if where else ''}); "
            "fix it or its arguments"
        ) from problem


def _helped_by_torchvision(action: Callable[[], _T]) -> _T:
    """The result of `action`. If torchvision fails to import there, import it our way and try again."""
    try:
        return action()
    except RuntimeError as problem:
        if "operator torchvision::nms does not exist" not in str(problem):
            raise
    import_torchvision()
    return action()


def _in_one_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"
