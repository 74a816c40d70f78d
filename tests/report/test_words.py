from typing import Any

import pytest

from amc.report.words import Words, budgets_of, goal_of, is_priced, metric_of, words_of


@pytest.mark.parametrize(
    ("method", "unit"),
    [
        ("fine-grained", "weights"),
        ("2:4", "weights"),
        ("n:8", "weights"),
        ("rows", "rows"),
        ("columns", "columns"),
        ("blocks:4x4", "blocks"),
    ],
)
def test_what_masks_counts_its_own_units(method: str, unit: str) -> None:
    assert words_of(method) == Words(slices=False, result="masked", holder="layer", unit=unit)


def test_what_slices_counts_channels() -> None:
    channels = Words(slices=True, result="slim", holder="group", unit="channels")
    assert words_of("channel") == words_of(None) == channels


@pytest.mark.parametrize(
    ("summary", "metric", "goal"),
    [
        ({"budget": "params<=20%,macs<=50%"}, "params", "params<=20%,macs<=50%"),
        ({"budget": "none", "reward": "r_flops"}, "macs", "reward r_flops"),
        ({"budget": "none", "reward": "r_latency"}, "latency", "reward r_latency"),
        ({"budget": "none", "reward": "own"}, "macs", "reward own"),
        ({"budget": "none", "max_drop": 1.0, "minimise": "size"}, "size", "smallest file size within 1 point"),
        (
            {"budget": "none", "guarantee": {"max_drop": 0.5, "minimise": "params"}},
            "params",
            "fewest parameters within 0.5 points",
        ),
        ({"budget": "none"}, "macs", "no budget"),
        ({}, "macs", ""),
    ],
)
def test_what_the_search_was_about(summary: dict[str, Any], metric: str, goal: str) -> None:
    assert metric_of(summary) == metric
    assert goal_of(summary) == goal


def test_a_budget_that_cannot_be_read_is_none() -> None:
    assert budgets_of({"budget": "half of it"}) == budgets_of({"budget": None}) == budgets_of({"budget": "none"}) == ()
    assert is_priced({"budget": "none"})
    assert not is_priced({"budget": None})
