"""Packages that only some formats and runtimes need."""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

from amc.errors import AmcError


class MissingExtraError(AmcError):
    """A format or runtime needs a package that is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`; MissingExtraError, with the command that installs it, if the import fails."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not import ({error})"
        raise MissingExtraError(
            f'package {package} {why}; run: pip install -c constraints.txt "amc-compress[{extra}]"'
        ) from error


def version_of(distribution: str, extra: str) -> str:
    """Version of a distribution; MissingExtraError if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError(
            f'package {distribution} is not installed; run: pip install -c constraints.txt "amc-compress[{extra}]"'
        ) from error
