"""The words of a report, which depend on the method (channels or weights) and the goal (budget or reward).

Reads the dictionaries of `config.json` and `summary.json`. Any field may be missing. Pure: no files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amc.errors import BudgetError
from amc.search.budget import Budget, parse_budgets

_NO_BUDGET = ("", "none", "None")
_REWARDED = {"r_flops": "macs", "r_params": "params", "r_latency": "latency"}
_LABELS = {"macs": "MACs", "params": "parameters", "size": "file size", "memory": "memory", "latency": "latency"}


@dataclass(frozen=True, slots=True)
class Words:
    """The words for one method of compression."""

    slices: bool  # layers become smaller; otherwise weights become zero
    result: str  # name of the compressed network: "slim" or "masked"
    holder: str  # subject of one decision: "group" or "layer"
    unit: str  # unit of its keep count: "channels", "weights", …


def words_of(method: object) -> Words:
    """The words for a method, named as in `amc.compression.settings.SearchConfig.method`."""
    name = str(method or "channel")
    if name == "channel":
        return Words(slices=True, result="slim", holder="group", unit="channels")
    unit = name.partition(":")[0]
    known = unit in ("rows", "columns", "blocks")
    return Words(slices=False, result="masked", holder="layer", unit=unit if known else "weights")


def budgets_of(summary: Mapping[str, Any]) -> tuple[Budget, ...]:
    """The run's budgets; empty without a budget or if the text is malformed."""
    text = str(summary.get("budget") or "")
    try:
        return () if text in _NO_BUDGET else parse_budgets(text)
    except BudgetError:
        return ()


def is_priced(summary: Mapping[str, Any]) -> bool:
    """Whether the search has no budget. Policies of any cost then compete by reward."""
    return str(summary.get("budget")) == "none"


def metric_of(summary: Mapping[str, Any]) -> str:
    """The search's metric: "macs", "params", "size", "memory" or "latency"."""
    budgets = budgets_of(summary)
    if budgets:
        return str(budgets[0].metric)
    guarantee = summary.get("guarantee")
    if isinstance(guarantee, Mapping) and guarantee.get("minimise"):
        return str(guarantee["minimise"])
    if summary.get("max_drop") is not None:
        return str(summary.get("minimise") or "macs")
    return _REWARDED.get(str(summary.get("reward")), "macs")


def metric_label(metric: str) -> str:
    """A metric's name within a sentence: "MACs", "parameters"."""
    return _LABELS.get(metric, metric)


def format_allowance(max_drop: float) -> str:
    """Text such as "0.5 points"."""
    return f"{max_drop:g} point{'' if max_drop == 1 else 's'}"


def goal_of(summary: Mapping[str, Any]) -> str:
    """The goal of the search: its budget, its allowed loss, or its reward."""
    if not is_priced(summary):
        return str(summary.get("budget") or "")
    guarantee = summary.get("guarantee")
    drop = guarantee.get("max_drop") if isinstance(guarantee, Mapping) else summary.get("max_drop")
    if drop is not None:
        metric = metric_of(summary)
        least = {"size": "smallest", "memory": "least"}.get(metric, "fewest")
        return f"{least} {metric_label(metric)} within {format_allowance(drop)}"
    return f"reward {summary['reward']}" if summary.get("reward") else "no budget"
