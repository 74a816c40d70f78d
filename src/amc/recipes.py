"""Recipes: the options of an experiment in a TOML file, so that it is repeated with one command.

A recipe has a table `search` and optionally `finetune`, with the options of the two commands by name, and `waiting` if
it needs something that is not there yet.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.errors import AmcError


@dataclass(frozen=True, slots=True)
class Recipe:
    """Options by name."""

    search: dict[str, Any]
    finetune: dict[str, Any]


def load_recipe(path: Path, options: Collection[str]) -> Recipe:
    """Read a recipe; AmcError if it is missing, malformed, waiting, or names an option that `search` lacks."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AmcError(f"recipe '{path}' cannot be read ({error.strerror}); check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AmcError(f"recipe '{path}' is not valid TOML ({error}); mend the file") from None
    if content.get("waiting"):
        raise AmcError(f"recipe '{path}' waits for {content['waiting']}, which this version does not have")
    chosen = content.get("search")
    if not isinstance(chosen, dict) or not isinstance(content.get("finetune", {}), dict):
        raise AmcError(f"recipe '{path}' needs a table [search] with the options of `amc search`")
    unknown = [name for name in chosen if name not in options]
    if unknown:
        raise AmcError(f"recipe '{path}' has the unknown option {unknown[0]!r}; known: {', '.join(sorted(options))}")
    return Recipe(chosen, content.get("finetune", {}))
