"""Recipes: the options of an experiment in a TOML file, so that one command repeats it.

A recipe has a table for each of its commands, `search` or `finetune`, with the command's options by name (`-` written
`_`), and the key `waiting` if it needs a feature that does not exist yet.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from amc.errors import AmcError


def load_recipe(path: Path, command: str, options: Collection[str]) -> dict[str, Any]:
    """The recipe's values for the options of `command`.

    Raises AmcError if it is missing, malformed or waiting, has no table for the command, or names an unknown option.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AmcError(f"recipe '{path}' cannot be read ({error.strerror}); check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise AmcError(f"recipe '{path}' is not valid TOML ({error}); correct the file") from None
    if content.get("waiting"):
        raise AmcError(f"recipe '{path}' waits for {content['waiting']}, which this version does not have")
    chosen = content.get(command)
    if not isinstance(chosen, dict):
        raise AmcError(f"recipe '{path}' needs a table [{command}] with the options of `amc {command}`")
    unknown = [name for name in chosen if name not in options]
    if unknown:
        raise AmcError(f"recipe '{path}' has the unknown option {unknown[0]!r}; known: {', '.join(sorted(options))}")
    return chosen
