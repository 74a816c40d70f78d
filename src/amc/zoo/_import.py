"""`package.module:factory` -> the callable, for networks and data that are the user's own.

The folder the user stands in is searched too, as `python -m` does, because a console script does not.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from amc.errors import AmcError

# Declarations live as long as the library object that made them.
_kept_alive: list[torch.library.Library] = []


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
        found: Any = _import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
    except Exception as problem:
        reason = f"{type(problem).__name__}: {problem}"
        raise error(
            f"factory '{spec}' cannot be imported ({reason}); check the name and the path"
        ) from problem
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    if not callable(found):
        raise error(
            f"factory '{spec}' is a {type(found).__name__}, not a callable; name a function or a class"
        )
    return found  # type: ignore[no-any-return]


def call_factory(spec: str, error: type[AmcError], **kwargs: Any) -> Any:
    """What the factory returns; `error` if it raises."""
    factory = import_factory(spec, error)
    try:
        return factory(**kwargs)
    except AmcError:
        raise
    except Exception as problem:
        raise error(
            f"factory '{spec}' failed ({type(problem).__name__}: {problem}); fix it or its arguments"
        ) from problem


def _import_module(name: str) -> ModuleType:
    """Import `name`, also where it needs a torchvision built for CUDA beside a torch built for CPU.

    Such a torchvision describes two operators that its compiled part, which does not load, would define.
    """
    try:
        return importlib.import_module(name)
    except RuntimeError as problem:
        if "operator torchvision::nms does not exist" not in str(problem):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _kept_alive.append(library)
    for half_imported in [key for key in sys.modules if key.split(".")[0] == "torchvision"]:
        del sys.modules[half_imported]
    return importlib.import_module(name)
