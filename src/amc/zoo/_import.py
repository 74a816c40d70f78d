"""`package.module:factory` -> the callable, for networks and data that are the user's own.

The folder the user stands in is searched too, as `python -m` does, because a console script does not.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from amc._torchvision import import_torchvision
from amc.errors import AmcError
from amc.structure.source import line_of_error

_T = TypeVar("_T")


def import_factory(spec: str, error: type[AmcError]) -> Callable[..., Any]:
    """The callable that `spec` = "package.module:factory" names; `error` says why there is none."""
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise error(f"factory '{spec}' must be written package.module:factory")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found: Any = _helped_by_torchvision(lambda: importlib.import_module(module_name))
        for name in attribute.split("."):
            found = getattr(found, name)
    except Exception as problem:
        raise error(
            f"factory '{spec}' cannot be imported ({_in_one_line(problem)}); check the name and the path"
        ) from problem
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    if not callable(found):
        kind = type(found).__name__
        raise error(f"factory '{spec}' is a {kind}, not a callable; name a function or a class")
    return found  # type: ignore[no-any-return]


def call_factory(spec: str, error: type[AmcError], **kwargs: Any) -> Any:
    """What the factory returns; `error` if it raises."""
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
    """`action`, tried again after a torchvision that does not import by itself was imported for it."""
    try:
        return action()
    except RuntimeError as problem:
        if "operator torchvision::nms does not exist" not in str(problem):
            raise
    import_torchvision()
    return action()


def _in_one_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"
