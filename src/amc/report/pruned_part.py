"""What was pruned of a network, if that was a part of it, in words. Reads dictionaries. Pure: no files."""

from collections.abc import Mapping
from typing import Any

from amc.report.tables import format_count, part_of


def part_sentence(summary: Mapping[str, Any]) -> str:
    """The sentence for `summary.json`; empty if the whole network was pruned."""
    found = part_of(summary, "pruned_part")
    if not found:
        return ""
    counted = "the whole network" if found.get("count") == "whole" else "the part"
    texts = [f"only '{found.get('name')}' was pruned; costs and budgets are those of {counted}"]
    for key, what in (("part", "the part"), ("whole", "the whole network")):
        costs = part_of(found, key)
        if costs:
            before, after = (format_count(part_of(costs, name).get("macs")) for name in ("dense", "slim"))
            texts.append(f"{what}: {before} to {after} MACs")
    return "; ".join(texts)
