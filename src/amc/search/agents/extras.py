"""Packages that only some agents need."""

from __future__ import annotations

import importlib
from types import ModuleType

from amc.errors import AmcError


def require(module: str, agent: str) -> ModuleType:
    """Import a module of the extra `rivals`. Raises AmcError with the remedy if the import fails."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        why = "" if isinstance(error, ModuleNotFoundError) else f" ({module} does not import: {error})"
        raise AmcError(f"agent {agent!r} needs the extra: pip install 'amc-compress[rivals]'{why}") from error
