"""The rule for what the user keeps whole."""

from __future__ import annotations

import pytest

from amc.errors import ModelError
from amc.structure.patterns import LOCKED, NOT_CHOSEN, kept_whole

NAMES = {"g0": ("stem",), "g1": ("layer1.0.conv", "layer1.1.conv"), "g2": ("layer10.conv",), "g3": ("head",)}


@pytest.mark.parametrize(
    ("lock", "only", "expected"),
    [
        ((), (), {}),
        (("layer1",), (), {"g1": LOCKED}),  # the module and what is inside, not layer10
        (("layer1*",), (), {"g1": LOCKED, "g2": LOCKED}),
        (("layer1.1.conv",), (), {"g1": LOCKED}),  # any of its names
        ((), ("head", "stem"), {"g1": NOT_CHOSEN, "g2": NOT_CHOSEN}),
        (("stem",), ("stem", "head"), {"g0": LOCKED, "g1": NOT_CHOSEN, "g2": NOT_CHOSEN}),
        (("*",), ("head",), dict.fromkeys(NAMES, LOCKED)),
    ],
)
def test_what_patterns_keep_whole_and_why(
    lock: tuple[str, ...], only: tuple[str, ...], expected: dict[str, str]
) -> None:
    assert kept_whole(NAMES, lock=lock, only=only, kind="layer") == expected


@pytest.mark.parametrize("wrong", [{"lock": ("Head",), "only": ()}, {"lock": (), "only": ("head", "Head")}])
def test_a_pattern_that_matches_nothing_is_refused(wrong: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ModelError, match=r"pattern 'Head' matches no layer; `amc inspect` lists their names"):
        kept_whole(NAMES, **wrong, kind="layer")
