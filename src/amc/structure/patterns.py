"""The groups or layers that the user keeps whole: one rule for both. Pure: no torch, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from amc.errors import ModelError

LOCKED = "locked by --lock"
NOT_CHOSEN = "not chosen by --only"


def kept_whole(
    names: Mapping[str, Sequence[str]], *, lock: Sequence[str], only: Sequence[str], kind: str
) -> dict[str, str]:
    """The reason for each item (group or layer) that stays whole.

    names: for each item, the names that a pattern may match. `lock` keeps the items that one of its patterns matches;
    `only`, if it has patterns, keeps the items that none of them matches. `kind` names the items in the error.

    Raises ModelError for a pattern that matches nothing.
    """
    matched = {pattern: {key for key in names if _matches(names[key], pattern)} for pattern in (*lock, *only)}
    for pattern, keys in matched.items():
        if not keys:
            raise ModelError(f"pattern {pattern!r} matches no {kind}; `amc inspect` lists their names")
    locked = set().union(*(matched[pattern] for pattern in lock))
    chosen = set().union(*(matched[pattern] for pattern in only)) if only else set(names)
    return {key: LOCKED if key in locked else NOT_CHOSEN for key in names if key in locked or key not in chosen}


def _matches(names: Sequence[str], pattern: str) -> bool:
    """`layer3.*` matches by wildcards; `layer3` also matches everything inside that module."""
    return any(fnmatchcase(name, pattern) or name.startswith(f"{pattern}.") for name in names)
